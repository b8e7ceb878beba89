"""python -m corm_jax.evaluate --features on a real build: its maps, tables, hashes and errors."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from building_flags import flags

from corm_jax.errors import UserError
from corm_jax.evaluate import main as evaluate
from corm_jax.evaluation_files import read_outcomes
from corm_jax.files import read_json, write_json
from corm_jax.masks.__main__ import main as masks
from corm_jax.masks.building import feature_maps
from corm_jax.masks.building.kinds import write_answers
from corm_jax.masks.building.selection import read_features, write_features
from corm_jax.masks.building.store import FeatureStore
from corm_jax.protocols.summary import summarize

pytestmark = pytest.mark.slow

WITHOUT = 2  # class whose features nobody annotated


@pytest.fixture(scope="module")
def build(
    encoder_run: Path, shapes_data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A build with feature maps: a class has no feature, the last of the others is spurious."""
    workdir = tmp_path_factory.mktemp("build") / "build"
    assert masks(flags(encoder_run, shapes_data_dir, workdir)) == 0
    features, names = read_features(workdir / "features.json")
    kept = [feature for feature in features if feature.class_index != WITHOUT]
    answers = ["background" if feature.rank == 3 else "main_object" for feature in kept]
    write_answers(workdir / "answers.csv", kept, answers, names, workers=5, reason="")
    write_features(workdir / "features.json", kept, names)
    annotate(workdir, "answers.csv")
    return workdir


def annotate(workdir: Path, name: str) -> None:
    config = read_json(workdir / "config.json")
    config["annotations"]["path"] = str(workdir / name)
    write_json(workdir / "config.json", config)


@pytest.fixture(scope="module")
def evaluated(
    encoder_run: Path, build: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("evaluations") / "run"
    assert run(encoder_run, build, output) == 0
    results = json.loads((output / "results.json").read_text())
    return output, results["protocols"]["single_feature"]


def run(encoder_run: Path, build: Path, output: Path, *more: str) -> int:
    wanted = [f"--features={build}", f"--output={output}", "--protocol=single_feature"]
    return evaluate([str(encoder_run), *wanted, *more])


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "single_feature.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_and_the_metrics_are_of_the_same_outcomes(
    build: Path, evaluated: tuple[Path, dict]
) -> None:
    output, found = evaluated
    measured = read_outcomes(output / "single_feature.npz")
    assert summarize(measured) == found["metrics"]
    assert found["parameters"]["trials"] == 1
    assert found["parameters"]["features"].startswith("sha256:")
    assert found["definitions"].keys() == found["metrics"].keys() >= {"single_spurious_drop"}
    assert "single_core" in found["intervals"]

    features, names = read_features(build / "features.json")
    table = rows(output)
    assert [(row["class"], int(row["feature"]), int(row["rank"])) for row in table] == [
        (names[feature.class_index], feature.feature, feature.rank) for feature in features
    ]
    assert names[WITHOUT] not in {row["class"] for row in table}
    assert {row["rank"]: row["kind"] for row in table} == {
        "1": "core",
        "2": "core",
        "3": "spurious",
    }
    # Every validation image of a class shows a feature unless it is active nowhere on it.
    store = FeatureStore(build / "store" / "validation")
    for feature, row in zip(features, table, strict=True):
        images = np.flatnonzero(store.label == feature.class_index)
        maps = store.maps(images, np.full(len(images), feature.feature))
        assert int(row["images"]) == maps.any(axis=(1, 2)).sum()
    accuracies = {}  # of spurious features, of which a class has one
    for row in (row for row in table if row["kind"] == "spurious" and int(row["images"])):
        accuracies[row["class"]] = float(row["accuracy_under_noise"])
        before, drop = float(row["accuracy"]), float(row["drop"])
        assert drop == pytest.approx(before - accuracies[row["class"]], abs=2e-6)
    accuracy = np.mean(list(accuracies.values()))
    assert found["metrics"]["single_spurious"] == pytest.approx(accuracy, abs=1e-5)


def test_training_images_are_those_that_activate_a_feature_most(
    encoder_run: Path, build: Path, evaluated: tuple[Path, dict], tmp_path: Path
) -> None:
    assert run(encoder_run, build, tmp_path, "--split=train") == 0
    assert all(int(row["images"]) <= 5 for row in rows(tmp_path))  # masks.top_k
    results = json.loads((tmp_path / "results.json").read_text())
    parameters = results["protocols"]["single_feature"]["parameters"]
    assert parameters["features"] != evaluated[1]["parameters"]["features"]
    measured = read_outcomes(tmp_path / "single_feature.npz")
    images = measured.outcomes["single_core"].number
    assert 0 < images.sum() < len(images)


