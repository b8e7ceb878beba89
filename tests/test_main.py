"""The command line as a user meets it: real processes, their output and exit codes."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from command import REPOSITORY, SMALL, run, small_flags
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from corm_jax.command_line import check_overrides, load_config
from corm_jax.errors import UserError
from corm_jax.losses.presets import PRESETS
from corm_jax.protocols.ablations import ABLATIONS
from corm_jax.protocols.summary import DEFINITIONS, extra_definitions


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_from_start_to_end_and_after(tmp_path: Path, shapes_data_dir: Path) -> None:
    workdir = tmp_path / "run"
    changes = {"train__steps": 12, "eval__every": 8, "eval__sigma": 0.3}
    flags = small_flags("configs/vit_corm.py", shapes_data_dir, workdir, **changes)
    code, output, errors = run(flags)
    assert code == 0, errors

    # What is printed: our own lines and nothing else.
    number = r"[-0-9.]+"
    progress = rf"loss {number}  \d+ images/s  data wait \d+%  ETA 00:0\d:\d\d"
    expected = [
        "masks: 192 images have a record, 0 images have none, 0 records find no image",
        r"compiling the training step .*",
        f"step  4/12  {progress}",
        f"step  8/12  {progress}",
        rf"step 8: on 24 validation images: clean {number}, core {number}, .*",
        f"step 12/12  {progress}",
        "evaluating on 48 validation images",
        "evaluating on 48 images of counterfactual",
    ]
    lines = errors.splitlines()
    assert len(lines) == len(expected), errors
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert output.splitlines()[0].split() == [
        *("objective", "clean", "core", "spurious", "rcs"),
        *("swapped_background", "grey_background", "grey_object", "counterfactual", "seconds"),
    ]
    assert output.splitlines()[1].startswith("corm ")

    # What is kept.
    results = json.loads((workdir / "results.json").read_text())
    metrics = results["metrics"]
    assert metrics["images"] == metrics["images_with_core"] == 48
    assert metrics["images_swapped"] == 48
    for name in ("clean", "clean_plain", "core", "spurious", *ABLATIONS, "counterfactual"):
        assert 0 <= metrics[name] <= 1
    assert results["definitions"] == {
        name: DEFINITIONS[name] for name in metrics if not name.startswith("counterfactual")
    } | extra_definitions("counterfactual", 6)
    assert results["definitions"].keys() == metrics.keys()
    assert results["extra_sets"] == {"counterfactual": {"images": 48, "classes": 6}}
    assert results["protocol"]["sigma"] == 0.3
    assert results["protocol"]["trials"] == SMALL["eval.trials"]
    assert results["seed"] == 0
    assert results["versions"]["numpy"] == np.__version__
    config = json.loads((workdir / "config.json").read_text())
    assert config["train"]["steps"] == 12
    assert config["data"]["image_size"] == 16
    for name, (width, height) in {"curves.png": (1430, 440), "examples.png": (1452, 1364)}.items():
        with Image.open(workdir / name) as picture:
            assert picture.size == (width, height)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["tensors"])
    for term in config["terms"]:
        assert {f"train/terms/{term}/value", f"train/terms/{term}/gradient_norm"} <= tags
    assert {"train/loss", "train/images_per_second", "validation/rcs"} <= tags
    assert [event.step for event in events.Tensors("train/loss")] == [4, 8, 12]

    # The same command once more trains nothing; another config is refused.
    before = contents(workdir)
    code, repeated, errors = run(flags)
    assert (code, repeated) == (0, output)
    assert f"{workdir} is finished; remove it to train again" in errors
    other = {**changes, "train__steps": 13, "seed": 1}
    code, _, errors = run(small_flags("configs/vit_corm.py", shapes_data_dir, workdir, **other))
    assert code == 1
    assert "train.steps: 12 there, 13 now" in errors
    assert "seed: 0 there, 1 now" in errors
    assert len(errors.splitlines()) == 1
    assert contents(workdir) == before


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, shapes_data_dir: Path) -> None:
    workdir = tmp_path / "run"
    flags = small_flags(
        "configs/vit_erm.py",
        shapes_data_dir,
        workdir,
        train__steps=12,
        train__log_every=1,
        checkpoint__every=1,
        optimizer__warmup_steps=6,  # the first step's learning rate is 0
        optimizer__learning_rate=1e15,
    )
    code, _, errors = run(flags)
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert " is nan at step 3; training stopped" in last
    assert "config.optimizer.learning_rate" in last
    assert "Traceback" not in errors
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    assert not (workdir / "results.json").exists()


@pytest.mark.slow
def test_imagenet_without_data_says_what_to_do(tmp_path: Path) -> None:
    began = time.monotonic()
    code, output, errors = run(
        ["--config=configs/vit_corm.py:imagenet", f"--workdir={tmp_path / 'run'}"]
    )
    assert time.monotonic() - began < 60  # 20 s on an idle machine
    assert code == 1
    assert not output
    for part in (
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "python -m corm_jax.data prepare --dataset=imagenet2012",
        "python -m corm_jax.main --config=configs/vit_corm.py",
    ):
        assert part in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name a config, such as --config=configs/vit_corm.py"),
        (["--config=configs/vit_corm.py", "--config.train.steps=abc"], "config.train.steps=abc"),
        (["--config=configs/vit_corm.py", "--worksdir=x"], "(did you mean 'workdir'?)"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str) -> None:
    code, output, errors = run(flags)
    assert (code, output) == (1, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
def test_help_is_one_screen() -> None:
    code, output, errors = run(["--help"])
    assert (code, errors) == (0, "")
    assert len(output.splitlines()) < 24
    assert "configs/vit_corm.py" in output
    assert set(PRESETS) <= set(re.findall(r"\w+", output))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.stepz=3", "unknown config key train.stepz (did you mean 'train.steps'?)"),
        ("--config.trian.steps=3", "unknown config key trian.steps (did you mean 'train.steps'?)"),
        ("--config.terms.noisy.sgma=1", "(did you mean 'terms.noisy.sigma'?)"),
        ("--noconfig.data.flp", "(did you mean 'data.flip'?)"),
    ],
)
def test_unknown_key_names_the_nearest(argument: str, message: str) -> None:
    with pytest.raises(UserError) as info:
        check_overrides([f"--config={REPOSITORY}/configs/vit_corm.py", argument])
    assert message in str(info.value)


def test_known_keys_pass_in_every_spelling() -> None:
    path = f"{REPOSITORY}/configs/vit_corm.py"
    check_overrides(["--config", path, "--config.train.steps", "3", "--noconfig.data.flip"])
    check_overrides([f"-config={path}:folder", "-config.terms.noisy.sigma=0.1"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/vit_crm.py", "config file configs/vit_crm.py does not exist"),
        ("configs/vit_corm.py:foldr", "unknown variant 'foldr' (did you mean 'folder'?)"),
        ("configs/vit_corm.py:demo,cormhi", "objective 'cormhi' (did you mean 'corm_hi'?)"),
    ],
)
def test_unknown_config_names_the_nearest(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError) as info:
        load_config(name)
    assert message in str(info.value)


def test_file_without_get_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"mine\.py defines no get_config"):
        load_config(str(tmp_path / "mine.py"))
