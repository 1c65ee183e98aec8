"""A training step, compiled once, in place."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from optchain.core import arguments, memory, trees
from optchain.core.calls import with_clear_call_errors
from optchain.core.metrics import metrics
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.rows.embedding import value_and_grad
from optchain.training.memory_kind import check_memory_kind
from optchain.training.release import check_release, released_step
from optchain.training.sharding import Layout, StepOverMesh, check_axis
from optchain.wrappers.loss_scale import scale_loss

Step = Callable[..., tuple[Tree, State, dict[str, Any]]]


@with_clear_call_errors
def make_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] | None = None,
    memory_kind: str | Mapping[str, str] | None = None,
    release: str | None = None,
) -> Step:
    """A compiled training step: the gradient of the loss, one step of `tx` in the `apply` form, the metrics.

    The parameters and the state are donated and updated in place: go on with what the step returns, the arrays that went
    in are gone. The loss is scaled by the loss scales in the state before the gradient is taken, and handed to links
    that ask for it as `value`. The gradient of a table that the loss reads by `rows_of` names rows (see `value_and_grad`).

    On a mesh of devices the parameters keep the layout in which they come, whatever it is: whole on every device, split, or
    some of each, in the device's memory or in the host's. The state goes to where `state_shardings(tx, params, mesh, axis=axis,
    memory_kind=memory_kind)` has it, and stays; make it there with `init_sharded`. With `axis` each device makes the updates of
    its part, and gathers the new parameters once an update. What lies in the host's memory comes to the device when it is needed,
    and goes back: the state leaf by leaf, and none of it in a call in which a gate lets nothing through; the parameters at once.
    The numbers are the same. `lazy_rows` refuses a state in the host's memory when it is called.

    With `release` the gradient of stacked layers is never there as a whole: within the backward pass each layer's is used for its
    update, and gone. The numbers are the same, to a rounding. The loss runs over the layers by one `jax.lax.scan`, and uses them
    in nothing else; a layer is computed a second time on the way back, as under `jax.checkpoint`, which the body need not have.

    The parameters are a tree of arrays. Of a whole module, as Equinox has them, hand over the arrays, and put them together in
    the loss: `params, static = eqx.partition(model, eqx.is_inexact_array)`, `eqx.combine(params, static)`.

    Args:
      loss_fn: `loss_fn(params, *batch)` returns the loss, a scalar, or with `has_aux` a pair of it and a pytree.
      tx: a transformation of optchain or Optax.
      has_aux: whether `loss_fn` returns a pair.
      mesh: the devices over which the parameters lie; None for one device, or to leave layouts to the compiler.
      axis: the mesh axis over which the state is split besides, usually that of the batch (ZeRO-1).
      memory_kind: the memory in which the state lies, `"pinned_host"` or `"device"`, or that of each slot by its name; None for
        that of the parameters. See `state_shardings`.
      release: the path of the parameters that are layers, stacked along the first axis, such as `"layers"` or `"model/layers"`; None
        for all gradients at once.

    Returns:
      `step(params, state, *batch, weight=None) -> (params, state, metrics)`, a function under `jax.jit`, with its `lower`; with
      `mesh` it is compiled for the layout of the parameters it is given. `weight` is what the call counts for in `accumulate`,
      such as its number of tokens: a finite number >= 0, or a scalar array, whose value is not waited for (`accumulate` says what
      becomes of another). `metrics` is a dict of the `loss` (not scaled), with `has_aux` the `aux`, and what
      `optchain.metrics` finds in the new state.

    Raises:
      ValueError: `release` with a recipe that needs more than the gradient of one layer at a time (the message says which link, and
        why): norms of whole arrays or of all, gates, links of Optax, rules that look across an array, callables of no arguments; or with
        `mesh`. When called, a loss that uses the layers otherwise, or a mask that chooses otherwise of one layer.
      TypeError: when called, parameters that are not floating-point or complex arrays (the message names the leaf), or a
        weight that no link takes or that is no number.
      ValueError: when called, a weight that is negative, not finite, or no scalar.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(0.1)
      >>> step = optchain.make_step(lambda w, x, y: jnp.mean((x * w - y) ** 2), tx)
      >>> w = jnp.array(0.0)
      >>> w, state, metrics = step(w, tx.init(w), jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0]))
      >>> w, metrics["loss"]
      (Array(1., dtype=float32), Array(10., dtype=float32))
    """
    arguments.check_function("loss_fn", loss_fn)
    transformation = as_transformation(tx)
    has_aux = arguments.check_bool("has_aux", has_aux)
    check_memory_kind(memory_kind, mesh)
    if mesh is not None:
        check_axis(axis, mesh)
    elif axis is not None:
        raise ValueError(f"axis must be given with the mesh that has it; got {axis=} and no mesh")
    elif memory_kind is not None:
        raise ValueError(f"memory_kind must be given with the mesh of the devices; got {memory_kind=} and no mesh")

    if release is not None:
        check_release(release, transformation)
        if mesh is not None:
            raise ValueError("release is for one device, or for layouts that the compiler chooses: leave out mesh")

    def step_with(apply: Callable[..., tuple[Tree, State]]) -> Step:
        def step(params: Tree, state: State, *batch: Any, weight: Any = None) -> tuple[Tree, State, dict[str, Any]]:
            trees.check_leaves("params", params)
            memory.check_scalars(state)
            given, params = params, jax.tree.map(memory.fetched, params)

            def scaled_loss(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Any]]:
                loss, aux = loss_fn(params, *batch) if has_aux else (loss_fn(params, *batch), None)
                return scale_loss(loss, state), (loss, aux)

            def extra(loss: jax.Array) -> dict[str, Any]:
                return {"value": loss} | ({} if weight is None else {"weight": weight})

            # Parameters before state, in and out: donated buffers are paired with outputs of equal shape by position.
            if release is None:
                (_, (loss, aux)), grads = value_and_grad(scaled_loss, has_aux=True)(params)
                params, state = apply(params, state, grads=grads, **extra(loss))
            else:
                (loss, aux), params, state = released_step(
                    scaled_loss, transformation, release, params, state, lambda returned: extra(returned[0])
                )
            params = jax.tree.map(memory.placed_like, params, given)
            logged = {"loss": loss} | ({"aux": aux} if has_aux else {}) | metrics(state)
            return params, state, logged

        return step

    def compile_for(params: Tree) -> tuple[Any, Layout]:
        assert mesh is not None
        layout = Layout.of(transformation, params, mesh, axis, memory_kind)
        step = step_with(layout.around(transformation.apply))
        shardings = (layout.params, layout.state, None)
        return jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings), layout

    if mesh is None:
        return CompiledStep(transformation, jax.jit(step_with(transformation.apply), donate_argnums=(0, 1)))
    return CompiledStep(transformation, StepOverMesh(mesh, compile_for))


class CompiledStep:
    """A step under `jax.jit`, whose attributes it has; it checks what the trace cannot see.

    It says which parameter is no array, where `jit` speaks of its own arguments, and looks at a weight that lies on the host.
    """

    def __init__(self, transformation: Transformation, jitted: Any):
        self._transformation, self._jitted = transformation, jitted

    def __call__(self, params: Tree, state: State, *batch: Any, **options: Any) -> tuple[Tree, State, dict[str, Any]]:
        weight = options.get("weight")
        if "weight" in self._transformation.takes and weight is not None and not isinstance(weight, jax.Array):
            arguments.check_scalar("weight", weight, arguments.NON_NEGATIVE)
        try:
            return self._jitted(params, state, *batch, **options)
        except TypeError:
            trees.check_leaves("params", params)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_jitted"), name)  # also of a copy in the making
