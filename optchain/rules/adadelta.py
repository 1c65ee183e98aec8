"""Adadelta's rule: the gradient in units of the steps made so far."""

from typing import Any

import jax

from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import abs_square, root
from optchain.rules.moments import scaled_square, unless_infinite

SLOTS = declare(
    e_g=Slot(real=True, nonnegative=True, decay="rho", narrowest="bfloat16"),  # the average of the squared gradients
    e_x=Slot(real=True, nonnegative=True, decay="rho", narrowest="bfloat16"),  # the average of the squared steps
)


@register
def scale_by_adadelta(
    rho: Hyperparam = 0.95, epsilon: Hyperparam = 1e-7, *, moment_dtype: Any = None
) -> Transformation:
    """Rescales gradients to the size of the steps made so far:

        e_g ← rho · e_g + (1 − rho) · |g|²
        u = √(e_x + ε) / √(e_g + ε) · g
        e_x ← rho · e_x + (1 − rho) · |u|²

    The sign is the gradient's, and the learning rate is not in it (1 in the paper): `scale_by_learning_rate` follows.

    Args:
      rho: decay of the averages, in [0, 1).
      epsilon: added to the squares under both roots, >= 0; it sets the size of the first steps; with 0 there are none.
      moment_dtype: the dtype in which the averages are stored, bfloat16, float32 or float64, or one by name, `{"e_g": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `e_g, e_x`.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, arXiv:1212.5701, Algorithm 1.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_adadelta(0.75, epsilon=1e-4)
      >>> tx.update(jnp.array([10.0]), tx.init(jnp.zeros(1)))[0].round(3)
      Array([0.02], dtype=float32)
    """

    def step(rho: jax.Array, epsilon: jax.Array) -> Leaf:
        def leaf(g: jax.Array, e_g: jax.Array, e_x: jax.Array) -> LeafUpdate:
            e_g = unless_infinite(e_g, rho * e_g + scaled_square(1 - rho, g))
            u = g * (root(e_x + epsilon) / root(e_g + epsilon))
            e_x = rho * e_x + (1 - rho) * abs_square(u)
            return u, {"e_g": e_g, "e_x": e_x}

        return leaf

    return rule(
        step,
        slots=stored(SLOTS, moment_dtype),
        hyperparams={"rho": rho, "epsilon": epsilon},
        stage="second_moment",
    )
