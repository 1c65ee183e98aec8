"""An average of the parameters over the run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments, memory, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.lookup import find_trees, leaves_by_path, replace_leaves_by_path
from optchain.core.parameter_link import ParameterLink
from optchain.core.registry import register
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree

SLOTS = declare(
    average=Slot(start="params"),  # the average, float32 or wider; before the first call, the initial parameters
)


@register
def average_params(
    momentum: Hyperparam = 0.99,
    *,
    overwrite_every: int | None = None,
    calls_per_step: int = 1,
    average_dtype: Any = None,
) -> Transformation:
    """Keeps an exponential moving average of the parameters, as they are after the update. A parameter link.

        updates = calls // calls_per_step,   of the calls before
        average ← m · average + (1 − m) · params,   m = 0 while updates is 0, else momentum
        params ← average,   where (updates + 1) is a multiple of overwrite_every

    Keras's `use_ema`, `ema_momentum`, `ema_overwrite_frequency`. Outside a gate it runs at every call, inside it at every
    update, a `flush` included. `averaged_params(state)` and `finalize(params, state)` give the average. As the momentum
    `schedules.DebiasedEMA`, `WarmedUpEMA`, `TailAverage` and `PowerEMA` make other averages of it.

    In an `optax.chain` it must be the last link, to see the whole update.

    Args:
      momentum: the weight of the old average, in [0, 1].
      overwrite_every: the number of updates from one overwrite of the parameters to the next, >= 1; None for never.
      calls_per_step: the number of calls that make one update, >= 1: outside of `accumulate`, its `steps`.
      average_dtype: the dtype of the average; float32 or wider if None.

    Returns:
      A transformation with state `count, average`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.scale_by_learning_rate(1.0), optchain.average_params(0.5))
      >>> params = jnp.array([0.0])
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     params, state = tx.apply(params, state, grads=jnp.array([-1.0]))
      >>> params, optchain.averaged_params(state)
      (Array([2.], dtype=float32), Array([1.5], dtype=float32))
    """
    hyperparams = Hyperparams(momentum=momentum)
    calls_per_step = arguments.check_integer("calls_per_step", calls_per_step, minimum=1)
    if overwrite_every is not None:
        overwrite_every = arguments.check_integer("overwrite_every", overwrite_every, minimum=1)
    slots = stored(SLOTS, average_dtype, argument="average_dtype")
    slot = slots["average"]

    def init(params: Tree) -> dict[str, Any]:
        return {"count": jnp.zeros((), jnp.int32), "average": slot.init(params)}

    def project(params: Tree, state: dict[str, Any], *, momentum: jax.Array) -> tuple[Tree, dict[str, Any]]:
        step = state["count"] // calls_per_step if calls_per_step > 1 else state["count"]
        average = each_leaf(mean, params, state["average"], m=jnp.where(step == 0, 0.0, momentum))
        if overwrite_every is not None:
            overwrite = step % overwrite_every == overwrite_every - 1  # step + 1 could wrap round
            taken = trees.cast_tree(average, params)
            params = jax.tree.map(lambda p, a: jnp.where(overwrite, a, p), params, taken)
        count = trees.increment(state["count"])
        return params, {"count": count, "average": jax.tree.map(slot.store, average, state["average"])}

    def mean(m: jax.Array) -> Callable[..., jax.Array]:
        rest = 1 - m
        return lambda p, average: m * average + rest * p

    return ParameterLink(
        project, init, fields=["count"], slots=slots, hyperparams=hyperparams, stage="average", rowwise=True
    )


def averaged_params(state: Any) -> Tree:
    """The average that `average_params` keeps in the state, in its own dtype. It is the state's own: copy before donating.

    Averages of different parameters, as the groups of `multi_optimizer` keep, are one tree. It has None for parameters of
    which there is no average, such as frozen ones; `finalize` fills them in.

    Args:
      state: any pytree with an optchain state in it.

    Raises:
      ValueError: no average in the state, or two of the same parameter (the message names both).

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> optchain.averaged_params(optchain.average_params().init({"w": jnp.ones(1)}))
      {'w': Array([1.], dtype=float32)}
    """
    averages = find_trees(state, "average")
    if not averages:
        raise ValueError(
            "the state has no average of the parameters: add average_params() to the chain, or use_ema=True"
        )
    return _united(averages)


def finalize(params: Tree, state: Any) -> Tree:
    """The parameters to evaluate and to save: the average in the parameters' dtypes where there is one, else `params`.

    Keras's `finalize_variable_values`. It returns the state's or the caller's own arrays: copy before donating. An average in
    the host's memory is brought to the device. Leaves without an average are as they were: frozen parameters, statistics, the
    functions of an Equinox module.

    Args:
      params: the parameters, in any container: a tree, a whole module of Flax's `nnx` or Equinox's, `nnx.state(module)`, or a
        pure dict. The result is of the same kind; a module is a new one.
      state: any pytree with an optchain state in it.

    Raises:
      ValueError: two averages of the same parameter (the message names both), or one that belongs to none of the parameters.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> params = {"w": jnp.ones(1)}
      >>> optchain.finalize(params, optchain.sgd(0.1).init(params)) is params
      True
    """
    averages = find_trees(state, "average")
    if not averages:
        return params
    found = leaves_by_path("averages of the parameters", averages)
    return replace_leaves_by_path(
        "average", found, params, lambda p, _, average: trees.cast_tree(memory.fetched(average), p)
    )


def _united(averages: list[tuple[str, Tree]]) -> Tree:
    """The averages, each of some of the parameters, as one tree."""
    if len(averages) == 1:
        return averages[0][1]

    def only(*leaves: Any) -> Any:
        present = [leaf for leaf in leaves if not _is_absent(leaf)]
        if len(present) > 1:
            raise ValueError("a parameter has two averages")
        return present[0] if present else None

    try:
        return jax.tree.map(only, *(average for _, average in averages), is_leaf=_is_absent)
    except ValueError as error:
        names = ", ".join(repr(name) for name, _ in averages)
        raise ValueError(
            f"the state has {len(averages)} averages of the parameters, at {names}: take the one you mean out of the state yourself"
        ) from error


def _is_absent(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)
