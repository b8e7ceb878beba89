import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from corm_jax import report
from corm_jax.config import base_config

METRICS = {
    "clean": 0.9125,
    "clean_plain": 0.91,
    "core": 0.75,
    "spurious": 0.5,
    "rcs": 1 / 3,
    "images": 1200.0,
    "images_with_core": 1200.0,
    "swapped_background": 0.25,
    "grey_background": 0.5,
    "grey_object": 1.0,
    "images_swapped": 1200.0,
}
COLUMNS = (
    *("objective", "clean", "core", "spurious", "rcs"),
    *("swapped_background", "grey_background", "grey_object"),
)
CELLS = ["91.2%", "75.0%", "50.0%", "0.333", "25.0%", "50.0%", "100.0%"]


def finish(workdir: Path, objective: str, control: str = "none", **extra: float) -> dict:
    config = base_config(objective)
    config.control = control
    content = report.results(
        config,
        metrics=METRICS,
        selection={},
        extra={
            name: {"clean": clean, "clean_plain": clean / 2, "images": 30.0, "classes": 5}
            for name, clean in extra.items()
        },
        seconds=83.456,
        skipped=[],
        counts={"images": 8400},
    )
    workdir.mkdir(parents=True)
    (workdir / "results.json").write_text(json.dumps(content))
    return content


def test_results_define_every_metric_and_name_versions(tmp_path: Path) -> None:
    content = finish(tmp_path / "a", "corm")
    assert content["definitions"].keys() == METRICS.keys()
    assert content["train_seconds"] == 83.46
    # 15 dilations at 224 pixels reach as far as 3 at 48.
    assert content["protocol"]["dilations"] == 3
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "corm_jax", "python"):
        assert content["versions"][package]


def test_runs_under_a_control_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "a", "corm_two_term", control="shuffled")
    finish(tmp_path / "b", "corm_two_term")
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    header, control, row = capsys.readouterr().out.splitlines()[:3]
    assert control.startswith("corm_two_term (shuffled)  ")
    assert row.startswith("corm_two_term  ")
    assert len(header) == len(control) == len(row)


def test_report_compares_runs_and_writes_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "a", "erm", counterfactual=0.25)
    finish(tmp_path / "b", "corm", counterfactual=0.5)
    summary = tmp_path / "summary.json"
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), f"--summary={summary}"]
    assert report.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [*COLUMNS, "counterfactual", "seconds"]
    assert lines[0].split() == keys
    assert lines[1].split() == ["erm", *CELLS, "25.0%", "83"]
    assert lines[2].split() == ["corm", *CELLS, "50.0%", "83"]
    assert len(lines[0]) == len(lines[1]) == len(lines[2]) <= 120
    assert "grey_object: lower is better" in lines
    assert f"{tmp_path}/a/examples.png" in "\n".join(lines)
    rows = json.loads(summary.read_text())
    assert [list(row) for row in rows] == [keys, keys]
    assert rows[0] == {
        "objective": "erm",
        "clean": 0.9125,
        "core": 0.75,
        "spurious": 0.5,
        "rcs": 1 / 3,
        "swapped_background": 0.25,
        "grey_background": 0.5,
        "grey_object": 1.0,
        "counterfactual": 0.25,
        "seconds": 83.46,
    }


def test_extra_sets_are_defined_and_have_their_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "imagenet_v2/matched-frequency"
    content = finish(tmp_path / "a", "erm", **{name: 0.625, "imagenet_a": 0.125})
    finish(tmp_path / "b", "corm", imagenet_a=0.25)
    assert content["metrics"][name] == 0.625
    assert content["metrics"][f"{name}_plain"] == 0.3125
    assert content["definitions"].keys() == content["metrics"].keys()
    assert f"test split of {name}" in content["definitions"][name]
    assert "among the 5 classes that occur there" in content["definitions"]["imagenet_a"]
    assert content["extra_sets"]["imagenet_a"] == {"images": 30.0, "classes": 5}
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    header, first, second, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[8:] == [name, "imagenet_a", "seconds"]
    assert first.split()[8:10] == ["62.5%", "12.5%"]
    assert second.split()[8:10] == ["nan%", "25.0%"]
    assert len(header) == len(first) == len(second)


def test_a_column_is_as_wide_as_its_longest_cell() -> None:
    rows = [
        {"objective": "erm", "clean": 1.0, "rcs": -0.5, "seconds": 1234567.8},
        {"objective": "corm_two_term (shuffled)", "clean": 0.05, "core": 0.5, "seconds": 3.2},
    ]
    assert report.format_table(rows).splitlines() == [
        "objective                  clean     rcs   core  seconds",
        "erm                       100.0%  -0.500   nan%  1234568",
        "corm_two_term (shuffled)    5.0%     nan  50.0%        3",
    ]


