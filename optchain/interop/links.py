"""The links of a transformation, each with its place in the state and the parameters that it acts on."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from optchain.core.slot import BY_ANY_NAME
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree, default_float, leaves_with_paths, path_names
from optchain.core.walk import Node, walk
from optchain.interop.report import Names


class Place(Node):
    """A link, where it stands, and what it acts on."""

    @functools.cached_property
    def parameters(self) -> list[Names]:
        """The paths of the parameters that it acts on."""
        return [path_names(path) for path, _ in leaves_with_paths(self.params)]

    @property
    def gate(self) -> str | None:
        """The name of a gate in it, so that what it counts are calls, and not updates; None if there is none."""
        return next((node.link.name for node in walk(self.link) if _is_gate(node.link)), None)

    @property
    def settable(self) -> frozenset[str]:
        """The hyperparameters that are values in its state, but for the rate that a decay has of its own."""
        names = frozenset(self.link.hyperparams.settable)
        return names - {"learning_rate"} if self.link.stage == "decay" else names

    def within(self, other: "Place") -> bool:
        return self.path[: len(other.path)] == other.path

    def state_in(self, state: State) -> dict[str, Any]:
        """Its own state, out of the whole; empty if it has none."""
        for name in self.path:
            state = state.get(name, {})
        return state

    def __str__(self) -> str:
        return "/".join(self.path) or self.link.name


def places(tx: Transformation, params: Tree) -> list[Place]:
    """All links of a transformation, those around others first."""
    return [Place(**vars(node)) for node in walk(tx, params=params)]


def gate_of(place: Place, found: list[Place]) -> Place | None:
    """The `accumulate` that a link stands in."""
    return next((g for g in found if g.rule == "accumulate" and place.path != g.path and place.within(g)), None)


def schedule_entries(place: Place, calls: int) -> dict[Names, Any]:
    """What the state of a link with schedules has after so many calls, by path."""
    schedules = place.link.hyperparams.schedules
    last = jnp.asarray(max(calls - 1, 0), jnp.int32)
    values = {name: jnp.asarray(schedule(last), default_float()) for name, schedule in schedules.items()}
    entries = {(*place.path, "scheduled", name): value for name, value in values.items()}
    return entries | ({(*place.path, "count"): calls} if schedules else {})


def check_velocity(place: Place, whose: str) -> None:
    """Refuses a velocity that has the learning rate in it, as Keras's."""
    if place.rule == "apply_momentum" and place.follows_rate:
        raise ValueError(
            f"{place} comes after the learning rate, so that its velocity has the rate in it, and {whose} has not: "
            "use presets.torch.sgd, or put apply_momentum before scale_by_learning_rate"
        )


def without_place(found: list[Place], state: State, has_place: Callable[[Place, str], bool]) -> list[str]:
    """The entries of a state that have no place elsewhere; metrics and what hyperparameters keep need none."""
    missing, below = [], {place.path for place in found}
    for place in found:
        own = BY_ANY_NAME | ({"count"} if place.link.hyperparams.schedules else set())
        entries = [e for e in place.state_in(state) if e not in own and (*place.path, e) not in below]
        missing += ["/".join((*place.path, entry)) for entry in entries if not has_place(place, entry)]
    return missing


def _is_gate(link: Transformation) -> bool:
    return link.kind == "gate" and not link.sequential and link.labels is None
