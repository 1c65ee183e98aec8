"""Scaling by a factor that is no learning rate."""

import jax

from optchain.core import trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def scale(factor: Hyperparam) -> Transformation:
    """Multiplies what comes in by a factor: `u ← factor · u`.

    Args:
      factor: any finite number, a scalar array, a schedule of the link's own count of calls (within a gate these are
        updates), or a callable of no arguments.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale(0.5)
      >>> tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))[0]
      Array([1.], dtype=float32)
    """

    def update(updates: Tree, state: dict, params: Tree, *, factor: jax.Array) -> tuple[Tree, dict]:
        return trees.scale(updates, factor), state

    return Transformation(update=update, hyperparams=Hyperparams(factor=factor))
