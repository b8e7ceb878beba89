"""The training step: what it computes, and that every mesh computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import (
    BATCH,
    Run,
    make_batch,
    make_config,
    make_resnet,
    make_vit,
    one_device,
)

from corm_jax.config import base_config
from corm_jax.losses.noisy import noisy_cross_entropy
from corm_jax.losses.terms import COMMON
from corm_jax.sharding import create_mesh, put_batch
from corm_jax.state import abstract_state
from corm_jax.steps import Objective, make_train_step


def make_config_of_all_terms():
    config = make_config("corm_two_term")
    config.terms.gradient = base_config("corm_hi").terms.gradient
    return config


# Widths at which fsdp shards some arrays.


@pytest.fixture(scope="module")
def vit():
    """A ViT on one device."""
    return Run(make_config_of_all_terms(), make_vit(width=128), one_device())


@pytest.fixture(scope="module")
def resnet():
    """A ResNet on one device."""
    return Run(make_config("corm_hi", ema=0.9), make_resnet(width=64), one_device())


@pytest.fixture(scope="module")
def vit_history(vit):
    """The ViT's (states, metrics) of three steps."""
    return vit.train(3)


@pytest.fixture(scope="module")
def resnet_history(resnet):
    """The ResNet's (states, metrics) of three steps."""
    return resnet.train(3)


@pytest.fixture(scope="module")
def clipped():
    """A small ViT's plain gradient descent on one device, clipped to a norm of 0.01."""
    config = make_config("erm", clip_norm=0.01, momentum=0.0, weight_decay=0.0)
    return Run(config, make_vit(), one_device())


def assert_trees_close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "fsdp"),
    [("vit", 8, 1), ("vit", 4, 2), ("vit", 1, 8), ("resnet", 8, 1), ("resnet", 4, 2)],
)
def test_every_mesh_computes_what_one_device_does(request, name, data, fsdp):
    single = request.getfixturevalue(name)
    states, history = request.getfixturevalue(f"{name}_history")
    run = Run(single.config, single.model, create_mesh(data, fsdp), initial=states[0])
    sharded = [leaf for leaf in jax.tree.leaves(run.initial) if not leaf.is_fully_replicated]
    assert bool(sharded) == (fsdp > 1)
    found_states, found_history = run.train(3)
    assert_trees_close(found_history, history, rtol=2e-5, atol=1e-6)
    assert_trees_close(found_states[3], states[3], rtol=1e-5, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), states[0].params, states[3].params)
    assert min(jax.tree.leaves(moved)) > 1e-6  # every array learns


def make_config_of_views():
    """Returns a config of the terms and the control that mix images, shuffle or attack them."""
    config = make_config("pgd")
    config.control = "shuffled"
    # Not linf: the sign of a gradient near 0 is decided by rounding.
    config.terms.attack.update({"norm": "l2", "radius": 1.0, "step_size": 0.5, "steps": 2})
    config.terms.swapped = base_config("background_swap").terms.swapped
    config.terms.shuffled = base_config("consistency").terms.consistency
    config.terms.shuffled.update({"corruption": "patch_shuffle", "patch": 2})
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "data", "fsdp"), [(make_vit(width=128), 4, 2), (make_resnet(), 8, 1)]
)
def test_views_that_mix_images_are_the_same_on_every_mesh(model, data, fsdp):
    config = make_config_of_views()
    single = Run(config, model, one_device())
    run = Run(config, model, create_mesh(data, fsdp), initial=jax.device_get(single.initial))
    # Two steps: the ViT's head is 0 in the first.
    (states, history), (expected_states, expected) = (r.train(2) for r in (run, single))
    assert_trees_close(history, expected, rtol=1e-4, atol=1e-6)
    assert_trees_close(states[2].params, expected_states[2].params, rtol=1e-4, atol=1e-5)
    assert all(history[1][f"terms/{label}/value"] > 0 for label in config.terms)


@pytest.mark.slow
def test_gradient_norms_are_the_same_on_a_sharded_mesh(vit, vit_history):
    state = vit_history[0][2]
    run = Run(vit.config, vit.model, create_mesh(4, 2), initial=state)
    expected = vit.norms(jax.device_put(state, vit.initial.step.sharding), make_batch())
    assert_trees_close(run.norms(run.initial, make_batch()), expected, rtol=1e-5, atol=1e-6)


