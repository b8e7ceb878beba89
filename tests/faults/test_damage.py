"""Files that are damaged, gone or unwritable, clocks that jump, and numbers that are none."""

import datetime
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sabotage import NAN_AFTER
from trainings import SAVED_EVERY, STEPS, Training

pytestmark = pytest.mark.slow


def newest(training: Training) -> Path:
    return max((training.workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))


def truncate_largest(directory: Path) -> None:
    files = (path for path in directory.rglob("*") if path.is_file())
    path = max(files, key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("what", "damage"), [("corrupted", truncate_largest), ("deleted", shutil.rmtree)]
)
def test_newest_checkpoint(
    what: str, damage: Callable[[Path], None], half: Training, fault: Callable, check: Callable
) -> None:
    with fault(f"newest checkpoint {what}") as lost:
        found = newest(half)
        damage(found)
        taken, left = half.steps_taken(), half.finish()
        assert left == int(found.name) - SAVED_EVERY
        lost.append(taken - left)
        check(half)


def test_records_that_are_cut_short_under_the_reader_are_named(
    fresh: Training, tmp_path: Path, fault: Callable, check: Callable
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(fresh.data_dir, data_dir)
    fresh = fresh._replace(data_dir=data_dir)
    (records,) = data_dir.rglob("*-train.array_record-*")
    with fault("record file truncated under the reader") as lost:
        content = records.read_bytes()
        running = fresh.start()
        running.wait_until(lambda: fresh.steps_taken() > 0)
        os.truncate(records, len(content) // 2)
        assert running.end() == 1, running.printed()
        last = running.printed().splitlines()[-1]
        assert last.startswith("error: the records of spurious_shapes/tiny/1.0.0:train in ")
        assert str(data_dir) in last
        records.write_bytes(content)
        taken = fresh.steps_taken()
        lost.append(taken - fresh.finish())
        check(fresh)


def test_a_batch_that_is_nan_once(half: Training, fault: Callable, check: Callable) -> None:
    with fault("NaN injected") as lost:
        running = half.start(sabotage="make_a_batch_nan")
        bad = running.went_on_from() + NAN_AFTER + 1
        assert running.end() == 1, running.printed()
        assert f"nan at step {bad}; training stopped" in running.printed().splitlines()[-1]
        assert int(newest(half).name) < bad  # nothing of it is saved
        taken = half.steps_taken()
        assert taken == bad - 1
        lost.append(taken - half.finish())
        check(half)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long ahead(void) { return access(getenv("CLOCK_JUMPS_WITH"), F_OK) ? 0 : SECONDS; }
int clock_gettime(clockid_t clock, struct timespec *time) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, time);
  if (clock == CLOCK_REALTIME) time->tv_sec += ahead();
  return result;
}
int gettimeofday(struct timeval *time, void *zone) {
  struct timespec precise;
  int result = clock_gettime(CLOCK_REALTIME, &precise);
  time->tv_sec = precise.tv_sec;
  time->tv_usec = precise.tv_nsec / 1000;
  return result;
}
time_t time(time_t *out) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (out) *out = precise.tv_sec;
  return precise.tv_sec;
}
"""


def test_the_clock_jumps(fresh: Training, tmp_path: Path, fault: Callable, check: Callable) -> None:
    seconds = -86_400
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-DSECONDS={seconds}L", "-o", library, source, "-ldl"],
        check=True,
    )
    environment = {
        "LD_PRELOAD": str(library),
        # In mid-training: the clock jumps when this checkpoint appears, which is then kept.
        "CLOCK_JUMPS_WITH": str(fresh.checkpoint(STEPS - SAVED_EVERY)),
    }
    with fault("clock jumps back by a day") as lost:
        running = fresh.start(environment)
        assert running.end() == 0, running.printed()
        results = json.loads((fresh.workdir / "results.json").read_text())
        written = (fresh.workdir / "results.json").stat().st_mtime  # by the system's own clock
        finished = datetime.datetime.fromisoformat(results["finished"]).timestamp()
        assert finished == pytest.approx(written + seconds, abs=60)  # it has really jumped
        lost.append(0)
        check(fresh)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB; a checkpoint takes 3.7."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the permission to mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk_stops_with_one_line_and_goes_on_once_there_is_space(
    small_disk: Path, fresh: Training, fault: Callable, check: Callable
) -> None:
    fresh = fresh._replace(workdir=small_disk)
    # Seldom enough that it is a save that meets the full disk.
    changes = {"train__log_every": SAVED_EVERY}
    with fault("full disk") as lost:
        running = fresh.start(**changes)
        assert running.end() == 1, running.printed()
        last = running.printed().splitlines()[-1]
        directory = fresh.workdir / "checkpoints"
        assert last.startswith(f"error: cannot save a checkpoint in {directory}: No space")
        assert last.endswith("(the one of step 4 is complete)")
        assert "Traceback" not in running.printed()
        assert [path.name for path in directory.iterdir()] == ["4"]
        assert not list(fresh.workdir.glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
        taken = fresh.steps_taken()
        lost.append(taken - fresh.finish(**changes))
        check(fresh, history=False)
