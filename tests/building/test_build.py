"""The command, as a user runs it: in processes of its own, killed and started again."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building_flags import flags
from command import run, start

from corm_jax.masks.__main__ import main
from corm_jax.masks.annotations import read_annotations
from corm_jax.masks.building.selection import read_features
from corm_jax.masks.building.store import FeatureStore
from corm_jax.masks.records import MaskRecords

MODULE = "corm_jax.masks"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.*")}


def kill_when(condition: Callable[[], bool], flags: list[str], cache: Path) -> None:
    """Starts the command and kills it, without warning, as soon as the condition holds."""
    process = start(flags, cache, MODULE)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended before it was killed: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.slow
def test_killed_builds_end_byte_identical_to_an_uninterrupted_one(
    encoder_run: Path, shapes_data_dir: Path, tmp_path: Path
) -> None:
    cache, whole, killed = tmp_path / "cache", tmp_path / "whole", tmp_path / "killed"
    code, output, errors = run(flags(encoder_run, shapes_data_dir, whole), cache, MODULE)
    assert code == 0, errors
    assert "Traceback" not in errors
    assert "annotated by: nobody: WARNING: every feature counts as core" in output

    again = flags(encoder_run, shapes_data_dir, killed)
    train = killed / "store" / "train"

    def shards() -> int:
        return len(list(train.glob("shard-*")))

    moments: list[Callable[[], bool]] = [
        # In the middle of the first shard, if a busy machine looks in time.
        lambda: any(train.glob(".shard-*")) or shards() >= 2,
        lambda: shards() >= 5,  # of 12
        lambda: any((killed / "store" / "validation").glob("shard-*")),
        lambda: (killed / "features.json").exists(),  # before the masks, or while they are written
    ]
    kept: dict[Path, int] = {}
    for moment in moments:
        kill_when(moment, again, cache)
        for path, written in kept.items():
            assert path.stat().st_mtime_ns == written, f"{path} was made again"
        kept = {path: path.stat().st_mtime_ns for path in killed.glob("store/*/shard-*/maps.npy")}
    assert len(kept) >= 13
    code, _, errors = run(again, cache, MODULE)
    assert code == 0, errors

    for part in ("masks", "feature_maps", "store"):
        expected, found = contents(whole / part), contents(killed / part)
        assert expected.keys() == found.keys()
        for name in expected:
            assert expected[name] == found[name], f"{part}/{name}"
    assert (whole / "features.json").read_bytes() == (killed / "features.json").read_bytes()
    assert not [path for path in killed.rglob(".*") if path.is_dir()]

    # What was built is whole, and as the report says.
    assert main(["verify", str(killed / "masks")]) == 0
    built = json.loads((killed / "build.json").read_text())
    records = MaskRecords.open(killed / "masks")
    assert len(records.file_names) == sum(row["masks"] for row in built["splits"].values())
    assert built["splits"]["train"]["images"] == 96
    assert built["encoded_again"] > 0
    assert "mean intersection over union" in (killed / "report.md").read_text()
    store = FeatureStore(train)
    assert built["splits"]["train"]["accuracy"] == np.mean(store.label == store.predicted)

    # The same command again finds everything; other options do not pass as the same masks.
    written = (killed / "masks" / "core.npy").stat().st_mtime_ns
    code, output, errors = run(again, cache, MODULE)
    assert code == 0, errors
    assert "is built already" in errors
    assert "images/s" not in output  # nothing was encoded
    assert (killed / "masks" / "core.npy").stat().st_mtime_ns == written
    other = flags(encoder_run, shapes_data_dir, killed, masks__top_k=4)
    code, _, errors = run(other, cache, MODULE)
    assert code == 1
    assert errors.splitlines()[-1].startswith(f"error: {killed}/masks was built with other")
    other = flags(encoder_run, shapes_data_dir, killed, encoder__image_size=32)
    code, _, errors = run(other, cache, MODULE)
    assert code == 1
    assert "store/train was made with another grid, encoder; choose another" in errors


@pytest.mark.slow
def test_demo_trains_its_encoder_and_compares_with_the_true_masks(
    shapes_data_dir: Path, tmp_path: Path
) -> None:
    tiny = "spurious_shapes/tiny"
    options = {"data.tfds_name": tiny, "data.data_dir": shapes_data_dir, "encoder.demo_data": tiny}
    options |= {"encoder.image_size": 16, "features.per_class": 2, "masks.validation": False}
    overrides = [f"--config.{key}={value}" for key, value in options.items()]
    code, output, errors = run(["build", f"--workdir={tmp_path}", *overrides], module=MODULE)
    assert code == 0, errors
    assert "annotated by: the true masks" in output
    built = json.loads((tmp_path / "build.json").read_text())
    assert len(built["classes"]) == 6
    assert built["splits"].keys() == built["iou"].keys() == {"train"}
    assert built["splits"]["train"]["masks"] == 96
    assert 0 < built["iou"]["train"]["binary"] < 1
    features, names = read_features(tmp_path / "features.json")
    annotations = read_annotations(tmp_path / "annotations.csv")
    assert set(annotations) == {(names[f.class_index], f.feature) for f in features}
    report = (tmp_path / "report.md").read_text()
    for name in names:
        assert f"\n| {name} | " in report
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert main(["verify", str(tmp_path / "masks")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.mask.top_k=3"], "unknown config key mask.top_k (did you mean 'masks.top_k'?)"),
        (["--config=configs/mask.py"], "configs/mask.py does not exist (did you mean"),
        (["--config=configs/masks.py:imagnet"], "'imagnet' (did you mean 'imagenet'?)"),
        (["--config.masks.top_k=many"], "many"),
        (["--config.masks.top_k=-1"], "config.masks.top_k=-1 must be >= 0"),
        (["--config.features.by=labels"], "'labels' (did you mean 'label'?)"),
        (["--config.annotations.votes=6"], "is above config.annotations.answers_per_pair=5"),
        (["--wordkir=x"], "unknown flag --wordkir (did you mean 'workdir'?)"),
        (["somewhere"], "unexpected argument 'somewhere'"),
        (["--config.scan.batch_size=9"], "config.scan.batch_size=9 is not a multiple of the 8"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["build", f"--workdir={tmp_path / 'w'}", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "w").exists()


def test_other_commands_refuse_what_they_do_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "somewhere", "--workdir=x"])
    assert "unrecognized arguments: --workdir=x" in capsys.readouterr().err