def test_averages_follow_parameters_and_batch_statistics(resnet_history):
    states, _ = resnet_history
    average = {"params": states[0].params, "batch_stats": states[0].batch_stats}
    for state in states[1:]:
        new = {"params": state.params, "batch_stats": state.batch_stats}
        average = jax.tree.map(lambda a, b: 0.9 * a.astype(np.float64) + 0.1 * b, average, new)
        assert_trees_close(state.ema, average, rtol=1e-5, atol=1e-6)


def test_running_averages_are_of_the_clean_images():
    run = Run(make_config("corm_two_term"), make_resnet(), one_device())
    states, _ = run.train(1)
    images = jnp.asarray(make_batch(seed=0)["image"], jnp.float32) / 255
    variables = {"params": states[0].params, "batch_stats": states[0].batch_stats}
    _, updates = run.model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert_trees_close(states[1].batch_stats, updates["batch_stats"], rtol=1e-4, atol=1e-6)


def test_loss_is_the_weighted_sum_of_the_values_of_the_terms(vit):
    weights = {label: term.weight for label, term in vit.config.terms.items()}
    state, _ = vit.step(vit.initial, make_batch())
    _, metrics = vit.step(state, make_batch())
    total = sum(weight * metrics[f"terms/{label}/value"] for label, weight in weights.items())
    assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-5)
    assert float(metrics["terms/gradient/value"]) > 0


def test_a_scheduled_weight_grows_in_the_loss_and_the_diagnosis():
    config = make_config("corm_two_term")
    config.terms.noisy.update({"weight": 0.5, "initial_weight": 0.0, "transition_steps": 2})
    run, constant = (
        Run(c, make_vit(), one_device()) for c in (config, make_config("corm_two_term"))
    )
    states, history = run.train(4)
    for state, metrics, weight in zip(states[:4], history, (0.0, 0.25, 0.5, 0.5), strict=True):
        assert metrics["terms/noisy/weight"] == weight
        loss = metrics["terms/clean/value"] + weight * metrics["terms/noisy/value"]
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
        found, full = (r.norms(state, make_batch()) for r in (run, constant))
        name = "terms/noisy/gradient_norm"
        assert float(found[name]) == pytest.approx(weight * float(full[name]), rel=1e-5)
    assert "terms/clean/weight" not in history[0]


def by_hand(run, state, batch):
    """Returns functions of the parameters: mean clean loss, mean penalty; per-image gradients."""
    objective = Objective(run.config, run.model)
    expanded = objective.batch(jax.tree.map(jnp.asarray, batch), state.step)

    def logits(params, image):
        return run.model.apply({"params": params}, image[None], train=True)[0][0]

    def clean(params):
        losses = jax.vmap(lambda x, t: -(t * jax.nn.log_softmax(logits(params, x))).sum())(
            expanded["image"], expanded["target"]
        )
        return losses.mean()

    def noisy(params):
        key = jax.random.fold_in(jax.random.key(run.config.seed), state.step)
        term = {k: v for k, v in run.config.terms.noisy.items() if k not in COMMON}
        losses, _ = noisy_cross_entropy(
            lambda x: run.model.apply({"params": params}, x, train=True), expanded, key, **term
        )
        return losses.mean()

    return clean, noisy


def test_gradient_norms_and_cosines_are_those_of_the_weighted_terms(vit):
    batch = make_batch()
    state, _ = vit.step(vit.initial, batch)
    norms, (_, metrics) = vit.norms(state, batch), vit.step(state, batch)
    vectors = []
    for label, function in zip(("clean", "noisy"), by_hand(vit, state, batch), strict=True):
        weight = vit.config.terms[label].weight
        value, gradient = jax.jit(jax.value_and_grad(function))(state.params)
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
        vectors.append(np.concatenate([leaf.ravel() for leaf in leaves]))
        norm = weight * np.linalg.norm(vectors[-1])
        assert float(norms[f"terms/{label}/gradient_norm"]) == pytest.approx(norm, rel=1e-4)
        assert float(metrics[f"terms/{label}/value"]) == pytest.approx(float(value), rel=1e-4)
    assert float(norms["terms/gradient/gradient_norm"]) > 0
    total = sum(value for name, value in norms.items() if name.endswith("/gradient_norm"))
    assert metrics["gradient_norm"] < total
    cosine = np.prod([vector / np.linalg.norm(vector) for vector in vectors], axis=0).sum()
    assert float(norms["terms/noisy/gradient_cosine"]) == pytest.approx(cosine, abs=1e-4)
    assert 0 < abs(float(norms["terms/gradient/gradient_cosine"])) < 1
    assert "terms/clean/gradient_cosine" not in norms


