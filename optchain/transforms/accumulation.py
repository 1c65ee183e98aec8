"""Accumulation of gradients over several calls."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optchain.core import arguments, trees
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree


class AccumulateState(TypedDict):
    count: jax.Array
    """The number of gradients in the accumulator, int32, below `steps`."""
    grads: Tree
    """Their sum."""
    inner: State


@register
def accumulate(inner: optax.GradientTransformation, steps: int, *, accumulator_dtype: Any = None) -> Transformation:
    """Runs `inner` once in `steps` calls, on the mean of their gradients. A gate.

    The other calls add to the accumulator and do nothing else: in the `apply` form the parameters and the state of `inner`
    are not touched, so such a call moves 12 bytes per float32 parameter. What `inner` counts is updates; a chain around
    the gate counts calls, and its learning rate is passed through. Keras's `gradient_accumulation_steps`.

    In an `optax.chain` it must be the last link: a link after it would act on the zero updates in between.

    Args:
      inner: what runs on the mean: a transformation of optchain or Optax. Clipping belongs inside, to act on the mean.
      steps: the number of calls an update is made of, >= 1.
      accumulator_dtype: the dtype of the accumulator; float32 or wider if None.

    Returns:
      A transformation with state `count, grads, inner`.

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
    steps = arguments.check_integer("steps", steps, minimum=1)
    dtype = arguments.check_dtype("accumulator_dtype", accumulator_dtype)

    def init(params: Tree) -> AccumulateState:
        return {
            "count": jnp.zeros((), jnp.int32),
            "grads": trees.zeros_like(params, dtype),
            "inner": gated.run_init(params),
        }

    def add(grads: Tree, state: AccumulateState) -> tuple[Tree, jax.Array, AccumulateState]:
        """The sum with this call's gradients, whether it is complete, and the state with both."""
        first, last = state["count"] == 0, state["count"] == steps - 1

        def add_leaf(g: jax.Array, total: jax.Array) -> jax.Array:
            # Selecting at the start, not writing zeros at the end, also keeps a NaN from outliving its window.
            g = trees.wide(g)
            return jnp.where(first, jnp.zeros_like(g), trees.astype(total, g.dtype)) + g

        sums = jax.tree.map(add_leaf, grads, state["grads"])
        count = jnp.where(last, jnp.zeros_like(state["count"]), state["count"] + 1)
        stored = trees.cast_tree(sums, state["grads"])
        return sums, last, {"count": count, "grads": stored, "inner": state["inner"]}

    # In both forms the accumulator is closed over, and the branches return only what they may change: then XLA leaves the
    # untouched buffers in place. Passing it through the branches would copy it.

    def update(updates: Tree, state: AccumulateState, params: Tree, **extra: Any) -> tuple[Tree, AccumulateState]:
        sums, last, state = add(updates, state)

        def run(inner_state: State) -> tuple[Tree, State]:
            return gated.run_update(trees.scale(sums, 1 / steps), inner_state, params, extra)

        def wait(inner_state: State) -> tuple[Tree, State]:
            return jax.tree.map(lambda g: jnp.zeros_like(trees.wide(g)), updates), inner_state

        updates, inner_state = lax.cond(last, run, wait, state["inner"])
        return updates, {**state, "inner": inner_state}

    def apply(params: Tree, state: AccumulateState, grads: Tree, **extra: Any) -> tuple[Tree, AccumulateState]:
        sums, last, state = add(grads, state)

        def run(params: Tree, inner_state: State) -> tuple[Tree, State]:
            return gated.run_apply(params, inner_state, trees.scale(sums, 1 / steps), extra)

        def wait(params: Tree, inner_state: State) -> tuple[Tree, State]:
            return params, inner_state

        params, inner_state = lax.cond(last, run, wait, params, state["inner"])
        return params, {**state, "inner": inner_state}

    return Transformation(init, update, apply=apply, fields=["count", "grads", "inner"], links=(gated,))
