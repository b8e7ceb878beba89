import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import open_format, read_format

from corm_jax.errors import UserError
from corm_jax.masks.records import FULL_FRAME
from corm_jax.masks.sources import folder

SOFT = np.array([[0, 100, 255], [7, 255, 200]], np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str = "L", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "masks"
    save(root / "n01440764/n01440764_18.png", SOFT)
    save(root / "n01443537/n01443537_2.v1.PNG", SOFT, "1", bits=1)
    save(root / "n01443537/n01443537_3.jpg", np.full((8, 8), 255, np.uint8))
    return root


def test_masks_are_read_by_path(tree: Path) -> None:
    rows = read_format(folder, tree)
    assert list(rows) == [
        "n01440764/n01440764_18",
        "n01443537/n01443537_2.v1",
        "n01443537/n01443537_3",
    ]
    core = [row.core for row in rows.values()]
    assert all(mask.dtype == np.uint8 for mask in core)
    assert core[0].tolist() == SOFT.tolist()
    assert set(np.unique(core[1])) == {0, 255}
    assert core[2].tolist() == np.full((8, 8), 255).tolist()
    assert all(row.spurious is None for row in rows.values())


def test_source_tells_its_size_frame_and_what_it_skipped(tree: Path) -> None:
    (tree / "readme.txt").write_text("")
    (tree / ".DS_Store").write_text("")
    (tree / "n01440764/._n01440764_18.png").write_text("")
    source = open_format(folder, tree)
    assert len(source) == len(list(source.rows())) == 3
    assert source.frame == FULL_FRAME
    assert list(source.skipped.values()) == [1]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{stem}.JPEG", "n01440764_18.JPEG"),
        ("{path}.png", "n01440764/n01440764_18.png"),
        ("train/{parent}/{stem}", "train/n01440764/n01440764_18"),
    ],
)
def test_name_follows_the_template(tree: Path, template: str, name: str) -> None:
    assert name in read_format(folder, tree, f"--name={template}")


def test_fields_in_a_files_own_name_are_not_filled_in(tmp_path: Path) -> None:
    save(tmp_path / "m/a/{parent}.png", SOFT)
    assert list(read_format(folder, tmp_path / "m", "--name={stem}-{parent}")) == ["{parent}-a"]


def test_spurious_masks_join_by_path_whatever_the_suffix(tree: Path, tmp_path: Path) -> None:
    spurious = tmp_path / "spurious"
    white = np.full((4, 4), 255, np.uint8)
    save(spurious / "n01440764/n01440764_18.jpeg", white)
    save(spurious / "n01440764/n01440764_99.png", white)
    rows = read_format(folder, tree, f"--spurious={spurious}", "--name={stem}.JPEG")
    assert len(rows) == 4
    both, alone = rows["n01440764_18.JPEG"], rows["n01440764_99.JPEG"]
    assert both.core.tolist() == SOFT.tolist()
    assert both.spurious.tolist() == white.tolist()
    assert alone.core is None
    assert alone.spurious.tolist() == white.tolist()
    assert rows["n01443537_3.JPEG"].spurious is None


def test_masks_of_a_centre_crop(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((4, 4), 255, np.uint8))
    source = open_format(folder, tmp_path, "--frame=center_crop:256,224")
    assert source.frame == {"type": "center_crop", "resize": 256, "crop": 224}
    assert len(list(source.rows())) == 1
    save(tmp_path / "b.png", SOFT)
    with pytest.raises(UserError, match=r"b\.png is 3 x 2 pixels, no square"):
        list(open_format(folder, tmp_path, "--frame=center_crop:256,224").rows())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--frame=center", "--frame=center is not full or center_crop:RESIZE,CROP"),
        ("--frame=center_crop:224,256", r"outside its image \(0 < crop <= resize\)"),
        ("--name={stam}", r"unknown \{stam\} \(did you mean 'stem'\?\); valid: \{path\}, \{stem\}"),
        ("--name={}.png", r"unknown \{\}"),
        ("--name=mask", "gives every image one name"),
        ("--spurious=nowhere", "nowhere is not a directory"),
    ],
)
def test_wrong_options_are_refused(tree: Path, flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_format(folder, tree, flag)


def test_two_masks_of_one_path_are_refused(tree: Path) -> None:
    save(tree / "n01440764/n01440764_18.jpg", SOFT)
    with pytest.raises(UserError, match=r"18\.jpg and .*18\.png are masks of one name"):
        open_format(folder, tree)


def test_two_masks_of_one_name_are_refused(tree: Path) -> None:
    save(tree / "other/n01440764_18.png", SOFT)
    assert len(open_format(folder, tree)) == 4
    message = r"n01440764/n01440764_18 and other/n01440764_18 .* one name, 'n01440764_18.JPEG'"
    with pytest.raises(UserError, match=message):
        open_format(folder, tree, "--name={stem}.JPEG")


@pytest.mark.parametrize("label", [1, 15])
def test_label_maps_are_refused(tmp_path: Path, label: int) -> None:
    save(tmp_path / "a.png", SOFT // 255 * label)
    with pytest.raises(UserError, match=rf"a\.png, is {label} of 255; write 255 on the object"):
        open_format(folder, tmp_path)


def test_spurious_label_maps_are_refused(tree: Path, tmp_path: Path) -> None:
    save(tmp_path / "s/a.png", SOFT // 255)
    with pytest.raises(UserError, match="is 1 of 255"):
        open_format(folder, tree, f"--spurious={tmp_path / 's'}")


def test_black_masks_are_masks(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    assert not read_format(folder, tmp_path)["a"].core.any()


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("a.png", "RGB", "8-bit RGB PNG"),
        ("a.png", "P", "palette PNG"),
        ("a.png", "LA", "grey with alpha PNG"),
        ("a.png", "I;16", "16-bit grey PNG"),
        ("a.jpg", "RGB", "JPEG of mode RGB"),
        ("a.jpg", "CMYK", "JPEG of mode CMYK"),
    ],
)
def test_pictures_that_are_no_masks_are_refused(
    tmp_path: Path, name: str, mode: str, message: str
) -> None:
    save(tmp_path / name, SOFT, mode)
    with pytest.raises(UserError, match=rf"{name} is a.*{message}.*convert it to 8-bit grey"):
        open_format(folder, tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("keep", [0, 10, 60, -20])
def test_damaged_files_are_named(tmp_path: Path, name: str, keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    save(tmp_path / name, noise)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{name}"):
        open_format(folder, tmp_path)


def test_a_file_of_another_format_is_refused_whatever_its_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.gif", SOFT)
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png"):
        open_format(folder, tmp_path)


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a directory"):
        open_format(folder, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no masks \(\.png, \.jpg, \.jpeg\)"):
        open_format(folder, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_directory_is_reported(tree: Path) -> None:
    (tree / "n01440764").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot read .*n01440764: Permission denied"):
            open_format(folder, tree)
    finally:
        (tree / "n01440764").chmod(0o755)
