"""Tiny archives in the layouts of ImageNet and its test sets, through TFDS's real builders."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from corm_jax.data.prepare import prepare

WNIDS = ("n01440764", "n01443537")  # ImageNet's classes 0 and 1


def jpeg(seed: int = 0) -> bytes:
    """Returns an image of noise, 50 x 30 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 50, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def write_ilsvrc(path: Path) -> None:
    """Writes the two ILSVRC archives: 3 training images of each of 2 classes, 4 for validation."""
    path.mkdir()
    inner = {f"{wnid}.tar": tar({f"{wnid}_{i}.JPEG": jpeg() for i in range(3)}) for wnid in WNIDS}
    (path / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    validation = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg() for i in range(1, 5)}
    (path / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))


ARCHIVES = {  # of a data set: its archive, and the folder in it
    "imagenet_a": ("imagenet-a.tar", "imagenet-a"),
    "imagenet_r": ("imagenet-r.tar", "imagenet-r"),
    "imagenet_v2/matched-frequency": (
        "imagenetv2-matched-frequency.tar.gz",
        "imagenetv2-matched-frequency-format-val",
    ),
}


def prepare_test_set(
    name: str,
    images: dict[str, bytes],
    data_dir: Path,
    manual_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prepares a test set from an archive of `images` ("class/file name" -> JPEG) in `manual_dir`.

    TFDS takes the archive for the published one: that one's checksum is replaced by this one's.
    """
    file, folder = ARCHIVES[name]
    manual_dir.mkdir(exist_ok=True)
    content = {f"{folder}/{path}": data for path, data in images.items()}
    (manual_dir / file).write_bytes(tar(content, "w:gz" if file.endswith(".gz") else "w"))
    infos = tfds.builder_cls(name.partition("/")[0]).url_infos
    (url,) = (url for url, info in infos.items() if info.filename == file)
    monkeypatch.setitem(infos, url, tfds.download.checksums.compute_url_info(manual_dir / file))
    prepare(name, data_dir, manual_dir)