def test_runs_of_before_the_ablations_have_no_such_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = finish(tmp_path / "a", "erm")
    for name in ("swapped_background", "grey_background", "grey_object", "images_swapped"):
        del content["metrics"][name]
    (tmp_path / "a" / "results.json").write_text(json.dumps(content))
    assert report.main([str(tmp_path / "a")]) == 0
    header, row, *rest = capsys.readouterr().out.splitlines()
    assert header.split() == [*COLUMNS[:5], "seconds"]
    assert row.split() == ["erm", *CELLS[:4], "83"]
    assert not any("grey" in line for line in rest)


def test_runs_without_counterfactual_images_have_no_such_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "a", "erm")
    assert report.main([str(tmp_path / "a")]) == 0
    assert "counterfactual" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"metrics": 3}'])
def test_what_is_no_finished_run_is_one_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    summary = tmp_path / "summary.json"
    assert report.main([str(tmp_path), f"--summary={summary}"]) == 1
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith(f"error: {tmp_path}/results.json ")
    assert len(output.err.splitlines()) == 1
    assert not summary.exists()


def test_terms_are_weighted_by_their_weight_at_each_step() -> None:
    records = [
        {"step": 2, "train/terms/a/value": 3.0, "train/terms/a/weight": 0.0},
        {"step": 4, "train/terms/a/value": 2.0, "train/terms/a/weight": 0.5},
        {"step": 4, "validation/clean": 0.5},
        {"step": 6, "train/terms/a/value": 1.5, "train/terms/b/value": 4.0},
    ]
    assert report.weighted_values(records, "a", 10.0) == ([2, 4, 6], [0.0, 1.0, 15.0])
    assert report.weighted_values(records, "b", 10.0) == ([6], [40.0])


def test_curves_are_drawn_even_of_one_record(tmp_path: Path) -> None:
    config = base_config("corm")
    records = [
        {"step": 50, "train/loss": 2.0, "train/gradient_norm": 1.0},
        {"step": 300, "validation/clean": 0.5, "validation/core": 0.4, "validation/spurious": 0.3},
    ]
    for number in (0, 1, 2):
        path = tmp_path / f"{number}.png"
        report.draw_curves(path, records[:number], METRICS, config)
        with Image.open(path) as picture:
            assert picture.size == (1430, 440)


def batch(count: int, masked: list[int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    has_mask = np.zeros(count, np.float32)
    has_mask[masked] = 1
    mask = np.zeros((count, 16, 16), np.uint8)
    mask[:, 4:10, 4:10] = 255
    images = {
        "image": rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8),
        "core_mask": mask,
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
        "has_mask": has_mask,
        "label": (np.arange(count) % 2).astype(np.int32),
        "id": np.arange(count, dtype=np.uint32),
        "weight": np.ones(count, np.float32),
    }
    return {**images, "partner": {key: np.roll(value, 1, axis=0) for key, value in images.items()}}


@pytest.mark.parametrize(("masked", "columns"), [([1, 2, 5], 3), ([3], 1), (list(range(12)), 8)])
def test_examples_show_images_that_have_masks(
    masked: list[int], columns: int, tmp_path: Path
) -> None:
    path = tmp_path / "examples.png"
    report.draw_examples(path, batch(12, masked), ("cat", "dog"), base_config("erm"))
    with Image.open(path) as picture:
        assert picture.size == (round(110 * (1.5 * columns + 1.2)), round(110 * (1.5 * 8 + 0.4)))
    assert jnp.isfinite(jnp.asarray(np.asarray(Image.open(path)), jnp.float32)).all()


def test_examples_show_the_ablated_views(tmp_path: Path) -> None:
    """White objects before black: grey is on the background, then on the object."""
    path, examples = tmp_path / "examples.png", batch(1, [0])
    examples["image"][:] = 0
    examples["image"][:, 4:10, 4:10] = 255
    partner = examples["partner"] = {key: value.copy() for key, value in examples.items()}
    partner["image"][:], partner["label"] = (255, 0, 0), 1 - examples["label"]
    report.draw_examples(path, examples, ("cat", "dog"), base_config("erm"))
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    shares = {
        colour: (abs(pixels.astype(int) - colour).max(axis=-1) <= 1).mean(axis=1)
        for colour in ((127, 127, 127), (255, 0, 0))
    }
    swapped, grey = shares[255, 0, 0], shares[127, 127, 127]
    rows = [len(pixels) * row // 8 for row in range(9)]
    assert swapped[: rows[5]].max() < 0.02  # only in the sixth row
    assert swapped[rows[5] : rows[6]].max() > 0.3
    background, core = grey[rows[6] : rows[7]].max(), grey[rows[7] :].max()
    assert background > 0.3  # a whole row of pixels above the object
    assert 0.1 < core < background


def test_examples_without_any_mask_in_the_batch_are_still_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "examples.png"
    report.draw_examples(path, batch(4, []), ("cat", "dog"), base_config("erm"))
    with Image.open(path) as picture:
        assert picture.width > 0
