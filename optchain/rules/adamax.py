"""Adamax's rule: Adam with the largest magnitude in place of the root mean square."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.rules.moments import average, magnitude, one_minus_power, unless_infinite

SLOTS = declare(
    mu=Slot(decay="beta_1"),  # the average of the gradients
    nu=Slot(real=True, nonnegative=True, decay="beta_2", narrowest="bfloat16"),  # the largest magnitude, which decays
)


@register
def scale_by_adamax(
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    epsilon_in_maximum: bool = False,
    moment_dtype: Any = None,
) -> Transformation:
    """Rescales gradients by Adamax's rule, with `t` counting updates from 1:

        mu ← mu + (1 − β₁)(g − mu)
        nu ← max(β₂ · nu, |g|)
        u = mu / ((1 − β₁ᵗ)(nu + ε))
        epsilon_in_maximum:    nu ← max(β₂ · nu, |g| + ε),   u = mu / ((1 − β₁ᵗ) nu)

    The sign is the gradient's, and the learning rate is not in it: `scale_by_learning_rate` follows.

    Args:
      beta_1: decay of the average, in [0, 1).
      beta_2: decay of the largest magnitude, in [0, 1).
      epsilon: what keeps the quotient finite, >= 0; in the units of the gradient.
      epsilon_in_maximum: whether ε is added to the gradient's magnitude (PyTorch) or to `nu` (Keras, TensorFlow).
      moment_dtype: the dtype in which `mu` and `nu` are stored, bfloat16, float32 or float64, or one by name, `{"mu": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `count, mu, nu`.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980, Algorithm 2, which has no ε.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_adamax()
      >>> tx.update(jnp.array([0.1, -10.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([ 1., -1.], dtype=float32)
    """
    epsilon_in_maximum = arguments.check_bool("epsilon_in_maximum", epsilon_in_maximum)

    def step(t: jax.Array, beta_1: jax.Array, beta_2: jax.Array, epsilon: jax.Array) -> Leaf:
        c1 = one_minus_power(beta_1, t)

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> LeafUpdate:
            size = magnitude(g)
            mu = average(mu, g, beta_1)
            nu = unless_infinite(nu, jnp.maximum(beta_2 * nu, size + epsilon if epsilon_in_maximum else size))
            return mu / (c1 * (nu if epsilon_in_maximum else nu + epsilon)), {"mu": mu, "nu": nu}

        return leaf

    return rule(
        step,
        slots=stored(SLOTS, moment_dtype),
        hyperparams={"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon},
        stage="second_moment",
    )
