"""What a forward pass costs, counted from its program without running it."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr


class Cost(NamedTuple):
    """Parameters of a model, and multiplications with addition of a forward pass on one image."""

    parameters: int
    multiply_adds: int


def forward_cost(model: nn.Module, image_size: int) -> Cost:
    """Counts the parameters of a model and the multiply-adds of its convolutions and matrices.

    As the field counts: a kernel's zeros and the image's padding count, what is elementwise does
    not. FLOPs are twice the multiply-adds.

    Args:
      model: any of `corm_jax.models.MODELS`.
      image_size: height and width in pixels.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return Cost(parameters, multiply_adds(program.jaxpr))


def multiply_adds(jaxpr: Jaxpr) -> int:
    """Counts the multiply-adds of a program's convolutions and matrix products, over all devices.

    The body of a `scan` counts as often as it runs, that of a `while` once. Zeros that the
    gradient of a strided convolution puts between pixels do not count.
    """
    total = 0
    for equation in jaxpr.eqns:
        parameters = equation.params
        if equation.primitive is jax.lax.conv_general_dilated_p:
            kernel = equation.invars[1].aval
            outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            zeros = math.prod(parameters["lhs_dilation"])
            total += equation.outvars[0].aval.size * kernel.size // outputs // zeros
        elif equation.primitive is jax.lax.dot_general_p:
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval
            total += equation.outvars[0].aval.size * math.prod(left.shape[i] for i in contracted)
        else:  # a call of a function has its program among its parameters
            times = parameters["length"] if equation.primitive is jax.lax.scan_p else 1
            total += times * sum(
                multiply_adds(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
                for value in parameters.values()
                if isinstance(value, ClosedJaxpr | Jaxpr)
            )
    return total
