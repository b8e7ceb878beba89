"""The training loop in this process, on eight devices."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import small_config
from ml_collections import ConfigDict

from corm_jax.errors import UserError
from corm_jax.progress import read_history
from corm_jax.protocols.summary import DEFINITIONS
from corm_jax.train import train


def folder_config(name: str, folder: Path, **changes: object) -> ConfigDict:
    config = small_config(name, folder, data__folder=str(folder), train__steps=4, **changes)
    config.data.tfds_name = ""
    return config


@pytest.mark.slow
def test_resnet_on_a_folder_with_a_truncated_image(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, workdir = make_folder(), tmp_path / "run"
    for image in sorted((folder / "images" / "class0").iterdir())[:3]:
        image.write_bytes(image.read_bytes()[:200])
    config = folder_config("configs/resnet_corm.py:folder,corm_two_term", folder)
    with pytest.raises(UserError, match=r"images/class0/\d\.jpg cannot be decoded") as info:
        train(config, workdir)
    assert "--config.data.bad_images=skip" in str(info.value)
    assert not (workdir / "results.json").exists()

    # The advice works as it is given: nothing was saved that it would contradict.
    config.data.bad_images = "skip"
    config.profile.steps = "2:3"
    results = train(config, workdir)
    assert results == json.loads((workdir / "results.json").read_text())
    assert len(results["skipped_images"]) == 3  # of training and of validation
    assert all("class0" in where for where in results["skipped_images"])
    assert "counterfactual" not in results["metrics"]
    assert results["metrics"].keys() == results["definitions"].keys() < DEFINITIONS.keys()
    assert {"clean", "rcs", "ece", "swapped_background", "tiled_object"} < results["metrics"].keys()
    assert results["model"] == "resnet10_nano"
    assert results["steps"] == 4
    assert (workdir / "examples.png").exists()

    # What was asked for, and what anybody can see from outside.
    assert len(list((workdir / "profile").rglob("*.xplane.pb"))) == 1
    heartbeat = json.loads((workdir / "heartbeat" / "0.json").read_text())
    assert heartbeat["step"] == 4
    (record,) = read_history(workdir / "history.jsonl")
    assert 0 < record["train/step_seconds_p50"] <= record["train/step_seconds_max"]
    assert record["train/host_gib"] > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_size": 12}, "config.train.batch_size=12 is not a multiple of the 8"),
        ({"eval__batch_size": 4}, "config.eval.batch_size=4 is not a multiple of the 8 devices"),
        ({"mesh__data": 3}, "does not cover the 8 devices"),
        ({"data__bad_images": "skipp"}, "(did you mean 'skip'?); valid: error, skip"),
        ({"data__source": "tfdss"}, "unknown config.data.source 'tfdss' (did you mean 'tfds'?)"),
        ({"optimizer__name": "sdg"}, "unknown optimizer 'sdg' (did you mean 'sgd'?)"),
    ],
)
def test_bad_config_leaves_no_workdir(
    changes: dict[str, object], message: str, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    config = folder_config("configs/vit_erm.py:folder", make_folder(), **changes)
    with pytest.raises(UserError) as info:
        train(config, tmp_path / "run")
    assert message in str(info.value)
    assert not (tmp_path / "run").exists()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    config = folder_config("configs/vit_erm.py:folder", tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
