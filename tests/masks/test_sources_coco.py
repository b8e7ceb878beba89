import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as pycocotools_mask
from sources import open_format, read_format

from corm_jax.errors import UserError
from corm_jax.masks.records import FULL_FRAME
from corm_jax.masks.sources import coco
from corm_jax.masks.sources.segmentation import decode

HEIGHT, WIDTH = 4, 6
# Columns 1 to 2 of rows 1 to 3, and its run lengths column by column, from the top.
SQUARE = [1, 1, 3, 1, 3, 4, 1, 4]
SQUARE_RUNS = [5, 3, 1, 3, 12]
SQUARE_MASK = np.zeros((HEIGHT, WIDTH), bool)
SQUARE_MASK[1:4, 1:3] = True


def annotation(number: int, category: int = 1, image: int = 7, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": [SQUARE],
        "area": 6.0,
        "iscrowd": 0,
        "bbox": [1, 1, 2, 3],
    } | changes


def content(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT, "license": 1},
            {"id": 7, "file_name": "val/a.jpg", "width": WIDTH, "height": HEIGHT, "license": 1},
        ],
        "annotations": list(annotations),
        "categories": [{"id": 1, "name": "otter"}, {"id": 2, "name": "sea", "supercategory": "x"}],
    }


def write(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(value))
    return path


def test_a_polygon_fills_the_pixels_between_its_corners() -> None:
    assert np.array_equal(decode([SQUARE], HEIGHT, WIDTH, ""), SQUARE_MASK)


def test_polygons_of_an_instance_are_united() -> None:
    right = [4, 0, 6, 0, 6, 2, 4, 2]
    expected = SQUARE_MASK.copy()
    expected[:2, 4:] = True
    assert np.array_equal(decode([SQUARE, right], HEIGHT, WIDTH, ""), expected)


def test_run_lengths_go_down_the_columns() -> None:
    segmentation = {"size": [HEIGHT, WIDTH], "counts": SQUARE_RUNS}
    assert np.array_equal(decode(segmentation, HEIGHT, WIDTH, ""), SQUARE_MASK)


def test_compressed_run_lengths_by_hand() -> None:
    # 5 3 1 3-3 12-1: each fits five bits with its sign, plus 48.
    segmentation = {"size": [HEIGHT, WIDTH], "counts": "5310;"}
    assert np.array_equal(decode(segmentation, HEIGHT, WIDTH, ""), SQUARE_MASK)


@given(st.data())
def test_run_lengths_are_what_pycocotools_writes(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    share = data.draw(st.sampled_from([0, 0.01, 0.5, 0.99, 1]))
    mask = generator.random((height, width)) < share
    encoded = pycocotools_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": [height, width], "counts": encoded["counts"].decode()}
    assert np.array_equal(decode(segmentation, height, width, ""), mask)


@given(st.data())
def test_polygons_are_what_pillow_draws_but_for_their_border(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(20, 60)), data.draw(st.integers(20, 60))
    angles = np.sort(data.draw(st.lists(st.floats(0, 6.28), min_size=3, max_size=9)))
    radius = data.draw(st.floats(5, 10))
    corners = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) + [width / 2, height / 2]
    mask = decode([corners.ravel().tolist()], height, width, "")
    # Pillow samples at pixel centres of a picture 8 times as large.
    picture = Image.new("L", (8 * width, 8 * height))
    ImageDraw.Draw(picture).polygon([tuple(corner) for corner in 8 * corners], fill=1)
    covered = np.asarray(picture).reshape(height, 8, width, 8).mean(axis=(1, 3))
    perimeter = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1).sum()
    assert abs(mask.sum() - covered.sum()) <= 0.7 * perimeter + 1
    assert not mask[covered == 0].sum() > perimeter + 2


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "no segmentation; for its box, import --format=boxes"),
        (None, "neither polygons nor run lengths"),
        ({"counts": SQUARE_RUNS}, "neither polygons nor run lengths"),
        ([[1, 1, 3, 3]], "3 or more corners"),
        ([[1, 1, 3, 1, 3, 4, 1]], "3 or more corners"),
        ([SQUARE, ["1", 1, 3, 1, 3, 4]], "3 or more corners"),
        ([1, 1, 3, 1, 3, 4], "3 or more corners"),
        ([[1, 1, 7.5, 1, 3, 4]], "corner 7.5, 1 is outside its image of 6 x 4 pixels"),
        ([[1, 1, 3, 1, 3, 5.1]], "corner 3, 5.1 is outside"),
        ([[-1.1, 1, 3, 1, 3, 4]], "corner -1.1, 1 is outside"),
        ([[1, float("nan"), 3, 1, 3, 4]], "corner 1, nan is outside"),
        ({"size": [WIDTH, HEIGHT], "counts": SQUARE_RUNS}, r"of size \[6, 4\], .* \[4, 6\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 3]}, "runs of 8 pixels, the image has 24"),
        ({"size": [HEIGHT, WIDTH], "counts": [30, -6]}, "the counts are no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [12.5, 11.5]}, "the counts are no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": 24}, "the counts are no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "runs of 0 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "5310"}, "runs of 12 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "5310X"}, "compressed counts are cut off"),
        ({"size": [HEIGHT, WIDTH], "counts": "53 10;"}, "character ' ' in the compressed"),
        ({"size": [HEIGHT, WIDTH], "counts": "53é10;"}, "character 'é' in the compressed"),
        ({"size": [HEIGHT, WIDTH], "counts": "O"}, "the counts are no run lengths"),
    ],
)
def test_bad_segmentations_are_refused_with_their_annotation(
    tmp_path: Path, segmentation: Any, message: str
) -> None:
    path = write(tmp_path, content(annotation(1), annotation(41, segmentation=segmentation)))
    with pytest.raises(UserError, match=rf"instances\.json: annotation 41.*{message}"):
        read_format(coco, path)


