"""RAdam's rule: Adam that divides by the second moment only once it is known well enough."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import root
from optchain.rules.moments import average, average_of_squares

SLOTS = declare(
    mu=Slot(decay="beta_1"),  # the average of the gradients
    nu=Slot(real=True, nonnegative=True, decay="beta_2"),  # the average of their squares
)


@register
def scale_by_radam(
    beta_1: Hyperparam = 0.9, beta_2: Hyperparam = 0.999, epsilon: Hyperparam = 1e-8, *, moment_dtype: Any = None
) -> Transformation:
    """Rescales gradients by RAdam's rule, with `t` counting updates from 1:

        mu ← mu + (1 − β₁)(g − mu)
        nu ← nu + (1 − β₂)(|g|² − nu)
        ρ∞ = 2 / (1 − β₂) − 1,   ρ_t = ρ∞ − 2t β₂ᵗ / (1 − β₂ᵗ)
        ρ_t > 5:      u = r_t · mu / (1 − β₁ᵗ) · √(1 − β₂ᵗ) / (√nu + ε),   r_t² = (ρ_t − 4)(ρ_t − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ_t)
        otherwise:    u = mu / (1 − β₁ᵗ)

    The sign is the gradient's, and the learning rate is not in it: `scale_by_learning_rate` follows. This is PyTorch's ε,
    outside the bias correction.

    Args:
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1); at 2/3 or below ρ_t never exceeds 5.
      epsilon: what keeps the quotient finite, >= 0; in the units of the gradient.
      moment_dtype: the dtype in which `mu` and `nu` are stored, bfloat16, float32 or float64, or one by name, `{"mu": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `count, mu, nu`.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2020, arXiv:1908.03265, Algorithm 2.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_radam()
      >>> tx.update(jnp.array([0.1, -10.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([  0.1, -10. ], dtype=float32)
    """

    def step(t: jax.Array, beta_1: jax.Array, beta_2: jax.Array, epsilon: jax.Array) -> Leaf:
        correction = 1 / _one_minus_power(beta_1, t)
        rectifies, factor = _rectification(beta_2, t)

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> LeafUpdate:
            mu, nu = average(mu, g, beta_1), average_of_squares(nu, g, beta_2)
            # Where nothing is rectified the quotient is not computed either: 0 / 0 would be NaN.
            adaptive = factor / jnp.where(rectifies, root(nu) + epsilon, 1)
            return mu * correction * adaptive, {"mu": mu, "nu": nu}

        return leaf

    return rule(
        step,
        slots=stored(SLOTS, moment_dtype),
        hyperparams={"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon},
        stage="second_moment",
    )


def _rectification(beta_2: float | jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether ρ_t > 5, and what multiplies `1 / (√nu + ε)` then: `r_t √(1 − β₂ᵗ)`; else 1.

    ρ∞ − 2t β₂ᵗ / (1 − β₂ᵗ) is a small difference of large numbers while t is small, and float32 would lose it. With
    x = −log β₂ it is coth(x/2) + t − t coth(tx/2), where the terms 2/x cancel: t + L(x/2) − t L(tx/2), L(y) = coth y − 1/y.
    """
    rate = jnp.asarray(-_log(beta_2), t.dtype)
    y = t * rate / 2
    longest = 2 / jnp.asarray(1 - beta_2, t.dtype) - 1
    early = t + _langevin(jnp.minimum(rate / 2, 1)) - t * _langevin(jnp.minimum(y, 1))
    late = longest - 2 * t / jnp.expm1(2 * jnp.maximum(y, 1))
    length = jnp.where(y < 1, early, late)
    rectifies = length > 5
    length, longest = jnp.where(rectifies, length, 5.0), jnp.where(rectifies, longest, 5.0)
    square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return rectifies, jnp.where(rectifies, jnp.sqrt(square * _one_minus_power(beta_2, t)), 1.0)


def _langevin(y: jax.Array) -> jax.Array:
    """`coth y − 1/y` for y in [0, 1], by its continued fraction y / (3 + y² / (5 + y² / (7 + …)))."""
    return y / functools.reduce(lambda below, odd: odd + y**2 / below, range(17, 2, -2), jnp.full_like(y, 19.0))


def _one_minus_power(beta: float | jax.Array, t: jax.Array) -> jax.Array:
    """`1 − βᵗ` to the last digits, as PyTorch's double precision has it."""
    return -jnp.expm1(t * jnp.asarray(_log(beta), t.dtype))


def _log(beta: float | jax.Array) -> float | jax.Array:
    if isinstance(beta, float):
        return math.log(beta) if beta > 0 else -math.inf
    return jnp.log(beta)
