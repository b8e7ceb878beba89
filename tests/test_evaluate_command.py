"""python -m corm_jax.evaluate on real runs: metrics, intervals, resumption, comparison, errors."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from command import small_config
from ml_collections import ConfigDict
from torch_models import import_timm

from corm_jax import example_file
from corm_jax.convert import main as convert
from corm_jax.data.dataset import open_dataset
from corm_jax.evaluate import main
from corm_jax.evaluation_files import differing_keys, read_outcomes
from corm_jax.protocols import PROTOCOLS
from corm_jax.protocols.ablations import ABLATIONS
from corm_jax.protocols.summary import DEFINITIONS, summarize
from corm_jax.report import main as report

pytestmark = pytest.mark.slow

RESNET = {"model__name": "resnet18", "data__image_size": 16, "train__steps": 6}


class Trained(NamedTuple):
    workdir: Path
    results: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shapes_data_dir: Path) -> Trained:
    from corm_jax.train import train

    config = small_config("configs/resnet_erm.py", shapes_data_dir, **RESNET)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return Trained(workdir, train(config, workdir))


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory, shapes_data_dir: Path) -> Path:
    """The workdir of a run that no other library has a model for, and takes less time."""
    from corm_jax.train import train

    workdir = tmp_path_factory.mktemp("runs") / "nano"
    train(small_config("configs/resnet_erm.py", shapes_data_dir, train__steps=4), workdir)
    return workdir


@pytest.fixture(scope="module")
def evaluated(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluations") / "run"
    assert main([str(trained.workdir), f"--output={output}"]) == 0
    return output


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def metrics_of(results: dict[str, Any]) -> dict[str, float]:
    return {k: v for found in results["protocols"].values() for k, v in found["metrics"].items()}


def test_a_run_has_the_metrics_that_it_ended_with(trained: Trained, evaluated: Path) -> None:
    results = read(evaluated)
    found = metrics_of(results)
    expected = {k: v for k, v in trained.results["metrics"].items() if k in DEFINITIONS}
    assert found == pytest.approx(expected)
    assert {*ABLATIONS, "core", "rcs"} <= found.keys()
    for protocol in results["protocols"].values():
        for name, spans in protocol["intervals"].items():
            for low, high in spans.values():
                assert low - 1e-9 <= found[name] <= high + 1e-9
    about = results["provenance"]
    assert about["noise"] == {"sigma": 0.25, "trials": 2, "seed": 0}
    assert about["preprocessing"]["dilations"] == 1  # 15 at 224 pixels, in proportion at 16
    assert "torch" not in about["versions"]
    assert about["model"]["weights"].startswith("sha256:")
    assert about["data"]["images"] == found["images"]


def test_outcomes_of_each_image_give_the_metrics(evaluated: Path) -> None:
    results = read(evaluated)
    for name, protocol in results["protocols"].items():
        assert summarize(read_outcomes(evaluated / f"{name}.npz")) == protocol["metrics"]


def test_a_page_shows_the_evaluation(evaluated: Path, tmp_path: Path) -> None:
    examples = example_file.read(evaluated / "examples.npz")
    assert set(examples.label) == set(range(6))  # one of each class first
    assert {"image", "core", "spurious", *ABLATIONS} == examples.views.keys()
    assert report([str(evaluated), f"--output={tmp_path / 'report.html'}"]) == 0
    html = (tmp_path / "report.html").read_text()
    for name in ("clean", "swapped_background"):
        assert f"<b>{100 * metrics_of(read(evaluated))[name]:.1f}</b>" in html
    assert "data:image/jpeg;base64," in html


def test_a_finished_protocol_is_not_measured_again(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(nano), f"--output={tmp_path}"]
    assert main([*arguments, "--protocol=ablations"]) == 0
    written = (tmp_path / "ablations.npz").stat().st_mtime_ns
    assert "core" not in metrics_of(read(tmp_path))
    assert main(arguments) == 0
    assert (tmp_path / "ablations.npz").stat().st_mtime_ns == written
    assert {"core", "grey_object"} <= metrics_of(read(tmp_path)).keys()
    capsys.readouterr()
    assert main([*arguments, "--sigma=0.5", "--seed=1"]) == 1
    message = capsys.readouterr().err
    assert "another evaluation (noise.seed, noise.sigma differ); choose another --output" in message


def test_every_protocol_that_the_data_allows_is_measured(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = json.loads((nano / "config.json").read_text())
    dataset = open_dataset(ConfigDict(config))
    names = dataset.validation.images.file_names[:40]
    ranking = tmp_path / "spuriosity.csv"
    rows = [f"{os.fsdecode(name)},class,0,{place}" for place, name in enumerate(names)]
    ranking.write_text("\n".join(["file_name,class,score,rank", *rows]))
    output = tmp_path / "all"
    arguments = [str(nano), f"--output={output}", "--protocol=all"]
    assert main([*arguments, f"--spuriosity={ranking}"]) == 0
    shown = capsys.readouterr().out
    results = read(output)
    spurious = dataset.validation.masks.has("spurious").any()
    missing = set() if spurious else {"annotated", "normalized"}
    assert results["protocols"].keys() == set(PROTOCOLS) - {"clean", "single_feature"} - missing
    assert "left out: single_feature (no --features)" in shown
    for name in missing:
        assert f"left out: {name} (no spurious masks)" in shown
    found = metrics_of(results)
    for name in ("box_rcs_0.5", "rfs_l2", "core_area", "random_core", "grad_cam_iou", "ece"):
        assert name in found
        assert name in shown
    assert {"sigma", "accuracy"} == results["protocols"]["sigma_curve"]["curves"]["core"].keys()
    assert results["protocols"]["spurious_gap"]["parameters"]["ends"] == 100
    for name, protocol in results["protocols"].items():
        assert summarize(read_outcomes(output / f"{name}.npz")) == protocol["metrics"]
        assert protocol["definitions"].keys() == protocol["metrics"].keys()
    assert main([str(nano), f"--output={output}", "--protocol=annotated"]) == len(missing) // 2
    assert main([str(nano), f"--output={tmp_path}", "--protocol=spurious_gap"]) == 1
    assert "needs a ranking of the images: --spuriosity=FILE" in capsys.readouterr().err


def test_weights_of_timm_have_the_metrics_of_the_run(
    trained: Trained, evaluated: Path, shapes_data_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    import_timm()
    weights = tmp_path / "resnet18.safetensors"
    assert convert(["to-torch", str(trained.workdir), f"--output={weights}"]) == 0
    arguments = ["timm:resnet18", f"--weights={weights}", f"--output={tmp_path / 'timm'}"]
    arguments += [f"--like={trained.workdir}"]
    assert main(arguments) == 0
    found, expected = metrics_of(read(tmp_path / "timm")), metrics_of(read(evaluated))
    assert found == pytest.approx(expected, abs=0.03)  # one image of a class of few
    assert differing_keys(read(tmp_path / "timm")["provenance"], read(evaluated)["provenance"]) == [
        "model.name",
        "model.weights",
    ]
    assert {"torch", "timm"} <= read(tmp_path / "timm")["provenance"]["versions"].keys()


def test_a_model_file_is_the_run_it_comes_from_and_comparing_says_so(
    trained: Trained,
    evaluated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    state, model = tmp_path / "state.npz", tmp_path / "model.safetensors"
    assert convert(["to-torch", str(trained.workdir), f"--output={state}"]) == 0
    names = tmp_path / "names.json"
    names.write_text(json.dumps(json.loads(state.with_suffix(".json").read_text())["label_names"]))
    flags = ["--model=resnet18", f"--output={model}", f"--classes={names}", "--image_size=16"]
    assert convert(["from-torch", str(state), *flags, "--center_crop_share=1"]) == 0
    assert main([str(model), f"--like={trained.workdir}", f"--output={tmp_path / 'e'}"]) == 0
    assert differing_keys(read(tmp_path / "e")["provenance"], read(evaluated)["provenance"]) == []
    capsys.readouterr()
    assert main(["compare", str(evaluated), str(tmp_path / "e")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    clean = next(row for row in rows if row[0] == "clean")
    assert clean[3:] == ["0.0%", *["0.0", "to", "0.0", "0.0", "to", "0.0"]]
    assert main([str(trained.workdir), f"--output={tmp_path / 'f'}", "--trials=3"]) == 0
    assert main(["compare", str(evaluated), str(tmp_path / "f")]) == 1
    assert "do not compare: noise.trials differ" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_one_line(
    trained: Trained,
    make_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = make_folder()
    output = tmp_path / "none"

    def error(*arguments: str) -> str:
        assert main([*arguments, f"--output={output}"]) == 1
        text = capsys.readouterr().err
        assert text.splitlines()[-1].startswith("error: ")
        assert not (output / "results.json").exists()
        return text

    run = str(trained.workdir)
    assert "does not exist" in error(str(tmp_path / "nowhere"))
    assert "is not the workdir of a finished run" in error(str(folder))
    assert "unknown protocol 'complemant' (did you mean" in error(run, "--protocol=complemant")
    assert "the model has 6 classes, the data 2" in error(run, f"--data=folder:{folder}")
    assert "unknown source of --data" in error(run, "--data=floder:x")
    assert "resnet18 has random weights; name a file: --weights" in error(
        "timm:resnet18", f"--data=folder:{folder}"
    )
    assert "name the data to evaluate timm:resnet18 on" in error("timm:resnet18", "--weights=x")
    assert "config.eval.trials=0 must be" in error(run, "--trials=0")
    assert "--batch_size=9 is not a multiple of the 8 devices" in error(run, "--batch_size=9")
    assert "takes images of 16 pixels, not 64" in error(run, "--image_size=64")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "error: " in capsys.readouterr().err


def test_damaged_outcomes_are_named(tmp_path: Path) -> None:
    from corm_jax.errors import UserError

    path = tmp_path / "complement.npz"
    np.savez(path, id=np.zeros(2, np.uint32))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"complement\.npz cannot be read: .*; evaluate again"):
        read_outcomes(path)
