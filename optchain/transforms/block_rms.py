"""The root mean square of each leaf: a bound for updates, and the scale of parameters."""

import jax
import jax.numpy as jnp

from optchain.core import trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def clip_by_block_rms(threshold: Hyperparam) -> Transformation:
    """Bounds the root mean square of each leaf: `u ← u / max(1, rms(u) / threshold)`.

    Args:
      threshold: the largest root mean square of a leaf, > 0.

    Source: Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, section 6.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> optchain.clip_by_block_rms(1.0).update(jnp.array([2.0, -2.0]), {})[0]
      Array([ 1., -1.], dtype=float32)
    """

    def update(updates: Tree, state: dict, params: Tree, *, threshold: jax.Array) -> tuple[Tree, dict]:
        def factor(u: jax.Array) -> jax.Array:
            rms = _rms(u)
            return 1 / jnp.maximum(rms / trees.cast(threshold, rms), 1)

        return trees.scale_each(updates, jax.tree.map(factor, updates)), state

    return Transformation(update=update, hyperparams=Hyperparams(threshold=threshold))


@register
def scale_by_param_block_rms(min_scale: Hyperparam = 1e-3) -> Transformation:
    """Makes updates relative to the size of the parameters, leaf by leaf: `u ← max(min_scale, rms(p)) · u`.

    Args:
      min_scale: the smallest scale, >= 0, so that parameters can leave 0.

    Source: Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, section 8.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_param_block_rms()
      >>> tx.update(jnp.array([1.0, 0.5]), {}, jnp.array([2.0, -2.0]))[0]
      Array([2., 1.], dtype=float32)
    """

    def update(updates: Tree, state: dict, params: Tree, *, min_scale: jax.Array) -> tuple[Tree, dict]:
        def factor(p: jax.Array) -> jax.Array:
            rms = _rms(p)
            return jnp.maximum(rms, trees.cast(min_scale, rms))

        return trees.scale_each(updates, jax.tree.map(factor, params)), state

    return Transformation(update=update, hyperparams=Hyperparams(min_scale=min_scale), needs_params=True)


def _rms(x: jax.Array) -> jax.Array:
    return trees.root(trees.sum_of_squares(x) / max(jnp.size(x), 1))
