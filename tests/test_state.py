"""Optimizers, schedule and train state against values computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from corm_jax.config import base_config
from corm_jax.errors import UserError
from corm_jax.models.normalizer import IMAGENET
from corm_jax.models.vit import VisionTransformer
from corm_jax.sharding import create_mesh
from corm_jax.state import (
    abstract_state,
    create_optimizer,
    create_state,
    decay_mask,
    learning_rate_schedule,
)


def make_config(steps=10, ema_decay=0.0, **optimizer):
    config = base_config("erm")
    config.update({"train": {"steps": steps, "ema_decay": ema_decay}, "data": {"image_size": 8}})
    optimizer = {"warmup_steps": 0, "learning_rate": 0.1, "clip_norm": 0.0, **optimizer}
    config.optimizer.update(ConfigDict(optimizer))
    return config


def make_vit(width=8):
    return VisionTransformer(
        num_classes=2, patch_size=4, width=width, depth=1, heads=2, statistics=IMAGENET
    )


def test_schedule_warms_up_linearly_and_falls_as_a_cosine_to_zero():
    schedule = learning_rate_schedule(make_config(12, learning_rate=0.4, warmup_steps=4))
    found = [float(schedule(step)) for step in (0, 1, 2, 4, 6, 8, 10, 12)]
    quarter = math.cos(math.pi / 4)
    expected = [0, 0.1, 0.2, 0.4, 0.2 * (1 + quarter), 0.2, 0.2 * (1 - quarter), 0]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_schedule_without_warm_up_starts_at_the_peak():
    schedule = learning_rate_schedule(make_config(10, learning_rate=0.4))
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0.4, 0.2, 0], atol=1e-7)


def test_warm_up_as_long_as_the_training_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps=10 .*train\.steps=10"):
        create_optimizer(make_config(10, warmup_steps=10), make_vit())


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        create_optimizer(make_config(name="adam"), make_vit())


def test_only_kernels_decay():
    variables = jax.eval_shape(
        lambda: make_vit().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    )
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(variables["params"]))
    decaying = {jax.tree_util.keystr(path, simple=True, separator="/") for path, yes in mask if yes}
    assert decaying == {
        "patch_embed/kernel",
        "block00/attn/qkv/kernel",
        "block00/attn/proj/kernel",
        "block00/fc1/kernel",
        "block00/fc2/kernel",
        "head/kernel",
    }


def run(config, params, gradients):
    """Returns the parameters after each gradient."""
    optimizer = create_optimizer(config, make_vit())
    params = jax.tree.map(jnp.float32, params)
    state, history = optimizer.init(params), []
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):  # Optax's own need
            updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def cosine(step, steps=10):
    return 0.1 * (1 + math.cos(math.pi * step / steps)) / 2


GRADIENTS = [{"kernel": 0.5, "bias": -1.0}, {"kernel": -0.2, "bias": 0.4}]


def test_sgd_is_nesterovs_with_decay_of_kernels():
    config = make_config(name="sgd", momentum=0.9, weight_decay=0.01)
    history = run(config, {"kernel": 2.0, "bias": 1.0}, GRADIENTS)
    for name, value, decay in (("kernel", 2.0, 0.01), ("bias", 1.0, 0.0)):
        velocity = 0.0
        for step, gradient in enumerate(GRADIENTS):
            slope = gradient[name] + decay * value
            velocity = 0.9 * velocity + slope
            value -= cosine(step) * (slope + 0.9 * velocity)
            assert float(history[step][name]) == pytest.approx(value, rel=1e-6)


def test_adamw_decays_kernels_apart_from_the_gradient():
    config = make_config(name="adamw", momentum=0.8, b2=0.95, weight_decay=0.3)
    history = run(config, {"kernel": 2.0, "bias": 1.0}, GRADIENTS)
    for name, value, decay in (("kernel", 2.0, 0.3), ("bias", 1.0, 0.0)):
        first = second = 0.0
        for step, gradient in enumerate(GRADIENTS):
            first = 0.8 * first + 0.2 * gradient[name]
            second = 0.95 * second + 0.05 * gradient[name] ** 2
            mean = first / (1 - 0.8 ** (step + 1))
            deviation = math.sqrt(second / (1 - 0.95 ** (step + 1)))
            value -= cosine(step) * (mean / (deviation + 1e-8) + decay * value)
            assert float(history[step][name]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("norm", "factor"), [(2.5, 0.5), (10.0, 1.0)])
def test_clipping_scales_the_whole_gradient_to_the_norm(norm, factor):
    config = make_config(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=norm)
    params = run(config, {"kernel": 0.0, "bias": 0.0}, [{"kernel": 3.0, "bias": 4.0}])[0]
    assert float(params["kernel"]) == pytest.approx(-0.1 * factor * 3)
    assert float(params["bias"]) == pytest.approx(-0.1 * factor * 4)


def test_initial_state_depends_on_the_seed_but_not_on_the_mesh():
    config, model = make_config(ema_decay=0.9, name="adamw"), make_vit(width=128)

    def create(mesh):
        abstract = abstract_state(config, model, mesh)
        state = create_state(config, model, abstract)
        for found, promised in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            assert (found.shape, found.dtype) == (promised.shape, promised.dtype)
            assert found.sharding.is_equivalent_to(promised.sharding, found.ndim)
        return state

    sharded, single = create(create_mesh(4, 2)), create(create_mesh(1, 1, jax.devices()[:1]))
    kernel = sharded.params["block00"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(128, 256)}
    moment = next(
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(sharded.opt_state)
        if jax.tree_util.keystr(path).endswith(".mu['block00']['fc1']['kernel']")
    )
    assert moment.sharding.is_equivalent_to(kernel.sharding, 2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(sharded), jax.device_get(single))
    assert int(single.step) == 0
    jax.tree.map(np.testing.assert_array_equal, single.ema["params"], single.params)

    config.seed = 1
    other = create_state(config, model, abstract_state(config, model, create_mesh(8, 1)))
    assert float(abs(other.params["block00"]["fc1"]["kernel"] - np.asarray(kernel)).max()) > 0


def test_evaluation_takes_averaged_variables_where_there_are_any():
    config, model = make_config(), make_vit()
    state = create_state(config, model, abstract_state(config, model, create_mesh(8, 1)))
    assert state.eval_variables()["params"] is state.params
    averaged = {"params": {"w": 1}, "batch_stats": {"mean": 2}}
    assert state.replace(ema=averaged).eval_variables() == averaged
