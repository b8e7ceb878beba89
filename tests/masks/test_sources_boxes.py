from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from sources import open_format, read_format

from corm_jax.errors import UserError
from corm_jax.masks.records import FULL_FRAME
from corm_jax.masks.sources import boxes

Box = tuple[object, object, object, object]
HEADER = "file_name,width,height,xmin,ymin,xmax,ymax\n"


def write_xml(path: Path, size: tuple[object, object], *found: Box) -> None:
    """Writes a file as ImageNet's are."""
    objects = "".join(
        "<object><name>n01440764</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>\n"
        for xmin, ymin, xmax, ymax in found
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "<annotation>\n<folder>n01440764</folder>\n<filename>%s</filename>\n"
        "<source><database>ImageNet database</database></source>\n"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n"
        f"<segmented>0</segmented>\n{objects}</annotation>\n"
    )


def core_of_xml(tmp_path: Path, size: tuple[object, object], *found: Box) -> np.ndarray:
    write_xml(tmp_path / "x.xml", size, *found)
    return read_format(boxes, tmp_path)["x.JPEG"].core


def test_xml_boxes_count_from_one_and_include_both_ends(tmp_path: Path) -> None:
    core = core_of_xml(tmp_path, (5, 4), (2, 1, 3, 3))
    assert core.dtype == np.uint8
    assert core.tolist() == [
        [0, 255, 255, 0, 0],
        [0, 255, 255, 0, 0],
        [0, 255, 255, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_boxes_of_an_image_are_united(tmp_path: Path) -> None:
    core = core_of_xml(tmp_path, (4, 3), (1, 1, 2, 2), (2, 2, 4, 2))
    assert core.tolist() == [[255, 255, 0, 0], [255, 255, 255, 255], [0, 0, 0, 0]]


@pytest.mark.parametrize("box", [(1, 1, 4, 3), (0, 0, 4, 3), (0.6, 1, 4.4, 3), (1, 1, 5, 4)])
def test_boxes_of_the_whole_image_may_be_a_pixel_too_large(tmp_path: Path, box: Box) -> None:
    assert (core_of_xml(tmp_path, (4, 3), box) == 255).all()


@given(st.data())
def test_xml_boxes_are_what_pillow_draws(tmp_path_factory, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    columns, rows = st.integers(1, width), st.integers(1, height)
    found = data.draw(st.lists(st.tuples(columns, rows, columns, rows), min_size=1, max_size=4))
    found = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in found]
    picture = Image.new("L", (width, height))
    for xmin, ymin, xmax, ymax in found:  # Pillow counts from 0 and includes both ends
        box = (xmin - 1, ymin - 1, xmax - 1, ymax - 1)
        ImageDraw.Draw(picture).rectangle(box, fill=255)
    core = core_of_xml(tmp_path_factory.mktemp("xml"), (width, height), *found)
    assert np.array_equal(core, np.asarray(picture))


def test_xml_names_come_from_the_files_in_any_tree(tmp_path: Path) -> None:
    write_xml(tmp_path / "Annotation/n01440764/n01440764_18.xml", (4, 3), (1, 1, 2, 2))
    write_xml(tmp_path / "val/ILSVRC2012_val_00000001.xml", (4, 3), (1, 1, 2, 2))
    write_xml(tmp_path / "val/empty.xml", (4, 3))
    (tmp_path / "val/readme.txt").write_text("")
    source = open_format(boxes, tmp_path)
    assert source.frame == FULL_FRAME
    assert len(source) == 3
    names = [row.file_name for row in source.rows()]
    assert names == ["n01440764_18.JPEG", "ILSVRC2012_val_00000001.JPEG"]
    assert source.skipped == {"images without a box": 1}


@pytest.mark.parametrize(
    "box", [(1, 1, 6, 3), (1, 1, 4, 5), (-1, 1, 2, 2), (3, 1, 2, 2), (1, 3, 2, 2), (5, 1, 5, 2)]
)
def test_xml_box_outside_its_image_is_refused_or_left_out(tmp_path: Path, box: Box) -> None:
    write_xml(tmp_path / "a.xml", (4, 3), (1, 1, 2, 2), box)
    write_xml(tmp_path / "b.xml", (4, 3), (1, 1, 2, 2))
    message = r"a\.xml, object 2: .* is not inside its image of 4 x 3 pixels; .*--skip_invalid"
    with pytest.raises(UserError, match=message):
        read_format(boxes, tmp_path)
    source = open_format(boxes, tmp_path, "--skip_invalid")
    assert [row.file_name for row in source.rows()] == ["b.JPEG"]
    assert list(source.skipped.values()) == [1]


@pytest.mark.parametrize(
    ("size", "box", "message"),
    [
        ((0, 3), (1, 1, 1, 1), r"an image of 0 x 3 pixels cannot be"),
        ((10**6, 10**6), (1, 1, 1, 1), r"1000000 x 1000000 pixels cannot be"),
        (("", 3), (1, 1, 1, 1), r"<width> '' is not a number"),
        ((4, 3), (1, 1, "two", 1), r"object 1: <xmax> 'two' is not a number"),
        ((4, 3), (1, 1, "inf", 1), r"object 1: <xmax> 'inf' is not a number"),
        ((4, 3), (1, "nan", 1, 1), r"object 1: <ymin> 'nan' is not a number"),
    ],
)
def test_xml_with_wrong_numbers_is_refused(
    tmp_path: Path, size: tuple, box: Box, message: str
) -> None:
    write_xml(tmp_path / "a.xml", size, box)
    with pytest.raises(UserError, match=rf"a\.xml.*{message}"):
        read_format(boxes, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<width>4</width>", "", r"there is no <size><width>"),
        ("<ymax>2</ymax>", "", r"object 1: there is no <bndbox><ymax>"),
        ("</annotation>", "", r"not a readable XML file"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY x "y">]><annotation>', "not a readable XML file"),
        ("<annotation>", '<?xml version="1.0" encoding="none"?><annotation>', "not a readable XML"),
    ],
)
def test_xml_of_another_form_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "a.xml"
    write_xml(path, (4, 3), (1, 1, 2, 2))
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"a\.xml.*{message}"):
        read_format(boxes, tmp_path)


