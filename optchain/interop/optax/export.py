"""The state of Optax's optimizers, made of ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.core import arguments, storage
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import State
from optchain.core.trees import Tree, dtype_of
from optchain.interop.links import Place, gate_of, places, without_place
from optchain.interop.merging import by_names
from optchain.interop.optax.nodes import Node, nodes, rebuilt
from optchain.interop.optax.rules import HYPERPARAMS, RULES, names_in_optax
from optchain.interop.optax.state import pairs
from optchain.interop.report import join_paths


def to_optax_state(
    tx: optax.GradientTransformation,
    params: Tree,
    state: State,
    optax_tx: optax.GradientTransformation | optax.MultiSteps,
    *,
    step: int | None = None,
    lossy: bool = False,
) -> Any:
    """The state with which an optimizer of Optax goes on where `tx` stopped: the inverse of `from_optax_state`.

    Args:
      tx: the recipe.
      params: the parameters.
      state: their state.
      optax_tx: the same recipe in Optax (see `to_optax`); `optax.MultiSteps` or its `gradient_transformation()` too.
      step: the number of updates made, for what Optax counts and `tx` does not: SGD without a schedule.
      lossy: whether what Optax's recipe has no place for, such as an average of the parameters, may be left behind.

    Returns:
      A state of `optax_tx`, all of it fresh arrays, in its dtypes.

    Raises:
      ValueError: a state that only one side has (the message prints both), a count that nobody knows, gradients
        accumulated with weights, or something that `optax_tx` has no place for.

    Example:
      >>> import jax.numpy as jnp, optax, optchain
      >>> from optchain.interop.optax import to_optax_state
      >>> tx, params = optchain.presets.optax.adam(0.1), {"w": jnp.ones(2)}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
      >>> to_optax_state(tx, params, state, optax.adam(0.1))[0].mu["w"]
      Array([0.1, 0.1], dtype=float32)
    """
    if step is not None:
        step = arguments.check_integer("step", step, minimum=0)
    state = storage.widened(state)
    link = as_transformation(tx, "tx")
    found, template = places(link, params), optax_tx.init(params)
    theirs = nodes(template)
    partner = {node.path: place for kind in RULES for place, node in pairs(kind, found, theirs)}
    left = [] if lossy else entries_without_counterpart(found, state)
    if left:
        raise ValueError(
            f"optax_tx has no place for {join_paths(left)}: read what you need first, then pass lossy=True"
        )

    def count(inside: bool) -> int | None:
        """What our links counted, inside an accumulation or not: updates there, calls here."""
        for place in found:
            own = place.state_in(state)
            counts = place.rule in ("scale_by_adam", "apply_momentum") or place.link.hyperparams.schedules
            if "count" in own and counts and (gate_of(place, found) is not None) == inside:
                return int(own["count"])
        return step

    def change(node: Node) -> dict[str, Any]:
        place = partner.get(node.path)
        match node.kind:
            case "adam" | "trace" | "lion" | "rms" | "rss":
                assert place is not None
                return _trees(place, node, state, count(node.in_multi_steps))
            case "multi_steps":
                assert place is not None
                return _window(place, node, state, count(inside=True))
            case "schedule":
                return {"count": _int(_known(node, count(node.in_multi_steps)))}
            case "inject":
                return _injected(node, found, state, count(node.in_multi_steps))
            case _:
                return {}

    return rebuilt(template, change)


def _trees(place: Place, node: Node, state: State, counted: int | None) -> dict[str, Any]:
    own = place.state_in(state)
    made = {field: _like(own[entry], node.fields[field]) for entry, field in names_in_optax(place, node.kind).items()}
    if "count" not in node.fields:
        return made
    return made | {"count": _int(own["count"] if "count" in own else _known(node, counted))}


def _window(place: Place, node: Node, state: State, updates: int | None) -> dict[str, Any]:
    """What `MultiSteps` keeps: the running mean, of which we keep the sum."""
    own = place.state_in(state)
    count = int(own["count"])
    if count and float(own["weight"]) != count:
        raise ValueError(
            f"{place} holds {count} gradients of weight {float(own['weight']):g}; MultiSteps knows no weights"
        )
    mean = jax.tree.map(
        lambda total: np.asarray(total, np.result_type(total.dtype, np.float64)) / max(count, 1) * bool(count),
        own["grads"],
    )
    made = int(own["updates"]) if "updates" in own else updates
    return {
        "mini_step": _int(count),
        "gradient_step": _int(made or 0),
        "acc_grads": _like(mean, node.fields["acc_grads"]),
    }


def _injected(node: Node, found: list[Place], state: State, count: int | None) -> dict[str, Any]:
    values = dict(node.fields["hyperparams"])
    for place in found:
        own, held = place.link.hyperparams, place.state_in(state)
        current = own.read(held)[0] if held else {}
        for theirs, name in HYPERPARAMS.items():
            if theirs in values and name in current and name not in own.constants:
                values[theirs] = jnp.array(current[name], dtype_of(values[theirs]), copy=True)
    schedules = node.fields.get("hyperparams_states", {})
    if schedules:
        _known(node, count)
    counted = {key: entry._replace(count=_int(count or 0)) for key, entry in schedules.items()}
    return {"count": _int(count or 0), "hyperparams": values, "hyperparams_states": counted}


def _known(node: Node, count: int | None) -> int:
    if count is None:
        raise ValueError(f"{node} counts updates for a schedule, and no link of tx counts them: give step=")
    return count


def _int(count: Any) -> jax.Array:
    return jnp.array(int(count), jnp.int32)


def _like(tree: Tree, like: Tree) -> Tree:
    """The arrays of a tree in the structure and dtypes of another one."""
    ours, theirs = by_names(tree), by_names(like)
    if ours.keys() != theirs.keys():
        only = ours.keys() ^ theirs.keys()
        raise ValueError(
            f"optax_tx and tx keep trees of other parameters: {join_paths('/'.join(names) for names in only)}"
        )
    leaves = [jnp.array(ours[names], dtype_of(leaf), copy=True) for names, leaf in theirs.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def entries_without_counterpart(found: list[Place], state: State) -> list[str]:
    """The entries of a state that Optax's optimizers have no place for."""
    return without_place(found, state, lambda place, entry: place.rule in RULES.values())
