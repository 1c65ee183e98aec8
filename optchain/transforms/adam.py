"""Adam's rule: the first moment over the root of the second, with bias correction."""

import functools
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.moments import average, average_of_squares, bias_corrections


class ScaleByAdamState(TypedDict):
    count: jax.Array
    """The number of updates made, int32."""
    mu: Tree
    """The average of the gradients."""
    nu: Tree
    """The average of their squares, real."""
    nu_max: NotRequired[Tree]
    """With AMSGrad, the largest `nu` so far."""


@register
def scale_by_adam(
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    amsgrad: bool = False,
    epsilon_hat: bool = True,
    moment_dtype: Any = None,
) -> Transformation:
    """Rescales gradients by Adam's rule, with `t` counting updates from 1:

        mu ← mu + (1 − β₁)(g − mu)
        nu ← nu + (1 − β₂)(|g|² − nu)
        epsilon_hat:    u = √(1 − β₂ᵗ) / (1 − β₁ᵗ) · mu / (√nu + ε)             Keras, TensorFlow
        otherwise:      u = mu / (1 − β₁ᵗ) / (√(nu / (1 − β₂ᵗ)) + ε)            PyTorch, Optax, Algorithm 1 of the paper

    With `amsgrad` the largest `nu` so far stands for `nu` in the last step. The sign is the gradient's, and the learning
    rate is not in it: `scale_by_learning_rate` follows.

    Args:
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: what keeps the quotient finite, >= 0; in the units of the gradient.
      amsgrad: whether to divide by the largest second moment so far.
      epsilon_hat: whether ε stands outside the bias correction, the paper's "epsilon hat".
      moment_dtype: the dtype in which `mu`, `nu` and `nu_max` are stored, float32 or wider if None. Arithmetic is not done
        in it. In bfloat16 a `nu` with β₂ = 0.999 stops growing well short of its limit: its steps round away.

    Returns:
      A transformation with state `count, mu, nu` and, with AMSGrad, `nu_max`.

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
    hyperparams = Hyperparams(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    amsgrad = arguments.check_bool("amsgrad", amsgrad)
    epsilon_hat = arguments.check_bool("epsilon_hat", epsilon_hat)
    dtype = arguments.check_dtype("moment_dtype", moment_dtype)

    def init(params: Tree) -> ScaleByAdamState:
        def second_moment() -> Tree:
            return trees.zeros_like(params, dtype, real=True)

        state: ScaleByAdamState = {
            "count": jnp.zeros((), jnp.int32),
            "mu": trees.zeros_like(params, dtype),
            "nu": second_moment(),
        }
        return {**state, "nu_max": second_moment()} if amsgrad else state

    moment_names = ["mu", "nu", *["nu_max"] * amsgrad]

    def update(
        updates: Tree,
        state: ScaleByAdamState,
        params: Tree,
        *,
        beta_1: jax.Array,
        beta_2: jax.Array,
        epsilon: jax.Array,
    ) -> tuple[Tree, dict[str, Any]]:
        count = trees.increment(state["count"])
        corrections = bias_corrections(count, beta_1, beta_2)

        @functools.cache  # once for each dtype of the tree
        def first_factor(dtype: Any) -> jax.Array:
            one_minus_b1, one_minus_b2 = corrections(dtype)
            return (jnp.sqrt(one_minus_b2) if epsilon_hat else 1) / one_minus_b1

        def step(g: jax.Array, *old: jax.Array) -> tuple[jax.Array, ...]:
            g = trees.wide(g)
            g_square = trees.abs_square(g)
            mu, nu, *nu_max = (trees.astype(x, y.dtype) for x, y in zip(old, (g, g_square, g_square), strict=False))
            mu, nu = average(mu, g, beta_1), average_of_squares(nu, g, beta_2)
            new = (mu, nu, *(jnp.maximum(largest, nu) for largest in nu_max))
            size = trees.root(new[-1])
            if not epsilon_hat:  # the roots before the quotient, which could overflow
                size = size / jnp.sqrt(corrections(nu.dtype)[1])
            denominator = size + trees.cast(epsilon, nu)
            direction = mu * trees.cast(first_factor(nu.dtype), mu) / trees.astype(denominator, mu.dtype)
            return direction, *(trees.astype(x, y.dtype) for x, y in zip(new, old, strict=True))

        directions, *moments = trees.map_unzip(step, 1 + len(moment_names), updates, *(state[m] for m in moment_names))
        return directions, {"count": count, **dict(zip(moment_names, moments, strict=True))}

    return Transformation(
        init,
        update,
        fields=["count", *moment_names],
        hyperparams=hyperparams,
        stage="second_moment",
        rowwise=True,
        decays={"mu": "beta_1", "nu": "beta_2"},
    )
