"""Accumulation of gradients over several calls."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments, memory, trees
from optchain.core.calls import not_given
from optchain.core.chain import is_lazy
from optchain.core.factors import Factor
from optchain.core.gates import Decision, Gate, flushing
from optchain.core.hyperparams import scheduled_number
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.row_gradient import is_rows
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk


class AccumulateState(TypedDict):
    count: jax.Array
    """The number of gradients in the accumulator, int32, below `steps`."""
    weight: jax.Array
    """The sum of their weights; the same number where none were given."""
    grads: Tree
    """Their weighted sum."""
    inner: State
    updates: NotRequired[jax.Array]
    """Where `steps` is a schedule, the number of updates made, int32."""


SLOTS = declare(
    grads=Slot(),  # the weighted sum of the gradients
)


@register
def accumulate(
    inner: optax.GradientTransformation, steps: int | Callable[[jax.Array], Any], *, accumulator_dtype: Any = None
) -> Transformation:
    """Runs `inner` once in `steps` calls, on the mean of their gradients. A gate.

        grads ← Σ weight · g,    inner runs on grads / Σ weight

    A call that does not fill the window adds to the accumulator and does nothing else: in the `apply` form the parameters
    and the state of `inner` are not touched, so such a call moves 12 bytes per float32 parameter. Links in `inner` count
    updates; a chain around the gate counts calls, and its learning rate is passed through. Keras's
    `gradient_accumulation_steps`.

    A call may give a `weight`, 1 if it does not: with the number of tokens of the micro-batch as weight, the mean is the
    gradient of the whole batch. A call of weight 0 fills a place in the window and does not count, even if its gradient is
    NaN. An `accumulate` within gets the weight of the whole window, so that nested means are exact too. `flush(tx, params,
    state)` applies a tail that did not fill a window.

    A weight is 0 or in [2⁻⁶⁴, 2⁶⁴], a number or a real scalar array. A traced weight cannot be checked: if it is negative
    or not finite, the mean of its window is NaN. Σ weight · |g| must be within the range of the accumulator, 3.4e38 in
    float32, as for the plain sum of four gradients: beyond it the mean is infinite or NaN, and a gate within drops the
    window.

    In an `optax.chain` it must be the last link: a link after it would act on the zero updates of the other calls.

    Args:
      inner: what runs on the mean: a transformation of optchain or Optax. Clipping belongs inside, to act on the mean.
      steps: the number of calls that make one update, >= 1: the length of the window. Or a schedule of it, a callable of
        the number of updates made so far, whose value is rounded: a real scalar in [1, 2³¹ − 1]. Under `jit` its value
        cannot be checked: below 1 it is taken as 1, and while it is NaN no update is made. An average around such a gate is
        refused: it could not count updates.
      accumulator_dtype: the dtype of the accumulator; float32 or wider if None.

    Returns:
      A transformation with state `count, weight, grads, inner`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.accumulate(optchain.sgd(1.0), steps=2)
      >>> params, state = jnp.array([0.0]), tx.init(jnp.array([0.0]))
      >>> params, state = tx.apply(params, state, grads=jnp.array([1.0]))
      >>> params
      Array([0.], dtype=float32)
      >>> params, state = tx.apply(params, state, grads=jnp.array([3.0]))
      >>> params
      Array([-2.], dtype=float32)
    """
    gated = as_transformation(inner, "inner")
    if is_lazy(gated):
        raise ValueError(
            "accumulate cannot run lazy_rows: it accumulates the whole gradient, which names no rows. Leave out "
            "lazy_rows, or concatenate the batches"
        )
    varying = callable(steps)
    if not varying:
        steps = arguments.check_integer("steps", steps, minimum=1)
    slots = stored(SLOTS, accumulator_dtype, argument="accumulator_dtype")
    slot = slots["grads"]

    def init(params: Tree) -> dict[str, Any]:
        zero = jnp.zeros((), trees.default_float())
        updates = {"updates": jnp.zeros((), jnp.int32)} if varying else {}
        if varying:
            window(updates)  # what is wrong with the schedule shows here
        return {"count": jnp.zeros((), jnp.int32), "weight": zero, "grads": slot.init(params), **updates}

    def window(state: dict[str, Any]) -> Any:
        return _scheduled_window(steps, state["updates"]) if callable(steps) else steps

    def decide(grads: Tree, state: dict[str, Any], extra: Mapping[str, Any]) -> Decision:
        weight = extra.get("weight")
        if weight is not None:
            weight = trees.floating(weight)
            weight = jnp.where(weight >= 0, weight, -jnp.inf)  # what is no weight makes the mean NaN
        counted_now = trees.increment(state["count"])
        first, last = state["count"] == 0, counted_now >= window(state)

        def add(g: Any, total: jax.Array) -> jax.Array:
            term = trees.wide(g) if weight is None else _weighted(g, weight)
            kept = _kept(first, slot.load(total, term.dtype))
            return term.add_to(kept) if is_rows(term) else kept + term

        def add_all(held: Tree) -> tuple[Tree, Tree]:
            sums = jax.tree.map(add, trees.multiplied(grads), held, is_leaf=is_rows)
            return sums, jax.tree.map(slot.store, sums, held)

        sums, held = memory.streamed(add_all, state["grads"])
        total = _kept(first, state["weight"]) + (1.0 if weight is None else weight)
        own = {
            "count": _kept(last, counted_now),
            "weight": total,
            "grads": held,
            **counted(state, last),
        }
        return last, _mean(sums, total), own

    def flush(state: dict[str, Any]) -> Decision:
        held = state["count"] > 0
        kept = {name: state[name] for name in ("weight", "grads")}
        own = {**kept, "count": jnp.zeros_like(state["count"]), **counted(state, held)}
        return held, _mean(jax.tree.map(memory.fetched, state["grads"]), state["weight"]), own

    def counted(state: dict[str, Any], updates: jax.Array) -> dict[str, Any]:
        if not varying:
            return {}
        return {"updates": jnp.where(updates, trees.increment(state["updates"]), state["updates"])}

    fields = ["count", "weight", *["updates"] * varying]
    stage = "varying_window" if varying else None
    return Gate(
        gated,
        init,
        decide,
        fields=fields,
        slots=slots,
        flush=flush,
        takes=["weight"],
        weighs=operator.itemgetter("weight"),
        stage=stage,
        accepts=["scaled", "rows"],
    ).streaming()


def _scheduled_window(steps: Callable[[jax.Array], Any], updates: jax.Array) -> jax.Array:
    """The length of the window by its schedule, int32.

    A value that is traced cannot be refused. It is 1 where it is less; NaN holds the window open, since an update of each call
    would be one of the wrong size.
    """
    value = scheduled_number("steps", steps, updates)
    largest = arguments.LARGEST_INTEGER
    if not arguments.is_traced(value):
        number = arguments.as_float(value)
        if not (math.isfinite(number) and 1 <= round(number) <= largest):
            raise ValueError(f"steps must be a number in [1, {largest}]; its schedule {steps!r} gave {value!r}")
    value = jnp.round(value)
    fits = value < largest
    return jnp.where(fits, jnp.where(fits, jnp.maximum(value, 1), 1).astype(jnp.int32), largest)


def _weighted(g: Any, weight: Any) -> Any:
    """The gradient times its weight; nothing at all of one whose weight is 0, not even its NaN."""
    if is_rows(g):
        return g.with_rows(_weighted(g.rows, weight))
    term = trees.scale_leaf(g, weight)
    return jnp.where(weight == 0, jnp.zeros_like(term), term)


def _kept(reset: jax.Array, value: jax.Array) -> jax.Array:
    # The accumulator is reset by this select when a window begins, not by writing zeros when one ends. That saves a pass,
    # and a NaN does not outlive its window.
    return jnp.where(reset, jnp.zeros_like(value), value)


def _mean(sums: Tree, weight: jax.Array) -> Callable[[], trees.Scaled]:
    """The weighted mean, or zeros if all weights were zero, as a function for the branch that wants it."""
    positive = ~(weight <= 0)  # or NaN
    inverse = Factor.reciprocal(jnp.where(positive, weight, jnp.ones_like(weight)))
    inverse = inverse.where(weight < jnp.inf, Factor.of(weight - weight))  # NaN, and not silently 0
    factor = inverse.where(positive, Factor.of(jnp.zeros_like(weight)))
    return lambda: trees.rescale(sums, factor)


def flush(tx: optax.GradientTransformation, params: Tree, state: State, **extra: Any) -> tuple[Tree, State]:
    """Applies what `accumulate`, or a gate of one's own that has a `flush`, holds of a window that was not filled: the tail of an
    epoch.

    The inner transformation runs on the mean of what is there, with the hyperparameters of the last call. It is not a call:
    chains and averages around the gate do not count it; projections after the gate act. Where nothing is held, nothing
    else changes.

    Args:
      tx: the transformation, with an `accumulate` in it.
      params: the parameters.
      state: its state.
      **extra: what links ask for by name, as of `apply`, such as `value=loss`.

    Returns:
      `(params, state)`, with an empty accumulator.

    Raises:
      ValueError: there is no `accumulate` in `tx`.
      TypeError: an extra argument that a link needs, and that was not given.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(1.0, gradient_accumulation_steps=4)
      >>> params, state = jnp.array([0.0]), tx.init(jnp.array([0.0]))
      >>> params, state = tx.apply(params, state, grads=jnp.array([3.0]))
      >>> params, state = optchain.flush(tx, params, state)
      >>> params
      Array([-3.], dtype=float32)
    """
    transformation = as_transformation(tx, "tx")
    run = [*flushing(transformation)]
    if not run:
        within = ": what is inside an Optax transformation is out of reach, chain() is not" * transformation.open_ended
        raise ValueError(f"{transformation.name} has no accumulate(), so there is nothing to flush{within}")
    run += [node.link for node in walk(transformation) if node.link.projects]
    for name, owner in transformation.needs.items():
        if name not in extra and any(name in link.needs for link in run):
            raise TypeError(not_given(owner, name, extra.keys() - transformation.takes))
    new_params, state = transformation.run_flush(trees.trainable(params), state, extra)
    new_params = trees.filled(new_params, params)
    return new_params, trees.with_own_buffers(state, new_params, params, extra)
