"""AdEMAMix's rule: Adam with a second, far slower average of the gradients beside the first."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import root
from optchain.rules.moments import average, average_of_squares, one_minus_power

SLOTS = declare(
    mu=Slot(decay="beta_1"),  # the average of the gradients
    # The slow one. Of ten thousand roundings to 8 bits it would keep the noise: a third of the update's norm.
    mu_slow=Slot(decay="beta_3", narrowest="bfloat16"),
    nu=Slot(real=True, nonnegative=True, decay="beta_2"),  # the average of their squares
)


@register
def scale_by_ademamix(
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    beta_3: Hyperparam = 0.9999,
    slow_weight: Hyperparam = 5.0,
    epsilon: Hyperparam = 1e-8,
    *,
    warmup_steps: int | None = None,
    moment_dtype: Any = None,
) -> Transformation:
    """Rescales gradients by AdEMAMix's rule, with `t` counting updates from 1:

        mu ← mu + (1 − β₁)(g − mu)
        mu_slow ← mu_slow + (1 − β₃ₜ)(g − mu_slow)
        nu ← nu + (1 − β₂)(|g|² − nu)
        u = (mu / (1 − β₁ᵗ) + αₜ · mu_slow) / (√(nu / (1 − β₂ᵗ)) + ε)

    α is `slow_weight`. The slow average remembers some `1 / (1 − β₃)` gradients, and is not corrected for its beginning at 0. Without
    `warmup_steps` α and β₃ are as they are given; with T of them they grow, which the authors need for runs to be stable, up to t = T:

        αₜ = α · t/T,    1 / ln β₃ₜ = (1 − t/T) / ln β₁ + t/T / ln β₃        (half-lives grow linearly)

    The sign is the gradient's, and the learning rate is not in it: `scale_by_learning_rate` follows.

    Args:
      beta_1: decay of the fast average, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      beta_3: decay of the slow average, in [0, 1). For runs of fewer than ten thousand updates the authors take 0.999.
      slow_weight: what the slow average is multiplied by, >= 0; the authors take 4 to 10.
      epsilon: what keeps the quotient finite, >= 0; in the units of the gradient.
      warmup_steps: over how many updates α and β₃ grow, >= 1; None for none. In the paper it is the length of the run.
      moment_dtype: the dtype in which `mu`, `mu_slow` and `nu` are stored, bfloat16, float32 or float64, or one by name,
        `{"mu": "bfloat16"}`; float32 or wider if None. Arithmetic is not done in it. In bfloat16 a `mu_slow` with β₃ = 0.9999 stands
        still: its steps round away.

    Returns:
      A transformation with state `count, mu, mu_slow, nu`.

    Source: Pagliardini et al., "The AdEMAMix Optimizer: Better, Faster, Older", 2024, arXiv:2409.03137, section 3 and Algorithm 1.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_ademamix(beta_3=0.9)
      >>> updates, state = tx.update(jnp.array([0.1, -10.0]), tx.init(jnp.zeros(2)))
      >>> [round(float(u), 3) for u in updates]
      [1.5, -1.5]
    """
    if warmup_steps is not None:
        warmup_steps = arguments.check_integer("warmup_steps", warmup_steps, minimum=1)

    def step(
        t: jax.Array,
        beta_1: jax.Array,
        beta_2: jax.Array,
        beta_3: jax.Array,
        slow_weight: jax.Array,
        epsilon: jax.Array,
    ) -> Leaf:
        c1, c2 = one_minus_power(beta_1, t), one_minus_power(beta_2, t)
        alpha, rest = slow_weight, 1 - beta_3
        if warmup_steps is not None:
            part = jnp.minimum(t / warmup_steps, 1)
            alpha = part * slow_weight
            fast, slow = (_inverse_log(beta, t.dtype) for beta in (beta_1, beta_3))
            rest = -jnp.expm1(1 / ((1 - part) * fast + part * slow))  # 1 − β, not rounded as β is

        def leaf(g: jax.Array, mu: jax.Array, mu_slow: jax.Array, nu: jax.Array) -> LeafUpdate:
            mu, nu = average(mu, g, beta_1), average_of_squares(nu, g, beta_2)
            mu_slow = mu_slow + (g - mu_slow) * rest
            u = (mu / c1 + alpha * mu_slow) / (root(nu) / jnp.sqrt(c2) + epsilon)
            return u, {"mu": mu, "mu_slow": mu_slow, "nu": nu}

        return leaf

    slots = dict(SLOTS)
    if warmup_steps is not None:  # what a zero gradient multiplies it by is another number at every update
        slots["mu_slow"] = dataclasses.replace(SLOTS["mu_slow"], decay=None)
    return rule(
        step,
        slots=stored(slots, moment_dtype),
        hyperparams={
            "beta_1": beta_1,
            "beta_2": beta_2,
            "beta_3": beta_3,
            "slow_weight": slow_weight,
            "epsilon": epsilon,
        },
        stage="second_moment",
    )


def _inverse_log(beta: float | jax.Array, dtype: Any) -> float | jax.Array:
    """`1 / ln β`, which is −0 where β is 0; a Python number is not rounded first."""
    if isinstance(beta, float):
        return 1 / math.log(beta) if beta > 0 else -0.0
    return 1 / jnp.log(jnp.asarray(beta, dtype))
