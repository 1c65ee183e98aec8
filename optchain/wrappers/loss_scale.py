"""Loss scaling: gradients of a loss that was multiplied by a factor, so that small ones survive a narrow dtype."""

import functools
import operator
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments, trees
from optchain.core.factors import Factor
from optchain.core.gates import Decision, Gate, count_skipped, judge, largest_storable
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.lookup import find_fields, find_siblings
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree


@register
def unscale_gradients(loss_scale: Hyperparam) -> Transformation:
    """Divides gradients by a fixed factor that the loss was multiplied by: `g ← g / loss_scale`.

    Keras's `loss_scale_factor`. It comes before anything that looks at the size of gradients. Multiply the loss with
    `scale_loss(loss, state)`, which reads the same factor; `make_step` does.

    Args:
      loss_scale: the factor, > 0. It is kept in the state.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.unscale_gradients(1024.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> optchain.scale_loss(jnp.array(0.5), state)
      Array(512., dtype=float32)
      >>> tx.update(jnp.array([1024.0]), state)[0]
      Array([1.], dtype=float32)
    """

    def update(updates: Tree, state: dict, params: Tree, *, loss_scale: jax.Array) -> tuple[trees.Scaled, dict]:
        return trees.rescale(updates, Factor.reciprocal(loss_scale)), state

    return Transformation(
        update=update,
        hyperparams=Hyperparams(loss_scale=loss_scale),
        stage="unscale",
        accepts=["scaled", "rows"],
        rowwise=True,
    )


class DynamicLossScaleState(TypedDict):
    loss_scale: jax.Array
    """What the loss is multiplied by now."""
    good_steps: jax.Array
    """The number of finite steps since the scale last changed, int32."""
    skipped_steps: jax.Array
    """The number of steps skipped so far, int32."""
    metrics: dict[str, jax.Array]
    inner: State


MIN_SCALE, MAX_SCALE = 2.0**-24, 2.0**127


@register
def dynamic_loss_scale(
    inner: optax.GradientTransformation,
    initial_scale: float = 2.0**15,
    growth_steps: int = 2000,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Transformation:
    """Divides gradients by a loss scale that finds its own size, and skips steps that overflow. A gate.

        every value finite:   inner runs on g / loss_scale; after growth_steps such steps in a row, loss_scale ← 2 · loss_scale
        otherwise:            nothing is touched;                                                   loss_scale ← ½ · loss_scale

    Keras's `LossScaleOptimizer`, whose scale is unbounded; this one stays within 2⁻²⁴ and 2¹²⁷. Multiply the loss with
    `scale_loss(loss, state)`; `make_step` does. The check is on the scaled gradients. A value whose square is not
    finite when it has been divided by this loss scale and those within, one above 1.8e19 in float32, is bad too: a second
    moment would be infinite from then on. As in `skip_nonfinite`, the check is on each value of the gradient that reaches the
    gate, in its own dtype and in those in which the moments within are stored.

    Around `accumulate` a bad call does not count, and the window goes on; one whose `weight` is 0 is never bad, fills its place
    in the window, and changes nothing here. Inside it, one bad call drops the whole window. In an `optax.chain` it must be the
    last link.

    Args:
      inner: a transformation of optchain or Optax.
      initial_scale: the scale to start with, in [2⁻²⁴, 2¹²⁷].
      growth_steps: how many good steps in a row double it, >= 1.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which the parameters themselves are split. `()`:
        each device trains a model of its own.

    Returns:
      A transformation with state `loss_scale, good_steps, skipped_steps, inner`, of which the first and the third are metrics.

    Raises:
      ValueError: when traced inside `shard_map`, a decision that differs from device to device. (Inside `pmap`, and with
        `check_vma=False`, JAX does not know.)

    Source: Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740; `keras.optimizers.LossScaleOptimizer`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.dynamic_loss_scale(optchain.sgd(1.0), initial_scale=4.0)
      >>> params = jnp.array([1.0])
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([jnp.inf]))
      >>> params, state = tx.apply(params, state, grads=jnp.array([1.0]))
      >>> params, state["loss_scale"]
      (Array([0.5], dtype=float32), Array(2., dtype=float32))
    """
    axis_name = arguments.check_axis_name(axis_name)
    gated = as_transformation(inner, "inner")
    fits = largest_storable(gated)
    arguments.check_number("initial_scale", initial_scale, arguments.RANGES["initial_scale"])
    growth_steps = arguments.check_integer("growth_steps", growth_steps, minimum=1)

    def state_of(loss_scale: jax.Array, good_steps: jax.Array, skipped_steps: jax.Array) -> dict[str, Any]:
        metrics = {"loss_scale": loss_scale, "skipped_steps": skipped_steps}
        copies = {name: jnp.array(value, copy=True) for name, value in metrics.items()}
        return {**metrics, "good_steps": good_steps, "metrics": copies}

    def init(params: Tree) -> dict[str, Any]:
        initial = jnp.array(initial_scale, trees.default_float())
        return state_of(initial, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def decide(grads: Tree, state: dict[str, Any], extra: Mapping[str, Any]) -> Decision:
        scale, good_steps = state["loss_scale"], trees.increment(state["good_steps"])
        unscaled_by = unscaling(state.get("inner", {}), scale)
        good, counts, grads = judge("dynamic_loss_scale", gated, grads, extra, axis_name, unscaled_by, fits)
        grows = good & counts & (good_steps >= growth_steps)
        factor = jnp.where(good | ~counts, jnp.where(grows, 2.0, 1.0), 0.5)
        new_scale = jnp.clip(scale * factor, MIN_SCALE, MAX_SCALE)
        in_a_row = jnp.where(good & ~grows, good_steps, jnp.zeros_like(good_steps))
        good_steps = jnp.where(counts, in_a_row, state["good_steps"])
        own = state_of(new_scale, good_steps, **count_skipped({"skipped_steps": state["skipped_steps"]}, good, counts))
        return good | ~counts, lambda: trees.rescale(grads, Factor.reciprocal(scale)), own

    fields = DynamicLossScaleState.__annotations__.keys() - {"inner"}
    return Gate(gated, init, decide, fields=fields, accepts=["scaled", "rows"], rowwise=True)


def scale_loss(loss: jax.Array, state: Any) -> jax.Array:
    """The loss times every loss scale in the state, for taking the gradient of.

    Args:
      loss: a scalar.
      state: any pytree with an optchain state in it.

    Returns:
      The product, in float32 or wider: in float16 a loss of 2 times the usual scale of 2**15 would be infinite. The loss as it
      is, if the state has no loss scale.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> optchain.scale_loss(jnp.float16(2.0), optchain.sgd(0.1, loss_scale_factor=2.0**15).init(jnp.zeros(1)))
      Array(65536., dtype=float32)
    """
    loss = jnp.asarray(loss)
    for scale in loss_scales(state):
        loss = trees.scale_leaf(loss, scale)
    return loss


def loss_scales(state: Any) -> list[jax.Array]:
    """Every loss scale in a state."""
    static = find_fields(state, "hyperparams", "scheduled")
    scales = [field.value for field in static if field.name == "loss_scale"]
    return scales + find_siblings(state, "loss_scale", "good_steps")


def unscaling(state: Any, *scales: jax.Array) -> Factor:
    """What gradients are multiplied by before a rule meets them: by the scales, and by those in the state of what is within."""
    one = Factor.of(jnp.ones((), trees.default_float()))
    return functools.reduce(operator.mul, map(Factor.reciprocal, [*scales, *loss_scales(state)]), one)
