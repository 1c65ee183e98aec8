"""Clipping of gradients: by value, by each leaf's norm or root mean square, by the norm of all leaves."""

from typing import TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, devices, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.factors import Factor
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def clip_by_value(max_value: Hyperparam) -> Transformation:
    """Clips every element: `g ← min(max(g, −max_value), max_value)`. Keras's `clipvalue`.

    Args:
      max_value: the largest magnitude, > 0; in the units of the gradient.

    Raises:
      TypeError: on complex leaves, which have no order.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.clip_by_value(1.0)
      >>> tx.update(jnp.array([-3.0, 0.5]), tx.init(jnp.zeros(2)))[0]
      Array([-1. ,  0.5], dtype=float32)
    """

    def init(params: Tree) -> dict:
        _refuse_complex(params)
        return {}

    def update(updates: Tree, state: dict, params: Tree, *, max_value: jax.Array) -> tuple[Tree, dict]:
        _refuse_complex(updates)
        return each_leaf(lambda bound: lambda g: jnp.clip(g, -bound, bound), updates, bound=max_value), state

    return Transformation(init, update, hyperparams=Hyperparams(max_value=max_value), stage="clip", rowwise=True)


def _refuse_complex(tree: Tree) -> None:
    for path, leaf in trees.leaves_with_paths(tree):
        if trees.is_complex(leaf):
            raise TypeError(
                f"clip_by_value cannot clip complex values, and {trees.path_string(path)} is {trees.dtype_of(leaf)}: "
                "use clip_by_norm or clip_by_global_norm"
            )


@register
def clip_by_norm(max_norm: Hyperparam) -> Transformation:
    """Clips each leaf by its own norm: `g ← g · max_norm / max(‖g‖, max_norm)`. Keras's `clipnorm`.

    Norms are accumulated in float32 or wider, and neither overflow nor underflow. A leaf of norm zero stays as it is.

    Args:
      max_norm: the largest Euclidean norm of a leaf, > 0; in the units of the gradient.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.clip_by_norm(1.0)
      >>> tx.update({"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}, {})[0]
      {'a': Array([0.6, 0.8], dtype=float32), 'b': Array([0.5], dtype=float32)}
    """

    def update(updates: Tree, state: dict, params: Tree, *, max_norm: jax.Array) -> tuple[Tree, dict]:
        return trees.clipped_to(updates, Factor.of(jnp.asarray(max_norm, trees.default_float()))), state

    return Transformation(
        update=update,
        hyperparams=Hyperparams(max_norm=max_norm),
        stage="clip",
        accepts=["scaled", "rows"],
        rowwise=True,
    )


class GlobalNormMetrics(TypedDict):
    global_norm: jax.Array
    """The norm of all leaves together, before clipping, at the last call."""
    clipped_fraction: jax.Array
    """The share of the calls so far in which it was above the bound."""


class ClipByGlobalNormState(TypedDict):
    count: jax.Array
    """The number of calls, int32."""
    clipped: jax.Array
    """The number of calls that clipped, int32."""
    metrics: GlobalNormMetrics


@register
def clip_by_global_norm(max_norm: Hyperparam, *, axis_name: str | tuple[str, ...] | None = None) -> Transformation:
    """Clips all leaves by the norm of them together: `g ← g · max_norm · min(1/‖g‖, 1/max_norm)`. Keras's `global_clipnorm`.

    The norm is accumulated in float32 or wider, and neither overflows nor underflows: finite gradients are clipped, however
    large. An infinite or NaN value turns every leaf to NaN, never silently to zero. See Pascanu et al., "On the difficulty of training recurrent neural networks", 2013, arXiv:1211.5063.

    Args:
      max_norm: the largest Euclidean norm, > 0; in the units of the gradient.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which the parameters themselves are split. Inside
        `shard_map` what is whole on every device counts once. `()`: each device trains a model of its own.

    Returns:
      A transformation whose metrics have `global_norm`, the norm before clipping, and `clipped_fraction`, the share of the
      calls so far that clipped.

    Raises:
      ValueError: when traced inside `shard_map`, a norm that differs from device to device. (Inside `pmap`, and with
        `check_vma=False`, JAX does not know.)

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.clip_by_global_norm(1.0)
      >>> grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> updates
      {'a': Array([0.6], dtype=float32), 'b': Array([0.8], dtype=float32)}
      >>> optchain.metrics(state)
      {'clipped_fraction': Array(1., dtype=float32), 'global_norm': Array(5., dtype=float32)}
    """
    axis_name = arguments.check_axis_name(axis_name)

    def init(params: Tree) -> ClipByGlobalNormState:
        dtype = trees.default_float()
        return {
            "count": jnp.zeros((), jnp.int32),
            "clipped": jnp.zeros((), jnp.int32),
            "metrics": {"global_norm": jnp.zeros((), dtype), "clipped_fraction": jnp.zeros((), dtype)},
        }

    def update(
        updates: Tree, state: ClipByGlobalNormState, params: Tree, *, max_norm: jax.Array
    ) -> tuple[Tree, ClipByGlobalNormState]:
        size = trees.joint_norm(updates, axis_name)
        norm = size.value
        devices.check_same("clip_by_global_norm", "the norm of the gradients", norm, axis_name)
        bound = Factor.of(jnp.asarray(max_norm, norm.dtype))
        factor = (bound / size.at_least(bound)).nan_unless_finite(size)
        count = trees.increment(state["count"])
        clipped = jnp.where(size.above(bound), trees.increment(state["clipped"]), state["clipped"])
        metrics: GlobalNormMetrics = {"global_norm": norm, "clipped_fraction": trees.share(clipped, count)}
        return trees.scale(updates, factor), {"count": count, "clipped": clipped, "metrics": metrics}

    return Transformation(
        init,
        update,
        fields=["count", "clipped", "metrics"],
        hyperparams=Hyperparams(max_norm=max_norm),
        stage="clip",
        accepts=["scaled", "rows"],
        rowwise=True,
    )
