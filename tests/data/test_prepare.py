"""`python -m corm_jax.data prepare`, in real processes, and ImageNet's real layout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fake_imagenet import WNIDS, jpeg, prepare_test_set, tar, write_ilsvrc

from corm_jax.config import base_config
from corm_jax.data.dataset import evaluation_loader, open_dataset
from corm_jax.data.prepare import prepare
from corm_jax.data.spurious_shapes import SpuriousShapes
from corm_jax.errors import UserError
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import MaskWriter

TINY = SpuriousShapes.builder_configs["tiny"]


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "corm_jax.data", "prepare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": "/nowhere"},
    )


def test_processes_at_the_same_time_draw_the_embedded_data_once(tmp_path: Path) -> None:
    arguments = ("--dataset=spurious_shapes/tiny", f"--data_dir={tmp_path}")
    processes = [start(*arguments) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert f"spurious_shapes/tiny train: {TINY.train_images} images" in output
    (masks,) = tmp_path.glob("spurious_shapes/tiny/*/mask_records")
    assert len(MaskRecords.open(masks).file_names) == TINY.train_images + 2 * TINY.validation_images
    assert not list(tmp_path.rglob("*incomplete*"))


def test_an_error_is_one_line_and_a_failure(tmp_path: Path) -> None:
    process = start("--dataset=imagenet2012", f"--data_dir={tmp_path}")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output == ""
    message = errors.strip().splitlines()[-1]
    assert message.startswith("error: imagenet2012 needs --manual_dir=DIR: ")
    assert "ILSVRC2012_img_train.tar" in message
    assert "Traceback" not in errors


def test_imagenet_names_the_archive_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"manual_dir={tmp_path / 'no'} is not a directory"):
        prepare("imagenet2012", tmp_path, tmp_path / "no")
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val.tar is missing"):
        prepare("imagenet2012", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagnet2012", r"unknown data set 'imagnet2012' \(did you mean 'imagenet2012'\?\)"),
        ("spurious_shape/tiny", r"did you mean 'spurious_shapes'\?"),
        ("spurious_shapes/tinny", r"config of spurious_shapes 'tinny' \(did you mean 'tiny'\?\)"),
        ("imagenet_v2", r"config of imagenet_v2 ''; valid: matched-frequency, threshold-0.7, top"),
        ("glue/colla", r"config of glue 'colla' \(did you mean 'cola'\?\)"),
        ("cifar10", r"cifar10/\S+ cannot be used: its examples lack file_name"),
    ],
)
def test_a_data_set_that_cannot_be_prepared_is_refused_at_once(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(name, tmp_path, None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'file'}"):
        prepare("spurious_shapes/tiny", tmp_path / "file", None)


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    path = tmp_path / "archives"
    write_ilsvrc(path)
    return path


def test_imagenet_of_tiny_archives_is_prepared_and_joined(
    tmp_path: Path, archives: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare("imagenet2012", tmp_path / "data", archives)
    assert "imagenet2012 train: 6 images, 1000 classes" in capsys.readouterr().out
    with MaskWriter(tmp_path / "masks", encoding="grid", grid=(7, 7)) as writer:
        for number, name in enumerate(["n01440764_2.JPEG", "ILSVRC2012_val_00000003.JPEG"]):
            writer.add(name, core=np.full((7, 7), 100 + number, np.uint8))
    config = base_config("erm")
    config.data.tfds_name, config.data.data_dir = "imagenet2012", str(tmp_path / "data")
    config.data.counterfactual_split, config.data.masks = "", str(tmp_path / "masks")
    config.eval.batch_size = 4
    dataset = open_dataset(config)
    assert dataset.counts == {
        "images": 10,
        "images_without_record": 8,
        "records_without_image": 0,
    }
    assert dataset.class_names[:2] == WNIDS
    names = dataset.train.images.file_names
    assert sorted(names) == [f"{w}_{i}.JPEG".encode() for w in WNIDS for i in range(3)]
    assert names[dataset.train.has_mask].tolist() == [b"n01440764_2.JPEG"]
    loader, count = evaluation_loader(config, dataset.validation, (0, 1))
    (batch,) = loader.batches(0, count)
    (masked,) = np.flatnonzero(batch["has_mask"])
    assert dataset.validation.images.file_names[masked] == b"ILSVRC2012_val_00000003.JPEG"
    assert (batch["core_grid"][masked] == 101).all()
    # The labels of ILSVRC's first four validation images are public.
    wnids = [dataset.class_names[label] for label in batch["label"]]
    order = np.argsort(dataset.validation.images.file_names)
    assert [wnids[i] for i in order] == ["n01751748", "n09193705", "n02105855", "n04263257"]


def test_an_archive_that_is_cut_off_is_reported(tmp_path: Path, archives: Path) -> None:
    archive = archives / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:9000])
    with pytest.raises(
        UserError, match=r"archive in .*/archives is damaged \(unexpected end of data\)"
    ):
        prepare("imagenet2012", tmp_path / "data", archives)


def test_masks_must_be_named_for_a_data_set_without_its_own(tmp_path: Path, archives: Path) -> None:
    prepare("imagenet2012", tmp_path / "data", archives)
    config = base_config("erm")
    config.data.tfds_name, config.data.data_dir = "imagenet2012", str(tmp_path / "data")
    with pytest.raises(UserError, match=r"imagenet2012 has no masks.*--config.data.masks=DIR"):
        open_dataset(config)


def test_preparing_again_needs_no_archives_and_leaves_every_file_as_it_is(
    tmp_path: Path, archives: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare("imagenet2012", tmp_path / "data", archives)
    first = capsys.readouterr().out
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*") if p.is_file()}
    prepare("imagenet2012", tmp_path / "data", None)
    assert capsys.readouterr().out.splitlines()[-3:] == first.splitlines()[-3:]
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*") if p.is_file()}


def test_other_numbers_of_images_than_published_are_said(
    tmp_path: Path, archives: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare("imagenet2012", tmp_path / "data", archives)
    messages = [r.getMessage() for r in caplog.records if r.name == "corm_jax.data.prepare"]
    assert messages == [
        "train: 6 images, where imagenet2012 has 1281167",
        "validation: 4 images, where imagenet2012 has 50000",
    ]


def test_images_that_cannot_be_decoded_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("corm_jax.data.prepare.SAMPLED_EVERY", 1)
    images = {f"{WNIDS[0]}/{i}.jpg": jpeg(i) for i in range(4)}
    images[f"{WNIDS[1]}/cut.jpg"] = jpeg()[:300]
    images[f"{WNIDS[1]}/text.jpg"] = b"no image"
    prepare_test_set("imagenet_a", images, tmp_path / "data", tmp_path / "manual", monkeypatch)
    (message,) = (r.getMessage() for r in caplog.records if "decoded" in r.getMessage())
    assert message.startswith("test: 2 of 6 images looked at cannot be decoded, such as imagenet_a")
    assert message.endswith("--config.data.bad_images=skip")


def test_another_archive_than_the_published_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "imagenet-a.tar").write_bytes(tar({"imagenet-a/n01440764/0.jpg": jpeg()}))
    with pytest.raises(UserError, match=f"{tmp_path}/imagenet-a.tar, has wrong checksum: damaged"):
        prepare("imagenet_a", tmp_path / "data", tmp_path)
    assert not list((tmp_path / "data" / "imagenet_a").iterdir())


def test_without_network_it_is_said_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("requests.Session.get", refuse)
    with pytest.raises(UserError) as caught:
        prepare("imagenet_a", tmp_path, None)
    (url,) = tfds.builder_cls("imagenet_a").url_infos
    assert str(caught.value) == (
        "imagenet_a cannot be prepared: no route. Without network, put what it downloads into a "
        f"directory and name that with --manual_dir: imagenet-a.tar ({url})"
    )
