"""Steps that take their batch in microbatches: which equal undivided ones, and what is shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import BATCH, Run, make_batch, make_config, make_resnet, make_vit, one_device

from corm_jax.sharding import create_mesh


def run_of(model, parts, objective="erm", mesh=None, **optimizer):
    config = make_config(objective, momentum=0.0, weight_decay=0.0, clip_norm=0.0, **optimizer)
    config.train.microbatches = parts
    return Run(config, model, mesh or one_device())


def assert_trees_close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def take(batch, indices):
    return {key: value[indices] for key, value in batch.items()}


@pytest.fixture(scope="module")
def whole():
    return run_of(make_vit(), 1)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 4)])
def test_a_vit_takes_the_very_step_of_the_undivided_batch(whole, mesh):
    *shape, devices = mesh
    divided = run_of(make_vit(), 4, mesh=create_mesh(*shape, jax.devices()[:devices]))
    # Examples of weight 0, unevenly spread: the mean is over the batch's weights.
    batch = make_batch() | {"weight": (np.arange(BATCH) % 4 > 0).astype(np.float32)}
    batch["weight"][5] = 0
    for run in (whole, divided):
        run.state, run.first = run.step(run.initial, batch)  # the head is 0 before
        run.state, run.second = run.step(run.state, batch)
    assert_trees_close(divided.second, whole.second, rtol=1e-5)
    assert_trees_close(divided.state.params, whole.state.params, rtol=1e-5, atol=1e-6)
    found, expected = (run.norms(run.state, batch) for run in (divided, whole))
    assert_trees_close(found, expected, rtol=1e-5)


def test_batch_normalisation_takes_the_statistics_of_each_microbatch():
    run = run_of(make_resnet(), 2)
    batch = make_batch()
    state, _ = run.step(run.initial, batch)
    updated = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        images = jnp.asarray(batch["image"][part], jnp.float32) / 255
        variables = run.initial.variables()
        updated.append(run.model.apply(variables, images, train=True, mutable=["batch_stats"])[1])
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *updated)["batch_stats"]
    assert_trees_close(state.batch_stats, expected, rtol=1e-4, atol=1e-6)


def test_a_microbatch_of_an_objective_with_noise_is_a_step_of_its_own_examples():
    """Clean terms are those of the whole batch; noise is drawn anew in every microbatch."""
    divided, undivided = (run_of(make_vit(), parts, "corm_two_term") for parts in (2, 1))
    same = np.zeros(BATCH, int) + 1  # one image, so that only the noise tells examples apart
    batch = take(make_batch(), same)
    states = [run.step(run.initial, batch)[0] for run in (divided, undivided)]
    (_, found), (_, expected) = (
        run.step(state, batch) for run, state in zip((divided, undivided), states, strict=True)
    )
    assert found["terms/clean/value"] == pytest.approx(float(expected["terms/clean/value"]), 1e-4)
    noisy = "terms/noisy/value"
    assert found[noisy] != expected[noisy]
    assert found[noisy] == pytest.approx(float(expected[noisy]), rel=0.2)
    _, again = divided.step(states[0], batch)
    assert again[noisy] == found[noisy]
