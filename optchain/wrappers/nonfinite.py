"""Skipping steps whose gradients are not finite."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments
from optchain.core.gates import (
    Decision,
    Gate,
    check_no_loss_scale,
    count_skipped,
    judge,
    largest_storable,
    skipped_too_often,
)
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.wrappers.loss_scale import unscaling


class SkipNonfiniteState(TypedDict):
    skipped_steps: jax.Array
    """The number of steps skipped so far, int32."""
    consecutive: jax.Array
    """The number of steps skipped in a row up to now, int32."""
    metrics: dict[str, jax.Array]
    inner: State


@register
def skip_nonfinite(
    inner: optax.GradientTransformation,
    max_consecutive: int | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Transformation:
    """Runs `inner` when every value of the gradients is finite; else leaves the parameters and its state alone. A gate.

    A value whose square is not finite, one above 1.8e19 in float32, is bad too: a second moment would be infinite from then
    on. The check is on each value of the gradient that reaches the gate, divided by the loss scales within: it must have a finite
    square in its own dtype and in those in which the moments within are stored. The results of links within (`scale(1e10)`)
    and sums of squares, over steps (Adagrad, Ftrl) or elements, are not checked.

    A bad step is never applied, however many come in a row. A `jax.pure_callback` within may be called for one on a GPU, where the
    `update` form computes and discards it. With `max_consecutive` the metrics say when there were that many
    in a row: `raise_if_nonfinite(metrics)` then raises on the host, with the state still good.

    Around `accumulate` a bad call does not count, and the window goes on; one whose `weight` is 0 is never bad, fills its place
    in the window, and changes neither count. Inside it, the mean of the window is judged: one
    bad call drops the window, and counts as one skipped step. In an `optax.chain` it must be the last link.

    Args:
      inner: a transformation of optchain or Optax.
      max_consecutive: `raise_if_nonfinite` raises at so many bad steps in a row, >= 1; None: it never does.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which the parameters themselves are split. `()`:
        each device trains a model of its own.

    Returns:
      A transformation with state `skipped_steps, consecutive, inner` and the first two as metrics.

    Raises:
      ValueError: a `dynamic_loss_scale` within, which would never see the gradients that overflow, nor fall: it goes around, and
        skips such steps itself; when traced inside `shard_map`, a decision that differs from device to device. (Inside `pmap`, and with
        `check_vma=False`, JAX does not know.)

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.skip_nonfinite(optchain.sgd(1.0))
      >>> params = jnp.array([1.0])
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([jnp.nan]))
      >>> params, int(state["skipped_steps"])
      (Array([1.], dtype=float32), 1)
    """
    axis_name = arguments.check_axis_name(axis_name)
    gated = as_transformation(inner, "inner")
    check_no_loss_scale("skip_nonfinite", gated)
    fits = largest_storable(gated)
    if max_consecutive is not None:
        max_consecutive = arguments.check_integer("max_consecutive", max_consecutive, minimum=1)

    def with_metrics(counters: dict[str, jax.Array]) -> dict[str, Any]:
        metrics = {name: jnp.array(value, copy=True) for name, value in counters.items()}
        if max_consecutive is not None:
            metrics["max_consecutive"] = jnp.array(max_consecutive, jnp.int32)
        return {**counters, "metrics": metrics}

    def init(params: Tree) -> dict[str, Any]:
        return with_metrics({name: jnp.zeros((), jnp.int32) for name in ("skipped_steps", "consecutive")})

    def decide(grads: Tree, state: dict[str, Any], extra: Mapping[str, Any]) -> Decision:
        unscaled_by = unscaling(state.get("inner", {}))
        good, counts, grads = judge("skip_nonfinite", gated, grads, extra, axis_name, unscaled_by, fits)
        return good | ~counts, lambda: grads, with_metrics(count_skipped(state, good, counts))

    return Gate(
        gated,
        init,
        decide,
        fields=["skipped_steps", "consecutive", "metrics"],
        accepts=["scaled", "rows"],
        rowwise=True,
    )


def raise_if_nonfinite(metrics: Mapping[str, Any]) -> None:
    """Raises on the host when `skip_nonfinite(…, max_consecutive)` has skipped too many steps in a row.

    It reads the metrics, and so waits for the step that they come from: call it where the run logs anyway. A row that began and
    ended between two readings is not seen. Without a limit in the recipe there is nothing to raise, and any loop may call it.

    Args:
      metrics: what `metrics(state)` or a step of `make_step` gave.

    Raises:
      FloatingPointError: the gradients were not finite in `max_consecutive` steps in a row; the message has the counts. The
        parameters and the state are those of the last good step.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.skip_nonfinite(optchain.sgd(1.0), max_consecutive=1)
      >>> params, state = tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.array([jnp.inf]))
      >>> optchain.raise_if_nonfinite(optchain.metrics(state))
      Traceback (most recent call last):
      ...
      FloatingPointError: the gradients were not finite in 1 steps in a row (max_consecutive=1), and in 1 steps in all...
    """
    for limit, consecutive, skipped in skipped_too_often(metrics, "max_consecutive"):
        raise FloatingPointError(
            f"the gradients were not finite in {consecutive} steps in a row (max_consecutive={limit}), and in {skipped} "
            "steps in all. Parameters and state are those of the last good step."
        )
