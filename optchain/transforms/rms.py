"""RMSprop's rule: the gradient over the root of the average of its squares."""

from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.moments import bias_corrections, scaled_square


class ScaleByRmsState(TypedDict):
    nu: Tree
    """The average of the squared gradients, real."""
    mu: NotRequired[Tree]
    """When centered, the average of the gradients."""
    count: NotRequired[jax.Array]
    """With bias correction, the number of updates made, int32."""


@register
def scale_by_rms(
    rho: Hyperparam = 0.9,
    epsilon: Hyperparam = 1e-7,
    *,
    centered: bool = False,
    epsilon_in_root: bool = True,
    bias_correction: bool = False,
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
      moment_dtype: the dtype in which the averages are stored; float32 or wider if None. Arithmetic is not done in it.

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
    hyperparams = Hyperparams(rho=rho, epsilon=epsilon)
    centered = arguments.check_bool("centered", centered)
    epsilon_in_root = arguments.check_bool("epsilon_in_root", epsilon_in_root)
    corrects = arguments.check_bool("bias_correction", bias_correction)
    dtype = arguments.check_dtype("moment_dtype", moment_dtype)
    moment_names = ["nu", *["mu"] * centered]

    def init(params: Tree) -> dict[str, Any]:
        count = {"count": jnp.zeros((), jnp.int32)} if corrects else {}
        return count | {name: trees.zeros_like(params, dtype, real=name == "nu") for name in moment_names}

    def update(
        updates: Tree, state: dict[str, Any], params: Tree, *, rho: jax.Array, epsilon: jax.Array
    ) -> tuple[Tree, dict[str, Any]]:
        count = {"count": trees.increment(state["count"])} if corrects else {}
        corrections = bias_corrections(count["count"], rho) if corrects else None

        def step(g: jax.Array, *old: jax.Array) -> tuple[jax.Array, ...]:
            g = trees.wide(g)
            g_square = trees.abs_square(g)
            nu, *mu = (trees.astype(x, y.dtype) for x, y in zip(old, (g_square, g), strict=False))
            # With bias correction 1 − rho is rounded as 1 − rhoᵗ is, so that the first quotient is exactly 1.
            decay = jnp.asarray(rho, nu.dtype) if corrects else trees.cast(rho, nu)
            nu = decay * nu + scaled_square(1 - decay, g)
            mu = [trees.cast(decay, g) * m + trees.cast(1 - decay, g) * g for m in mu]
            scale = 1 / corrections(nu.dtype)[0] if corrections else 1
            square = nu * scale
            if centered:
                square = jnp.maximum(square - trees.abs_square(mu[0]) * scale**2, 0)
            eps = trees.cast(epsilon, nu)
            denominator = trees.root(square + eps) if epsilon_in_root else trees.root(square) + eps
            new = (nu, *mu)
            return g / trees.astype(denominator, g.dtype), *(
                trees.astype(x, y.dtype) for x, y in zip(new, old, strict=True)
            )

        directions, *moments = trees.map_unzip(step, 1 + len(moment_names), updates, *(state[m] for m in moment_names))
        return directions, count | dict(zip(moment_names, moments, strict=True))

    return Transformation(
        init,
        update,
        fields=[*["count"] * corrects, *moment_names],
        hyperparams=hyperparams,
        stage="second_moment",
        rowwise=True,
        decays=dict.fromkeys(moment_names, "rho"),
    )
