"""Clipping by how far a gradient's norm lies from those before."""

from typing import TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, devices, trees
from optchain.core.factors import Factor
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree

EPSILON = 1e-6


class ZClipMetrics(TypedDict):
    global_norm: jax.Array
    """The norm of all leaves together, before clipping, at the last call."""
    clipped_fraction: jax.Array
    """The share of the calls so far that clipped."""


class ZClipState(TypedDict):
    seen: jax.Array
    """The number of norms that the mean and the variance are of, int32."""
    clipped: jax.Array
    """The number of calls that clipped, int32."""
    mean: jax.Array
    """Of the norms as they are after clipping."""
    variance: jax.Array
    metrics: ZClipMetrics


@register
def zclip(
    threshold: Hyperparam = 2.5,
    decay: float = 0.97,
    warmup_steps: int = 25,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Transformation:
    """Clips all leaves by the norm of them together where it stands out from its moving average.

        z = (‖g‖ − μ) / (σ + 1e-6)
        n = μ + threshold² / z · σ   where z > threshold, else ‖g‖         (the further out, the closer to the mean)
        g ← g · n / ‖g‖
        μ ← decay · μ + (1 − decay) · n,    σ² ← decay · σ² + (1 − decay) · (n − μ)²

    The first `warmup_steps` norms are not clipped; μ and σ² begin as their mean and variance. A norm whose square is not finite changes
    neither, nor do norms of 0 before the first other one. One that is not finite turns every leaf to NaN. For a fixed bound too put
    `clip_by_global_norm` before it.

    Norms that rise for good are followed slowly, since what is clipped to near μ leaves σ small; where the first norms were all
    the same, σ is 0, and no norm above theirs is followed at all. `skip_spikes` has a least σ, and forgets.

    Args:
      threshold: from how many standard deviations above the mean a norm is clipped, > 0.
      decay: the weight of the old average, in [0, 1).
      warmup_steps: how many norms the averages begin with, >= 2.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which the parameters themselves are split. Inside
        `shard_map` what is whole on every device counts once. `()`: each device trains a model of its own.

    Returns:
      A transformation whose metrics have `global_norm`, the norm before clipping, and `clipped_fraction`.

    Raises:
      ValueError: when traced inside `shard_map`, a norm that differs from device to device.

    Source: Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025, arXiv:2504.02507.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.zclip(warmup_steps=4)
      >>> state = tx.init(jnp.zeros(1))
      >>> for size in (1.0, 1.1, 0.9, 1.0, 1000.0):
      ...     updates, state = tx.update(jnp.array([size]), state)
      >>> print(f"{updates[0]:.3f}")
      1.000
    """
    axis_name = arguments.check_axis_name(axis_name)
    arguments.check_number("decay", decay, arguments.BELOW_ONE)
    warmup_steps = arguments.check_integer("warmup_steps", warmup_steps, minimum=2)

    def init(params: Tree) -> ZClipState:
        def zero() -> jax.Array:
            return jnp.zeros((), trees.default_float())

        return {
            "seen": jnp.zeros((), jnp.int32),
            "clipped": jnp.zeros((), jnp.int32),
            "mean": zero(),
            "variance": zero(),
            "metrics": {"global_norm": zero(), "clipped_fraction": zero()},
        }

    def update(updates: Tree, state: ZClipState, params: Tree, *, threshold: jax.Array) -> tuple[Tree, ZClipState]:
        size = trees.joint_norm(updates, axis_name)
        norm, seen, mean, variance = size.value, state["seen"], state["mean"], state["variance"]
        devices.check_same("zclip", "the norm of the gradients", norm, axis_name)
        deviation = trees.root(variance)
        z = (norm - mean) / (deviation + EPSILON)
        clips = (seen >= warmup_steps) & (z > threshold)
        bound = jnp.where(clips, mean + jnp.square(threshold) / jnp.where(clips, z, 1) * deviation, norm)
        # Norms of 0 before the first other one, such as those of a branch that is frozen yet, say nothing of what is usual.
        counted = jnp.isfinite(jnp.square(norm)) & ((norm > 0) | (mean > 0))
        # The mean and the variance of what there was so far, then moving averages of both.
        weight = jnp.where(seen < warmup_steps, 1 / (trees.floating(seen) + 1), 1 - decay)
        new_mean = mean + weight * (bound - mean)
        spread = jnp.where(seen < warmup_steps, (bound - mean) * (bound - new_mean), jnp.square(bound - new_mean))
        new_variance = variance + weight * (spread - variance)
        clipped = jnp.where(clips, trees.increment(state["clipped"]), state["clipped"])
        seen = jnp.where(counted, trees.increment(seen), seen)
        factor = Factor.of(jnp.where(clips, bound, 1)) / size.where(clips, Factor.of(jnp.ones_like(norm)))
        new: ZClipState = {
            "seen": seen,
            "clipped": clipped,
            "mean": jnp.where(counted, new_mean, mean),
            "variance": jnp.where(counted, new_variance, variance),
            "metrics": {"global_norm": norm, "clipped_fraction": trees.share(clipped, seen)},
        }
        return trees.scale(updates, factor.nan_unless_finite(size)), new

    return Transformation(
        init,
        update,
        fields=ZClipState.__annotations__.keys(),
        hyperparams=Hyperparams(threshold=threshold),
        stage="clip",
        accepts=["scaled", "rows"],
        rowwise=True,
    )
