"""`masks show`: which images it finds and chooses, and where on them the masks are drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from png_files import WHITE, png_file

from corm_jax.errors import UserError
from corm_jax.masks import images, show
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.resample import resample, validity
from corm_jax.masks.writer import MaskWriter

CENTER_CROP = {"type": "center_crop", "resize": 256, "crop": 224}


def open_records(
    path: Path, frame: dict[str, Any], box: tuple[float, ...] | None = None
) -> MaskRecords:
    with MaskWriter(path, encoding="grid", grid=(1, 1), frame=frame) as writer:
        writer.add("a", core=np.full((1, 1), 255, np.uint8), box=box)
    return MaskRecords.open(path)


@pytest.mark.parametrize(
    ("frame", "box", "expected"),
    [
        ({"type": "full"}, None, (0, 0, 64, 128)),
        # 224/256 of the shorter side, 64, is 56; centred: 4 above and below, 36 left and right.
        (CENTER_CROP, None, (4, 36, 60, 92)),
        ({"type": "box"}, (0, 0.25, 0.5, 1), (0, 32, 32, 128)),
    ],
)
def test_frames_lie_in_the_image_where_they_should(
    tmp_path: Path, frame: dict, box: tuple | None, expected: tuple
) -> None:
    records = open_records(tmp_path / "m", frame, box)
    assert show.frame_edges(records, 0, (64, 128)) == expected


def test_a_mask_fills_its_frame_and_nothing_else() -> None:
    placed = show.place(np.full((2, 2), 200, np.uint8), (1, 2, 3, 5), (4, 6))
    expected = np.zeros((4, 6), np.uint8)
    expected[1:3, 2:5] = 200
    np.testing.assert_array_equal(placed, expected)


def test_a_mask_is_stretched_with_half_pixel_centers() -> None:
    """Cells of 0 and 200 have their centres at 1/4 and 3/4 of a frame 4 pixels wide."""
    placed = show.place(np.array([[0, 200]], np.uint8), (0, 1, 1, 5), (1, 6))
    np.testing.assert_allclose(placed, [[0, 0, 50, 150, 200, 0]], atol=1)


edge = st.floats(0, 1, width=32)


@settings(max_examples=40, deadline=None)
@given(box=st.tuples(edge, edge, edge, edge), seed=st.integers(0, 100))
def test_masks_are_drawn_where_training_sees_them(box: tuple[float, ...], seed: int) -> None:
    (top, bottom), (left, right), size = sorted(box[:2]), sorted(box[2:]), 16
    if bottom - top < 0.1 or right - left < 0.1:
        return
    mask = np.random.default_rng(seed).integers(0, 256, (3, 4), np.uint8)
    found = show.place(mask, (top * size, left * size, bottom * size, right * size), (size, size))
    # The whole image in the coordinates of the frame.
    begin = np.array([-top / (bottom - top), -left / (right - left)])
    end = begin + 1 / np.array([bottom - top, right - left])
    window = np.array([[*begin, *end]], np.float32)
    inside = np.asarray(validity(window, size))[0, ..., 0]
    expected = np.asarray(resample(mask[None].astype(np.float32), window, size))[0, ..., 0]
    centers = (np.arange(size) + 0.5) / size
    near = (
        np.abs(centers[:, None] - [top, bottom]).min(),
        np.abs(centers[:, None] - [left, right]).min(),
    )
    if min(near) > 1e-4:  # rounding decides of pixels whose centre is on the edge
        np.testing.assert_allclose(found, expected * inside, atol=2)


def test_the_tint_is_half_of_the_colour_where_the_mask_is_white() -> None:
    image = np.full((1, 3, 3), 0.4)
    tinted = show.tint(image, np.array([[0, 51, 255]], np.uint8), "lime")
    np.testing.assert_allclose(tinted[0], [[0.4] * 3, [0.36, 0.46, 0.36], [0.2, 0.7, 0.2]])


def write_image(path: Path, color: tuple[int, int, int] = (0, 0, 255)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (128, 64), color).save(path)


def names(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], np.bytes_)


def test_images_of_a_tree_are_found_by_any_of_their_names(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "train/n01440764/n01440764_18.JPEG", "7.png"):
        write_image(tmp_path / name)
    (tmp_path / "train/cat/1.txt").write_text("no image")
    found = images.from_tree(tmp_path, names("cat/1", "n01440764_18.JPEG", "absent", "7"))
    assert found.rows.tolist() == [0, 1, 3]
    assert found.read(0).class_name == "cat"
    assert found.read(1).class_name == "n01440764"
    assert found.read(3).where == str(tmp_path / "7.png")
    assert found.read(3).data == (tmp_path / "7.png").read_bytes()


def test_two_images_for_one_record_are_refused(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/1.jpg"):
        write_image(tmp_path / name)
    assert images.from_tree(tmp_path, names("dog/1")).rows.tolist() == [0]
    with pytest.raises(UserError, match=r"cat/1.jpg and .*dog/1.jpg may both be .* of '1.jpg'"):
        images.from_tree(tmp_path, names("1.jpg"))


def test_a_tree_without_an_image_of_the_records_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "1.jpg")
    with pytest.raises(UserError, match=r"holds no image .* such as 'n01_1.JPEG'"):
        images.from_tree(tmp_path, names("n01_1.JPEG"))
    with pytest.raises(UserError, match="nowhere is not a directory"):
        images.from_tree(tmp_path / "nowhere", names("1"))


def test_images_of_a_data_set_come_with_their_class(shapes_data_dir: Path) -> None:
    from corm_jax.data.tfds_source import TfdsImages, find_prepared

    name = "spurious_shapes/tiny"
    source = TfdsImages(find_prepared(name, shapes_data_dir), "validation")
    wanted = source.file_names[[5, 2]]
    found = images.from_dataset(
        name, shapes_data_dir, "validation", np.array([b"absent", *wanted], np.bytes_)
    )
    assert found.rows.tolist() == [1, 2]
    for row, index in ((1, 5), (2, 2)):
        data, label = source.read([index])[0]
        assert found.read(row).data == data
        assert found.read(row).class_name == source.class_names[label]
    with pytest.raises(UserError, match="try another split"):
        images.from_dataset(name, shapes_data_dir, "validation", names("absent"))


@pytest.fixture
def many(tmp_path: Path) -> MaskRecords:
    with MaskWriter(tmp_path / "many", encoding="png") as writer:
        for row in range(40):
            writer.add(f"{39 - row:02d}", core=png_file(WHITE) if row % 2 else None)
    return MaskRecords.open(tmp_path / "many")


def test_rows_with_masks_are_chosen_by_seed_in_order_of_names(many: MaskRecords) -> None:
    chosen = show.choose(many, None, n=8, seed=1)
    assert len(set(chosen.tolist())) == 8
    assert (chosen % 2 == 1).all()
    assert (np.diff(chosen) < 0).all()  # names are numbered from the last row on
    assert chosen.tolist() == show.choose(many, None, n=8, seed=1).tolist()
    assert chosen.tolist() != show.choose(many, None, n=8, seed=2).tolist()
    assert len(show.choose(many, None, n=100, seed=0)) == 20


def test_only_rows_with_an_image_are_chosen(many: MaskRecords) -> None:
    found = images.Images(np.array([2, 3, 5]), lambda row: pytest.fail("not read yet"))
    assert sorted(show.choose(many, found, n=16, seed=0)) == [3, 5]
    found = images.Images(np.array([2]), lambda row: pytest.fail("not read yet"))
    with pytest.raises(UserError, match="no record with a mask that has an image"):
        show.choose(many, found, n=16, seed=0)


def pixel_count(path: Path, color: tuple[int, int, int]) -> int:
    with Image.open(path) as picture:
        return int((np.abs(np.asarray(picture.convert("RGB"), int) - color).sum(-1) < 12).sum())


def test_the_sheet_shows_the_masks_over_their_images(tmp_path: Path) -> None:
    """Blue images, the lower half core: there it is half lime, half blue."""
    write_image(tmp_path / "images/$x_{1.png")
    with MaskWriter(tmp_path / "m", encoding="grid", grid=(1, 1), frame={"type": "box"}) as writer:
        writer.add("$x_{1.png", core=np.full((1, 1), 255, np.uint8), box=(0.5, 0, 1, 1))
    code, output, errors = run(
        ["show", str(tmp_path / "m"), f"--images={tmp_path}/images"], module="corm_jax.masks"
    )
    assert (code, errors) == (0, "")
    assert output == f"1 of 1 records: {tmp_path}/m/show.png\n"
    blue = pixel_count(tmp_path / "m/show.png", (0, 0, 255))
    mixed = pixel_count(tmp_path / "m/show.png", (0, 127, 127))
    assert blue > 5000
    assert mixed == pytest.approx(blue, rel=0.1)


def test_without_images_the_masks_are_drawn_alone(png_records: Path, tmp_path: Path) -> None:
    code, output, errors = run(
        ["show", str(png_records), f"--output={tmp_path}/new/sheet.png", "--n=2"],
        module="corm_jax.masks",
    )
    assert (code, errors) == (0, "")
    assert "name their images with --images, --folder or --dataset" in output
    background = np.array([25.5] * 3)
    for color in ((0, 255, 0), (255, 0, 0)):  # of the core and of the spurious mask
        half = tuple(int(v) for v in (background + color) / 2)
        assert pixel_count(tmp_path / "new/sheet.png", half) > 5000


def test_photographs_and_their_masks_fit_by_folder(pets: Path, tmp_path: Path) -> None:
    with MaskWriter(tmp_path / "m", encoding="png") as writer:
        for path in sorted(pets.glob("masks/*/*.png"))[::100]:
            writer.add(f"{path.parent.name}/{path.stem}", core=path.read_bytes())
    records = MaskRecords.open(tmp_path / "m")
    found = images.from_tree(pets / "images", records.file_names)
    rows = show.choose(records, found, n=4, seed=0)
    show.draw(tmp_path / "sheet.png", records, found, rows)
    assert (tmp_path / "sheet.png").stat().st_size > 100_000


@pytest.mark.parametrize("flags", [["--n=0"], ["--n=1000000"], ["--seed=-1"]])
def test_senseless_numbers_are_refused(png_records: Path, flags: list[str]) -> None:
    code, _, errors = run(["show", str(png_records), *flags], module="corm_jax.masks")
    assert (code, errors) == (1, "error: --n is a number from 1 to 400, --seed a number from 0\n")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    records = open_records(tmp_path / "m", {"type": "full"})
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    found = images.from_tree(tmp_path / "tree", records.file_names)
    with pytest.raises(UserError, match=r"tree/a.jpg cannot be decoded"):
        show.draw(tmp_path / "sheet.png", records, found, np.array([0]))
    assert not (tmp_path / "sheet.png").exists()
