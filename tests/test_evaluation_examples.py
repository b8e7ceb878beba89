"""The examples of an evaluation, of one of our models and of one of PyTorch's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import draw_variables

from corm_jax import example_file
from corm_jax.config import base_config
from corm_jax.data.dataset import evaluation_loader, open_dataset
from corm_jax.data.pipeline import Split
from corm_jax.errors import UserError
from corm_jax.evaluation_examples import NUMBER, choose, write_examples
from corm_jax.models import create_model
from corm_jax.protocols.ablations import ABLATIONS
from corm_jax.subjects import Subject

SIZE = 16


def subject(model: Any, variables: Any) -> Subject:
    return Subject(
        name="model",
        statistics=model.statistics,
        model=model,
        variables=variables,
        weights="sha256:0",
        make_step=lambda protocol, config: None,
        is_native=isinstance(model, nn.Module),
    )


def native(classes: int) -> Subject:
    model = create_model("resnet8_nano", num_classes=classes, dtype="float32")
    return subject(model, draw_variables(model, SIZE))


def opened(folder: Path, **data: Any) -> tuple[Any, Split]:
    config = base_config("erm")
    config.data.update(source="folder", folder=str(folder), image_size=SIZE, **data)
    config.eval.batch_size = 4
    return config, open_dataset(config).validation


def test_images_are_spread_over_classes() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    ids = np.array([5, 3, 9, 1, 2, 8, 7, 6, 4], np.uint32)
    # A first of each class, the one of the smallest identity; then a second of the first two.
    assert choose(labels, ids, 5).tolist() == [1, 0, 3, 4, 8]
    assert choose(labels, ids, 20).tolist() == [1, 0, 2, 3, 4, 5, 8, 7, 6]
    many = np.arange(15)
    assert choose(many, many.astype(np.uint32), 8).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert choose(many[:1], ids[:1], 8).tolist() == [0]


@pytest.mark.slow
def test_examples_are_what_the_protocols_show_and_what_the_model_says(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder(classes=3, images=20)
    config, split = opened(folder)
    model = native(3)
    write_examples(tmp_path, model, config, split)
    found = example_file.read(tmp_path / "examples.npz")
    assert found.class_names.tolist() == ["class0", "class1", "class2"]
    assert found.label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    # The very pixels that the loader gives for these images.
    loader, count = evaluation_loader(config, split, (0, 1))
    pixels = {
        int(i): image
        for batch in loader.batches(0, count)
        for i, image in zip(batch["id"], batch["image"], strict=True)
    }
    for number, i in enumerate(found.id):
        np.testing.assert_array_equal(found.views["image"][number], pixels[int(i)])
    assert list(found.views) == ["image", "core", "spurious", *ABLATIONS]
    outside, inside = found.core_region == 0, found.core_region == 255
    assert outside.any()
    assert inside.any()
    image = found.views["image"]
    for name, same in {
        "core": inside,
        "spurious": outside,
        "swapped_background": inside,
        "grey_background": inside,
        "blurred_background": inside,
        "grey_object": outside,
    }.items():
        changed = (found.views[name] != image).any(axis=-1)
        assert not changed[same].any(), name
        assert changed[inside if same is outside else outside].mean() > 0.9, name
    assert all(shown.all() for shown in found.shown.values())
    logits, _ = model.model.apply(
        model.variables, jnp.asarray(image.astype(np.float32) / 255), train=False
    )
    np.testing.assert_array_equal(found.predictions["image"], logits.argmax(-1))
    np.testing.assert_allclose(
        found.probabilities["image"], jax.nn.softmax(logits).max(-1), rtol=1e-5
    )
    assert found.predictions.keys() == found.views.keys() == found.probabilities.keys()
    gradient = found.saliency["input_gradient"]
    assert gradient.shape == (NUMBER, SIZE, SIZE)
    assert (gradient.max(axis=(1, 2)) == 255).all()
    assert {"grad_cam", "hires_cam", "input_gradient"} == found.saliency.keys()


@pytest.mark.slow
def test_models_are_shown_the_same_and_no_file_is_written_twice(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    adapters = pytest.importorskip("corm_jax.adapters")
    torch = pytest.importorskip("torch")
    folder = make_folder(classes=2, images=10)
    for n in range(10):  # half of the images have no mask
        if n % 2:
            (folder / f"masks/class0/{n}.png").unlink()
    config, split = opened(folder, validation_share=0.6)
    model = native(2)
    write_examples(tmp_path / "a", model, config, split)
    config.eval.batch_size = 7
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE * SIZE * 3, 2))
    theirs = adapters.TorchModel(module, num_classes=2, statistics=model.statistics, device="cpu")
    write_examples(tmp_path / "b", subject(theirs, {}), config, split)
    a, b = (example_file.read(tmp_path / name / "examples.npz") for name in "ab")
    np.testing.assert_array_equal(a.id, b.id)
    for name in a.views:
        np.testing.assert_array_equal(a.views[name], b.views[name])
    assert (a.core_mask.max(axis=(1, 2)) > 0).all()
    assert b.saliency == {}
    logits = theirs.logits(b.views["image"].astype(np.float32) / 255)
    np.testing.assert_array_equal(b.predictions["image"], logits.argmax(-1))
    written = (tmp_path / "a" / "examples.npz").stat().st_mtime_ns
    write_examples(tmp_path / "a", model, config, split)
    assert (tmp_path / "a" / "examples.npz").stat().st_mtime_ns == written


def test_files_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    np.savez(path, version=99)
    with pytest.raises(UserError, match="version 99, not 1; remove it and evaluate again"):
        example_file.read(path)
