"""Real weights on real photographs, where the checkout has them beside it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import REPOSITORY
from PIL import Image
from torch_models import import_timm

from corm_jax import model_file
from corm_jax.convert import main

DATA = REPOSITORY.parent / "shared" / "data"
WEIGHTS = DATA / "deit_tiny_patch16_224.safetensors"
NAME, SIZE = "deit_tiny_patch16_224", 224
CATS = range(281, 286)  # of ImageNet's classes: tabby, tiger, Persian, Siamese and Egyptian cat

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"{WEIGHTS} is not there")


def photographs(breed: str, number: int) -> np.ndarray:
    """Returns central squares, float32 [number, 224, 224, 3] in [0, 1]."""
    squares = []
    for path in sorted((DATA / "pets" / "images" / breed).glob("*.jpg"))[:number]:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        squares.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)))
    return np.stack(squares).astype(np.float32) / 255


def test_converted_deit_tiny_gives_timms_logits_and_finds_the_cats(tmp_path: Path) -> None:
    torch, timm = pytest.importorskip("torch"), import_timm()
    output = tmp_path / "deit.safetensors"
    assert main(["from-torch", str(WEIGHTS), f"--model={NAME}", f"--output={output}"]) == 0
    model = model_file.read(output)
    images = np.concatenate([photographs("Abyssinian", 8), photographs("american_bulldog", 4)])
    forward = jax.jit(lambda v, x: model.description.create("float32").apply(v, x, train=False)[0])
    found = np.asarray(forward(model.variables, jnp.asarray(images)))

    theirs = timm.create_model(NAME, checkpoint_path=str(WEIGHTS)).eval()
    mean, std = (np.float32(theirs.pretrained_cfg[key]) for key in ("mean", "std"))
    with torch.no_grad():
        inputs = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).copy())
        expected = theirs(inputs).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())
    is_cat = np.isin(found.argmax(axis=1), CATS)
    assert is_cat[:8].mean() > 0.7
    assert not is_cat[8:].any()
