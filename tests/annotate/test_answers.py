import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from annotate_fixtures import FINGERPRINT, PAIRS

from corm_jax.errors import UserError
from corm_jax.masks.annotate.answers import (
    Answer,
    AnswerFile,
    check_worker,
    export,
    fingerprint,
    parse_answer,
)
from corm_jax.masks.annotations import COLUMNS, read_annotations
from corm_jax.masks.building.selection import Feature

CORE, BACK = Answer("main_object", 5), Answer("background", 2, 'sea, "blue" Ünicode')


def opened(directory: Path, worker: str = "ann", features: str = FINGERPRINT) -> AnswerFile:
    return AnswerFile(directory / f"{worker}.jsonl", worker, features)


def saved(directory: Path, worker: str, answers: dict[tuple[int, int], Answer]) -> None:
    file = opened(directory, worker)
    for pair, answer in answers.items():
        file.save(pair, answer)
    file.close()


def test_last_answer_to_a_pair_counts_after_reopening(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.save((0, 7), CORE)
    file.save((0, 3), CORE)
    file.save((0, 7), BACK)
    file.close()
    again = opened(tmp_path)
    assert again.answers == {(0, 7): BACK, (0, 3): CORE}
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    saved(tmp_path, "ann", {(0, 7): CORE, (0, 3): BACK})
    path = tmp_path / "ann.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    file = opened(tmp_path)
    assert file.answers == {(0, 7): CORE}
    file.save((2, 7), BACK)
    file.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line).get("class_index") for line in lines] == [None, 0, 2]


def test_torn_first_line_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "ann.jsonl").write_text('{"schema": "corm_')
    file = opened(tmp_path)
    file.save((0, 7), CORE)
    file.close()
    again = opened(tmp_path)
    assert again.answers == {(0, 7): CORE}
    again.close()


PROGRAM = """
import sys
from pathlib import Path
from corm_jax.masks.annotate.answers import Answer, AnswerFile
file = AnswerFile(Path(sys.argv[1]), "ann", "some")
for number in range(len(file.answers), 10**9):
    file.save((0, number), Answer("background", 1, "x" * 500))
    print(number, flush=True)
"""


def test_every_answer_that_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path, generator = tmp_path / "ann.jsonl", random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True
        )
        first = process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in (first, *process.stdout) if line.endswith("\n")]
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        file = opened(tmp_path, features="some")
        assert set(range(acknowledged[-1] + 1)) <= {feature for _, feature in file.answers}
        file.close()


def test_second_process_with_the_same_file_is_refused(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.save((0, 7), CORE)
    with pytest.raises(UserError, match=r"ann.jsonl is in use by another annotate.*--worker=NAME"):
        opened(tmp_path)
    file.close()
    opened(tmp_path).close()


def test_answers_about_other_features_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "ann", {(0, 7): CORE})
    before = (tmp_path / "ann.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"ann.jsonl holds answers about features of another build"):
        opened(tmp_path, features="others")
    (tmp_path / "ann.jsonl").rename(tmp_path / "bob.jsonl")
    with pytest.raises(UserError, match=r"bob.jsonl holds the answers of ann; name yours"):
        opened(tmp_path, "bob")
    assert (tmp_path / "bob.jsonl").read_bytes() == before


def test_fingerprint_depends_on_features_and_names_but_not_on_importance() -> None:
    features, names = PAIRS.features, PAIRS.class_names
    first, *rest = features
    nearly = [Feature(first.class_index, first.feature, first.rank, 0.51), *rest]
    assert fingerprint(nearly, names) == FINGERPRINT
    assert fingerprint(rest, names) != FINGERPRINT
    assert fingerprint(features, ("n01", "n02", "n04")) != FINGERPRINT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "line 3 is damaged"),
        ("\0\0\0", "line 3 is damaged"),
        ("[1]", "line 3: class_index and feature must be whole numbers"),
        ('{"class_index": 0, "feature": 7}', "line 3: main None is none of main_object"),
        (
            '{"class_index": 0, "feature": 7, "main": "background", "confidence": 6}',
            "line 3: confidence 6 is not a whole number from 1 to 5",
        ),
    ],
)
def test_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, line: str, message: str) -> None:
    saved(tmp_path, "ann", {(0, 7): CORE})
    path = tmp_path / "ann.jsonl"
    with path.open("a") as file:
        file.write(line + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        opened(tmp_path)
    assert path.read_bytes() == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ann.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"ann.jsonl line 1 does not follow corm_jax.answers/1"):
        opened(tmp_path)
    (tmp_path / "bob.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*bob.jsonl"):
        opened(tmp_path, "bob")


