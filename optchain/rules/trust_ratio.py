"""Layerwise steps: each leaf's update in proportion to its parameter."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.factors import Factor, is_factor
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def scale_by_trust_ratio(*, axis: int | Sequence[int] | None = None) -> Transformation:
    """Gives each leaf's update the norm of its parameter: `u ← ‖p‖ / ‖u‖ · u`, or `u` as it is where a norm is 0.

    Norms are accumulated in float32 or wider, and neither overflow nor underflow.

    Args:
      axis: the axis or axes over which norms are taken: `(-2, -1)` for each matrix of a stack by itself; None for the whole leaf.

    Raises:
      ValueError: when called, a leaf that has no such axis.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, arXiv:1904.00962,
    with φ the identity.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_trust_ratio()
      >>> params = {"a": jnp.array([10.0, 0.0]), "new": jnp.zeros(1)}
      >>> tx.update({"a": jnp.array([3.0, 4.0]), "new": jnp.array([5.0])}, {}, params)[0]
      {'a': Array([6., 8.], dtype=float32), 'new': Array([5.], dtype=float32)}
    """
    axes = None if axis is None else arguments.check_axes("axis", axis)

    def init(params: Tree) -> dict:
        for path, leaf in trees.leaves_with_paths(params):
            trees.check_axes("scale_by_trust_ratio", path, leaf, axes or ())
        return {}

    def update(updates: Tree, state: dict, params: Tree) -> tuple[Tree, dict]:
        along = None if axes is None else jax.tree.map(lambda _: axes, params)

        def ratio(size: Factor, wanted: Factor) -> Factor:
            both = (size.significand > 0) & (wanted.significand > 0)
            one = Factor.of(jnp.ones_like(size.significand))
            return wanted.where(both, one) / size.where(both, one)

        ratios = jax.tree.map(ratio, trees.norms(updates, along), trees.norms(params, along), is_leaf=is_factor)
        return trees.scale_each(updates, ratios), state

    return Transformation(init, update, needs_params=True)
