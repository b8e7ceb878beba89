"""The zoo: its models are what their libraries say; those whose weights are there are evaluated."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch_models import import_timm, randomize

from corm_jax.command_line import load_config
from corm_jax.errors import UserError
from corm_jax.evaluate import main
from corm_jax.zoo import read_entries

ZOO = "configs/zoo.py"


@pytest.fixture(scope="module")
def entries():
    return read_entries(load_config(ZOO), ZOO)


def test_it_has_42_models_of_the_papers_families(entries) -> None:
    assert len({entry.name for entry in entries}) == len(entries) == 42
    assert len({entry.file for entry in entries}) == 42
    families = {entry.family for entry in entries}
    for wanted in ("ResNet", "DenseNet", "VGG", "Swin", "robust ResNet", "zero-shot CLIP"):
        assert wanted in families


def test_names_and_preprocessing_are_timms(entries) -> None:
    timm = import_timm()
    for entry in entries:
        library, _, name = entry.model.partition(":")
        if library != "timm":
            continue
        assert timm.is_model(name), name
        if entry.family == "robust ResNet":
            continue
        cfg = timm.get_pretrained_cfg(name)
        assert cfg is not None, f"timm has no weights of this tag: {name}"
        assert cfg.num_classes == 1000
        assert cfg.input_size == (3, entry.image_size, entry.image_size), name
        assert cfg.crop_pct == entry.center_crop_share, name
        assert f"/{cfg.hf_hub_id}/" in entry.source


def test_clips_are_openais_of_open_clip(entries) -> None:
    import_timm()
    open_clip = pytest.importorskip("open_clip")
    clips = [entry for entry in entries if entry.family == "zero-shot CLIP"]
    assert len(clips) == 3
    for entry in clips:
        name = entry.model.partition(":")[2]
        assert open_clip.get_model_config(name)["quick_gelu"]
        cfg = open_clip.pretrained.get_pretrained_cfg(name, "openai")
        assert f"/{cfg['hf_hub'].rstrip('/')}/" in entry.source


@pytest.mark.slow
def test_models_with_weights_are_evaluated_and_the_others_named(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("torch")
    timm = import_timm()
    weights, zoo = tmp_path / "weights", tmp_path / "zoo.py"
    weights.mkdir()
    state = randomize(timm.create_model("resnet18", num_classes=2)).state_dict()
    np.savez(weights / "one.npz", **{key: value.numpy() for key, value in state.items()})
    (weights / "broken.npz").write_bytes((weights / "one.npz").read_bytes()[:1000])
    zoo.write_text(
        textwrap.dedent("""
        from ml_collections import ConfigDict

        def get_config():
            fields = {"family": "ResNet", "model": "timm:resnet18", "image_size": 32,
                      "center_crop_share": 0.875, "source": "the moon"}
            names = ("broken", "one", "absent")
            models = [{"name": n, "file": f"{n}.npz", **fields} for n in names]
            return ConfigDict({"models": models})
    """)
    )
    arguments = [f"--config={zoo}", f"--weights={weights}", f"--data=folder:{make_folder()}"]
    arguments += [f"--output={tmp_path / 'out'}", "--trials=2"]
    assert main(arguments) == 1  # one failed
    shown = capsys.readouterr().out
    assert "absent.npz  from the moon" in shown
    assert "failed: 1\n  broken: " in shown
    results = json.loads((tmp_path / "out" / "one" / "results.json").read_text())
    assert results["provenance"]["preprocessing"]["image_size"] == 32
    clean = results["protocols"]["complement"]["metrics"]["clean"]
    row = next(line.split() for line in shown.splitlines() if line.startswith("one "))
    assert row[:3] == ["one", "ResNet", f"{100 * clean:.1f}%"]
    written = (tmp_path / "out" / "one" / "complement.npz").stat().st_mtime_ns
    (weights / "broken.npz").unlink()
    assert main(arguments) == 0  # goes on: nothing is measured again
    assert (tmp_path / "out" / "one" / "complement.npz").stat().st_mtime_ns == written
    assert "lacks the weights of 2 models" in capsys.readouterr().out


def test_what_is_no_zoo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = f"--output={tmp_path / 'out'}"

    def error(*arguments: str) -> str:
        assert main([*arguments, output]) == 1
        return capsys.readouterr().err

    assert "names no models: it is not a zoo" in error("--config=configs/vit_erm.py", "--weights=.")
    assert "name the directory of the models' weights: --weights=DIR" in error(f"--config={ZOO}")
    empty = f"--weights={tmp_path}"
    assert "holds none of the 42 files of weights, such as" in error(f"--config={ZOO}", empty)
    assert "name one MODEL, or a zoo by --config" in error()
    assert "name one MODEL, or a zoo by --config" in error("timm:resnet18", f"--config={ZOO}")
    with pytest.raises(UserError, match=r"model 0 has other fields than a zoo's \(.*source"):
        read_entries({"models": [{"name": "a"}]}, "zoo.py")


def test_clip_reads_imagenets_ids_by_their_names() -> None:
    import_timm()
    pytest.importorskip("open_clip")
    from corm_jax import adapters

    ids = [f"n{place:08d}" for place in range(1000)]
    names = adapters._readable(ids)
    assert names[0] == "tench"
    assert len(names) == 1000
    assert adapters._readable(["otter", "n1"]) == ["otter", "n1"]
    with pytest.raises(UserError, match="the 5 classes are WordNet ids, such as n00000000"):
        adapters._readable(ids[:5])
