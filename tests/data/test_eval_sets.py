"""Evaluation-only sets: ImageNet-V2, -A and -R through TFDS's real builders, beside ImageNet."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import small_config
from fake_imagenet import WNIDS, jpeg, prepare_test_set, write_ilsvrc
from ml_collections import ConfigDict

from corm_jax.config import extra_sets
from corm_jax.data.dataset import evaluation_loader, occurring_classes, open_dataset
from corm_jax.data.prepare import prepare
from corm_jax.errors import UserError
from corm_jax.masks.writer import MaskWriter
from corm_jax.report import format_table, summary_row
from corm_jax.train import train

V2 = "imagenet_v2/matched-frequency"
GOLDFISH, SHARK = WNIDS[1], "n01484850"  # classes 1 and 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds data/ (ImageNet, V2, A and R, prepared) and masks/ of two of ImageNet's images."""
    root = tmp_path_factory.mktemp("imagenet")
    write_ilsvrc(root / "archives")
    prepare("imagenet2012", root / "data", root / "archives")
    sets = {
        V2: {"0/a.jpeg": jpeg(1), "7/a.jpeg": jpeg(2), "999/b.jpeg": jpeg(3)},
        "imagenet_a": {f"{GOLDFISH}/{i}.jpg": jpeg(i) for i in range(5)},
        # One name in two folders: two images.
        "imagenet_r": {f"{wnid}/art_0.jpg": jpeg(9) for wnid in (GOLDFISH, SHARK)},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, images in sets.items():
            prepare_test_set(name, images, root / "data", root / "archives", patch)
    with MaskWriter(root / "masks", encoding="grid", grid=(7, 7)) as writer:
        for name in ("n01440764_2.JPEG", "ILSVRC2012_val_00000003.JPEG"):
            writer.add(name, core=np.full((7, 7), 255, np.uint8))
    return root


@pytest.fixture
def config(root: Path) -> ConfigDict:
    config = small_config("configs/vit_erm.py", root / "data", train__steps=2)
    config.data.tfds_name, config.data.counterfactual_split = "imagenet2012", ""
    config.data.masks = str(root / "masks")
    config.eval.batch_size = 8
    return config


def test_names_are_separated_by_commas_and_taken_once(config: ConfigDict) -> None:
    assert extra_sets(config) == ()
    config.eval.extra = f" {V2}, imagenet_a,,imagenet_a "
    assert extra_sets(config) == (V2, "imagenet_a")


def test_extra_sets_are_read_without_masks(config: ConfigDict) -> None:
    config.eval.extra = f"{V2},imagenet_r"
    dataset = open_dataset(config)
    assert list(dataset.extra) == [V2, "imagenet_r"]
    # ImageNet's own images alone are counted as joined.
    assert dataset.counts["images"] == 10
    assert dataset.counts["records_without_image"] == 0
    names = {name: set(split.images.file_names) for name, split in dataset.extra.items()}
    assert names[V2] == {b"0/a.jpeg", b"7/a.jpeg", b"999/b.jpeg"}
    assert names["imagenet_r"] == {f"{w}/art_0.jpg".encode() for w in (GOLDFISH, SHARK)}
    loader, count = evaluation_loader(config, dataset.extra[V2], (0, 1))
    (batch,) = loader.batches(0, count)
    assert sorted(batch["label"][batch["weight"] > 0]) == [0, 7, 999]
    assert not batch["has_mask"].any()


def test_the_classes_that_occur_are_those_of_the_labels(config: ConfigDict) -> None:
    config.eval.extra = f"{V2},imagenet_a,imagenet_r"
    extra = open_dataset(config).extra
    occurring = {name: occurring_classes(name, split) for name, split in extra.items()}
    assert {len(classes) for classes in occurring.values()} == {1000}
    assert np.flatnonzero(occurring[V2]).tolist() == [0, 7, 999]
    assert np.flatnonzero(occurring["imagenet_a"]).tolist() == [1]
    assert np.flatnonzero(occurring["imagenet_r"]).tolist() == [1, 2]


@pytest.mark.slow
def test_a_run_reports_each_set(config: ConfigDict, tmp_path: Path) -> None:
    config.eval.extra = f"{V2},imagenet_a,imagenet_r"
    results = train(config, tmp_path / "run")
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["extra_sets"] == {
        V2: {"images": 3, "classes": 3},
        "imagenet_a": {"images": 5, "classes": 1},
        "imagenet_r": {"images": 2, "classes": 2},
    }
    metrics = results["metrics"]
    assert metrics["images"] == 4  # of the validation split alone
    # One of them has a mask: there is no other class to swap its background with.
    assert metrics["images_with_core"] == 1
    assert metrics["images_swapped"] == 0
    assert "swapped_background" not in metrics
    # Among the one class that occurs there, each prediction is right.
    assert metrics["imagenet_a"] == metrics["imagenet_a_plain"] == 1.0
    # The same image twice, of two classes: one of the two predictions is right.
    assert metrics["imagenet_r"] == metrics["imagenet_r_plain"] == 0.5
    assert "1 classes that occur there" in results["definitions"]["imagenet_a"]
    assert results["definitions"].keys() == metrics.keys()
    header, row = format_table([summary_row(results)]).splitlines()
    assert header.split()[-4:] == [V2, "imagenet_a", "imagenet_r", "seconds"]
    assert row.split()[-3:-1] == ["100.0%", "50.0%"]
    # The config of a finished run is compared with the one that is given: the same is no other.
    assert train(config, tmp_path / "run") == results
    config.eval.extra = "imagenet_a"
    with pytest.raises(UserError, match=r"eval.extra: 'imagenet_v2/.*' there, 'imagenet_a' now"):
        train(config, tmp_path / "run")


def test_a_set_that_is_not_prepared_is_named_before_training(config: ConfigDict) -> None:
    config.eval.extra = "imagenet_a,imagenet_v2/topimages"
    with pytest.raises(UserError, match="imagenet_v2/topimages is not prepared under"):
        open_dataset(config)


def test_a_set_of_other_classes_is_refused(config: ConfigDict, shapes_data_dir: Path) -> None:
    """The embedded data has six classes, of which no ImageNet set has any."""
    config.data.tfds_name, config.data.masks = "spurious_shapes/tiny", ""
    (config.data.data_dir, prepared) = (str(shapes_data_dir), Path(config.data.data_dir))
    config.eval.extra = "imagenet_a"
    link = shapes_data_dir / "imagenet_a"
    link.symlink_to(prepared / "imagenet_a")
    try:
        with pytest.raises(UserError, match="the 1000 classes of imagenet_a are not the 6 of"):
            open_dataset(config)
    finally:
        link.unlink()
