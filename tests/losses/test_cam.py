"""Alignment of class activation maps with masks: by hand, and its gradient on real models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import make_batch, make_config, make_resnet, make_vit, one_device

from corm_jax.losses.cam import CAM_LOSSES, EPSILON, cam_alignment
from corm_jax.losses.terms import build
from corm_jax.saliency import CAM_METHODS
from corm_jax.state import abstract_state
from corm_jax.steps import Objective

KEY = jax.random.key(0)


def pooled(kernel):
    """Returns images -> a linear head on the mean of the images, which are the maps."""

    def forward(images, maps_offset=0.0):
        maps = images + maps_offset
        return maps.mean(axis=(1, 2)) @ kernel, {"maps": maps}

    return forward


# Class 1's CAM is the first channel, for maps of four places.
RED = jnp.zeros((3, 2)).at[0, 1].set(4.0)


def batch_of(cam, core, valid):
    """Returns a batch of one image of class 1 with this CAM and these masks."""
    cam, core, valid = (
        jnp.asarray(array, jnp.float32)[None, ..., None] for array in (cam, core, valid)
    )
    return {
        "image": jnp.pad(cam, ((0, 0), (0, 0), (0, 0), (0, 2))),
        "target": jnp.asarray([[0.1, 0.9]]),
        "core_mask": core * valid,
        "mask_valid": valid,
        "non_core": valid * (1 - core),
        "has_mask": jnp.ones(1),
        "weight": jnp.ones(1),
    }


CAM = [[1.0, 2.0], [3.0, 4.0]]
# Of 4 x 4 pixels: the first place is core, half of the second, and the last is unknown.
CORE = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
VALID = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize("method", CAM_METHODS)  # equal here: the gradient is the same everywhere
def test_losses_are_those_computed_by_hand(method):
    batch = batch_of(CAM, CORE, VALID)
    (energy,), logs = cam_alignment(pooled(RED), batch, KEY, method=method, loss="energy")
    assert float(energy) == pytest.approx((0.5 * 2 + 3) / (1 + 2 + 3 + EPSILON))
    assert float(logs["outside_energy"]) == float(energy)
    (iou,), logs = cam_alignment(pooled(RED), batch, KEY, method=method, loss="iou")
    scale = 3 + EPSILON / 4
    both = (1 + 0.5 * 2) / scale
    assert float(iou) == pytest.approx(1 - both / ((1 + 2 + 3) / scale + 1.5 - both))
    assert float(logs["outside_energy"]) == float(energy)


@pytest.mark.parametrize("loss", CAM_LOSSES)
def test_images_without_mask_or_core_lose_nothing_and_are_not_logged(loss):
    term = partial(cam_alignment, method="hires_cam", loss=loss)
    known = batch_of(CAM, CORE, VALID)
    empty = batch_of(CAM, np.zeros_like(CORE), VALID)
    without = batch_of(CAM, CORE, np.zeros_like(VALID)) | {"has_mask": jnp.zeros(1)}
    padding = known | {"weight": jnp.zeros(1)}
    batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), known, empty, without, padding)
    losses, logs = term(pooled(RED), batch, KEY)
    (expected,), expected_logs = term(pooled(RED), known, KEY)
    assert losses[0] == expected > 0
    assert losses[1] == losses[2] == 0
    assert logs["outside_energy"] == expected_logs["outside_energy"]


@pytest.mark.parametrize("loss", CAM_LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-20, -1.0, 1.0])
@pytest.mark.parametrize("core", [np.zeros((4, 4)), np.ones((4, 4)), CORE], ids=["0", "1", "some"])
def test_gradients_are_finite_for_all_masks_and_cams(loss, scale, core):
    batch = batch_of(CAM, core, np.ones_like(VALID))

    def value(kernel):
        losses, _ = cam_alignment(pooled(kernel), batch, KEY, method="hires_cam", loss=loss)
        return losses.sum()

    found, gradient = jax.value_and_grad(value)(scale * RED)
    assert np.isfinite(gradient).all()
    assert 0 <= found <= 1
    if core.all() and scale == 1.0:
        assert found < (0.5 if loss == "iou" else 1e-6)


# Compilation is most of the time.
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})

# Models, and differences of weights: where units switch, they must be small.
MODELS = {"resnet": (make_resnet(), 3e-4), "vit": (make_vit(), 1e-2)}


def set_up(model, config):
    """Returns (objective, state of random parameters, batch)."""
    objective, rng = Objective(config, model), np.random.default_rng(1)
    # Not initial ones: a zero head has no CAM.
    abstract = abstract_state(config, model, one_device())
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3, jnp.float32), state.params
    )
    batch = fast_jit(objective.batch)(make_batch(size=6), state.step)
    return objective, state.replace(params=params), batch


@pytest.mark.parametrize(("method", "loss"), [("hires_cam", "energy"), ("grad_cam", "iou")])
@pytest.mark.parametrize("name", MODELS)
def test_derivative_to_the_weights_is_that_of_finite_differences(name, method, loss):
    model, step = MODELS[name]
    config = make_config("cam")
    config.terms.alignment.update({"method": method, "loss": loss})
    objective, state, batch = set_up(model, config)
    params = state.params

    def value(params):
        forward = objective._forward(state, params)
        return objective.term("alignment", forward, batch, state.step, KEY)[0]

    _, gradient = fast_jit(jax.value_and_grad(value))(params)
    plain = fast_jit(value)
    # Along the gradient, where the derivative is its length.
    length = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient)))
    ends = [
        float(plain(jax.tree.map(lambda p, g, h=h: p + h * g / length, params, gradient)))
        for h in (step, -step)
    ]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(length, rel=0.02)
    # Below the maps, and above them, where they reach it through dy/dA alone.
    below = {"resnet": "conv1", "vit": "patch_embed"}[name]
    above = {"resnet": "fc", "vit": "head"}[name]
    for module in (below, above):
        assert abs(gradient[module]["kernel"]).max() > 1e-3 * length


def test_cross_entropy_and_cam_share_the_forward_pass():
    counts = {}
    for preset in ("erm", "cam"):
        config, model = make_config(preset), make_resnet()
        objective = Objective(config, model)
        state = abstract_state(config, model, one_device())
        batch = jax.eval_shape(objective.batch, make_batch(), state.step)
        program = jax.make_jaxpr(objective.total)(state.params, state, batch)
        counts[preset] = str(program).count("conv_general_dilated[")
    assert counts["cam"] == counts["erm"] > 0


def test_cam_and_input_gradient_train_together():
    config = make_config("rrr")
    terms = {**config.terms.to_dict(), **make_config("cam").terms.to_dict()}
    assert build(terms).keys() == {"clean", "gradient", "alignment"}
    with config.unlocked():
        config.terms = terms
    objective, state, batch = set_up(make_resnet(), config)

    def gradient(value):
        return fast_jit(jax.grad(value))(state.params)

    found = gradient(lambda params: objective.total(params, state, batch)[0])

    def alone(params, label):
        forward = objective._forward(state, params)
        return objective.term(label, forward, batch, state.step, KEY)[0]

    apart = [gradient(partial(alone, label=label)) for label in terms]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *apart)
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(summed))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(summed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * largest)
