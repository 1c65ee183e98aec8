"""Clipping of each leaf by the norms that its own gradients had before."""

import functools
from typing import TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, devices, trees
from optchain.core.factors import Factor, is_factor
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


class AdaGCMetrics(TypedDict):
    global_norm: jax.Array
    """The norm of all leaves together, before clipping, at the last call."""
    clipped_leaves: jax.Array
    """The share of the leaves that the last call clipped."""


class AdaGCState(TypedDict):
    count: jax.Array
    """The number of calls, int32."""
    usual_norm: Tree
    """For each leaf the average of its norms after clipping, a scalar; 0 before there was one."""
    metrics: AdaGCMetrics


SLOTS = declare(
    # The average of a leaf's norms after clipping, a scalar.
    usual_norm=Slot(real=True, nonnegative=True, full=False, narrowest="float32"),
)


@register
def adagc(
    threshold: Hyperparam = 1.05, decay: float = 0.98, warmup_steps: int = 100, *, max_norm: Hyperparam = 1.0
) -> Transformation:
    """Clips each leaf by its own norm, to a multiple of the moving average of the norms that it had:

        the first `warmup_steps` calls:    n_i = ‖g_i‖ · min(1, max_norm / ‖g‖),    γ_i ← min(γ_i, n_i)
        afterwards:                        n_i = min(‖g_i‖, threshold · γ_i),       γ_i ← decay · γ_i + (1 − decay) · n_i
        g_i ← g_i · n_i / ‖g_i‖

    with ‖g_i‖ the norm of leaf i, and ‖g‖ that of all leaves together. A norm that is 0 or not finite
    does not count: a leaf that had no gradient during the warmup is not held at 0 afterwards, as it is in the paper. A norm that is
    not finite turns its leaf to NaN, and in the warmup every leaf.

    Args:
      threshold: the largest multiple of its average that a norm may be, > 0; λ_rel in the paper.
      decay: the weight of the old average, in [0, 1); β in the paper.
      warmup_steps: how many calls are clipped by the norm of all leaves, >= 1; the paper's T_start − 1.
      max_norm: the largest norm of all leaves together in these calls, > 0; λ_abs in the paper.

    Returns:
      A transformation whose metrics have `global_norm`, the norm before clipping, and `clipped_leaves`, the share of the leaves
      that the last call clipped. Its state has a number for each leaf.

    Raises:
      ValueError: when traced inside `shard_map`, norms that differ from device to device.

    Source: Wang et al., "AdaGC: Improving Training Stability for Large Language Model Pretraining", 2025, arXiv:2502.11034,
    Algorithm 1.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adagc(warmup_steps=2)
      >>> state = tx.init({"a": jnp.zeros(1), "b": jnp.zeros(1)})
      >>> for size in (0.5, 0.6, 500.0):
      ...     updates, state = tx.update({"a": jnp.array([size]), "b": jnp.array([0.01])}, state)
      >>> {name: round(float(u[0]), 4) for name, u in updates.items()}
      {'a': 0.525, 'b': 0.01}
    """
    arguments.check_number("decay", decay, arguments.BELOW_ONE)
    warmup_steps = arguments.check_integer("warmup_steps", warmup_steps, minimum=1)

    def init(params: Tree) -> AdaGCState:
        def zero(_: object = None) -> jax.Array:
            return jnp.zeros((), trees.default_float())

        return {
            "count": jnp.zeros((), jnp.int32),
            "usual_norm": jax.tree.map(zero, params),
            "metrics": {"global_norm": zero(), "clipped_leaves": zero()},
        }

    def update(
        updates: Tree, state: AdaGCState, params: Tree, *, threshold: jax.Array, max_norm: jax.Array
    ) -> tuple[Tree, AdaGCState]:
        warming = state["count"] < warmup_steps
        size = trees.joint_norm(updates)
        devices.check_same("adagc", "the norm of the gradients", size.value, None)
        bound = Factor.of(jnp.asarray(max_norm, size.value.dtype))
        of_all = (bound / size.at_least(bound)).nan_unless_finite(size)
        norms, treedef = jax.tree.flatten(trees.norms(updates), is_leaf=is_factor)
        made = [
            _clipped(norm, usual, of_all, warming, threshold, decay)
            for norm, usual in zip(norms, treedef.flatten_up_to(state["usual_norm"]), strict=True)
        ]
        factors, usual, own = ([of[i] for of in made] for i in range(3))
        share = trees.total(own) / max(len(own), 1)
        new: AdaGCState = {
            "count": trees.increment(state["count"]),
            "usual_norm": treedef.unflatten(usual),
            "metrics": {
                "global_norm": size.value,
                "clipped_leaves": jnp.where(warming, trees.floating(size.above(bound)), share),
            },
        }
        return trees.scale_each(updates, treedef.unflatten(factors)), new

    return Transformation(
        init,
        update,
        fields=["count", "metrics"],
        slots=SLOTS,
        hyperparams=Hyperparams(threshold=threshold, max_norm=max_norm),
        stage="clip",
        accepts=["scaled", "rows"],
    )


@functools.partial(jax.jit, static_argnames="decay")  # traced once for all leaves
def _clipped(
    norm: Factor, usual: jax.Array, of_all: Factor, warming: jax.Array, threshold: jax.Array, decay: float
) -> tuple[Factor, jax.Array, jax.Array]:
    """The factor of a leaf, its average with this norm, and whether its own bound clipped it."""
    one = Factor.of(jnp.ones_like(norm.significand))
    bound = Factor.of(usual * trees.floating(threshold))
    above = ~warming & (usual > 0) & norm.above(bound)
    factor = (bound / norm.where(above, one)).where(above, one).where(~warming, of_all).nan_unless_finite(norm)
    clipped = trees.floating((norm * factor).value)
    average = jnp.where(warming, jnp.minimum(usual, clipped), decay * usual + (1 - decay) * clipped)
    counts = (clipped > 0) & jnp.isfinite(clipped)
    return factor, jnp.where(counts, jnp.where(usual > 0, average, clipped), usual), above