def test_what_a_build_lacks_is_named_with_the_command_that_makes_it(
    encoder_run: Path, build: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def error(workdir: Path) -> str:
        capsys.readouterr()
        assert run(encoder_run, workdir, tmp_path / "none") == 1
        assert not (tmp_path / "none").exists()
        text = capsys.readouterr().err.splitlines()[-1]
        assert f"python -m corm_jax.masks build --workdir={workdir} --config.masks.feat" in text
        return text

    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} lacks config.json, features.json, masks, feature_maps" in error(nowhere)
    broken = tmp_path / "broken"
    shutil.copytree(build, broken, ignore=shutil.ignore_patterns("store"))
    (broken / "answers.csv").rename(broken / "other.csv")
    annotate(broken, "answers.csv")
    assert f"error: {broken}/answers.csv, which says what the features" in error(broken)
    annotate(broken, "other.csv")
    maps = broken / "feature_maps" / "maps.npy"
    maps.write_bytes(maps.read_bytes()[:-9])
    assert f"error: {broken}/feature_maps is damaged ({maps} cannot be read" in error(broken)
    row = broken / "feature_maps" / "row.npy"
    np.save(row, np.load(row)[::-1])
    shutil.copy(build / "feature_maps" / "maps.npy", maps)
    assert f"error: {broken}/feature_maps is not of {broken}/masks" in error(broken)
    shutil.rmtree(broken / "feature_maps")
    assert f"error: {broken} lacks feature_maps; make them" in error(broken)


def test_images_without_maps_are_refused_and_so_is_no_build(
    encoder_run: Path, build: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    alone = [str(encoder_run), f"--output={tmp_path / 'none'}", "--protocol=single_feature"]
    assert evaluate(alone) == 1
    assert "needs maps of annotated features: --features=WORKDIR" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(build, other, ignore=shutil.ignore_patterns("store"))
    names = np.load(other / "masks" / "file_names.npy")
    np.save(other / "masks" / "file_names.npy", np.char.add(b"x", names))
    assert run(encoder_run, other, tmp_path / "none") == 1
    assert "holds no feature map of an image of this split" in capsys.readouterr().err


def test_a_finished_protocol_is_of_the_build_that_it_was_measured_by(
    encoder_run: Path,
    build: Path,
    evaluated: tuple[Path, dict],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    output, _ = evaluated
    written = (output / "single_feature.npz").stat().st_mtime_ns
    assert run(encoder_run, build, output) == 0
    other = tmp_path / "other"
    shutil.copytree(build, other, ignore=shutil.ignore_patterns("store"))
    answers = (other / "answers.csv").read_text().replace("background", "main_object")
    (other / "answers.csv").write_text(answers)
    annotate(other, "answers.csv")
    capsys.readouterr()
    assert run(encoder_run, other, output) == 1
    message = "has single_feature by another --features; choose another --output"
    assert message in capsys.readouterr().err
    assert (output / "single_feature.npz").stat().st_mtime_ns == written


def test_weighted_answers_make_a_feature_of_one_kind(build: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "weighted"
    shutil.copytree(build, workdir, ignore=shutil.ignore_patterns("store"))
    features, names = read_features(workdir / "features.json")
    path = workdir / "mixed.csv"
    write_answers(path, features, ["main_object"] * len(features), names, workers=5, reason="")
    text = path.read_text().splitlines()
    for line in range(1, 4):  # three of the five answers to the first feature
        text[line] = text[line].replace("main_object", "separate_object")
    path.write_text("\n".join(text) + "\n")
    annotate(workdir, "mixed.csv")
    config = read_json(workdir / "config.json")
    config["annotations"]["weighted"] = True
    write_json(workdir / "config.json", config)
    assert feature_maps.read(workdir).kinds == ["spurious", *["core"] * (len(features) - 1)]
    config["annotations"]["answers_per_pair"] = 4
    write_json(workdir / "config.json", config)
    with pytest.raises(UserError, match=r"mixed\.csv line 2: .* has 5 answers, not 4"):
        feature_maps.read(workdir)