def test_noise_depends_on_the_step_alone(vit):
    batch = make_batch()
    state, _ = vit.step(vit.initial, batch)
    (after, first), (again, second) = vit.step(state, batch), vit.step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, (after, first), (again, second))
    _, other = vit.step(state.replace(step=state.step + 1), batch)
    assert other["terms/clean/value"] == first["terms/clean/value"]
    assert other["terms/noisy/value"] != first["terms/noisy/value"]


def test_step_counts_and_donates_its_state(vit):
    state = jax.tree.map(jnp.copy, vit.initial)
    new, _ = vit.donating_step(state, put_batch(make_batch(), vit.mesh))
    assert int(new.step) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_examples_of_weight_zero_change_nothing(vit):
    batch, other = make_batch(), make_batch(seed=1)
    weight = np.ones(BATCH, np.float32)
    weight[[2, 7, 11]] = 0
    # The same images where the weight is 1, others where it is 0.
    mixed = {
        key: np.where(weight.reshape(-1, *[1] * (value.ndim - 1)) > 0, value, other[key])
        for key, value in batch.items()
    }
    state, _ = vit.step(vit.initial, batch)
    first, first_metrics = vit.step(state, {**batch, "weight": weight})
    second, second_metrics = vit.step(state, {**mixed, "weight": weight})
    del first_metrics["terms/gradient/input_gradient_norm"]
    del second_metrics["terms/gradient/input_gradient_norm"]
    assert_trees_close(second_metrics, first_metrics, rtol=1e-6)
    assert_trees_close(second.params, first.params, rtol=1e-6, atol=1e-7)


def test_padding_with_weight_zero_equals_a_smaller_batch(clipped):
    batch = make_batch()
    half = {key: value[:8] for key, value in batch.items()}
    weight = np.repeat(np.array([1, 0], np.float32), 8)
    padded, padded_metrics = clipped.step(clipped.initial, {**batch, "weight": weight})
    smaller, metrics = clipped.step(clipped.initial, half)
    assert_trees_close(padded_metrics, metrics, rtol=1e-5)
    assert_trees_close(padded.params, smaller.params, rtol=1e-5, atol=1e-7)


def test_clipping_limits_the_update_and_logs_the_whole_norm(clipped):
    state, metrics = clipped.step(clipped.initial, make_batch())
    change = jax.tree.map(jnp.subtract, state.params, clipped.initial.params)
    square = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(change))
    assert square**0.5 == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert metrics["gradient_norm"] > 0.05


@pytest.mark.parametrize("make", [make_config_of_all_terms, make_config_of_views])
def test_bfloat16_keeps_losses_and_parameters_in_float32(make):
    config, model, mesh = make(), make_vit(dtype=jnp.bfloat16), one_device()
    with jax.numpy_dtype_promotion("standard"):  # Flax's own norms mix dtypes
        abstract = abstract_state(config, model, mesh)
        for function in make_train_step(config, model, mesh, abstract):
            outputs = jax.tree.leaves(jax.eval_shape(function, abstract, make_batch()))
            assert {leaf.dtype for leaf in outputs} <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_cosine_of_a_term_without_gradient_is_zero():
    run = Run(make_config("rrr"), make_vit(), one_device())
    batch = make_batch() | {"has_mask": np.zeros(BATCH, np.float32)}
    found = run.norms(run.initial, batch)
    assert float(found["terms/gradient/gradient_norm"]) == 0
    assert float(found["terms/gradient/gradient_cosine"]) == 0
