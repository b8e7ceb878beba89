"""Whole runs in a bucket, by the command line, against a stand-in for Cloud Storage."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from command import run, saved_arrays, small_config, small_flags, start
from fake_bucket import FakeBucket
from launching import start_two
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from corm_jax.progress import read_history

pytestmark = pytest.mark.slow

CONFIG, STEPS = "configs/vit_erm.py", 12
CHANGES = {"train__steps": STEPS, "train__log_every": 1, "checkpoint__every": 3, "eval__every": 99}
FILES = ("config.json", "model.json", "curves.png", "examples.png", "heartbeat/0.json")
# What depends on the clock and on the machine.
CLOCK = ("images_per_second", "data_wait", "mfu", "host_gib", "device_gib", "step_seconds")


class Runs(NamedTuple):
    """The same run on disk, and in the bucket, killed there in the middle.

    Attributes:
      fake: the bucket; `gs://bucket/runs/a` is the run.
      local: the run on disk.
      copied: a copy, on disk, of that in the bucket, which reads its images from there too.
      data_dir: of that on disk.
      cache: of compiled programs.
      said: by the process that went on with the one in the bucket.
      temporary: where that process had its temporary files.
    """

    fake: FakeBucket
    local: Path
    copied: Path
    data_dir: Path
    cache: Path
    said: str
    temporary: Path

    def call(self, module: str, *flags: str) -> tuple[int, str, str]:
        """Runs a command that finds the bucket; returns (exit code, stdout, stderr)."""
        process = start(flags, self.cache, module, **self.fake.environment())
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    base = tmp_path_factory.mktemp("bucket_runs")
    local, data_dir, cache = base / "local", base / "data", base / "cache"
    code, _, errors = run(small_flags(CONFIG, data_dir, local, **CHANGES), cache)
    assert code == 0, errors
    source, temporary = data_dir / "spurious_shapes" / "tiny" / "1.0.0", base / "temporary"
    temporary.mkdir()
    with FakeBucket() as fake:
        for path in (path for path in source.iterdir() if path.is_file()):
            # By another name: `spurious_shapes` itself would be drawn.
            fake.put(f"data/copy/tiny/1.0.0/{path.name}", path.read_bytes())
        data = {"data__tfds_name": "copy/tiny", "data__masks": source / "mask_records"}
        flags = small_flags(CONFIG, "gs://bucket/data", "gs://bucket/runs/a", **{**CHANGES, **data})
        process = start(flags, cache, **fake.environment())
        deadline = time.monotonic() + 300
        while "runs/a/checkpoints/3/commit_success.txt" not in fake.objects:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert f"runs/a/checkpoints/{STEPS}/commit_success.txt" not in fake.objects
        process = start(flags, cache, TMPDIR=str(temporary), **fake.environment())
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        for name in fake.names("runs/a/"):
            path = base / "copied" / name.removeprefix("runs/a/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fake.objects[name].content)
        yield Runs(fake, local, base / "copied", data_dir, cache, said, temporary)


def test_a_run_killed_in_a_bucket_ends_bit_by_bit_as_one_on_disk(runs: Runs) -> None:
    assert "going on from the checkpoint of step 3\n" in runs.said
    config = small_config(CONFIG, runs.data_dir, **CHANGES)
    expected, found = (saved_arrays(config, path) for path in (runs.local, runs.copied))
    assert found.keys() == expected.keys()
    assert len(found) > 100
    for name, array in expected.items():
        np.testing.assert_array_equal(array.view(np.uint32), found[name].view(np.uint32), name)
    results = [json.loads((d / "results.json").read_text()) for d in (runs.local, runs.copied)]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_its_history_and_events_are_whole_and_its_files_are_there(runs: Runs) -> None:
    def history(workdir: Path) -> list[dict[str, float]]:
        return [
            {k: v for k, v in record.items() if not k.removeprefix("train/").startswith(CLOCK)}
            for record in read_history(workdir / "history.jsonl")
        ]

    assert history(runs.copied) == history(runs.local)
    assert {r["step"] for r in history(runs.copied)} == set(range(1, STEPS + 1))
    assert len(list((runs.copied / "tensorboard").iterdir())) == 1
    events = EventAccumulator(str(runs.copied / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert [event.step for event in events.Tensors("train/loss")] == list(range(1, STEPS + 1))
    assert not [name for name in FILES if not (runs.copied / name).stat().st_size]


def test_nothing_of_it_is_kept_on_disk(runs: Runs) -> None:
    assert not list(runs.temporary.glob("corm_jax-*"))


def test_it_is_evaluated_and_reported_from_the_bucket(runs: Runs, tmp_path: Path) -> None:
    flags = ("gs://bucket/runs/a", f"--output={tmp_path}", "--protocol=complement")
    code, _, errors = runs.call("corm_jax.evaluate", *flags)
    assert code == 0, errors
    found = json.loads((tmp_path / "results.json").read_text())["protocols"]["complement"]
    expected = json.loads((runs.local / "results.json").read_text())["metrics"]
    for name in ("clean", "core", "spurious"):
        assert found["metrics"][name] == pytest.approx(expected[name], abs=1e-6)
    code, output, errors = runs.call("corm_jax.report", "gs://bucket/runs/a", str(runs.local))
    assert code == 0, errors
    rows = [line.split()[:-1] for line in output.splitlines() if line.startswith("erm")]
    assert len(rows) == 2
    assert rows[0] == rows[1]


def test_two_processes_train_in_a_bucket_as_one_does(runs: Runs, tmp_path: Path) -> None:
    flags = small_flags(CONFIG, runs.data_dir, "gs://bucket/runs/two", **CHANGES)
    environment = {**runs.fake.environment(), "JAX_COMPILATION_CACHE_DIR": str(runs.cache)}
    process = start_two("--", *flags, **environment)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (tmp_path / "history.jsonl").write_bytes(runs.fake.objects["runs/two/history.jsonl"].content)
    histories = [read_history(path / "history.jsonl") for path in (tmp_path, runs.local)]
    losses = [[r["train/loss"] for r in h if "train/loss" in r] for h in histories]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    names = [name.removeprefix("runs/two/") for name in runs.fake.names("runs/two/")]
    assert {"heartbeat/0.json", "heartbeat/1.json", "results.json"} <= set(names)
    assert [name for name in names if name.endswith("commit_success.txt")]
    assert len([name for name in names if name.startswith("tensorboard/")]) == 1


def test_a_bucket_that_is_missing_is_one_line(runs: Runs) -> None:
    flags = small_flags(CONFIG, runs.data_dir, "gs://other/run")
    code, _, errors = runs.call("corm_jax.main", *flags)
    assert code == 1
    assert errors.startswith("error: --workdir=gs://other/run: there is no bucket other; create")
    assert errors.count("\n") == 1
