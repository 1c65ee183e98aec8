"""Skipping steps whose gradient, or loss, stands out from those before."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments, devices, trees
from optchain.core.gates import Decision, Gate, check_no_loss_scale, count_skipped, largest_storable, skipped_too_often
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.wrappers.loss_scale import unscaling

LEAST_DEVIATION = 0.02
"""Of the mean: where nothing varied a rounding is no spike."""


class History(TypedDict):
    last: jax.Array
    """The last numbers, `window` of them, the newest over the oldest."""
    seen: jax.Array
    """How many were written there so far, int32."""


class SkipSpikesState(TypedDict):
    norms: History
    losses: History
    skipped_steps: jax.Array
    """The number of steps skipped so far, int32."""
    consecutive: jax.Array
    """The number of steps skipped in a row up to now, int32."""
    metrics: dict[str, jax.Array]
    inner: State


@register
def skip_spikes(
    inner: optax.GradientTransformation,
    window: int = 128,
    deviations: float = 6.0,
    max_consecutive: int | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Transformation:
    """Runs `inner` unless the gradient's norm or the loss stands out; else leaves the parameters and its state alone. A gate.

        m, s = the mean and the standard deviation of the last `window` norms
        spike:   ‖g‖ > m + deviations · max(s, 0.02 · m),   or ‖g‖ is not finite
        the norms get   min(‖g‖, that bound); where all of them are 0 there is none

    The same for the loss, if the call gives it as `value`, as `make_step` does. Half a window is watched before anything is called
    a spike, but what is not finite is from the first call on. A spike is remembered as the bound that it passed: one does not
    hide the next, and a level that stays is followed after a few calls. A run in which more than one call in `deviations²` stands out
    has no spikes, and nothing is skipped for long; below 3 or so `deviations` ordinary calls are skipped too.

    The norm is of all gradients that reach the gate, divided by the loss scales within. It is not finite here from 1.8e19 on in float32,
    whose square a second moment could not hold. Around `accumulate` a call of weight 0 is neither judged nor remembered; within it
    the mean gradient of the window is judged, and the loss of its last call. A `skip_nonfinite` within finds nothing left to skip,
    and its limit is never reached: `max_consecutive` is given here.

    Args:
      inner: a transformation of optchain or Optax.
      window: how many calls are remembered, >= 4.
      deviations: how many standard deviations above the mean a spike begins, > 0.
      max_consecutive: `raise_if_spiking` raises at so many skipped steps in a row, >= 1; None: it never does.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which the parameters themselves are split. `()`:
        each device trains a model of its own.

    Returns:
      A transformation whose metrics have `gradient_norm`, `skipped_steps` and `consecutive`, and `max_consecutive_spikes` if
        there is a limit.

    Raises:
      ValueError: a `dynamic_loss_scale` within, which would never see the gradients that overflow, nor fall: it goes around;
        when traced inside `shard_map`, a decision that differs from device to device. (Inside `pmap`, and with
        `check_vma=False`, JAX does not know.)

    Source: OLMo-core's `SkipStepOptimizer`, whose window and number of deviations these are.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.skip_spikes(optchain.sgd(0.1), window=8)
      >>> params = jnp.array([1.0])
      >>> state = tx.init(params)
      >>> for size in (1.0, 1.1, 0.9, 1.0, 1000.0):
      ...     params, state = tx.apply(params, state, grads=jnp.array([size]))
      >>> print(f"{params[0]:.3f}", state["skipped_steps"])
      0.600 1
    """
    axis_name = arguments.check_axis_name(axis_name)
    gated = as_transformation(inner, "inner")
    check_no_loss_scale("skip_spikes", gated)
    fits = largest_storable(gated)
    window = arguments.check_integer("window", window, minimum=4)
    arguments.check_number("deviations", deviations, arguments.POSITIVE)
    if max_consecutive is not None:
        max_consecutive = arguments.check_integer("max_consecutive", max_consecutive, minimum=1)

    def metrics_of(norm: jax.Array, counters: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        made = {"gradient_norm": norm, **counters}
        if max_consecutive is not None:
            made["max_consecutive_spikes"] = jnp.array(max_consecutive, jnp.int32)
        return {name: jnp.array(value, copy=True) for name, value in made.items()}

    def init(params: Tree) -> dict[str, Any]:
        def zero() -> jax.Array:
            return jnp.zeros((), jnp.int32)

        def history() -> History:
            return {"last": jnp.zeros(window, trees.default_float()), "seen": zero()}

        counters = {"skipped_steps": zero(), "consecutive": zero()}
        metrics = metrics_of(jnp.zeros((), trees.default_float()), counters)
        return {"norms": history(), "losses": history(), **counters, "metrics": metrics}

    def decide(grads: Tree, state: dict[str, Any], extra: Mapping[str, Any]) -> Decision:
        norm = (trees.joint_norm(grads, axis_name) * unscaling(state.get("inner", {}))).value
        largest = min(float(jnp.finfo(norm.dtype).max) ** 0.5, fits["squares_fit"] ** 0.5, fits["values_fit"])
        norm = jnp.where(norm < largest, norm, jnp.nan)  # NaN is a spike, and is not remembered
        counts = jnp.bool_(True)
        if "weight" in extra and "weight" in gated.takes:
            counts = jnp.asarray(extra["weight"]) != 0
            grads = trees.zeros_unless(jnp.isfinite(norm), grads)
        good, norms = _judged(norm, state["norms"], counts, deviations)
        own = {"norms": norms, "losses": state["losses"]}
        if extra.get("value") is not None:
            loss = trees.floating(extra["value"])
            usual, own["losses"] = _judged(loss, state["losses"], counts, deviations)
            good &= usual
        runs = good | ~counts
        devices.check_same("skip_spikes", "whether the step is a spike", runs, axis_name)
        counters = count_skipped(state, good, counts)
        return runs, lambda: grads, {**own, **counters, "metrics": metrics_of(norm, counters)}

    fields = SkipSpikesState.__annotations__.keys() - {"inner"}
    return Gate(gated, init, decide, fields=fields, takes=["value"], accepts=["scaled", "rows"], rowwise=True)


def _judged(value: jax.Array, history: History, counts: jax.Array, deviations: float) -> tuple[jax.Array, History]:
    """Whether a number is none that stands out, and the history with it."""
    last, seen = history["last"], history["seen"]
    window = last.size
    known = jnp.arange(window, dtype=seen.dtype) < seen
    # In units of the largest: squares of it would overflow.
    unit = jnp.max(jnp.where(known, jnp.abs(last), 0), initial=0)
    unit = jnp.where(unit > 0, unit, 1)
    scaled = jnp.where(known, last / unit, 0)
    number = jnp.clip(seen, 1, window).astype(last.dtype)
    mean = jnp.sum(scaled) / number
    deviation = trees.root(jnp.sum(jnp.where(known, jnp.square(scaled - mean), 0)) / number)
    bound = (mean + deviations * jnp.maximum(deviation, LEAST_DEVIATION * jnp.abs(mean))) * unit
    # Zeros alone say nothing of what is usual, and no multiple of them is a bound.
    bound = jnp.where((2 * seen >= window) & ((mean != 0) | (deviation > 0)), bound, jnp.inf)
    remembered = counts & jnp.isfinite(value)
    new = jnp.where(remembered, jnp.minimum(value, bound), last[seen % window])
    return jnp.isfinite(value) & (value <= bound), {
        "last": last.at[seen % window].set(new),
        "seen": jnp.where(remembered, _counted(seen, window), seen),
    }


def _counted(count: jax.Array, window: int) -> jax.Array:
    """One more; of many, as many less as change nothing, so that the count does not end."""
    return jnp.where(count + 1 == 2 * window, window, count + 1)


def raise_if_spiking(metrics: Mapping[str, Any]) -> None:
    """Raises on the host when `skip_spikes(…, max_consecutive)` has skipped too many steps in a row.

    It reads the metrics, and so waits for the step that they come from: call it where the run logs anyway. A row that began and
    ended between two readings is not seen. Without a limit in the recipe there is nothing to raise, and any loop may call it.

    Args:
      metrics: what `metrics(state)` or a step of `make_step` gave.

    Raises:
      FloatingPointError: `max_consecutive` steps in a row were spikes; the message has the counts. The parameters and the state are
        those of the last good step.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.skip_spikes(optchain.sgd(1.0), max_consecutive=1)
      >>> params, state = tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.array([jnp.inf]))
      >>> optchain.raise_if_spiking(optchain.metrics(state))
      Traceback (most recent call last):
      ...
      FloatingPointError: 1 steps in a row were spikes (max_consecutive=1), and 1 in all...
    """
    for limit, consecutive, skipped in skipped_too_often(metrics, "max_consecutive_spikes"):
        raise FloatingPointError(
            f"{consecutive} steps in a row were spikes (max_consecutive={limit}), and {skipped} in all. Parameters and state "
            "are those of the last good step: go on from a checkpoint with other batches, or with a lower learning rate."
        )
