"""PyTorch models behind our interface: the same logits, the same counts by the same protocols."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import evaluate
from ml_collections import ConfigDict
from torch_models import import_timm, import_torchvision, randomize

from corm_jax import adapters, model_file
from corm_jax.convert import main as convert
from corm_jax.errors import UserError
from corm_jax.models import MODELS, create_model
from corm_jax.models.clip import CLIP, CLIPS, CLIPClassifier
from corm_jax.models.clip_image import VisionTower
from corm_jax.models.clip_text import TextTower
from corm_jax.models.gelu import gelu
from corm_jax.models.normalizer import IMAGENET, INCEPTION
from corm_jax.models.zero_shot import TEMPLATES, tokenize, zero_shot_classifier
from corm_jax.protocols import PROTOCOLS, make_eval_step
from corm_jax.sharding import create_mesh
from corm_jax.state_dicts import encode
from corm_jax.torch_weights import to_flax

torch = pytest.importorskip("torch")
torchvision = import_torchvision()
timm = import_timm()

SIZE, NAMES, IMAGES = 32, ("otter", "sea_lion", "duck"), 16
CLASSES = len(NAMES)
CONFIG = ConfigDict({"eval": {"seed": 5, "trials": 3, "sigma": 0.25}})


def native(library: str, name: str) -> Any:
    """A model of a library with random weights, always the same ones."""
    if library == "timm":
        return randomize(timm.create_model(name, num_classes=CLASSES))
    return randomize(torchvision.models.get_model(name, weights=None, num_classes=CLASSES))


def save(path: Path, module: Any, **more: np.ndarray) -> Path:
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    path.write_bytes(encode({**state, **more}, path.suffix))
    return path


def load(name: str, weights: Path | None, size: int = SIZE) -> adapters.TorchModel:
    return adapters.load(name, weights=weights, class_names=NAMES, image_size=size, device="cpu")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(4, SIZE, SIZE, 3)).astype(np.float32)


def expected_logits(module: Any, images: np.ndarray, statistics: Any) -> np.ndarray:
    normalized = (images - np.float32(statistics[0])) / np.float32(statistics[1])
    with torch.no_grad():
        return module(torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize(
    ("library", "name", "statistics"),
    [
        ("timm", "resnet18", IMAGENET),
        ("timm", "test_vit", INCEPTION),  # of 160 pixels unless told otherwise
        ("torchvision", "mobilenet_v3_small", IMAGENET),
    ],
)
def test_logits_are_those_of_the_library(
    library: str, name: str, statistics: Any, images: np.ndarray, tmp_path: Path
) -> None:
    options = {"img_size": SIZE} if name == "test_vit" else {}
    module = (
        randomize(timm.create_model(name, num_classes=CLASSES, **options))
        if library == "timm"
        else native(library, name)
    )
    model = load(f"{library}:{name}", save(tmp_path / "a.safetensors", module))
    expected = expected_logits(module, images, statistics)
    assert np.ptp(expected, axis=0).max() > 1e-3
    for given in (images, jnp.asarray(images)):
        found, intermediates = model.apply({}, given, train=False)
        assert (found.dtype, found.shape, intermediates) == (np.float32, (4, CLASSES), {})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="for evaluation only"):
        model.apply({}, images, train=True)


def test_a_checkpoints_own_normaliser_is_used(images: np.ndarray, tmp_path: Path) -> None:
    module, statistics = native("timm", "resnet18"), ((0.25, 0.5, 0.75), (0.125, 0.25, 0.375))
    normalizer = {
        f"normalizer.new_{name}": np.array(values, np.float32).reshape(3, 1, 1)
        for name, values in zip(("mean", "std"), statistics, strict=True)
    }
    path = save(tmp_path / "a.npz", module, **normalizer)
    found = load("resnet18", path).logits(images)
    expected = expected_logits(module, images, statistics)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Any:
    """A small model of open_clip by the name of `tiny`, with random weights."""
    open_clip = pytest.importorskip("open_clip")
    towers = {"width": 16, "layers": 1}
    config = {
        "embed_dim": 12,
        "vision_cfg": {**towers, "image_size": 2 * SIZE, "patch_size": 8, "head_width": 8},
        "text_cfg": {**towers, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    return randomize(open_clip.create_model("tiny", load_weights=False, force_image_size=SIZE))


def test_open_clips_models_classify_by_the_names_of_the_classes(
    tiny_clip: Any, images: np.ndarray, tmp_path: Path
) -> None:
    found = load("open_clip:tiny", save(tmp_path / "a.safetensors", tiny_clip)).logits(images)

    state = {key: value.numpy() for key, value in tiny_clip.state_dict().items()}
    towers = {"features": 12, "width": 16, "depth": 1, "heads": 2, "activation": gelu}
    clip = CLIP(
        image_tower=partial(VisionTower, **towers, patch_size=8),
        text_tower=partial(TextTower, **towers),
    )
    variables = to_flax(clip, state, image_size=SIZE)
    model, variables = zero_shot_classifier(
        clip, variables, NAMES, templates=TEMPLATES, tokenize=tokenize
    )
    expected, _ = model.apply(variables, images, train=False)
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_clip_is_converted_to_a_classifier_by_the_names_of_the_classes(
    tiny_clip: Any,
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    towers = {"features": 12, "width": 16, "depth": 1, "heads": 2, "activation": gelu}
    image_tower = partial(VisionTower, **towers, patch_size=8)
    text_tower = partial(TextTower, **towers)
    clip = partial(CLIP, image_tower=image_tower, text_tower=text_tower)
    monkeypatch.setitem(CLIPS, "tiny", clip)
    monkeypatch.setitem(MODELS, "tiny", partial(CLIPClassifier, image_tower=image_tower))
    source, output = save(tmp_path / "clip.npz", tiny_clip), tmp_path / "out.safetensors"
    arguments = ["from-torch", str(source), "--model=tiny", f"--output={output}"]
    arguments.append(f"--image_size={SIZE}")
    assert convert(arguments) == 1
    errors = capsys.readouterr().err
    assert "clip.npz as tiny: it has CLIP's texts and no classifier" in errors
    assert errors.count("\n") == 1
    assert not output.exists()
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "templates.txt").write_text("a {}\nthe {} there\n")
    arguments += [f"--classes={tmp_path}/names.txt", f"--templates={tmp_path}/templates.txt"]
    assert convert(arguments) == 0
    model = model_file.read(output)
    assert model.description.class_names == NAMES
    found, _ = model.description.create("float32").apply(model.variables, images, train=False)

    texts = [[f"a {name}", f"the {name} there"] for name in ("otter", "sea lion", "duck")]
    normalize = torch.nn.functional.normalize
    with torch.no_grad():
        tokens = [torch.from_numpy(tokenize(of_class)).long() for of_class in texts]
        columns = [tiny_clip.encode_text(t, normalize=True).mean(0) for t in tokens]
        mean, std = (np.float32(values) for values in model.description.statistics)
        inputs = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).copy())
        features = tiny_clip.encode_image(inputs, normalize=True)
        head = normalize(torch.stack(columns), dim=1) * tiny_clip.logit_scale.exp()
    np.testing.assert_allclose(found, features @ head.T, rtol=1e-4, atol=1e-5)


def test_what_of_open_clip_cannot_be_loaded_is_one_line(tiny_clip: Any, tmp_path: Path) -> None:
    cases = {
        "open_clip:ViT-B-23": r"open_clip has no model 'ViT-B-23' \(did you mean 'ViT-B-",
        "open_clip:ViT-B-16-SigLIP": r"needs files of texts that are not in open_clip itself",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            load(name, None)
    path = save(tmp_path / "r.safetensors", native("timm", "resnet18"))
    with pytest.raises(UserError, match=r"r.safetensors as open_clip:tiny: the weights do not fit"):
        load("open_clip:tiny", path)


def batch() -> dict[str, np.ndarray]:
    """A loaded batch: random images; two without mask, one of weight 0."""
    rng = np.random.default_rng(1)
    masks = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    masks[:, 8:20, 8:20] = 255
    has_mask = np.ones(IMAGES, np.float32)
    has_mask[:2] = 0
    weight = np.ones(IMAGES, np.float32)
    weight[5] = 0
    return {
        "image": rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8),
        "core_mask": masks,
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (IMAGES, 1)),
        "has_mask": has_mask,
        "label": rng.integers(0, CLASSES, IMAGES).astype(np.int32),
        "id": np.arange(IMAGES, dtype=np.uint32),
        "weight": weight,
    }


def test_protocols_count_the_same_for_the_same_weights(tmp_path: Path) -> None:
    module, mesh, data = native("timm", "resnet18"), create_mesh(-1, 1), batch()
    with torch.no_grad():  # centred, so that the classes that it predicts are not all one
        logits = expected_logits(module, data["image"].astype(np.float32) / 255, IMAGENET)
        module.fc.bias -= torch.from_numpy(logits.mean(axis=0))
    ours = create_model("resnet18", num_classes=CLASSES, dtype="float32")
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    variables = to_flax(ours, state, image_size=SIZE)
    theirs = load("timm:resnet18", save(tmp_path / "a.safetensors", module))
    # Labels that this model is right about, except every third.
    predicted = theirs.logits(data["image"].astype(np.float32) / 255).argmax(axis=1)
    data["label"] = np.where(np.arange(IMAGES) % 3, predicted, data["label"]).astype(np.int32)

    compiled = make_eval_step(PROTOCOLS["complement"](ours, CONFIG), mesh)
    eager = adapters.make_eval_step("complement", theirs, CONFIG)
    expected, found = compiled(variables, data), eager({}, data)
    sure = [measured.outcomes.pop("confidence").correct for measured in (expected, found)]
    np.testing.assert_allclose(*sure, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    core, spurious = (found.outcomes[name] for name in ("core", "spurious"))
    assert 0 < float(core.correct.sum()) < float(core.number.sum()) == 13 * 3
    assert core.correct.sum() != spurious.correct.sum()
    assert evaluate(eager, {}, [data], mesh) == pytest.approx(
        evaluate(compiled, variables, [data], mesh), abs=1e-5
    )

    paired = {**data, "partner": {key: np.roll(value, -1, 0) for key, value in data.items()}}
    expected = make_eval_step(PROTOCOLS["ablations"](ours, CONFIG), mesh)(variables, paired)
    found = adapters.make_eval_step("ablations", theirs, CONFIG)({}, paired)
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    assert len({float(outcome.correct.sum()) for outcome in found.outcomes.values()}) > 1

    classes = jnp.asarray([True, False, True])
    expected = make_eval_step(PROTOCOLS["clean"](ours, CONFIG), mesh)(
        variables, data, classes=classes
    )
    found = adapters.make_eval_step("clean", theirs, CONFIG)({}, data, classes=classes)
    jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", native("timm", "resnet18"))
    cases = {
        ("timm:resnet81", None, SIZE): r"timm has no model 'resnet81' \(did you mean 'resnet18",
        ("torchvision:resnet81", None, SIZE): r"torchvision has no model .*\(did you mean 'resnet",
        ("tim:resnet18", None, SIZE): r"unknown library of models 'tim' \(did you mean 'timm'",
        ("resnet10t", path, SIZE): r"a.safetensors as resnet10t: the weights do not fit the model",
        ("test_vit", None, 40): r"test_vit takes no images of 40 pixels",
        ("resnet18", tmp_path / "none.npz", SIZE): r"none.npz: cannot be read",
    }
    for (name, weights, size), message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            load(name, weights, size)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"2 of another shape: fc\.bias"):
        adapters.load(
            "resnet18", weights=path, class_names=NAMES * 3, image_size=SIZE, device="cpu"
        )