def test_two_xml_files_of_one_image_are_refused(tmp_path: Path) -> None:
    for parent in ("train", "val"):
        write_xml(tmp_path / parent / "a.xml", (4, 3), (1, 1, 2, 2))
    with pytest.raises(UserError, match=r"train/a\.xml and .*val/a\.xml are of one image"):
        open_format(boxes, tmp_path)


def test_input_without_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.xml files"):
        open_format(boxes, tmp_path)
    with pytest.raises(UserError, match=r"neither a directory of \.xml files nor a \.csv file"):
        open_format(boxes, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.csv: No such file"):
        open_format(boxes, tmp_path / "nowhere.csv")


def write_csv(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "boxes.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_csv_boxes_count_from_zero_and_exclude_their_ends(tmp_path: Path) -> None:
    text = f"{HEADER}b.JPEG,4,3,1,0,3,2\na.JPEG,2,1,0,0,1,1\nb.JPEG,4,3,0,2,4,3\n"
    rows = read_format(boxes, write_csv(tmp_path, text))
    assert list(rows) == ["b.JPEG", "a.JPEG"]
    assert rows["b.JPEG"].core.tolist() == [
        [0, 255, 255, 0],
        [0, 255, 255, 0],
        [255, 255, 255, 255],
    ]
    assert rows["a.JPEG"].core.tolist() == [[255, 0]]


def test_csv_columns_may_have_another_order_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = 'label,xmin,ymin,xmax,ymax,file_name,height,width\nx,0,0,1,1,"a, b.JPEG",1,2\n'
    rows = read_format(boxes, write_csv(tmp_path, text, "utf-8-sig"))
    assert rows["a, b.JPEG"].core.tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the columns must be file_name,width"),
        ("file_name,width,height,xmin,ymin,xmax\n", "line 1: the columns must be"),
        (HEADER, "holds no boxes"),
        (f"{HEADER}a,4,3,0,0,1,1\na,4,3,0,0,1\n", "line 3: not as many fields as columns"),
        (f"{HEADER}a,4,3,0,0,1,1,1\n", "line 2: not as many fields"),
        (f"{HEADER},4,3,0,0,1,1\n", "line 2: no file_name"),
        (f"{HEADER}a,4,three,0,0,1,1\n", "line 2: height 'three' is not a number"),
        (f"{HEADER}a,4,3,0,0,1,1\n\na,4,2,0,0,1,1\n", "line 4: a has 4 x 2 pixels.* 4 x 3"),
        (f"{HEADER}a,-4,3,0,0,1,1\n", "line 2: an image of -4 x 3"),
        (f'{HEADER}"a,4,3,0,0,1,1\n', "line 2 or later: not CSV"),
        (f"{HEADER}a,4,3,0,0,1,1\nb,4,3,0,0,6,1\n", "line 3: .* not inside its image of 4 x 3"),
        (f"{HEADER}a,4,3,1,0,1,1\n", "line 2: .* not inside its image"),
    ],
)
def test_bad_csv_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"boxes\.csv.*{message}"):
        read_format(boxes, write_csv(tmp_path, text))


def test_csv_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"boxes\.csv.*not CSV.*utf-8"):
        open_format(boxes, write_csv(tmp_path, f"{HEADER}é,4,3,0,0,1,1\n", "latin-1"))


def test_csv_box_outside_its_image_can_be_left_out(tmp_path: Path) -> None:
    path = write_csv(tmp_path, f"{HEADER}a,4,3,0,0,9,1\nb,4,3,0,0,1,1\n")
    assert list(read_format(boxes, path, "--skip_invalid")) == ["b"]
