"""The workers' answers: which features are spurious, and files that are wrong."""

import re
from pathlib import Path

import pytest
from salient import GOLDFISH, TENCH, annotation_rows, write_annotations

from corm_jax.errors import UserError
from corm_jax.masks.annotations import COLUMNS, read_annotations

HEADER = ",".join(COLUMNS).encode() + b"\n"


@pytest.fixture
def rows() -> list[list[str]]:
    return annotation_rows()


def test_a_feature_is_spurious_by_the_majority_of_its_answers(tmp_path: Path, rows: list) -> None:
    pairs = read_annotations(write_annotations(tmp_path / "a.csv", rows))
    spurious = {(wnid, feature): votes.is_spurious() for (wnid, feature), votes in pairs.items()}
    assert {pair for pair, is_spurious in spurious.items() if is_spurious} == {
        (TENCH, 13),  # 2 separate_object, 1 background
        (GOLDFISH, 11),  # 4 background
    }
    assert len(spurious) == 5
    assert pairs[TENCH, 13].answers == (
        *["main_object"] * 2,
        *["separate_object"] * 2,
        "background",
    )
    assert pairs[GOLDFISH, 11].class_index == 1


def test_the_number_of_votes_can_be_chosen(tmp_path: Path, rows: list) -> None:
    pairs = read_annotations(write_annotations(tmp_path / "a.csv", rows))
    disagreeing = {TENCH: {11: 0, 12: 2, 13: 3}, GOLDFISH: {11: 4}}
    for wnid, features in disagreeing.items():
        for feature, count in features.items():
            for votes in range(1, 6):
                assert pairs[wnid, feature].is_spurious(votes) == (count >= votes)


def test_order_of_rows_and_columns_and_other_columns_do_not_matter(
    tmp_path: Path, rows: list
) -> None:
    expected = read_annotations(write_annotations(tmp_path / "a.csv", rows))
    columns = [*COLUMNS[::-1], "HITId"]
    shuffled = [[*row[::-1], "3X"] for row in rows[::2] + rows[1::2]]
    found = read_annotations(write_annotations(tmp_path / "b.csv", shuffled, columns))
    assert found.keys() == expected.keys()
    assert all(sorted(found[p].answers) == sorted(expected[p].answers) for p in expected)


def test_reasons_of_several_lines_and_a_byte_order_mark_are_read(
    tmp_path: Path, rows: list
) -> None:
    rows[0][-1] = 'two lines,\nand "quotes"'
    path = write_annotations(tmp_path / "a.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_annotations(path)) == 5
    rows[5][5] = "nothing"
    with pytest.raises(UserError, match="line 8: answer 'nothing'"):  # 1 + 5 + 1 line break + 1
        read_annotations(write_annotations(path, rows))


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (3, 5, "main_objekt", r"line 5: answer 'main_objekt' \(did you mean 'main_object'\?\)"),
        (3, 5, "", "line 5: answer '' is none of main_object, separate_object, background"),
        (0, 3, "eleven", "line 2: Input.feature_index 'eleven' is not an index"),
        (0, 2, "-1", "line 2: Input.class_index '-1' is not an index"),
        (7, 2, "4", f"line 9: class {TENCH} has index 4, before it had 0"),
        (12, 3, "12", f"line 7: feature 12 of class {TENCH} has 6 answers, not 5"),
        (12, 3, "99", f"line 12: feature 13 of class {TENCH} has 4 answers, not 5"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_line(
    tmp_path: Path, rows: list, row: int, column: int, value: str, message: str
) -> None:
    rows[row][column] = value
    path = write_annotations(tmp_path / "a.csv", rows)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} {message}"):
        read_annotations(path)


def test_another_number_of_answers_can_be_expected(tmp_path: Path, rows: list) -> None:
    path = write_annotations(tmp_path / "a.csv", rows[:3])
    assert len(read_annotations(path, answers_per_pair=3)[TENCH, 11].answers) == 3
    with pytest.raises(UserError, match="3 answers, not 5"):
        read_annotations(path)


def test_missing_columns_are_named(tmp_path: Path, rows: list) -> None:
    path = write_annotations(tmp_path / "a.csv", [row[:5] for row in rows], COLUMNS[:5])
    with pytest.raises(UserError, match=r"a.csv line 1 lacks the columns Answer.main, Answer.conf"):
        read_annotations(path)


def test_a_row_that_ends_early_is_named(tmp_path: Path, rows: list) -> None:
    rows[1] = rows[1][:4]
    with pytest.raises(UserError, match=r"a.csv line 3 has 4 cells, the header 8"):
        read_annotations(write_annotations(tmp_path / "a.csv", rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*a.csv: No such file"),
        (b"", "a.csv is empty"),
        (b"\n\n", "a.csv is empty"),
        (b"WorkerId,\xff", "a.csv after line 0 is no CSV in UTF-8"),
        (HEADER + b'1,n01440764,0,11,1,main_object,5.0,"body', "a.csv after line 1 is no CSV"),
    ],
)
def test_what_is_no_csv_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_annotations(path)
