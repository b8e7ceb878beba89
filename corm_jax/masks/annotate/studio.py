"""What is shown of a pair: its top images, heat maps over them, and feature-attack images."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from ml_collections import ConfigDict
from PIL import Image

from corm_jax.data import order, preprocess
from corm_jax.data.pipeline import ImageSource, Loader
from corm_jax.errors import UserError
from corm_jax.files import read_json, replacing
from corm_jax.masks.annotate import attack
from corm_jax.masks.annotate.pairs import TOP_IMAGES, Pairs, top_images
from corm_jax.masks.annotate.pictures import Maker
from corm_jax.masks.building.encoder import Encoder, activation_maps, open_encoder
from corm_jax.masks.building.splits import open_splits, unmasked
from corm_jax.masks.building.store import FeatureStore, read_header
from corm_jax.sharding import create_mesh

COLORS = colormaps["turbo"]
OPACITY = 0.6  # of the heat map's colour where the feature is most active
REDDEST = 0.9  # of the colours: beyond they are brown, hard to see on dark images


@dataclass(frozen=True)
class Studio:
    """Makes pictures, as the encoder sees the images: PNG files of its input's size.

    Attributes:
      pairs: the pairs.
      store: of the training images.
      images: the training images.
      encoder: the encoder that selected the features.
      cache: directory where attacked images are kept.
    """

    pairs: Pairs
    store: FeatureStore
    images: ImageSource
    encoder: Encoder
    cache: Path

    def makers(self) -> dict[str, Maker]:
        """Returns what makes each kind of picture of the pair of a number."""
        run_attack, run_maps = attack.make_attack(self.encoder), _make_maps(self.encoder)

        def make_images(number: int) -> list[bytes]:
            return [png(image) for image in self._load(number)[0]]

        def make_maps(number: int) -> list[bytes]:
            shown, padded = self._load(number)
            maps = run_maps(padded, self.pairs.features[number].feature)
            return [png(overlay(*pair)) for pair in zip(shown, maps, strict=False)]

        def make_attacks(number: int) -> list[bytes]:
            paths = self._attack_paths(number)
            if not all(path.exists() for path in paths):
                _, padded = self._load(number)
                attacked, _ = run_attack(padded, self.pairs.features[number].feature)
                for path, image in zip(paths, attacked, strict=False):
                    with replacing(path) as temporary:
                        temporary.write_bytes(png(image))
            return [path.read_bytes() for path in paths]

        return {"images": make_images, "maps": make_maps, "attacks": make_attacks}

    def _load(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns uint8 [n, S, S, 3], the top images of a pair, and the same padded."""
        top = top_images(self.store, self.pairs.features[number])
        if not len(top):
            size = self.encoder.image_size
            blank = np.zeros((TOP_IMAGES, size, size, 3), np.uint8)
            return blank[:0], blank
        split = unmasked(self.images)
        operations = preprocess.evaluation(
            split.masks,
            image_size=self.encoder.image_size,
            share=self.encoder.center_crop_share,
        )
        select = order.evaluation_order(top, batch_size=TOP_IMAGES)
        [batch] = Loader(split, select, operations, bad_images="error").batches(0, 1)
        return batch["image"][: len(top)], batch["image"]

    def _attack_paths(self, number: int) -> list[Path]:
        feature = self.pairs.features[number]
        directory = self.cache / f"class-{feature.class_index:04}-feature-{feature.feature:04}"
        count = len(top_images(self.store, feature))
        return [directory / f"{rank}.png" for rank in range(1, count + 1)]


def open_studio(workdir: Path, pairs: Pairs) -> Studio:
    """Opens what a build left in its workdir.

    Raises:
      UserError: if something is missing, or the encoder or the images are others than those that
        the features were selected with; says what to do.
    """
    path = workdir / "store" / "train"
    header, store = read_header(path), FeatureStore(path)
    config = ConfigDict(read_json(workdir / "config.json"))
    images = open_splits(config).images["train"]
    # Pictures come one by one: one device is enough.
    mesh = create_mesh(-1, 1, jax.local_devices()[:1])
    encoder = open_encoder(config, images.class_names, mesh)
    if encoder.fingerprint() != header["encoder"]:
        raise UserError(
            f"the encoder {config.encoder.path} has changed since {workdir} was built; build with "
            "it again in another --workdir"
        )
    if not np.array_equal(images.file_names, store.file_names):
        raise UserError(
            f"the images have changed since {workdir} was built; build again in another --workdir"
        )
    # Attacks of other images, another encoder or another recipe are other pictures.
    recipe = (attack.STEPS, attack.STEP_PER_SIDE, attack.RADIUS_PER_SIDE)
    content = json.dumps([header["encoder"], header["file_names"], recipe])
    cache = workdir / "attacks" / hashlib.sha256(content.encode()).hexdigest()[:16]
    return Studio(pairs, store, images, encoder, cache)


def _make_maps(encoder: Encoder) -> Callable[[np.ndarray, int], np.ndarray]:
    """Compiles images uint8 [B, S, S, 3], feature -> neural activation maps float32 [B, h, w]."""

    @jax.jit
    def run(variables: dict, images: jax.Array, feature: jax.Array) -> jax.Array:
        maps = encoder.encode(variables, images.astype(jnp.float32) / 255.0)[2]
        return activation_maps(maps[..., feature][..., None])[..., 0]

    return lambda images, feature: np.asarray(run(encoder.variables, images, jnp.int32(feature)))


def overlay(image: np.ndarray, activation_map: np.ndarray) -> np.ndarray:
    """Lays a heat map over an image in grey: the more active the feature, the more of its colour.

    Args:
      image: uint8 [S, S, 3].
      activation_map: float [h, w] in [0, 1], resized bilinearly with half-pixel centres.

    Returns:
      uint8 [S, S, 3].
    """
    grid = Image.fromarray(activation_map.astype(np.float32))
    heat = np.asarray(grid.resize(image.shape[1::-1], Image.Resampling.BILINEAR)).clip(0.0, 1.0)
    opacity = OPACITY * heat[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    mixed = (1 - opacity) * grey + opacity * 255 * COLORS(REDDEST * heat)[..., :3]
    return np.rint(mixed).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """Returns an image uint8 [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
