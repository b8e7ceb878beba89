"""Answers on disk: a file of JSON lines for each worker, appended to and flushed at each answer.

The first line is {"schema", "worker", "features": a fingerprint of the selected features}. Each
other line is an answer: {"class_index", "feature", "main", "confidence", "reasons"}; of several to
one (class, feature) the last counts. A last line that a crash cut off is dropped.
"""

import csv
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corm_jax.errors import UserError
from corm_jax.files import replacing, reporting
from corm_jax.masks.annotations import ANSWERS, COLUMNS
from corm_jax.masks.building.selection import Feature

SCHEMA = "corm_jax.answers/1"
CONFIDENCES = (1, 2, 3, 4, 5)
LONGEST_REASONS = 1000  # characters
SUFFIX = ".jsonl"

Pair = tuple[int, int]  # (index of the class, feature)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a worker says about a pair.

    Attributes:
      main: one of `ANSWERS`.
      confidence: one of `CONFIDENCES`.
      reasons: free text of one line.
    """

    main: str
    confidence: int
    reasons: str = ""


def parse_answer(content: Any) -> Answer:
    """Returns the answer that parsed JSON holds, its reasons as one printable line.

    Raises:
      UserError: says what is wrong.
    """
    content = content if isinstance(content, dict) else {}
    main, confidence, reasons = (content.get(key) for key in ("main", "confidence", "reasons"))
    if main not in ANSWERS:
        raise UserError(f"main {main!r} is none of {', '.join(ANSWERS)}")
    if type(confidence) is not int or confidence not in CONFIDENCES:
        raise UserError(f"confidence {confidence!r} is not a whole number from 1 to 5")
    if not isinstance(reasons, str) or len(reasons) > LONGEST_REASONS:
        raise UserError(f"reasons must be a text of at most {LONGEST_REASONS} characters")
    line = " ".join(reasons.split())
    return Answer(main, confidence, "".join(c if c.isprintable() else "\ufffd" for c in line))


def fingerprint(features: Sequence[Feature], class_names: Sequence[str]) -> str:
    """Returns a text that differs between selections of features."""
    rows = [[f.class_index, f.feature, f.rank] for f in features]
    content = json.dumps([rows, list(class_names)])
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def check_worker(name: str) -> None:
    """Raises UserError if a worker's name cannot be a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UserError(
            f"--worker={name!r} must be up to 64 letters, digits, dots, dashes and underscores, "
            "the first a letter or a digit"
        )


class AnswerFile:
    """The answers of a worker, open for more; no other process can open them meanwhile.

    Attributes:
      path: of the file.
      worker: whose answers they are.
      answers: the last answer to each pair.
    """

    def __init__(self, path: Path, worker: str, features: str) -> None:
        """Opens the file, or creates it.

        Args:
          path: of the file.
          worker: whose answers they are.
          features: the `fingerprint` of the selected features.

        Raises:
          UserError: if another process has it open, it belongs to other features or another worker,
            a line is damaged, or the operating system refuses; names the file and the way out.
        """
        self.path, self.worker = path, worker
        self._saving = threading.Lock()
        with reporting(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.close()
                raise UserError(
                    f"{path} is in use by another annotate; stop that one, or name another worker: "
                    "--worker=NAME"
                ) from error
        try:
            owner, self.answers, size = read_answers(path, features)
            if owner not in ("", worker):
                raise UserError(f"{path} holds the answers of {owner}; name yours: --worker=NAME")
            with reporting(path):
                self._file.truncate(size)
            if not size:
                self._append({"schema": SCHEMA, "worker": worker, "features": features})
        except UserError:
            self._file.close()
            raise

    def save(self, pair: Pair, answer: Answer) -> None:
        """Appends an answer; it is on the disk when this returns.

        Raises:
          UserError: if the operating system refuses the write (a full disk); nothing is saved then.
        """
        class_index, feature = pair
        row = {"class_index": class_index, "feature": feature, **dataclasses.asdict(answer)}
        with self._saving:
            self._append(row)
            self.answers[pair] = answer

    def _append(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        with reporting(self.path):
            size = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) < len(line):
                    raise OSError("the disk is full")
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(size)
                raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_answers(path: Path, features: str) -> tuple[str, dict[Pair, Answer], int]:
    """Reads a worker's file.

    Args:
      path: of the file.
      features: the `fingerprint` of the selected features.

    Returns:
      (name of the worker, last answer to each pair, bytes that are whole lines); ("", {}, 0) where
      not even the first line is whole.

    Raises:
      UserError: see `AnswerFile`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    size = content.rfind(b"\n") + 1
    if not size:
        return "", {}, 0
    first, *lines = content[:size].splitlines()
    header = _parse_line(path, 1, first)
    if header.get("schema") != SCHEMA or not isinstance(header.get("worker"), str):
        raise UserError(f"{path} line 1 does not follow {SCHEMA}; name another --answers=DIR")
    if header.get("features") != features:
        raise UserError(
            f"{path} holds answers about features of another build; name another --answers=DIR"
        )
    answers: dict[Pair, Answer] = {}
    for number, line in enumerate(lines, start=2):
        row = _parse_line(path, number, line)
        pair = (row.get("class_index"), row.get("feature"))
        try:
            if not all(type(index) is int for index in pair):
                raise UserError("class_index and feature must be whole numbers")
            answers[pair] = parse_answer(row)
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}; mend or remove this line") from error
    return header["worker"], answers, size


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{path} line {number} is damaged; mend or remove this line") from error
    return row if isinstance(row, dict) else {}


def export(
    directory: Path, path: Path, features: Sequence[Feature], class_names: Sequence[str]
) -> dict[str, int]:
    """Writes the answers of all workers as the CSV that Salient ImageNet released.

    Args:
      directory: of the workers' files.
      path: of the CSV; see `corm_jax.masks.annotations`. Rows are in the order of the features.
      features: the selected ones.
      class_names: of all classes, written as WordNet IDs.

    Returns:
      worker -> how many pairs they answered.

    Raises:
      UserError: if there is no answer, or see `AnswerFile`.
    """
    selected = fingerprint(features, class_names)
    workers: dict[str, dict[Pair, Answer]] = {}
    for file in sorted(directory.glob(f"*{SUFFIX}")):
        worker, answers, _ = read_answers(file, selected)
        if answers and worker in workers:
            raise UserError(f"{directory} holds two files of worker {worker}; keep one of them")
        if answers:
            workers[worker] = answers
    if not workers:
        raise UserError(
            f"{directory} holds no answer yet; give some: the same command, no --export"
        )
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        for f in features:
            for worker, answers in workers.items():
                if answer := answers.get((f.class_index, f.feature)):
                    place = (class_names[f.class_index], f.class_index, f.feature, f.rank)
                    writer.writerow((worker, *place, *dataclasses.astuple(answer)))
    return {worker: len(answers) for worker, answers in workers.items()}
