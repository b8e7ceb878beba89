"""What workers answered about the features of classes, in the CSV that Salient ImageNet released.

Each row is one worker's answer to where the heat maps of a (class, feature) pair lie: on the main
object, on a separate object, or on the background (Singla & Feizi, ICLR 2022, arXiv:2110.04301).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corm_jax.errors import UserError, nearest
from corm_jax.masks.tables import csv_rows

ANSWERS = ("main_object", "separate_object", "background")
COLUMNS = (
    "WorkerId",
    "Input.wordnet_id",
    "Input.class_index",
    "Input.feature_index",
    "Input.feature_rank",
    "Answer.main",
    "Answer.confidence",
    "Answer.reasons",
)
ANSWERS_PER_PAIR = 5
MAJORITY = 3

Pair = tuple[str, int]  # (WordNet ID of the class, index of the feature)


@dataclass(frozen=True)
class Votes:
    """The answers about one pair.

    Attributes:
      class_index: of the class, as the file gives it.
      answers: each one of `ANSWERS`, in the file's order.
      line: of the first answer in the file.
    """

    class_index: int
    answers: tuple[str, ...]
    line: int

    def against(self) -> int:
        """Returns how many answers say that the feature is not the main object."""
        return len(self.answers) - self.answers.count("main_object")

    def is_spurious(self, votes: int = MAJORITY) -> bool:
        """Returns whether at least `votes` answers say that the feature is not the main object."""
        return self.against() >= votes


def weights(votes: Votes) -> tuple[float, float]:
    """Returns a feature's weights in (core, spurious) masks: the shares of the answers for each.

    An alternative to the majority rule (project choice): an image's core mask is the maximum over
    its features of weight * map, so that a feature that workers disagree about counts in part.
    """
    spurious = votes.against() / len(votes.answers)
    return 1 - spurious, spurious


@dataclass(frozen=True)
class Summary:
    """What annotations say in numbers.

    Attributes:
      pairs: annotated (class, feature) pairs.
      classes: classes with a pair.
      core: core pairs.
      spurious: spurious pairs.
      classes_with_spurious: classes with a spurious feature.
      classes_without_core: indices of the classes with no core feature, ascending.
      unanimous: pairs whose answers all say main object, or all something else.
      decided_by_one: pairs that would be of the other kind if one answer were.
    """

    pairs: int
    classes: int
    core: int
    spurious: int
    classes_with_spurious: int
    classes_without_core: tuple[int, ...]
    unanimous: int
    decided_by_one: int


def summarize(annotations: Mapping[Pair, Votes], votes: int = MAJORITY) -> Summary:
    """Counts annotations.

    The file that Salient ImageNet released has, with 3 votes of 5: 5,000 pairs of 1,000 classes,
    4,370 core and 630 spurious, 357 classes with a spurious feature, 15 classes with no core
    feature (379, 416, 433, 537, 602, 655, 706, 746, 785, 795, 801, 810, 837, 890, 981), 3,990
    unanimous pairs, 348 decided by one vote.

    Args:
      annotations: as `read_annotations` returns them.
      votes: answers against the main object that make a feature spurious.
    """
    spurious = {pair for pair, given in annotations.items() if given.is_spurious(votes)}
    with_core = {wnid for wnid, _ in annotations.keys() - spurious}
    index_of = {wnid: given.class_index for (wnid, _), given in annotations.items()}
    against = [(given.against(), len(given.answers)) for given in annotations.values()]
    return Summary(
        pairs=len(annotations),
        classes=len(index_of),
        core=len(annotations) - len(spurious),
        spurious=len(spurious),
        classes_with_spurious=len({wnid for wnid, _ in spurious}),
        classes_without_core=tuple(sorted(index_of[wnid] for wnid in index_of.keys() - with_core)),
        unanimous=sum(count in (0, total) for count, total in against),
        decided_by_one=sum(count in (votes - 1, votes) for count, _ in against),
    )


def check_selected(
    path: Path, annotations: Mapping[Pair, Votes], selected: Collection[Pair]
) -> None:
    """Refuses annotations of other features than those that the encoder selected.

    Args:
      path: the file that the annotations are from, for the message.
      annotations: as `read_annotations` returns them.
      selected: (name of the class, channel) of each selected feature.

    Raises:
      UserError: if a pair was not selected, or has no answers; names the first one, with the line
        in the file that it has.
    """
    others = [pair for pair in annotations if pair not in selected]
    missing = [pair for pair in selected if pair not in annotations]
    if others:
        (wnid, feature), problem = others[0], "is not one that the encoder selected"
        where = f"{path} line {annotations[others[0]].line}"
    elif missing:
        (wnid, feature), problem, where = missing[0], "has no answers", str(path)
    else:
        return
    more = len(others or missing) - 1
    raise UserError(
        f"{where}: feature {feature} of class {wnid} {problem}"
        + (f" (nor {more} more)" if more else "")
        + "; annotate the features of this very encoder: python -m corm_jax.masks annotate"
    )


def read_annotations(path: Path, answers_per_pair: int = ANSWERS_PER_PAIR) -> dict[Pair, Votes]:
    """Returns the votes of each pair, in the order in which the file first names it.

    Args:
      path: a CSV file with the columns `COLUMNS`; it may have more.
      answers_per_pair: the number of answers that every pair must have.

    Raises:
      UserError: if columns are missing, an answer is unknown, an index is not a number, a class
        has two indices, or a pair has another number of answers; names the file and the line.
    """
    rows = csv_rows(path)
    _, header = next(rows)
    _check_columns(path, header)
    pairs: dict[Pair, Votes] = {}
    class_indices: dict[str, int] = {}
    for line, cells in rows:
        where = f"{path} line {line}"
        if len(cells) < len(header):
            raise UserError(f"{where} has {len(cells)} cells, the header {len(header)}")
        row = dict(zip(header, cells, strict=False))
        wnid, class_index = row["Input.wordnet_id"], _index(row, "Input.class_index", where)
        if class_indices.setdefault(wnid, class_index) != class_index:
            raise UserError(
                f"{where}: class {wnid} has index {class_index}, before it had "
                f"{class_indices[wnid]}"
            )
        pair = (wnid, _index(row, "Input.feature_index", where))
        votes = pairs.get(pair, Votes(class_index, (), line))
        answers = (*votes.answers, _answer(row, where))
        pairs[pair] = Votes(class_index, answers, votes.line)
    _check_numbers(path, pairs, answers_per_pair)
    return pairs


def _check_columns(path: Path, header: Sequence[str]) -> None:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(f"{path} line 1 lacks the columns {', '.join(missing)}")


def _check_numbers(path: Path, pairs: Mapping[Pair, Votes], expected: int) -> None:
    for (wnid, feature), votes in pairs.items():
        if len(votes.answers) != expected:
            raise UserError(
                f"{path} line {votes.line}: feature {feature} of class {wnid} has "
                f"{len(votes.answers)} answers, not {expected}"
            )


def _answer(row: Mapping[str, str], where: str) -> str:
    answer = row["Answer.main"]
    if answer not in ANSWERS:
        raise UserError(
            f"{where}: answer {answer!r}{nearest(answer, ANSWERS)} is none of {', '.join(ANSWERS)}"
        )
    return answer


def _index(row: Mapping[str, str], column: str, where: str) -> int:
    if not row[column].isdecimal():
        raise UserError(f"{where}: {column} {row[column]!r} is not an index")
    return int(row[column])
