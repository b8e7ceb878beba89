"""What workers answered about the features of classes, in the CSV that Salient ImageNet released.

Each row is one worker's answer to where the heat maps of a (class, feature) pair lie: on the main
object, on a separate object, or on the background (Singla & Feizi, ICLR 2022, arXiv:2110.04301).
"""

from collections.abc import Mapping, Sequence
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

    def is_spurious(self, votes: int = MAJORITY) -> bool:
        """Returns whether at least `votes` answers say that the feature is not the main object."""
        return len(self.answers) - self.answers.count("main_object") >= votes


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
