"""Gradients of several replicas, inside `shard_map` and `pmap`."""

from typing import Any

import jax
from jax import lax

from optchain.core import arguments, trees
from optchain.core.registry import register
from optchain.core.rows import RowGradient, is_rows
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def cross_replica_mean(axis_name: str | tuple[str, ...]) -> Transformation:
    """The mean of the gradients over the replicas of an axis: `g ← Σ g / n`.

    Each replica has a part of the batch, all have the same parameters. It comes first, so that clips and gates see the same
    gradient on every device; within `accumulate` it runs once in a window. Under `jit` with sharded arrays there is no axis
    and no need: the gradient is that of the whole batch. Nor does it change gradients that are equal on all replicas, such
    as `shard_map` makes of replicated parameters: JAX has added these up, so take the mean in the loss.

    Of a `RowGradient` the rows of all replicas are gathered: what travels is the rows that are named, not the table. Inside
    `shard_map` that takes `check_vma=False`.

    Args:
      axis_name: the name of a mesh axis, or of several.

    Raises:
      NameError: when called outside of `shard_map`, `pmap` or `vmap` with that axis.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.cross_replica_mean("batch"), optchain.sgd(1.0))
      >>> params = jnp.array([0.0])
      >>> def step(params, grads):
      ...     return tx.apply(params, tx.init(params), grads=grads)[0]
      >>> jax.vmap(step, in_axes=(None, 0), axis_name="batch")(params, jnp.array([[1.0], [3.0]]))
      Array([[-2.],
             [-2.]], dtype=float32)
    """
    axes = arguments.check_axis_name(axis_name)
    if not axes:
        raise TypeError(f"axis_name must be a string or a tuple of strings; got {axis_name!r}")

    def mean(g: Any) -> Any:
        if not is_rows(g):
            return lax.pmean(trees.wide(g), axes)
        share = trees.scale_leaf(g.rows, 1 / lax.axis_size(axes))
        indices, rows = (lax.all_gather(x, axes, tiled=True) for x in (g.indices, share))
        return RowGradient(indices, rows, g.shape).merge()

    def update(updates: Tree, state: dict, params: Tree) -> tuple[Tree, dict]:
        try:
            return jax.tree.map(mean, updates, is_leaf=is_rows), state
        except NameError as error:
            raise NameError(
                f"cross_replica_mean: there is no axis {axes!r} here. It works inside shard_map or pmap over that axis; "
                "under jit with sharded arrays the gradient is already that of the whole batch, and the link is not needed"
            ) from error

    return Transformation(update=update, takes_rows=True)