def test_full_disk_saves_nothing_and_later_answers_are_whole(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from corm_jax.errors import UserError
from corm_jax.masks.annotate.answers import Answer, AnswerFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = AnswerFile(Path(sys.argv[1]), "ann", "some")
file.save((0, 1), Answer("background", 1))
size = Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
try:
    file.save((0, 2), Answer("background", 1))
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert (0, 2) not in file.answers
file.save((0, 3), Answer("main_object", 1))
"""
    path = tmp_path / "ann.jsonl"
    output = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith(f"cannot write {path}: ")
    file = opened(tmp_path, features="some")
    assert list(file.answers) == [(0, 1), (0, 3)]
    file.close()


def test_parsed_reasons_are_one_printable_line() -> None:
    content = {"main": "background", "confidence": 3, "reasons": " a\n\tb \0\ud800\x85 é"}
    assert parse_answer(content) == Answer("background", 3, "a b \ufffd\ufffd é")


@pytest.mark.parametrize(
    "change",
    [
        {"main": "object"},
        {"main": None},
        {"main": ["background"]},
        {"confidence": 0},
        {"confidence": True},
        {"confidence": "3"},
        {"confidence": 2.0},
        {"reasons": None},
        {"reasons": "x" * 1001},
    ],
)
def test_answers_of_wrong_values_are_refused(change: dict) -> None:
    with pytest.raises(UserError):
        parse_answer({"main": "background", "confidence": 3, "reasons": ""} | change)
    with pytest.raises(UserError):
        parse_answer([change])


@pytest.mark.parametrize("name", ["", "../ann", "a/b", ".hidden", "a b", "x" * 65, "é"])
def test_worker_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--worker="):
        check_worker(name)
    check_worker("worker-1")


def test_export_has_the_released_schema_and_is_read_back(tmp_path: Path) -> None:
    directory, path = tmp_path / "answers", tmp_path / "all.csv"
    pairs = [(0, 7), (0, 3), (2, 7)]
    saved(directory, "bob", dict.fromkeys(pairs, CORE))
    saved(directory, "ann", dict.fromkeys(pairs, CORE))
    saved(directory, "ann", {(0, 3): BACK})  # thought again
    saved(directory, "eve", {})  # has not begun
    counts = export(directory, path, PAIRS.features, PAIRS.class_names)
    assert counts == {"ann": 3, "bob": 3}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS
    assert rows[1:4] == [
        ["ann", "n01", "0", "7", "1", "main_object", "5", ""],
        ["bob", "n01", "0", "7", "1", "main_object", "5", ""],
        ["ann", "n01", "0", "3", "2", "background", "2", 'sea, "blue" Ünicode'],
    ]
    votes = read_annotations(path, answers_per_pair=2)
    assert list(votes) == [("n01", 7), ("n01", 3), ("n03", 7)]
    assert votes["n01", 3].answers == ("background", "main_object")


def test_export_of_bad_directories_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    with pytest.raises(UserError, match="holds no answer yet"):
        export(tmp_path, path, PAIRS.features, PAIRS.class_names)
    saved(tmp_path, "ann", {(0, 7): CORE})
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "ann.jsonl").read_bytes())
    with pytest.raises(UserError, match="holds two files of worker ann"):
        export(tmp_path, path, PAIRS.features, PAIRS.class_names)
    (tmp_path / "copy.jsonl").unlink()
    with pytest.raises(UserError, match="features of another build"):
        export(tmp_path, path, PAIRS.features[1:], PAIRS.class_names)
    assert not path.exists()
