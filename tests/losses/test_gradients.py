"""The input gradient's penalty on real models: both of its derivatives, against differences."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import (
    CLASSES,
    SIZE,
    make_config,
    make_resnet,
    make_vit,
    one_device,
)
from stepping import make_batch as make_loaded_batch

from corm_jax.losses import gradients
from corm_jax.losses.gradients import GRADIENT_OF, input_gradient
from corm_jax.losses.shared import SharedForward
from corm_jax.models.resnet import BasicBlock
from corm_jax.state import abstract_state, create_state
from corm_jax.steps import Objective

BATCH = 3
KEY = jax.random.key(0)
CLEAN = {"sigma": 0.0, "probability": 0.0}


@pytest.fixture
def double():
    """Everything in float64 while the test runs, as far as models allow."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


class Residual(nn.Module):
    """A residual block of `corm_jax.models.resnet`, in float64 up to the logits.

    The penalty jumps where a unit switches, so that differences must be far smaller than float32
    resolves; the models compute their logits in it.
    """

    @nn.compact
    def __call__(self, images, *, train):
        x = BasicBlock(4, stride=2, dtype=jnp.float64)(images, train=train)
        return nn.Dense(CLASSES, dtype=jnp.float64)(x.mean(axis=(1, 2))), {"stage1": x}


# Models, and the difference of the weights at which what they compute is told apart best: the
# transformer, which is smooth, has its softmax and its logits in float32.
# Small functions that run a few times: compilation is most of the time.
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})

MODELS = {
    "resnet": (Residual(), 1e-6),
    "vit": (make_vit(dtype=jnp.float64), 2e-3),
}


def random_like(tree, rng):
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3), tree)


def set_up(model, seed=0):
    """Returns (parameters, params -> forward, batch), of which the last image has weight 0."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(size=(BATCH, SIZE, SIZE, 3)))
    variables = fast_jit(partial(model.init, train=False))(KEY, images)
    stats = variables.get("batch_stats", {})
    # Random, not initial: a zero head or scale would hide terms of the derivative.
    params = random_like(variables["params"], rng)

    def forward_of(params):
        def forward(images):
            variables = {"params": params, "batch_stats": stats}
            return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

        return forward

    batch = {
        "image": images,
        "target": jnp.asarray(np.eye(CLASSES)[rng.integers(0, CLASSES, BATCH)] * 0.8 + 0.2 / 3),
        "non_core": jnp.asarray(rng.uniform(size=(BATCH, SIZE, SIZE, 1))),
        "weight": jnp.asarray([1.0, 1.0, 0.0]),
    }
    return params, forward_of, batch


def mean_penalty(forward, batch, of, norm):
    losses, _ = input_gradient(forward, batch, KEY, of=of, norm=norm, **CLEAN)
    return (losses * batch["weight"]).sum() / batch["weight"].sum()


def by_definition(forward, batch, of, norm):
    """The weighted mean penalty by the definition: image 2 has weight 0."""

    def total(images):
        losses = GRADIENT_OF[of](forward(images)[0], batch["target"])
        return losses[:2].sum()

    masked = jax.grad(total)(batch["image"]) * batch["non_core"]
    power = {"l2": masked**2, "l1": abs(masked)}[norm]
    return power.mean(axis=(1, 2, 3))[:2].mean()


@pytest.mark.parametrize(
    ("of", "norm"),
    [
        ("loss", "l2"),
        ("true_logit", "l1"),
        ("log_probabilities", "l1"),
        ("log_probabilities_sum", "l2"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_derivative_to_the_weights_is_that_of_finite_differences(name, of, norm, double):
    model, step = MODELS[name]
    params, forward_of, batch = set_up(model)
    value, gradient = fast_jit(
        jax.value_and_grad(lambda p: mean_penalty(forward_of(p), batch, of, norm))
    )(params)
    plain = fast_jit(lambda p: by_definition(forward_of(p), batch, of, norm))
    assert float(value) == pytest.approx(float(plain(params)), rel=1e-5)
    direction = random_like(params, np.random.default_rng(10))
    products = jax.tree.map(lambda a, b: float((a * b).sum()), gradient, direction)
    ends = [
        float(plain(jax.tree.map(lambda p, d, h=h: p + h * d, params, direction)))
        for h in (step, -step)
    ]
    expected = (ends[0] - ends[1]) / (2 * step)
    assert sum(jax.tree.leaves(products)) == pytest.approx(expected, rel=2e-3)
    assert abs(expected) > 1e-2 * float(value)


@pytest.mark.parametrize("name", MODELS)
def test_both_orders_of_differentiation_agree(name, double, monkeypatch):
    params, forward_of, batch = set_up(MODELS[name][0])
    found = []
    for held in (False, True):
        monkeypatch.setattr(gradients, "_is_convolutional", lambda _, held=held: held)
        function = jax.value_and_grad(lambda p: mean_penalty(forward_of(p), batch, "loss", "l2"))
        found.append(fast_jit(function)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), *found)


def test_the_order_follows_the_kind_of_the_model():
    images = jnp.zeros((1, SIZE, SIZE, 3))
    for model, expected in ((make_resnet(), True), (make_vit(), False)):
        init = partial(model.init_with_output, train=False)
        (_, intermediates), _ = jax.eval_shape(init, KEY, images)
        assert gradients._is_convolutional(intermediates) == expected


def test_shared_forward_passes_the_same_images_once():
    passes = []

    def forward(images):
        passes.append(images)
        return (jnp.sin(images).sum(axis=(1, 2)), {}), {"mean": images.mean()}

    shared, images = SharedForward(forward), jnp.full((2, 4, 4, 3), 0.5)
    (logits, _), push = shared.linearize(images)
    assert shared(images)[0] is logits
    assert shared.linearize(images)[1] is push
    assert shared.batch_stats(images) == {"mean": 0.5}
    assert shared.batch_stats(images + 0.25) == {"mean": 0.5}  # not passed: the first pass's
    assert len(passes) == 1
    np.testing.assert_allclose(push(jnp.ones_like(images)), 16 * np.cos(0.5), rtol=1e-6)
    np.testing.assert_array_equal(shared(images + 0.0)[0], logits)  # other images: another pass
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("preset", "make_model", "passes"),
    [
        ("erm", make_resnet, 1),
        ("rrr", make_resnet, 1),
        ("rrr", make_vit, 1),
        ("corm_hi", make_vit, 1),
        ("corm_hi", make_resnet, 1),
        ("noise", make_resnet, 1),
        ("corm_two_term", make_resnet, 2),
    ],
)
def test_terms_of_a_step_share_passes_of_equal_images(preset, make_model, passes, monkeypatch):
    config, model = make_config(preset), make_model()
    objective = Objective(config, model)
    seen = []

    def counted(self, state, params, images, **inputs):
        seen.append(images)
        return apply(self, state, params, images, **inputs)

    apply = Objective._apply
    monkeypatch.setattr(Objective, "_apply", counted)
    state = create_state(config, model, abstract_state(config, model, one_device()))
    batch = objective.batch(jax.tree.map(jnp.asarray, make_loaded_batch()), state.step)
    jax.make_jaxpr(lambda p: objective.total(p, state, batch)[0])(state.params)
    assert len(seen) == passes
