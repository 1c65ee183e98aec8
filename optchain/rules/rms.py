"""RMSprop's rule: the gradient over the root of the average of its squares."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, no_narrower, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import abs_square, root
from optchain.rules.moments import one_minus_power, scaled_square, unless_infinite

SLOTS = declare(
    nu=Slot(real=True, nonnegative=True, decay="rho"),  # the average of the squared gradients
    mu=Slot(decay="rho"),  # when centered, the average of the gradients
)


@register
def scale_by_rms(
    rho: Hyperparam = 0.9,
    epsilon: Hyperparam = 1e-7,
    *,
    centered: bool = False,
    epsilon_in_root: bool = True,
    bias_correction: bool = False,
    initial_accumulator_value: float = 0.0,
    moment_dtype: Any = None,
) -> Transformation:
    """Divides gradients by the root of the average of their squares:

        nu ← rho · nu + (1 − rho) · |g|²
        u = g / √(nu + ε), or with `epsilon_in_root=False`: g / (√nu + ε)

    With `centered` the variance `max(nu − |mu|², 0)` stands for `nu` in the second line, where

        mu ← rho · mu + (1 − rho) · g

    and with `bias_correction` both averages are divided by `1 − rhoᵗ` there, `t` counting updates from 1. The sign is the gradient's, and the learning rate is not in it: `scale_by_learning_rate` follows.

    Args:
      rho: decay of the averages, in [0, 1).
      epsilon: what keeps the quotient finite, >= 0; in the units of the squared gradient within the root, of the gradient
        outside it.
      centered: whether to divide by the standard deviation.
      epsilon_in_root: whether ε is added within the root (Keras, TensorFlow) or to it (PyTorch).
      bias_correction: whether the averages make up for their start at zero, as Adam's do.
      initial_accumulator_value: the value from which `nu` starts, a number >= 0.
      moment_dtype: the dtype in which the averages are stored, bfloat16, float32 or float64, or one by name, `{"nu": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `nu`, and `mu` when centered, `count` with bias correction.

    Source: Tieleman & Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012; centered: Graves, "Generating
    Sequences With Recurrent Neural Networks", 2013, arXiv:1308.0850, section 4.2.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_rms(0.75)
      >>> tx.update(jnp.array([0.1, -10.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([ 2., -2.], dtype=float32)
    """
    centered = arguments.check_bool("centered", centered)
    epsilon_in_root = arguments.check_bool("epsilon_in_root", epsilon_in_root)
    bias_correction = arguments.check_bool("bias_correction", bias_correction)
    arguments.check_number(
        "initial_accumulator_value", initial_accumulator_value, arguments.RANGES["initial_accumulator_value"]
    )

    def plain(rho: jax.Array, epsilon: jax.Array) -> Leaf:
        return averages(rho, epsilon, 1)

    def corrected(t: jax.Array, rho: jax.Array, epsilon: jax.Array) -> Leaf:
        # 1 − rho is rounded as 1 − rhoᵗ is, so that the first quotient is exactly 1.
        return averages(jnp.asarray(rho, t.dtype), epsilon, 1 / one_minus_power(rho, t))

    def averages(rho: jax.Array, epsilon: jax.Array, c: jax.Array | int) -> Leaf:
        def leaf(g: jax.Array, nu: jax.Array, mu: jax.Array | None = None) -> LeafUpdate:
            nu = unless_infinite(nu, rho * nu + scaled_square(1 - rho, g))
            v = nu * c
            if mu is not None:
                mu = rho * mu + (1 - rho) * g
                v = unless_infinite(v, jnp.maximum(v - abs_square(mu) * c**2, 0))
            return g / (root(v + epsilon) if epsilon_in_root else root(v) + epsilon), {"nu": nu, "mu": mu}

        return leaf

    # When centered, the difference of two numbers that may be close: a rounding of either would be all of it.
    slots = no_narrower("float32", **SLOTS) if centered else {"nu": SLOTS["nu"]}
    slots |= {"nu": dataclasses.replace(slots["nu"], start=initial_accumulator_value)}
    return rule(
        corrected if bias_correction else plain,
        slots=stored(slots, moment_dtype),
        hyperparams={"rho": rho, "epsilon": epsilon},
        stage="second_moment",
    )
