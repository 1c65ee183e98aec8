"""The state of Optax's optimizers, brought in."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from optchain.core import arguments
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import State
from optchain.core.trees import Tree
from optchain.interop import checks
from optchain.interop.links import Place, gate_of, places, schedule_entries
from optchain.interop.merging import by_names, check_choice, merge_entries, raw_dtype
from optchain.interop.optax.nodes import Node, nodes
from optchain.interop.optax.rules import HYPERPARAMS, RULES, TREES, names_in_optax
from optchain.interop.report import Choice, Names, Report, join_paths

ROUNDING = 1e-6
"""Within which a float32 is the number that it was made of."""


def from_optax_state(
    tx: optax.GradientTransformation,
    params: Tree,
    optax_state: Any,
    *,
    hyperparams: Choice = "saved",
    step: int | None = None,
) -> State:
    """The state with which `tx` goes on where an optimizer of Optax stopped.

    Moments, traces, counts, what `inject_hyperparams` keeps, and the gradients that `MultiSteps` has accumulated: its
    running mean becomes the sum that `accumulate` keeps, at any place of a window. Entries that Optax does not have
    start anew.

    Args:
      tx: the same recipe here: `presets.optax.adamw(lr)` for `optax.adamw(lr)`, or a chain of the same links; `accumulate(…, k)`
        around it for `MultiSteps`. Optax's state does not hold ε, a decay or a constant rate: that they are the same is not checked.
      params: the parameters.
      optax_state: the state of an optimizer that `presets.optax` has, as it is or in `chain`, `inject_hyperparams`,
        `masked`, `partition`, `MultiSteps`; or what a checkpoint that is restored without a target makes of it, dicts
        and lists.
      hyperparams: `"saved"`: what `inject_hyperparams` keeps is gone on with, and a constant of `tx` that differs from
        it is an error; or `"configured"`: those of `tx`. A schedule is the recipe's own in both cases.
      step: the number of calls made, for the schedules of `tx`, where Optax's state does not tell.

    Returns:
      The state, all of it fresh arrays.

    Raises:
      ValueError: a state without counterpart, one that only one side has (the message prints both), trees of other
        parameters, hyperparameters that differ, a velocity that has the learning rate in it.

    Example:
      >>> import jax.numpy as jnp, optax, optchain
      >>> from optchain.interop.optax import from_optax_state
      >>> params = {"w": jnp.ones(2)}
      >>> updates, optax_state = optax.adam(0.1).update(params, optax.adam(0.1).init(params))
      >>> state = from_optax_state(optchain.presets.optax.adam(0.1), params, optax_state)
      >>> state["scale_by_adam"]["count"], state["scale_by_adam"]["mu"]["w"]
      (Array(1, dtype=int32), Array([0.1, 0.1], dtype=float32))
    """
    return from_optax_with_report(tx, params, optax_state, hyperparams=hyperparams, step=step)[0]


def from_optax_with_report(
    tx: optax.GradientTransformation,
    params: Tree,
    optax_state: Any,
    *,
    hyperparams: Choice = "saved",
    step: int | None = None,
) -> tuple[State, Report]:
    """`from_optax_state`, with a report of what became of each entry."""
    check_choice(hyperparams)
    if step is not None:
        step = arguments.check_integer("step", step, minimum=0)
    link = as_transformation(tx, "tx")
    found, theirs, fresh = places(link, params), nodes(optax_state), link.init(params)
    saved: dict[Names, Any] = {}
    for kind in RULES:
        for place, node in pairs(kind, found, theirs):
            saved |= _tree_entries(place, node) if kind in TREES else _window_entries(place, node)
    scheduled = [place for place in found if place.link.hyperparams.schedules]
    if any(node.kind == "schedule" for node in theirs) and not scheduled:
        raise ValueError("Optax's state counts the steps of a schedule, and tx has none: give it the schedule")
    for place in scheduled:
        saved |= schedule_entries(place, _calls(place, theirs, found, step))
    keeping = [node for node in theirs if node.kind == "inject"]
    for node in keeping:
        its_own = found if len(keeping) == 1 else [p for p in found if set(p.path) & set(node.path)]
        saved |= _hyperparam_entries(node, its_own, hyperparams)
    return merge_entries(saved, fresh, hyperparams=hyperparams)


def pairs(kind: str, found: list[Place], theirs: list[Node]) -> list[tuple[Place, Node]]:
    """The links and nodes of one kind that belong together: the only ones, or those of a group of the same name.

    Raises:
      ValueError: something is left over on one side; the message prints both.
    """
    ours = [place for place in found if place.rule == RULES[kind]]
    nodes_of_kind = [node for node in theirs if node.kind == kind]
    if len(ours) == len(nodes_of_kind) == 1:
        return [(ours[0], nodes_of_kind[0])]
    made = []
    for place in ours:
        named = [node for node in nodes_of_kind if set(place.path) & set(node.path)]
        made += [(place, node) for node in named[:1] if len(named) == 1]
    if len(made) != len(ours) or len({node.path for _, node in made}) != len(nodes_of_kind):
        raise ValueError(
            f"Optax has {join_paths(map(str, nodes_of_kind))}, and tx has {join_paths(f'{place.rule} at {place}' for place in ours)}: each "
            "needs one on the other side, by the names of groups where there are several"
        )
    return made


def _tree_entries(place: Place, node: Node) -> dict[Names, Any]:
    saved: dict[Names, Any] = {}
    names = names_in_optax(place, node.kind)
    if wrong := {field for field in TREES[node.kind].values() if field in node.fields} ^ set(names.values()):
        raise ValueError(
            f"only one of {node} and {place} keeps {join_paths(sorted(wrong))}: give them the same arguments"
        )
    for entry, field in names.items():
        leaves = by_names(node.fields[field])
        ours = set(place.parameters)
        if leaves.keys() != ours:
            sides = (
                join_paths(sorted("/".join(names) for names in side))
                for side in (leaves.keys() - ours, ours - leaves.keys())
            )
            theirs, missing = sides
            raise ValueError(
                f"{field} of {node} is of other parameters: only there are {theirs}; only here are {missing}"
            )
        saved |= {(*place.path, entry, *names): leaf for names, leaf in leaves.items()}
    counts = "count" in node.fields and "count" in place.link.fields
    return saved | ({(*place.path, "count"): node.fields["count"]} if counts else {})


def _window_entries(place: Place, node: Node) -> dict[Names, Any]:
    """What `accumulate` keeps: the sum of the gradients, of which Optax keeps the running mean."""
    count = checks.count(f"mini_step of {node}", node.fields["mini_step"])
    steps = place.link.config.get("steps")
    if isinstance(steps, int) and count >= steps:
        raise ValueError(f"MultiSteps has accumulated {count} gradients, and {place} makes an update of {steps}")
    saved: dict[Names, Any] = {(*place.path, "count"): count, (*place.path, "weight"): float(count)}
    for names, mean in by_names(node.fields["acc_grads"]).items():
        wide = np.result_type(np.asarray(mean).dtype, np.float64)
        saved[(*place.path, "grads", *names)] = np.asarray(mean, wide) * count
    if "updates" in place.link.fields:
        saved[(*place.path, "updates")] = node.fields["gradient_step"]
    return saved


def _calls(place: Place, theirs: list[Node], found: list[Place], step: int | None) -> int:
    """How many calls a link with a schedule has seen: what Optax counts on the same side of the accumulation."""
    if step is not None and place.rule not in RULES.values():
        return step
    inside = gate_of(place, found) is not None
    for kind in ("schedule", "inject", "adam", "lion"):
        counting = [node for node in theirs if node.kind == kind and node.in_multi_steps == inside]
        counts = {checks.count(f"count of {node}", node.fields["count"]) for node in counting}
        if len(counts) == 1:
            return counts.pop()
    where = "updates, inside accumulate" if inside else "calls"
    raise ValueError(f"{place} has a schedule that counts {where}, and Optax's state has no such count: give step=")


def _hyperparam_entries(node: Node, found: list[Place], choice: Choice) -> dict[Names, Any]:
    saved: dict[Names, Any] = {}
    scheduled = node.fields.get("hyperparams_states") or {}
    wrong = []
    for theirs, value in node.fields["hyperparams"].items():
        if theirs in HYPERPARAMS:
            checks.hyperparam(f"{theirs} of {node}", HYPERPARAMS[theirs], value)
        if theirs in scheduled or np.ndim(value) or not jnp.issubdtype(raw_dtype(value), jnp.floating):
            continue
        name = HYPERPARAMS[theirs] if theirs in HYPERPARAMS else str(theirs)
        owners = [place for place in found if name in place.settable | place.link.hyperparams.constants.keys()]
        for place in owners:
            own = place.link.hyperparams
            if name in place.settable:
                saved[(*place.path, "hyperparams", name)] = value
            elif not np.isclose(own.constants[name], value, rtol=ROUNDING, atol=0):
                wrong.append(f"{theirs} {_number(value)}, and {name} of {place} is {own.constants[name]}")
        if not owners and float(value) != 0:
            wrong.append(f"{theirs} {_number(value)}, for which tx has no link")
    if wrong and choice == "saved":
        raise ValueError(
            f'{node} keeps {"; ".join(wrong)}. Build tx with the saved ones, or choose hyperparams="configured"'
        )
    return saved


def _number(value: Any) -> str:
    return str(np.asarray(value)[()])
