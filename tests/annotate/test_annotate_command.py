"""The command, as a user runs it."""

import http.client
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from command import run, start

from corm_jax.masks.__main__ import main
from corm_jax.masks.annotations import read_annotations

MODULE = "corm_jax.masks"
ANSWER = {"main": "background", "confidence": 4, "reasons": "water"}


def served(process: subprocess.Popen[str]) -> tuple[str, str, str]:
    """Waits for the link; returns (what was printed before it, host:port, token)."""
    said = process.stdout.readline()
    link = re.fullmatch(r"open http://(127.0.0.1:\d+)/\?token=(\S+)\n", process.stdout.readline())
    assert link, process.communicate()[1]
    return said, link[1], link[2]


def ask(address: str, token: str, path: str, answer: dict | None = None) -> dict:
    connection = http.client.HTTPConnection(address, timeout=120)
    port = address.rpartition(":")[2]
    headers = {"Cookie": f"corm_jax_annotate_{port}={token}", "Origin": f"http://{address}"}
    if answer is None:
        connection.request("GET", path, headers=headers)
    else:
        headers["Content-Type"] = "application/json"
        connection.request("POST", path, json.dumps(answer), headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    assert response.status == 200, content
    return json.loads(content)


@pytest.mark.slow
def test_killed_server_resumes_and_its_csv_is_what_build_reads(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, workdir = tmp_path / "answers", tmp_path / "built"
    shutil.copytree(built, workdir)
    flags = ["annotate", str(workdir), f"--answers={answers}", "--worker=ann"]
    process = start(flags, module=MODULE)
    _, address, token = served(process)
    count = ask(address, token, "/state")["count"]
    for kind in ("images", "maps", "attacks"):
        assert len(ask(address, token, f"/pairs/0/{kind}")["pictures"]) == 5
    for number in range(count - 1):
        ask(address, token, f"/pairs/{number}/answer", ANSWER)
    process.kill()
    process.communicate()
    with (answers / "ann.jsonl").open("ab") as file:
        file.write(b'{"class_index": 0, "fea')  # as if killed while it wrote

    process = start(flags, module=MODULE)
    said, address, token = served(process)
    assert said == f"{count - 1} of {count} pairs are answered: {answers}/ann.jsonl\n"
    code, _, errors = run([*flags], module=MODULE)
    assert code == 1
    assert errors == (
        f"error: {answers}/ann.jsonl is in use by another annotate; stop that one, or name "
        "another worker: --worker=NAME\n"
    )
    assert ask(address, token, "/state")["next"] == count - 1
    state = ask(address, token, f"/pairs/{count - 1}/answer", ANSWER)
    csv = tmp_path / "answers.csv"
    assert state["finished"]["csv"] == str(csv)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""
    assert output.endswith(f"{count} of {count} pairs are answered: {answers}/ann.jsonl\n")

    votes = read_annotations(csv, answers_per_pair=1)
    assert len(votes) == count
    assert {v.answers for v in votes.values()} == {("background",)}
    names = state["finished"]["flags"].split()
    config = json.loads((workdir / "config.json").read_text())
    for key in ("encoder.kind", "encoder.path", "encoder.image_size", "data.data_dir"):
        group, name = key.split(".")
        names.append(f"--config.{key}={config[group][name]}")
    names += ["--config.data.tfds_name=spurious_shapes/tiny", "--config.scan.batch_size=8"]
    names.append("--config.features.per_class=2")
    assert main(["build", f"--workdir={workdir}", *names]) == 0
    assert f"0 core, {count} spurious" in capsys.readouterr().out


def test_export_writes_what_is_answered(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from corm_jax.masks.annotate.answers import Answer, AnswerFile, fingerprint
    from corm_jax.masks.annotate.pairs import read_pairs

    pairs = read_pairs(built)
    selected = fingerprint(pairs.features, pairs.class_names)
    for worker in ("ann", "bob", "eve"):
        file = AnswerFile(tmp_path / "answers" / f"{worker}.jsonl", worker, selected)
        first = pairs.features[0]
        file.save((first.class_index, first.feature), Answer("main_object", 3))
        file.close()
    csv = tmp_path / "some.csv"
    options = [f"--answers={tmp_path / 'answers'}", f"--export={csv}"]
    assert main(["annotate", str(built), *options]) == 0
    output = capsys.readouterr().out
    assert f"bob: 1 of {len(pairs)} pairs" in output
    assert "--config.annotations.answers_per_pair=3 --config.annotations.votes=2" in output
    [votes] = read_annotations(csv, answers_per_pair=3).values()
    assert votes.answers == ("main_object",) * 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["WORKDIR"], "features.json is missing; select features first: python -m corm_jax.masks"),
        (["WORKDIR", "--worker=a/b"], "--worker='a/b' must be up to 64 letters"),
        (["BUILT", "--class_names=absent.txt"], "cannot read absent.txt"),
        (["BUILT", "--port=70000"], "--port=70000 must be from 0 to 65535"),
        (["BUILT", "--answers=EMPTY", "--export=x.csv"], "holds no answer yet"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(
    built: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    places = {"WORKDIR": tmp_path, "BUILT": built, "EMPTY": tmp_path}
    for name, path in places.items():
        flags = [flag.replace(name, str(path)) for flag in flags]
    if not any(flag.startswith("--answers") for flag in flags):
        flags.append(f"--answers={tmp_path / 'answers'}")
    assert main(["annotate", *flags]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
