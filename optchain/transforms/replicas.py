"""Gradients of several replicas, inside `shard_map` and `pmap`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optchain.core import arguments, devices, trees
from optchain.core.registry import register
from optchain.core.row_gradient import RowGradient, is_rows
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def cross_replica_mean(axis_name: str | tuple[str, ...]) -> Transformation:
    """The mean of the gradients over the replicas of an axis: `g ← Σ g / n`.

    Each replica has a part of the batch, all have the same parameters. It comes first, so that clips and gates see the same
    gradient on every device; within `accumulate` it runs once in a window. Under `jit` with sharded arrays there is no axis
    and no need: the gradient is that of the whole batch.

    Under `shard_map` JAX adds up the gradients of parameters that it knows to be the same on all devices, and nothing can tell
    such a sum from a mean: a gradient that does not vary over the axis is an error. Take the gradient at
    `jax.lax.pcast(params, axis_name, to="varying")`, which is each replica's own; or take the mean in the loss, by
    `jax.lax.pmean`, and leave this link out. With `check_vma=False`, and in `pmap`, gradients are each replica's own.

    Of a `RowGradient` the rows of all replicas are gathered: only the named rows travel, not the table. Inside
    `shard_map` that takes `check_vma=False`.

    Args:
      axis_name: the name of a mesh axis, or of several.

    Raises:
      NameError: when called outside of `shard_map`, `pmap` or `vmap` with that axis.
      ValueError: when called with a gradient that is the same on all replicas as JAX knows (the message names the leaf).

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

    def check_vary(updates: Tree) -> None:
        tracked = [name for name in ((axes,) if isinstance(axes, str) else axes) if devices.is_tracked(name)]
        for path, g in trees.leaves_with_paths(updates):
            for name in tracked:
                if name not in devices.varies_over(g.rows if is_rows(g) else jnp.asarray(g)):
                    raise ValueError(
                        f"cross_replica_mean: {trees.path_code('updates', path)} does not vary over the axis {name!r}. Under "
                        "shard_map JAX adds up the gradients of parameters that are the same on all devices, and the mean of "
                        f"equal sums is the sum. Take the gradient at jax.lax.pcast(params, {axes!r}, to='varying'); or return "
                        f"jax.lax.pmean(loss, {axes!r}) from the loss, and leave cross_replica_mean out."
                    )

    def update(updates: Tree, state: dict, params: Tree) -> tuple[Tree, dict]:
        try:
            check_vary(updates)
            return jax.tree.map(mean, updates, is_leaf=is_rows), state
        except NameError as error:
            raise NameError(
                f"cross_replica_mean: there is no axis {axes!r} here. It works inside shard_map or pmap over that axis; "
                "under jit with sharded arrays the gradient is already that of the whole batch, and the link is not needed"
            ) from error

    return Transformation(update=update, accepts=["rows"])
