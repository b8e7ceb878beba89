"""Rematerialised blocks: the same gradients from less that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import Run, make_config, make_resnet, make_vit, one_device

from corm_jax.models import create_model
from corm_jax.models.remat import remat_blocks


@pytest.mark.slow
@pytest.mark.parametrize("model", [make_vit(), make_resnet()])
def test_a_step_is_the_same(model):
    """Of terms that differentiate the forward pass as well, to images and by linearising."""
    steps = []
    for remat in (True, False):
        config = make_config("corm_hi", momentum=0.0, clip_norm=0.0)
        config.model.remat = remat
        steps.append(Run(config, model, one_device()).train(2))
    (states, history), (expected_states, expected) = steps
    close = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), history, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close),
        (states[2].params, states[2].batch_stats),
        (expected_states[2].params, expected_states[2].batch_stats),
    )


# Of every family, with the size of images that it takes.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_nano_patch8_48", 16),
        ("resnet18", 32),
        ("resnet50", 32),
        ("densenet121", 32),
        ("convnext_tiny", 32),
        ("swin_tiny_patch4_window7_224", 32),
        ("ViT-B-32", 32),
        ("RN50", 32),
    ],
)
def test_less_than_half_is_kept_for_the_backward_pass(name, size):
    model = create_model(name, num_classes=2, dtype="float32")
    images = jax.ShapeDtypeStruct((4096, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def apply(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0][0].sum()

    def kept(function):
        pull = jax.eval_shape(lambda *at: jax.vjp(function, *at)[1], variables, images)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept(remat_blocks(apply)) < kept(apply) / 2
