"""Adam's rule: the first moment over the root of the second, with bias correction."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, no_narrower, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import root
from optchain.rules.moments import average, average_of_squares, one_minus_power

SLOTS = declare(
    mu=Slot(decay="beta_1"),  # the average of the gradients
    nu=Slot(real=True, nonnegative=True, decay="beta_2"),  # the average of their squares
    nu_max=Slot(real=True, nonnegative=True),  # with AMSGrad, the largest `nu` so far
)


@register
def scale_by_adam(
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    amsgrad: bool = False,
    epsilon_hat: bool = True,
    epsilon_root: Hyperparam = 0.0,
    nesterov: bool = False,
    moment_dtype: Any = None,
) -> Transformation:
    """Rescales gradients by Adam's rule, with `t` counting updates from 1:

        mu ← mu + (1 − β₁)(g − mu)
        nu ← nu + (1 − β₂)(|g|² − nu)
        epsilon_hat:    u = √(1 − β₂ᵗ) / (1 − β₁ᵗ) · mu / (√nu + ε)             Keras, TensorFlow
        otherwise:      u = mu / (1 − β₁ᵗ) / (√(nu / (1 − β₂ᵗ)) + ε)            PyTorch, Optax, Algorithm 1 of the paper

    With `amsgrad` the largest `nu` so far stands for `nu` in the last step, and with an `epsilon_root` `nu + (1 − β₂ᵗ) epsilon_root`. With
    `nesterov` the corrected average looks ahead, as Optax's does:

        β₁ · mu / (1 − β₁ᵗ⁺¹) + (1 − β₁) · g / (1 − β₁ᵗ)   stands for   mu / (1 − β₁ᵗ)

    The sign is the gradient's, and the learning rate is not in it: `scale_by_learning_rate` follows.

    Args:
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: what keeps the quotient finite, >= 0; in the units of the gradient.
      amsgrad: whether to divide by the largest second moment so far.
      epsilon_hat: whether ε stands outside the bias correction, the paper's "epsilon hat".
      epsilon_root: added within the root, >= 0; in the units of the squared gradient.
      nesterov: whether to look ahead; needs `epsilon_hat=False`. (`scale_by_nadam` is Keras's and PyTorch's, whose momentum warms
        up.)
      moment_dtype: the dtype in which `mu`, `nu` and `nu_max` are stored, bfloat16, float32 or float64, or one by name,
        `{"mu": "bfloat16"}`; float32 or wider if None. Arithmetic is not done in it. In bfloat16 a `nu` with β₂ = 0.999 stops
        growing well short of its limit: its steps round away.

    Returns:
      A transformation with state `count, mu, nu` and, with AMSGrad, `nu_max`.

    Raises:
      ValueError: `nesterov` with `epsilon_hat`.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980, Algorithm 1 and section 2;
    Reddi et al., "On the Convergence of Adam and Beyond", 2018, arXiv:1904.09237.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_adam()
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([0.1, -10.0]), state)
      >>> updates.round(3)
      Array([ 1., -1.], dtype=float32)
    """
    amsgrad = arguments.check_bool("amsgrad", amsgrad)
    epsilon_hat = arguments.check_bool("epsilon_hat", epsilon_hat)
    nesterov = arguments.check_bool("nesterov", nesterov)
    arguments.check_hyperparam("epsilon_root", epsilon_root)
    rooted = not (arguments.is_number(epsilon_root) and epsilon_root == 0)
    if epsilon_hat and nesterov:
        raise ValueError(f"nesterov needs epsilon_hat=False; got {epsilon_hat=}")

    def step(
        t: jax.Array, beta_1: jax.Array, beta_2: jax.Array, epsilon: jax.Array, epsilon_root: jax.Array | float
    ) -> Leaf:
        c1, c2 = one_minus_power(beta_1, t), one_minus_power(beta_2, t)
        factor = (jnp.sqrt(c2) if epsilon_hat else 1) / c1

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array, nu_max: jax.Array | None = None) -> LeafUpdate:
            mu, nu = average(mu, g, beta_1), average_of_squares(nu, g, beta_2)
            v = nu if nu_max is None else jnp.maximum(nu_max, nu)
            # The roots before the quotient, which could overflow.
            size = root(v) if epsilon_hat else root(v) / jnp.sqrt(c2)
            if rooted:
                size = root(v + c2 * epsilon_root) if epsilon_hat else root(v / c2 + epsilon_root)
            m = mu * factor
            if nesterov:
                m = mu * (beta_1 / one_minus_power(beta_1, t + 1)) + g * ((1 - beta_1) / c1)
            return m / (size + epsilon), {"mu": mu, "nu": nu, "nu_max": v}

        return leaf

    slots = {name: slot for name, slot in SLOTS.items() if name != "nu_max"}
    if amsgrad:  # the largest of numbers with roundings is too large
        slots |= no_narrower("bfloat16", nu=SLOTS["nu"], nu_max=SLOTS["nu_max"])
    return rule(
        step,
        slots=stored(slots, moment_dtype),
        hyperparams={"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon, "epsilon_root": epsilon_root},
        stage="second_moment",
    )
