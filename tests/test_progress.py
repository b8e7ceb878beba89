import io
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from corm_jax.errors import UserError
from corm_jax.meter import Reading
from corm_jax.progress import History, ProgressLine, SilentTerms, read_history


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def reading(images_per_second: float, data_wait: float, step_seconds: float) -> Reading:
    return Reading(
        step_seconds,
        {
            "images_per_second": images_per_second,
            "data_wait": data_wait,
            "step_seconds": step_seconds,
        },
    )


def test_log_file_gets_a_line_each_time() -> None:
    stream = io.StringIO()
    progress = ProgressLine(1200, stream)
    progress.show(50, 1.23456, reading(812.4, 0.031, 0.08))
    progress.show(1200, 0.5, reading(800.0, 0.0, 0.08))
    progress.finish()
    assert stream.getvalue() == (
        "step   50/1200  loss 1.2346  812 images/s  data wait 3%  ETA 00:01:32\n"
        "step 1200/1200  loss 0.5000  800 images/s  data wait 0%  ETA 00:00:00\n"
    )


def test_terminal_rewrites_one_line_and_ends_it_before_a_note() -> None:
    stream = Terminal()
    progress = ProgressLine(10, stream)
    progress.show(1, 2.0, reading(10.0, 0.0, 1.0))
    progress.show(2, 1.0, reading(10.0, 0.5, 1.0))
    progress.note("step 2: measured")
    progress.finish()
    first, second = stream.getvalue().split("\r")[1:]
    assert first.startswith("step  1/10  loss 2.0000")
    assert "\n" not in first
    assert second.endswith("data wait 50%  ETA 00:00:08\x1b[K\nstep 2: measured\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "00:00:59"), (3_661, "01:01:01"), (86_400, "1d 00:00:00"), (40 * 86_400, "40d 00:00:00")],
)
def test_time_to_go_counts_days(seconds: int, text: str) -> None:
    stream = io.StringIO()
    ProgressLine(1, stream).show(0, 1.0, reading(1.0, 0.0, float(seconds)))
    assert stream.getvalue().endswith(f"ETA {text}\n")


def scalars(workdir: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]


def test_history_of_a_killed_run_goes_on_without_doubles_or_holes(tmp_path: Path) -> None:
    killed = History(tmp_path, start=0)
    for step in (2, 4, 6):
        killed.write(step, {"train/loss": float(step)})
    killed.close()
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # cut off while it was written

    resumed = History(tmp_path, start=4)
    assert [record["step"] for record in resumed.records] == [2, 4]
    for step in (6, 8):
        resumed.write(step, {"train/loss": 10.0 * step})
    resumed.close()
    expected = [(2, 2.0), (4, 4.0), (6, 60.0), (8, 80.0)]
    assert scalars(tmp_path, "train/loss") == expected
    assert read_history(tmp_path / "history.jsonl") == [
        {"step": step, "train/loss": value} for step, value in expected
    ]


def test_history_is_on_disk_at_once(tmp_path: Path) -> None:
    history = History(tmp_path, start=0)
    history.write(3, {"train/loss": 0.25})
    assert json.loads((tmp_path / "history.jsonl").read_text()) == {"step": 3, "train/loss": 0.25}
    assert scalars(tmp_path, "train/loss") == [(3, 0.25)]
    history.close()


def test_history_of_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the workdir should be")
    with pytest.raises(UserError, match=r"cannot write .*history\.jsonl"):
        History(tmp_path / "run", start=0)


def test_terms_are_silent_after_three_zero_gradients_in_a_row_and_said_so_once() -> None:
    silent, found = SilentTerms(), []
    for step in range(1, 9):
        metrics = {
            "terms/a/gradient_norm": 0.0,
            "terms/b/gradient_norm": 1e-30 if step == 3 else 0.0,  # tiny is not zero
            "terms/c/value": 0.0,
        }
        found.append(silent.update(metrics))
        assert silent.update({"loss": 0.0}) == []  # an evaluation between logged steps
    assert found == [[], [], ["a"], [], [], ["b"], [], []]


def test_steps_at_which_a_schedule_has_the_weight_at_zero_are_not_silent() -> None:
    silent, weights = SilentTerms(), [0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3]
    found = [
        silent.update({"terms/a/gradient_norm": 0.0, "terms/a/weight": weight})
        for weight in weights
    ]
    assert found == [[], [], [], [], [], [], ["a"]]
