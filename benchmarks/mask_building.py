"""How fast masks are built, beside the network's bare forward pass and the reference way.

    python benchmarks/mask_building.py --json mask_building.json

Three ways with the same synthetic images, in one process, in alternating rounds:

    forward     the jitted forward pass alone, on batches that are on the device already
    build       a whole build from JPEG files in memory: decoding, features of every image, maps of
                its candidates, shards on disk, selection, masks written as records
    reference   one image and one feature at a time: forward pass, one channel of the last map over
                its maximum, resized on the host to the image's size

A ratio is the median over the rounds. Compilation is left out of all three.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from corm_jax.errors import UserError
from corm_jax.files import write_json
from corm_jax.masks.building import assemble, selection
from corm_jax.masks.building.config import base_config
from corm_jax.masks.building.encoder import Encoder
from corm_jax.masks.building.store import FeatureStore
from corm_jax.models import create_model
from corm_jax.sharding import create_mesh, put_batch, replicated
from corm_jax.terminal import set_up_terminal

CLASS_NAMES = tuple(f"class{index}" for index in range(10))
FEATURES_PER_CLASS = 5  # as in Salient ImageNet
REFERENCE_IMAGES = 2


class Images:
    """JPEG files in memory; an `ImageSource`."""

    class_names = CLASS_NAMES

    def __init__(self, count: int, size: int) -> None:
        """Draws them: random blobs, which compress as photographs do."""
        rng = np.random.default_rng(0)
        self.file_names = np.array([b"%06d.JPEG" % index for index in range(count)])
        self._files = []
        for _ in range(count):
            blobs = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
            file = io.BytesIO()
            blobs.resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
            self._files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns (encoded image, label) of each index."""
        return [(self._files[index], int(index) % len(CLASS_NAMES)) for index in indices]

    def describe(self, index: int) -> str:
        """Returns where an image is."""
        return f"image {index}"

    def pixels(self) -> np.ndarray:
        """Returns all images, uint8 [n, size, size, 3]."""
        return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in self._files])


def create_encoder(name: str, size: int) -> Encoder:
    """Returns an encoder of random weights."""
    model = create_model(name, num_classes=len(CLASS_NAMES), dtype="float32")
    init = jax.jit(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    )
    variables = jax.device_put(init(), replicated(create_mesh(-1, 1)))
    return Encoder.create(
        model, variables, image_size=size, center_crop_share=1.0, class_names=CLASS_NAMES
    )


def forward_way(encoder: Encoder, images: Images, batch_size: int) -> Callable[[], None]:
    """Returns the forward pass over all images."""
    mesh, pixels = create_mesh(-1, 1), images.pixels()
    starts = range(0, len(images), batch_size)
    batches = [put_batch({"image": pixels[n : n + batch_size]}, mesh)["image"] for n in starts]

    @jax.jit
    def forward(variables: dict, image: jax.Array) -> jax.Array:
        image = image.astype(jnp.float32) / 255.0
        return encoder.model.apply(variables, image, train=False)[0]

    def run() -> None:
        jax.block_until_ready([forward(encoder.variables, batch) for batch in batches])

    return run


def build_way(encoder: Encoder, images: Images, batch_size: int) -> Callable[[], None]:
    """Returns the build of all images' masks, in a new directory each time."""
    from corm_jax.masks.building.scan import Scanner  # imports tensorflow

    config = base_config()
    config.scan.batch_size = batch_size
    scanner = Scanner(encoder, config, create_mesh(-1, 1))

    def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            scanner.scan(path / "train", images)
            store = FeatureStore(path / "train")
            features = selection.select(
                store, encoder.head_weight, features_per_class=FEATURES_PER_CLASS, by="label"
            )
            kinds = {(f.class_index, f.feature): (1.0, 0.0) for f in features}
            plan = assemble.plan(store, features, kinds, top_k=config.masks.top_k)
            missing = plan.pairs()[~store.has_map(plan.images, plan.features)]
            scanner.scan_more(path / "train", images, missing)
            assemble.write_records(
                path / "masks",
                {"train": FeatureStore(path / "train")},
                {"train": plan},
                frame=assemble.frame_of(encoder.image_size, 1.0),
                source="benchmark",
                origin={},
            )

    return run


def reference_way(encoder: Encoder, images: Images) -> Callable[[], None]:
    """Returns the maps of a few images, one pass for each image and feature."""
    encode = jax.jit(lambda variables, image: encoder.encode(variables, image)[2])
    pixels = images.pixels()[:REFERENCE_IMAGES].astype(np.float32) / 255
    size = (encoder.image_size, encoder.image_size)

    def run() -> None:
        for image in pixels:
            masks = []
            for feature in range(FEATURES_PER_CLASS):
                channel = np.asarray(encode(encoder.variables, image[None]))[0, :, :, feature]
                channel = channel / max(channel.max(), 1e-12)
                masks.append(Image.fromarray(channel).resize(size, Image.Resampling.BILINEAR))
            np.max([np.asarray(mask) for mask in masks], axis=0)

    return run


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--images", type=int, default=128, help="a multiple of the batch size")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    arguments = parser.parse_args()
    set_up_terminal()
    if arguments.images % arguments.batch_size:
        parser.error("--images is a multiple of --batch_size")

    count = arguments.images
    try:
        encoder = create_encoder(arguments.model, arguments.image_size)
        images = Images(count, arguments.image_size)
        ways = {
            "forward": (forward_way(encoder, images, arguments.batch_size), count),
            "build": (build_way(encoder, images, arguments.batch_size), count),
            "reference": (reference_way(encoder, images), REFERENCE_IMAGES),
        }
        for run, _ in ways.values():
            run()  # compiles
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in tqdm(range(arguments.rounds), desc="rounds", disable=None):
            for name, (run, number) in ways.items():
                speeds[name].append(number / seconds(run))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    print(
        f"{arguments.model} at {arguments.image_size} pixels, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, {arguments.rounds} rounds"
    )
    for name, values in speeds.items():
        print(f"{name:<10} {statistics.median(values):10.2f} images/s")
    records = []
    for other in ("forward", "reference"):
        pairs = zip(speeds["build"], speeds[other], strict=True)
        ratio = statistics.median(build / beside for build, beside in pairs)
        print(f"build_over_{other}: {ratio:.3f}")
        records.append({"name": f"build_over_{other}", "value": ratio, "unit": "ratio"})
    if arguments.json:
        write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
