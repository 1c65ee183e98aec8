"""Nadam's rule: Adam with Nesterov's momentum, which warms up."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.moments import average, average_of_squares, bias_corrections


class ScaleByNadamState(TypedDict):
    count: jax.Array
    """The number of updates made, int32."""
    mu_product: jax.Array
    """The product of the momentum's values so far."""
    mu: Tree
    """The average of the gradients."""
    nu: Tree
    """The average of their squares, real."""


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
      moment_dtype: the dtype in which `mu` and `nu` are stored; float32 or wider if None. Arithmetic is not done in it.

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
    hyperparams = Hyperparams(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, momentum_decay=momentum_decay)
    epsilon_in_root = arguments.check_bool("epsilon_in_root", epsilon_in_root)
    next_momentum = arguments.check_bool("next_momentum", next_momentum)
    dtype = arguments.check_dtype("moment_dtype", moment_dtype)

    def init(params: Tree) -> ScaleByNadamState:
        return {
            "count": jnp.zeros((), jnp.int32),
            "mu_product": jnp.ones((), trees.default_float()),
            "mu": trees.zeros_like(params, dtype),
            "nu": trees.zeros_like(params, dtype, real=True),
        }

    def update(
        updates: Tree,
        state: ScaleByNadamState,
        params: Tree,
        *,
        beta_1: jax.Array,
        beta_2: jax.Array,
        epsilon: jax.Array,
        momentum_decay: jax.Array,
    ) -> tuple[Tree, ScaleByNadamState]:
        count = trees.increment(state["count"])
        corrections = bias_corrections(count, beta_2)
        t = trees.astype(count, state["mu_product"].dtype)
        decay = trees.cast(momentum_decay, t)
        momentum, later = (trees.cast(beta_1, t) * (1 - 0.5 * 0.96 ** (decay * when)) for when in (t, t + 1))
        product = state["mu_product"] * momentum
        of_mu, of_g = (later if next_momentum else momentum) / (1 - product * later), (1 - momentum) / (1 - product)

        def step(g: jax.Array, old_mu: jax.Array, old_nu: jax.Array) -> tuple[jax.Array, ...]:
            g = trees.wide(g)
            g_square = trees.abs_square(g)
            mu, nu = trees.astype(old_mu, g.dtype), trees.astype(old_nu, g_square.dtype)
            # As in Keras, β is rounded to the leaf's dtype before 1 − β, as it is before βᵗ: the two go together.
            mu, nu = (
                average(mu, g, jnp.asarray(beta_1, nu.dtype)),
                average_of_squares(nu, g, jnp.asarray(beta_2, nu.dtype)),
            )
            (one_minus_b2,) = corrections(nu.dtype)
            ahead = trees.cast(of_mu, mu) * mu + trees.cast(of_g, g) * g
            square, eps = nu / one_minus_b2, trees.cast(epsilon, nu)
            denominator = trees.root(square + eps) if epsilon_in_root else trees.root(square) + eps
            return (
                ahead / trees.astype(denominator, g.dtype),
                trees.astype(mu, old_mu.dtype),
                trees.astype(nu, old_nu.dtype),
            )

        directions, mu, nu = trees.map_unzip(step, 3, updates, state["mu"], state["nu"])
        return directions, {"count": count, "mu_product": product, "mu": mu, "nu": nu}

    return Transformation(
        init,
        update,
        fields=["count", "mu_product", "mu", "nu"],
        hyperparams=hyperparams,
        stage="second_moment",
        rowwise=True,
        decays={"mu": "beta_1", "nu": "beta_2"},
    )
