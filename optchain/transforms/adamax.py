"""Adamax's rule: Adam with the largest magnitude in place of the root mean square."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.moments import average, bias_corrections, magnitude


class ScaleByAdamaxState(TypedDict):
    count: jax.Array
    """The number of updates made, int32."""
    mu: Tree
    """The average of the gradients."""
    nu: Tree
    """The largest magnitude, which decays, real."""


SLOTS = declare(
    mu=Slot(decay="beta_1"),  # the average of the gradients
    nu=Slot(real=True, decay="beta_2"),  # the largest magnitude, which decays
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
      moment_dtype: the dtype in which `mu` and `nu` are stored; float32 or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `count, mu, nu`.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980, Algorithm 2, which has no ε.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_adamax()
      >>> tx.update(jnp.array([0.1, -10.0]), tx.init(jnp.zeros(2)))[0].round(3)
      Array([ 1., -1.], dtype=float32)
    """
    hyperparams = Hyperparams(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    epsilon_in_maximum = arguments.check_bool("epsilon_in_maximum", epsilon_in_maximum)
    dtype = arguments.check_dtype("moment_dtype", moment_dtype)

    def init(params: Tree) -> ScaleByAdamaxState:
        return {
            "count": jnp.zeros((), jnp.int32),
            "mu": trees.zeros_like(params, dtype),
            "nu": trees.zeros_like(params, dtype, real=True),
        }

    def update(
        updates: Tree,
        state: ScaleByAdamaxState,
        params: Tree,
        *,
        beta_1: jax.Array,
        beta_2: jax.Array,
        epsilon: jax.Array,
    ) -> tuple[Tree, ScaleByAdamaxState]:
        count = trees.increment(state["count"])
        corrections = bias_corrections(count, beta_1)

        def step(g: jax.Array, old_mu: jax.Array, old_nu: jax.Array) -> tuple[jax.Array, ...]:
            g = trees.wide(g)
            size = magnitude(g)
            mu, nu = trees.astype(old_mu, g.dtype), trees.astype(old_nu, size.dtype)
            eps = trees.cast(epsilon, nu)
            mu = average(mu, g, beta_1)
            nu = jnp.maximum(trees.cast(beta_2, nu) * nu, size + eps if epsilon_in_maximum else size)
            (one_minus_b1,) = corrections(nu.dtype)
            direction = mu / trees.astype(one_minus_b1 * (nu if epsilon_in_maximum else nu + eps), mu.dtype)
            return direction, trees.astype(mu, old_mu.dtype), trees.astype(nu, old_nu.dtype)

        directions, mu, nu = trees.map_unzip(step, 3, updates, state["mu"], state["nu"])
        return directions, {"count": count, "mu": mu, "nu": nu}

    return Transformation(
        init,
        update,
        fields=["count"],
        slots=SLOTS,
        hyperparams=hyperparams,
        stage="second_moment",
        rowwise=True,
    )
