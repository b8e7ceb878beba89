import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import BATCH, Run, make_batch, make_config, make_vit, one_device

from corm_jax.meter import PEAK_FLOPS, Meter, memory
from corm_jax.models.cost import multiply_adds
from corm_jax.sharding import put_batch
from corm_jax.state import abstract_state
from corm_jax.steps import make_train_step


class Device:
    """A device of a kind that is not here."""

    device_kind = "TPU v5 lite"


def test_reading_is_of_the_steps_since_the_start() -> None:
    meter = Meter(32, 1e12, np.array(jax.devices()))
    meter.step(waited=5.0)
    meter.restart()
    for seconds in (0.01, 0.01, 0.05):
        time.sleep(seconds)
        meter.step(waited=seconds / 2)
    found = meter.read()
    scalars = found.scalars
    assert 0.07 <= found.seconds < 5
    assert scalars["step_seconds"] == pytest.approx(found.seconds / 3)
    assert scalars["images_per_second"] == pytest.approx(3 * 32 / found.seconds)
    assert scalars["data_wait"] == pytest.approx(0.035 / found.seconds)
    assert 0.01 <= scalars["step_seconds_p50"] <= scalars["step_seconds_p95"]
    assert 0.05 <= scalars["step_seconds_max"] <= found.seconds
    assert scalars["step_seconds_p95"] <= scalars["step_seconds_max"]


def test_utilisation_is_of_all_devices_and_left_out_where_the_peak_is_not_known() -> None:
    assert "mfu" not in measured(Meter(1, 1e12, np.array(jax.devices())))
    meter = Meter(1, 1e12, np.array([[Device(), Device()], [Device(), Device()]]))
    scalars = measured(meter)
    peak = 4 * PEAK_FLOPS["TPU v5 lite"]
    assert scalars["mfu"] == pytest.approx(1e12 * scalars["images_per_second"] / peak)


def measured(meter: Meter) -> dict[str, float]:
    meter.step(waited=0.0)
    return meter.read().scalars


def test_host_memory_grows_with_what_is_held() -> None:
    before = memory()["host_gib"]
    held = np.ones(2**28, np.uint8)  # a quarter of a GiB
    assert memory()["host_gib"] - before == pytest.approx(0.25, abs=0.05)
    assert held[-1] == 1
    assert "device_gib" not in memory()  # CPUs do not tell


def test_gradients_of_products_and_convolutions_cost_as_much_as_these() -> None:
    images, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 5))
    weights = jnp.ones((4, 4, 7))

    def loss(kernel: jax.Array, images: jax.Array, weights: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # [2, 4, 4, 5]
        x = jnp.einsum("bhwc,hwd->bd", x, weights)

        def body(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
            return total @ part, None

        x, _ = jax.lax.scan(body, x, jnp.ones((6, 7, 7)))
        return x.sum()

    convolution = 2 * 4 * 4 * 5 * (3 * 3 * 3)
    forward = jax.make_jaxpr(loss)(kernel, images, weights)
    products = multiply_adds(forward.jaxpr) - convolution
    assert products >= 6 * 2 * 7 * 7  # the scan's, six times
    backward = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(kernel, images, weights)
    # The convolution once more for its kernel and once for its images.
    expected = 3 * convolution + products
    assert multiply_adds(backward.jaxpr) == pytest.approx(expected + products, rel=0.35)


def test_a_training_step_costs_three_forward_passes_without_the_images_gradient() -> None:
    config, model, mesh = make_config("erm"), make_vit(width=8), one_device()
    abstract = abstract_state(config, model, mesh)
    step, _ = make_train_step(config, model, mesh, abstract)
    run = Run(config, model, mesh)
    batch = put_batch(make_batch(), mesh)
    found = multiply_adds(step.trace(run.initial, batch).jaxpr.jaxpr)
    images = jax.ShapeDtypeStruct((BATCH, 8, 8, 3), jnp.float32)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True))(
        run.initial.variables(), images
    )
    patches = BATCH * 2 * 2 * 8 * (4 * 4 * 3)
    assert found == 3 * multiply_adds(program.jaxpr) - patches
