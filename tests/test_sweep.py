"""Sweeps: what a grid stands for, what is refused, which arm is selected, what is written."""

import csv
import json
import math
from pathlib import Path

import pytest
from command import REPOSITORY
from ml_collections import ConfigDict
from PIL import Image

from corm_jax.command_line import load_config, parse_config
from corm_jax.config import flatten
from corm_jax.errors import UserError
from corm_jax.losses.presets import PRESETS
from corm_jax.sweep import output, picture
from corm_jax.sweep.config import Arm, Run, expand, plan, sweep_config
from corm_jax.sweep.selection import Summary, mean_and_error, pareto_front, select, summarize

FILES = sorted((REPOSITORY / "configs").glob("sweep_*.py"))

# ml_collections loads config files by it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def make_config(*grid: dict[str, object], **run: object) -> ConfigDict:
    config = sweep_config(f"{REPOSITORY}/configs/vit_corm.py:demo")
    config.grid = list(grid) or [{"objective": "erm"}, {"objective": "corm"}]
    config.seeds = (0, 1)
    config.run.update_from_flattened_dict({"data.selection_share": 0.2, **run})
    return config


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("variant", ["demo", "folder"])
def test_every_sweep_of_configs_can_run(
    file: Path, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    flags = ["--config.run.data.folder=DIR", "--config.seeds=(4,)", "--config.jobs=3"]
    config = parse_config(f"{file}:{variant}", flags)
    runs = plan(config, tmp_path)
    assert {run.seed for run in runs} == {4}
    assert {run.config.data.folder for run in runs} == {"DIR"}
    assert all(run.config.data.selection_share > 0 for run in runs)
    assert f"python -m corm_jax.sweep --config=configs/{file.name}" in file.read_text()
    if file.stem == "sweep_objectives":
        assert set(PRESETS) == {run.arm.objective for run in runs}


def test_blocks_stand_for_the_products_of_their_values() -> None:
    arms = expand(
        [
            {"objective": "erm"},
            {"objective": "corm", "terms.noisy.sigma": [0.25, 0.5], "train.steps": [7, 8]},
            {"objective": ["corm", "rrr"], "control": ["none", "shuffled"], "model.name": "a/b"},
        ]
    )
    assert [arm.name for arm in arms] == [
        "erm",
        *("corm,noisy.sigma=0.25,train.steps=7", "corm,noisy.sigma=0.25,train.steps=8"),
        *("corm,noisy.sigma=0.5,train.steps=7", "corm,noisy.sigma=0.5,train.steps=8"),
        *("corm,model.name=a_b", "corm,shuffled,model.name=a_b"),
        *("rrr,model.name=a_b", "rrr,shuffled,model.name=a_b"),
    ]
    assert arms[1].overrides == {"terms.noisy.sigma": 0.25, "train.steps": 7}
    assert (arms[-1].objective, arms[-1].control) == ("rrr", "shuffled")


def test_a_run_is_what_the_command_line_of_the_trainer_makes_of_its_flags(tmp_path: Path) -> None:
    config = make_config({"objective": "corm_two_term", "terms.noisy.sigma": 1})
    config.run.control = "random"
    run = plan(config, tmp_path)[1]
    assert run.workdir == tmp_path / "corm_two_term,noisy.sigma=1" / "seed_1"
    expected = parse_config(
        f"{REPOSITORY}/configs/vit_corm.py:demo,corm_two_term",
        [
            "--config.terms.noisy.sigma=1",
            "--config.seed=1",
            "--config.data.selection_share=0.2",
            "--config.control=random",
        ],
    )
    assert flatten(run.config.to_dict()) == flatten(expected.to_dict())


def test_the_warmup_follows_the_steps_of_an_arm(tmp_path: Path) -> None:
    config = make_config({"objective": "erm", "train.steps": [60, 600]}, **{"train.steps": 24})
    runs = plan(config, tmp_path)[:2]
    assert [run.config.optimizer.warmup_steps for run in runs] == [5, 50]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([{"objective": "corm", "terms.noisy.sgma": 1.0}], "(did you mean 'terms.noisy.sigma'?)"),
        ([{"objective": "erm", "terms.noisy.sigma": 1.0}], "arm erm,noisy.sigma=1.0: unknown"),
        ([{"objective": "corm", "terms.noisy.sigma": [1.0, -1.0]}], "noisy.sigma=-1.0 must be >="),
        ([{"objective": "corm", "terms.noisy.sigma": "much"}], "config.terms.noisy.sigma='much'"),
        ([{"objective": "corm_hy"}], "(did you mean 'corm_hi'?)"),
        ([{"objective": "corm", "control": "shufled"}], "(did you mean 'shuffled'?)"),
        ([{"objectiv": "corm"}], "config.grid[0] names no objective (did you mean 'objectiv'?)"),
        ([{"objective": "corm", "seed": [1, 2]}], "seeds stand in config.seeds"),
        ([{"objective": "erm"}, {"objective": ["corm", "erm"]}], "grid[1]: erm is in the grid"),
    ],
)
def test_a_wrong_arm_is_refused_before_anything_runs(
    grid: list[dict[str, object]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as info:
        plan(make_config(*grid), tmp_path)
    assert message in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("grid", [], "config.grid is empty"),
        ("seeds", (1, 1), "different numbers"),
        ("seeds", (), "one or more"),
        ("jobs", 0, "config.jobs=0 must be >= 1"),
        ("select.split", "validaton", "(did you mean 'validation'?)"),
        ("select.metric", "cor", "(did you mean 'core'?)"),
        ("select.of", "er", "(did you mean 'erm'?)"),
        ("select.clean_within", -0.1, "must be >= 0"),
        ("run.data.selection_share", 0.0, "--config.run.data.selection_share=0.2"),
    ],
)
def test_a_wrong_key_of_the_sweep_is_refused(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    config = make_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as info:
        plan(config, tmp_path)
    assert message in str(info.value)


def test_a_base_names_its_variant_and_no_objective() -> None:
    for base in ("configs/vit_corm.py", "configs/vit_corm.py:demo,erm"):
        with pytest.raises(UserError, match="FILE:VARIANT without an objective"):
            sweep_config(base)


def test_mean_and_standard_error_by_hand() -> None:
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert (mean, error) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    assert mean_and_error([5.0])[0] == 5.0
    assert math.isnan(mean_and_error([5.0])[1])


def summary(name: str, clean: float, core: float, complete: bool = True) -> Summary:
    columns = {"selection_clean": (clean, 0.1), "selection_core": (core, 0.1)}
    # On the validation split the order is the opposite.
    columns |= {"clean": (clean, 0.1), "core": (1 - core, 0.1)}
    return Summary(Arm(name, name, "none", {}), 2, complete, columns)


SUMMARIES = [
    summary("a", 0.90, 0.50),
    summary("b", 0.895, 0.60),
    summary("c", 0.88, 0.90),
    summary("d", math.nan, 0.95),
    summary("e", 0.90, math.nan),
    summary("f", 0.99, 0.99, complete=False),
]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "b"),  # c is 2 points below the best, the others have no numbers or miss a run
        ({"clean_within": 0.005}, "b"),  # exactly at the limit
        ({"clean_within": 0.004}, "a"),
        ({"clean_within": 0.02}, "c"),
        ({"of": "b", "clean_within": 0.015}, "c"),
        ({"of": "c", "clean_within": 0.0}, "c"),
        ({"split": "validation"}, "a"),
        ({"of": "f"}, ""),
        ({"of": "d"}, ""),
        ({"metric": "rcs"}, ""),  # measured nowhere
    ],
)
def test_selection_by_hand(rule: dict[str, object], expected: str) -> None:
    config = make_config().select
    config.update(rule)
    name, reason = select(SUMMARIES, config)
    assert name == expected
    assert bool(reason) == (not expected)