@pytest.mark.parametrize("corner", [-1, -0.4])
def test_a_corner_may_be_a_pixel_outside(corner: float) -> None:
    polygon = [corner, corner, 6 - corner, corner, 6 - corner, 4 - corner, corner, 4 - corner]
    assert decode([polygon], HEIGHT, WIDTH, "").all()


def test_the_core_mask_is_the_union_of_the_instances(tmp_path: Path) -> None:
    crowd = {"size": [HEIGHT, WIDTH], "counts": [20, 4]}  # the last column
    path = write(tmp_path, content(annotation(1), annotation(2, segmentation=crowd, iscrowd=1)))
    source = open_format(coco, path)
    assert (len(source), source.frame) == (1, FULL_FRAME)
    (row,) = source.rows()
    assert row.core.dtype == np.uint8
    assert row.spurious is None
    assert row.core.tolist() == [
        [0, 0, 0, 0, 0, 255],
        [0, 255, 255, 0, 0, 255],
        [0, 255, 255, 0, 0, 255],
        [0, 255, 255, 0, 0, 255],
    ]


def test_the_class_is_that_of_most_pixels_whatever_area_says(tmp_path: Path) -> None:
    column = {"size": [HEIGHT, WIDTH], "counts": [20, 4]}
    path = write(
        tmp_path,
        content(
            annotation(1, category=1, segmentation=column, area=99),
            annotation(2, category=1, segmentation=column, area=99),  # the same pixels
            annotation(3, category=2),  # 6 pixels
        ),
    )
    rows = read_format(coco, path, "--name={class}/{stem}.JPEG")
    assert np.array_equal(rows["sea/a.JPEG"].core == 255, SQUARE_MASK)


def test_the_smaller_category_wins_a_tie(tmp_path: Path) -> None:
    path = write(tmp_path, content(annotation(1, category=2), annotation(2, category=1)))
    assert list(read_format(coco, path, "--name={class}")) == ["otter"]


def test_rows_follow_the_images_and_empty_ones_are_counted(tmp_path: Path) -> None:
    value = content(annotation(1, image=7), annotation(2, image=9), annotation(3, image=5))
    nothing = {"size": [HEIGHT, WIDTH], "counts": [24]}
    value["annotations"].append(annotation(4, image=6, segmentation=nothing))
    for number in (4, 5, 6):
        value["images"].append(value["images"][0] | {"id": number, "file_name": f"{number}.jpg"})
    source = open_format(coco, write(tmp_path, value))
    assert len(source) == 4
    assert [row.file_name for row in source.rows()] == ["b.jpg", "val/a.jpg", "5.jpg"]
    assert source.skipped == {"images without annotations": 1, "images with empty annotations": 1}


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, content(annotation(1, image=7), annotation(2, image=9)))
    with pytest.raises(UserError, match="gives the images 9 and 7 one name, 'otter'"):
        read_format(coco, path, "--name={class}")


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ("images", {"width": None}, r"images\[0\] \(id 9\): width None is not of type int"),
        ("images", {"height": 0}, r"image 9: an image of 6 x 0 pixels cannot be"),
        ("images", {"width": 10**9}, r"image 9: an image of 1000000000 x 4 pixels cannot be"),
        ("images", {"file_name": "REMOVE"}, r"images\[0\] \(id 9\) has no 'file_name'"),
        ("images", {"id": 7}, r"images\[1\] \(id 7\): a second item of this id"),
        ("categories", {"name": "REMOVE"}, r"categories\[0\] \(id 1\) has no 'name'"),
        ("annotations", {"id": "REMOVE"}, r"annotations\[0\] has no 'id'"),
        (
            "annotations",
            {"segmentation": "REMOVE"},
            r"annotations\[0\] \(id 31\) has no 'segmentation'",
        ),
        ("annotations", {"image_id": 8}, r"annotation 31: image_id 8 is not in the file"),
        ("annotations", {"category_id": 3}, r"annotation 31: category_id 3 is not in the file"),
    ],
)
def test_items_that_do_not_follow_the_format_are_refused(
    tmp_path: Path, table: str, changes: dict[str, Any], message: str
) -> None:
    value = copy.deepcopy(content(annotation(31)))
    item = value[table][0] | changes
    value[table][0] = {key: field for key, field in item.items() if field != "REMOVE"}
    with pytest.raises(UserError, match=rf"instances\.json: {message}"):
        open_format(coco, write(tmp_path, value))


@pytest.mark.parametrize("value", [[], 3, {}, {"images": [], "categories": []}, {"images": {}}])
def test_other_json_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=r"instances\.json has no list .*not COCO's"):
        open_format(coco, write(tmp_path, value))


def test_an_item_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotations\[0\] has no 'id'"):
        open_format(coco, write(tmp_path, content() | {"annotations": [5]}))


def test_json_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, content(annotation(1)))
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"instances\.json is not valid JSON"):
        open_format(coco, path)
    with pytest.raises(UserError, match="is a directory; --input is one JSON file"):
        open_format(coco, tmp_path)


def test_a_missing_pycocotools_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'corm_jax\[coco\]'"):
        open_format(coco, write(tmp_path, content(annotation(1))))


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    message = r"unknown \{path\}; valid: \{file_name\}, \{stem\}, \{class\}"
    with pytest.raises(UserError, match=message):
        open_format(coco, write(tmp_path, content(annotation(1))), "--name={path}")
