"""Optax's states as nodes: named tuples, or the dicts that a checkpoint without a target makes of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from optchain.interop.report import Names

MULTI_STEPS = frozenset({"mini_step", "gradient_step", "inner_opt_state", "acc_grads"})
KINDS: list[tuple[str, frozenset[str], frozenset[str]]] = [
    ("adam", frozenset({"count", "mu", "nu"}), frozenset()),
    ("trace", frozenset({"trace"}), frozenset()),
    ("lion", frozenset({"count", "mu"}), frozenset()),
    ("rms", frozenset({"nu"}), frozenset({"mu", "count"})),
    ("rss", frozenset({"sum_of_squares"}), frozenset()),
    ("schedule", frozenset({"count"}), frozenset()),
    ("multi_steps", MULTI_STEPS, frozenset({"skip_state"})),
    ("inject", frozenset({"count", "hyperparams", "inner_state"}), frozenset({"hyperparams_states"})),
    ("masked", frozenset({"inner_state"}), frozenset()),
    ("partition", frozenset({"inner_states"}), frozenset()),
]
"""A kind, the entries that it has, and those that it may have."""
CLASSES = {
    "ScaleByAdamState",
    "TraceState",
    "ScaleByLionState",
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "ScaleByRStdDevState",
    "ScaleByRStdDevWithCountState",
    "ScaleByRssState",
    "ScaleByScheduleState",
    "MultiStepsState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "MaskedState",
    "PartitionState",
}
"""Other classes have the same entries and mean something else by them."""
CONTAINERS = {
    "multi_steps": "inner_opt_state",
    "inject": "inner_state",
    "masked": "inner_state",
    "partition": "inner_states",
}


@dataclasses.dataclass(frozen=True)
class Node:
    """A state of one of Optax's transformations."""

    kind: str
    path: Names
    fields: dict[str, Any]
    in_multi_steps: bool
    """Whether it runs once in several calls."""

    def __str__(self) -> str:
        return f"{self.kind} at {'/'.join(self.path) or 'the root'}"


def nodes(state: Any) -> list[Node]:
    """All nodes of a state, those around others first.

    Raises:
      ValueError: the state of a transformation that has no counterpart here (the message says where it is).
    """
    found: list[Node] = []

    def note(node: Node) -> dict[str, Any]:
        found.append(node)
        return {}

    rebuilt(state, note)
    return found


def rebuilt(state: Any, change: Callable[[Node], dict[str, Any]]) -> Any:
    """The state with some entries of each node changed."""
    return _rebuilt(state, change, (), False)


def _rebuilt(state: Any, change: Callable[[Node], dict[str, Any]], path: Names, inside: bool) -> Any:
    if (
        state is None
        or (isinstance(state, tuple | list | Mapping) and not state)
        or isinstance(state, optax.MaskedNode)
    ):
        return state
    fields = _fields(state)
    kind = None if fields is None else _kind(state, fields)
    if kind is not None:
        assert fields is not None
        new = change(Node(kind, path, fields, inside))
        below = CONTAINERS.get(kind)
        if below is not None:
            within = inside or kind == "multi_steps"
            new = new | {below: _rebuilt(fields[below], change, (*path, below), within)}
        return type(state)(**{**fields, **new}) if isinstance(state, tuple) else {**fields, **new}
    if isinstance(state, list | tuple) and not hasattr(state, "_fields"):
        return type(state)(_rebuilt(part, change, (*path, str(i)), inside) for i, part in enumerate(state))
    if isinstance(state, Mapping) and (path[-1:] == ("inner_states",) or all(str(key).isdecimal() for key in state)):
        return {key: _rebuilt(part, change, (*path, str(key)), inside) for key, part in state.items()}
    what = type(state).__name__ if not isinstance(state, Mapping) else f"a dict of {', '.join(map(str, state))}"
    raise ValueError(
        f"{'/'.join(path) or 'the state'} is {what}, which has no counterpart here: there is one for optax.adam, adamw, nadam, nadamw, "
        "lamb, lion, sgd, rmsprop, adagrad, "
        "with schedules, inject_hyperparams, masked, partition and MultiSteps around them"
    )


def _fields(state: Any) -> dict[str, Any] | None:
    if hasattr(state, "_asdict"):
        return state._asdict()
    return dict(state) if isinstance(state, Mapping) and all(isinstance(key, str) for key in state) else None


def _kind(state: Any, fields: Mapping[str, Any]) -> str | None:
    if isinstance(state, tuple):
        if type(state).__name__ not in CLASSES:
            return None
        if type(state).__name__ == "ScaleByRStdDevWithCountState":  # it has the entries of Adam's
            return "rms"
    return next(
        (kind for kind, required, optional in KINDS if required <= fields.keys() <= required | optional),
        None,
    )