def test_of_equal_arms_the_cleaner_then_the_first_is_selected() -> None:
    rule = make_config().select
    equal = [summary("a", 0.90, 0.6), summary("b", 0.905, 0.6), summary("c", 0.905, 0.6)]
    assert select(equal, rule) == ("b", "")
    assert select(equal[::-1], rule) == ("c", "")
    assert select([], rule)[0] == ""


def test_pareto_front_by_hand() -> None:
    points = {
        "corner": (1.0, 5.0),
        "below": (1.0, 4.0),
        "middle": (2.0, 4.0),
        "twin": (2.0, 4.0),
        "inside": (1.5, 3.9),
        "right": (3.0, 0.0),
        "unknown": (9.0, math.nan),
    }
    assert pareto_front(points) == ["corner", "middle", "twin", "right"]
    assert pareto_front({"unknown": (math.nan, 1.0)}) == []


def test_summary_is_of_the_runs_that_have_the_number() -> None:
    arm = Arm("a", "erm", "none", {})
    found = summarize(arm, [{"clean": 0.5, "core": 0.25}, None, {"clean": 0.7}])
    assert (found.finished, found.complete) == (2, False)
    assert found.means["clean"] == (pytest.approx(0.6), pytest.approx(0.1))
    assert found.means["core"][0] == 0.25


