"""What annotations say in numbers, weights of disagreeing workers, annotations of others."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import run
from salient import GOLDFISH, SHARK, TENCH, annotation_rows, write_annotations

from corm_jax.errors import UserError
from corm_jax.masks.__main__ import main
from corm_jax.masks.annotations import (
    Votes,
    check_selected,
    read_annotations,
    summarize,
    weights,
)

NO_CORE = (379, 416, 433, 537, 602, 655, 706, 746, 785, 795, 801, 810, 837, 890, 981)
OTHERS = ("separate_object", "background")


def published_votes() -> Iterator[tuple[int, int, int]]:
    """Yields (class, feature, answers against the main object) of 5,000 pairs.

    15 classes have 5 spurious features each; of 342 more, 213 have two and 129 have one: 630 in
    357 classes. 348 pairs are decided by one vote (2 or 3 against), 662 by three (1 or 4 against),
    3,990 by all.
    """
    some = [index for index in range(1000) if index not in NO_CORE][:342]
    spurious = dict.fromkeys(NO_CORE, 5) | {c: 2 for c in some[:213]} | {c: 1 for c in some[213:]}
    against_if_spurious = itertools.chain([3] * 200, [4] * 162, itertools.repeat(5))
    against_if_core = itertools.chain([2] * 148, [1] * 500, itertools.repeat(0))
    for class_index in range(1000):
        for rank in range(5):
            is_spurious = rank < spurious.get(class_index, 0)
            counts = against_if_spurious if is_spurious else against_if_core
            yield class_index, 100 * rank + class_index, next(counts)


def published_rows() -> list[list[str]]:
    other = itertools.cycle(OTHERS)  # what the answers against say makes no difference
    rows = []
    for class_index, feature, against in published_votes():
        answers = [next(other) for _ in range(against)] + ["main_object"] * (5 - against)
        pair = [f"n{class_index:08d}", str(class_index), str(feature), "1"]
        rows += [[str(worker), *pair, answer, "5", "why"] for worker, answer in enumerate(answers)]
    return rows


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file made to have the counts of the one that Salient ImageNet released."""
    return write_annotations(tmp_path_factory.mktemp("annotations") / "a.csv", published_rows())


def test_the_command_prints_the_published_counts(published: Path) -> None:
    code, output, errors = run(["annotations", str(published)], module="corm_jax.masks")
    assert (code, errors) == (0, "")
    assert [line.rsplit(maxsplit=1) for line in output.splitlines()[:8]] == [
        ["(class, feature) pairs", "5,000"],
        ["classes", "1,000"],
        ["core pairs", "4,370"],
        ["spurious pairs", "630"],
        ["classes with a spurious feature", "357"],
        ["classes with no core feature", "15"],
        ["unanimous pairs", "3,990"],
        ["pairs decided by one vote", "348"],
    ]
    assert output.splitlines()[8].endswith(" ".join(map(str, NO_CORE)))


def test_more_votes_make_fewer_features_spurious(published: Path) -> None:
    annotations = read_annotations(published)
    summary = summarize(annotations, votes=5)
    assert (summary.spurious, summary.core) == (630 - 200 - 162, 4370 + 200 + 162)
    assert summary.decided_by_one == 162 + 268  # 4 or 5 against
    assert summarize(annotations, votes=1).spurious == 630 + 148 + 500


def test_a_small_file_counted_by_hand(tmp_path: Path) -> None:
    summary = summarize(read_annotations(write_annotations(tmp_path / "a.csv", annotation_rows())))
    assert (summary.pairs, summary.classes, summary.core, summary.spurious) == (5, 3, 3, 2)
    assert summary.classes_with_spurious == 2
    assert summary.classes_without_core == (1,)  # the goldfish
    assert summary.unanimous == 2
    assert summary.decided_by_one == 2  # tench: 2 against, 3 against


@pytest.mark.parametrize(
    ("main", "others", "expected"),
    [(5, 0, (1, 0)), (3, 2, (0.6, 0.4)), (1, 3, (0.25, 0.75)), (0, 5, (0, 1))],
)
def test_weights_are_shares_of_the_answers(main: int, others: int, expected: tuple) -> None:
    answers = ("main_object",) * main + tuple(itertools.islice(itertools.cycle(OTHERS), others))
    assert weights(Votes(0, answers, 2)) == pytest.approx(expected)


def test_annotations_of_features_that_were_not_selected_are_refused(
    tmp_path: Path,
) -> None:
    path = write_annotations(tmp_path / "a.csv", annotation_rows())
    annotations = read_annotations(path)
    selected = {(TENCH, 11), (TENCH, 12), (TENCH, 13), (GOLDFISH, 11), (SHARK, 30)}
    check_selected(path, annotations, selected)
    with pytest.raises(UserError, match=rf"a.csv line 17: feature 11 of class {GOLDFISH} is not"):
        check_selected(path, annotations, selected - {(GOLDFISH, 11)})
    with pytest.raises(UserError, match=r"line 7: feature 12 .* selected \(nor 2 more\)"):
        check_selected(path, annotations, {(TENCH, 11), (GOLDFISH, 11)})


def test_selected_features_without_answers_are_refused(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "a.csv", annotation_rows({(TENCH, 11): (5, 0, 0)}))
    with pytest.raises(UserError, match=rf"a.csv: feature 12 of class {TENCH} has no answers;"):
        check_selected(path, read_annotations(path), {(TENCH, 11), (TENCH, 12)})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--votes=6"], "--votes=6 must be from 1 to --answers_per_pair=5"),
        (["--votes=0"], "--votes=0 must be from 1"),
        (["--answers_per_pair=7"], "has 5 answers, not 7"),
    ],
)
def test_the_command_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    path = write_annotations(tmp_path / "a.csv", annotation_rows())
    assert main(["annotations", str(path), *flags]) == 1
    assert message in capsys.readouterr().err
