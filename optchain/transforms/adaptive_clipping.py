"""Clipping of gradients by the size of the parameters."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.factors import Factor, is_factor
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Path, Tree

SMALLEST_NORM = 1e-6  # of a gradient, as a divisor


@register
def adaptive_grad_clip(
    clipping: Hyperparam, epsilon: Hyperparam = 1e-3, *, axis: int | Sequence[int] | None = None
) -> Transformation:
    """Clips the gradient of each unit by the norm of the unit's weights W:

        g ← g · bound / ‖g‖   where ‖g‖ > bound = clipping · max(‖W‖, epsilon)

    A unit is what one output depends on, in the layout of Keras and Flax: norms are over axis 0 of leaves of rank 2 and 3
    (kernels of dense layers and of multi-head projections), over all axes but the last of rank 4 and 5 (convolutions), over
    the whole of a vector or scalar. The authors leave the last layer out:
    `masked(adaptive_grad_clip(0.01), ~matching("^head/"))`.

    Args:
      clipping: the largest ratio of the norms, > 0; 0.01 in the paper for batches of 4096, more for smaller ones.
      epsilon: the norm that weights count with at least, >= 0, so that weights which start at zero can move.
      axis: the axis or axes over which norms are taken, the same for all leaves; None for the rule above.

    Raises:
      ValueError: when called without parameters; a leaf without such an axis, or of a rank above 5 that has no rule.

    Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", 2021, arXiv:2102.06171,
    section 4.1; `optax.adaptive_grad_clip`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adaptive_grad_clip(0.5)
      >>> params, grads = jnp.array([[3.0, 30.0], [4.0, 40.0]]), jnp.array([[3.0, 3.0], [4.0, 4.0]])
      >>> tx.update(grads, tx.init(params), params)[0]
      Array([[1.5, 3. ],
             [2. , 4. ]], dtype=float32)
    """
    own_axes = None if axis is None else arguments.check_axes("axis", axis)

    def init(params: Tree) -> dict:
        jax.tree_util.tree_map_with_path(lambda path, p: _unit_axes(path, p, own_axes), params)
        return {}

    def update(
        updates: Tree, state: dict, params: Tree, *, clipping: jax.Array, epsilon: jax.Array
    ) -> tuple[Tree, dict]:
        axes = jax.tree_util.tree_map_with_path(lambda path, p: _unit_axes(path, p, own_axes), params)
        floor, ratio, smallest = (
            Factor.of(jnp.asarray(value, trees.default_float())) for value in (epsilon, clipping, SMALLEST_NORM)
        )

        def factor(g_norm: Factor, p_norm: Factor) -> Factor:
            bound = ratio * p_norm.at_least(floor)
            one = Factor.of(jnp.ones_like(g_norm.significand))
            return one.where(bound.above(g_norm), bound / g_norm.at_least(smallest))

        factors = jax.tree.map(factor, trees.norms(updates, axes), trees.norms(params, axes), is_leaf=is_factor)
        return trees.scale_each(updates, factors), state

    return Transformation(
        init,
        update,
        hyperparams=Hyperparams(clipping=clipping, epsilon=epsilon),
        stage="clip",
        needs_params=True,
        accepts=["scaled"],
    )


def _unit_axes(path: Path, leaf: jax.Array, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes of a leaf over which the norm of a unit is taken."""
    if axes is not None:
        trees.check_axes("adaptive_grad_clip", path, leaf, axes)
        return axes
    rank = jnp.ndim(leaf)
    if sum(size != 1 for size in jnp.shape(leaf)) <= 1:
        return tuple(range(rank))
    if rank > 5:
        raise ValueError(
            f"adaptive_grad_clip has no rule for {trees.path_string(path) or 'an array'} of shape {jnp.shape(leaf)}: give "
            "the axis, or leave it out with masked"
        )
    return (0,) if rank <= 3 else tuple(range(rank - 1))