def finish(run: Run, clean: float, **more: float) -> None:
    run.workdir.mkdir(parents=True)
    content = {
        "metrics": {"clean": clean, "clean_plain": clean, "core": clean / 2, "rcs": -0.25, **more},
        "selection": {"clean": clean, "core": clean / 4},
        "train_seconds": 12.5,
    }
    (run.workdir / "results.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Four runs, of which one has failed."""
    config = make_config({"objective": "erm"}, {"objective": "corm", "terms.noisy.sigma": 0.5})
    runs = plan(config, tmp_path)
    finish(runs[0], 0.5)
    finish(runs[1], 0.75, counterfactual=0.5)
    finish(runs[2], 0.25)
    return runs


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_for_every_run(runs: list[Run], tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    output.write_runs(path, runs, {runs[3].workdir: "error: loss is nan, at step 7"})
    found = rows(path)
    assert [row["arm"] for row in found] == ["erm", "corm,noisy.sigma=0.5"] * 2
    assert [row["seed"] for row in found] == ["0", "0", "1", "1"]
    assert [row["status"] for row in found] == [
        *["finished"] * 3,
        "error: loss is nan, at step 7",
    ]
    assert found[1] == {
        "arm": "corm,noisy.sigma=0.5",
        "objective": "corm",
        "control": "none",
        "overrides": "terms.noisy.sigma=0.5",
        "seed": "0",
        "status": "finished",
        "clean": "0.75",
        "clean_plain": "0.75",
        "core": "0.375",
        "rcs": "-0.25",
        "counterfactual": "0.5",
        "selection_clean": "0.75",
        "selection_core": "0.1875",
        "train_seconds": "12.5",
        "workdir": str(runs[1].workdir),
    }
    assert found[0]["counterfactual"] == found[3]["clean"] == ""
    output.write_runs(path, runs, {})
    assert rows(path)[3]["status"] == "waiting"


def test_arms_are_written_as_csv_and_markdown(runs: list[Run], tmp_path: Path) -> None:
    found = output.summaries(runs)
    output.write_summary(tmp_path / "summary.csv", found, "erm")
    erm, corm = rows(tmp_path / "summary.csv")
    assert (erm["runs"], erm["selected"], corm["runs"], corm["selected"]) == ("2", "yes", "1", "")
    assert (float(erm["clean"]), float(erm["clean_error"])) == (0.375, 0.125)
    assert corm["clean_error"] == "nan"

    table = output.table(make_config(), found, "erm")
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    header = ["arm", "runs", "clean", "core", "rcs", "train seconds", "counterfactual"]
    assert sorted(cells[0]) == sorted(header)
    erm, corm = (dict(zip(cells[0], line, strict=True)) for line in cells[2:])
    assert (erm["arm"], erm["clean"], erm["core"]) == ("**erm**", "37.5 ± 12.5", "18.8 ± 6.2")
    assert (corm["arm"], corm["clean"], corm["rcs"]) == ("corm,noisy.sigma=0.5", "75.0", "-0.25")
    assert (erm["counterfactual"], corm["counterfactual"]) == ("", "50.0")


def test_a_table_selected_on_the_validation_images_says_that_it_is_optimistic() -> None:
    config = make_config()
    assert "optimistic" not in output.table(config, SUMMARIES, "a")
    config.select.split = "validation"
    assert "optimistic" in output.table(config, SUMMARIES, "a")


def test_picture_is_drawn_of_any_arms(tmp_path: Path) -> None:
    crowd = [summary(f"arm number {i}", 0.9, 0.5 + i / 1e4) for i in range(12)]
    for number, arms in enumerate(([], SUMMARIES[:1], [*SUMMARIES, *crowd])):
        path = tmp_path / f"{number}.png"
        picture.draw(path, arms, "a title", "a")
        with Image.open(path) as image:
            assert min(image.size) > 500


def test_the_objective_of_an_arm_comes_with_its_terms(tmp_path: Path) -> None:
    runs = plan(make_config({"objective": ["erm", "corm_hi"]}), tmp_path)
    for run in runs:
        expected = load_config(f"{REPOSITORY}/configs/vit_corm.py:demo,{run.arm.objective}")
        assert run.config.terms.to_dict() == expected.terms.to_dict()
