from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from corm_jax.errors import UserError
from corm_jax.masks.building.config import build_config
from corm_jax.masks.building.encoder import Encoder
from corm_jax.masks.building.scan import Scanner
from corm_jax.masks.building.splits import Splits, open_splits
from corm_jax.masks.building.store import FeatureStore
from corm_jax.sharding import create_mesh

FILES = ("label", "predicted", "valid", "activations", "candidates", "maps")


@pytest.fixture
def config(make_folder: Callable[..., Path]) -> ConfigDict:
    """Two classes of 17 square images (28 training images), batches of 8, 16 images a shard."""
    config = build_config("folder")
    config.data.folder = str(make_folder(images=17, size=(40, 40)))
    config.scan.batch_size, config.scan.shard_batches, config.scan.candidates = 8, 2, 0
    return config


@pytest.fixture
def splits(config: ConfigDict) -> Splits:
    return open_splits(config)


def run(
    path: Path, encoder: Encoder, splits: Splits, config: ConfigDict, *hosts: tuple[int, int]
) -> FeatureStore:
    scanner = Scanner(encoder, config, create_mesh(-1, 1))
    for host in hosts or ((0, 1),):
        scanner.scan(path, splits.images["train"], host=host)
    return FeatureStore(path)


def test_stored_is_what_the_model_computes_of_the_central_squares(
    encoder: Encoder, splits: Splits, config: ConfigDict, tmp_path: Path
) -> None:
    store = run(tmp_path / "store", encoder, splits, config)
    source = splits.images["train"]
    assert len(store) == len(source) == 28
    folder = Path(config.data.folder)
    images, labels = [], []
    for name in source.file_names.tolist():
        with Image.open(folder / "images" / f"{name.decode()}.jpg") as image:
            square = np.asarray(image.crop((2, 2, 37, 37)), np.float32)  # 0.875 x 40 pixels
        images.append(jax.image.resize(square, (32, 32, 3), "bilinear"))
        labels.append(int(name[5:6]))
    pixels = np.round(np.clip(np.stack(images), 0, 255)) / 255
    logits, activations, maps = map(np.asarray, encoder.encode(encoder.variables, pixels))

    np.testing.assert_array_equal(store.label, labels)
    assert store.valid.all()
    np.testing.assert_array_equal(store.predicted, logits.argmax(axis=1))
    everything = np.arange(28)
    np.testing.assert_allclose(store.activations(everything), activations, rtol=0.01, atol=0.01)
    maximum = maps.max(axis=(1, 2))
    for channel in range(store.channels):
        found = store.maps(everything, np.full(28, channel))
        expected = maps[..., channel] / np.where(maximum > 0, maximum, 1)[:, None, None, channel]
        # Here and there a pixel is rounded the other way, which tells where a map is all but 0.
        assert (np.abs(found / 255 - expected) < 0.02).mean() > 0.99


def test_candidates_are_the_strongest_for_the_label_and_others_are_encoded_again(
    encoder: Encoder, splits: Splits, config: ConfigDict, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", encoder, splits, config)
    config.scan.candidates = 5
    few = run(tmp_path / "few", encoder, splits, config)
    activations = whole.activations(np.arange(28)).astype(np.float32)
    scores = activations * encoder.head_weight.T[whole.label]
    for image in range(28):
        channels = np.arange(64)
        kept = channels[few.has_map(np.full(64, image), channels)]
        assert len(kept) == 5
        lowest = np.sort(scores[image])[-5]
        assert (scores[image, kept] >= lowest - 0.02 * abs(lowest)).all()

    rng = np.random.default_rng(0)
    images, features = np.sort(rng.integers(0, 28, 40)), rng.integers(0, 64, 40)
    pairs = np.unique(np.stack([images, features], axis=1), axis=0)
    missing = pairs[~few.has_map(*pairs.T)]
    scanner = Scanner(encoder, config, create_mesh(-1, 1))
    count = scanner.scan_more(tmp_path / "few", splits.images["train"], missing)
    assert count == len(np.unique(missing[:, 0])) > 8  # more than one batch
    few = FeatureStore(tmp_path / "few")
    assert few.encoded_again == count
    np.testing.assert_array_equal(few.maps(*pairs.T), whole.maps(*pairs.T))


def test_hosts_share_the_shards_and_finished_ones_are_kept(
    encoder: Encoder, splits: Splits, config: ConfigDict, tmp_path: Path
) -> None:
    alone = run(tmp_path / "alone", encoder, splits, config)
    with pytest.raises(UserError, match="shard-00000 is missing"):
        run(tmp_path / "shared", encoder, splits, config, (1, 2))
    run(tmp_path / "shared", encoder, splits, config, (0, 2))
    for shard in ("shard-00000", "shard-00001"):
        for name in FILES:
            files = [tmp_path / where / shard / f"{name}.npy" for where in ("alone", "shared")]
            assert files[0].read_bytes() == files[1].read_bytes(), name
    written = (tmp_path / "alone" / "shard-00000" / "maps.npy").stat().st_mtime_ns
    left = tmp_path / "alone" / ".shard-00001-killed"
    left.mkdir()
    (tmp_path / "alone" / "shard-00001").rename(tmp_path / "gone")
    scanner = Scanner(encoder, config, create_mesh(-1, 1))
    assert scanner.scan(alone.directory, splits.images["train"]) == 12  # of 28
    assert (tmp_path / "alone" / "shard-00000" / "maps.npy").stat().st_mtime_ns == written
    assert not left.exists()
    for name in FILES:
        again = (tmp_path / "alone" / "shard-00001" / f"{name}.npy").read_bytes()
        assert again == (tmp_path / "gone" / f"{name}.npy").read_bytes()


def test_undecodable_image_is_an_error_or_marked(
    encoder: Encoder, splits: Splits, config: ConfigDict, tmp_path: Path
) -> None:
    source = splits.images["train"]
    broken = Path(config.data.folder) / "images" / f"{source.file_names[9].decode()}.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{broken.name} cannot be decoded"):
        run(tmp_path / "store", encoder, splits, config)
    config.data.bad_images = "skip"
    store = run(tmp_path / "store", encoder, splits, config)
    assert np.flatnonzero(~store.valid).tolist() == [9]
