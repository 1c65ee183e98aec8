"""Nadam's rule: Adam with Nesterov's momentum, which warms up."""

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
    nu=Slot(real=True, nonnegative=True, decay="beta_2"),  # the average of their squares
)


@register
def scale_by_nadam(
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    momentum_decay: Hyperparam = 1.0,
    epsilon_in_root: bool = False,
    next_momentum: bool = True,
    moment_dtype: Any = None,
) -> Transformation:
    """Rescales gradients by Nadam's rule, with `t` counting updates from 1:

        μ_t = β₁ (1 − ½ · 0.96^(momentum_decay · t)),   M_t = μ_1 · … · μ_t
        mu ← mu + (1 − β₁)(g − mu)
        nu ← nu + (1 − β₂)(|g|² − nu)
        u = (μ_{t+1} · mu / (1 − M_{t+1}) + (1 − μ_t) · g / (1 − M_t)) / (√(nu / (1 − β₂ᵗ)) + ε)

    With `epsilon_in_root` the last denominator is `√(nu / (1 − β₂ᵗ) + ε)`, and with `next_momentum=False` its first factor
    is `μ_t` (keras-adamw has both). The sign is the gradient's, and the learning rate is not in it: `scale_by_learning_rate` follows.

    Args:
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: what keeps the quotient finite, >= 0; in the units of the gradient.
      momentum_decay: how fast the momentum warms up, >= 0: 1 is Keras's, 0.004 PyTorch's and the paper's.
      epsilon_in_root: whether ε is added within the root; then it is in the units of the squared gradient.
      next_momentum: whether the average is weighted by the momentum of the next update.
      moment_dtype: the dtype in which `mu` and `nu` are stored, bfloat16, float32 or float64, or one by name, `{"mu": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `count, mu_product, mu, nu`.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016, Algorithm 2 and its schedule of the momentum.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_nadam()
      >>> updates, state = tx.update(jnp.array([0.1, -10.0]), tx.init(jnp.zeros(2)))
      >>> [round(float(u), 3) for u in updates]
      [1.063, -1.063]
    """
    epsilon_in_root = arguments.check_bool("epsilon_in_root", epsilon_in_root)
    next_momentum = arguments.check_bool("next_momentum", next_momentum)

    def step(
        t: jax.Array,
        beta_1: jax.Array,
        beta_2: jax.Array,
        epsilon: jax.Array,
        momentum_decay: jax.Array,
        mu_product: jax.Array,
    ) -> tuple[Leaf, dict[str, jax.Array]]:
        # As in Keras, β is rounded to the leaf's dtype before 1 − β, as it is before βᵗ: the two go together.
        b1, b2 = (jnp.asarray(beta, t.dtype) for beta in (beta_1, beta_2))
        mu_t, mu_next = (b1 * (1 - 0.5 * 0.96 ** (momentum_decay * when)) for when in (t, t + 1))
        product = mu_product * mu_t  # M_t
        of_mu = (mu_next if next_momentum else mu_t) / (1 - product * mu_next)
        of_g = (1 - mu_t) / (1 - product)
        c2 = one_minus_power(beta_2, t)

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> LeafUpdate:
            mu, nu = average(mu, g, b1), average_of_squares(nu, g, b2)
            v = nu / c2
            u = (of_mu * mu + of_g * g) / (root(v + epsilon) if epsilon_in_root else root(v) + epsilon)
            return u, {"mu": mu, "nu": nu}

        return leaf, {"mu_product": product}

    return rule(
        step,
        slots=stored(SLOTS, moment_dtype),
        scalars={"mu_product": 1.0},
        hyperparams={"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon, "momentum_decay": momentum_decay},
        stage="second_moment",
    )
