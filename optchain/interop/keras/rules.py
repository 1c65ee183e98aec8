"""Which variables an optimizer of Keras's keeps, in its order, and where a preset's state has them.

    iteration, learning_rate        the second only where the rate is a number
    average                         of every variable, with use_ema
    gradient_accumulator            of every variable, with gradient_accumulation_steps
    then block by block what the rule keeps: all of a block for the first variable, all of it for the second, …

`LossScaleOptimizer` puts `iteration, learning_rate, step_counter, dynamic_scale` before all that, the first two unused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from optchain.core.transformation import State, Transformation
from optchain.core.walk import walk
from optchain.interop.keras.recipes import LOSS_SCALE, keras_class
from optchain.interop.mapping import Entry

Place: TypeAlias = tuple[str, ...]
"""Where an entry stands in a state: the keys on the way to it."""


class Slot(NamedTuple):
    """A kind of variable that a rule keeps."""

    name: str
    """Keras's."""
    link: str
    field: str
    sign: int = 1
    """Ours times this is Keras's."""


# A block is left out where the state has no such entry: a velocity without momentum, AMSGrad's maximum without AMSGrad.
_MOMENTS = (Slot("momentum", "scale_by_adam", "mu"), Slot("velocity", "scale_by_adam", "nu"))
_ADAM = (_MOMENTS, (Slot("velocity_hat", "scale_by_adam", "nu_max"),))
RULES: dict[str, Sequence[Sequence[Slot]]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Lamb": (_MOMENTS,),
    "SGD": ((Slot("momentum", "apply_momentum", "velocity"),),),
    "RMSprop": (
        (Slot("velocity", "scale_by_rms", "nu"),),
        (Slot("momentum", "apply_momentum", "velocity", sign=-1),),  # Keras subtracts it
        (Slot("average_gradient", "scale_by_rms", "mu"),),
    ),
    "Adagrad": ((Slot("accumulator", "scale_by_rss", "sum_of_squares"),),),
    "Adadelta": (
        (
            Slot("accumulated_grad", "scale_by_adadelta", "e_g"),
            Slot("accumulated_delta_var", "scale_by_adadelta", "e_x"),
        ),
    ),
    "Adamax": ((Slot("momentum", "scale_by_adamax", "mu"), Slot("norm", "scale_by_adamax", "nu")),),
    "Nadam": (
        (Slot("momentum", "scale_by_nadam", "mu"), Slot("velocity", "scale_by_nadam", "nu")),
        (Slot("u_product", "scale_by_nadam", "mu_product"),),
    ),
    "Ftrl": ((Slot("accumulator", "apply_ftrl", "sum_of_squares"), Slot("linear", "apply_ftrl", "linear_term")),),
    "Lion": ((Slot("momentum", "scale_by_lion", "mu"),),),
    "Adafactor": (
        (
            Slot("r", "scale_by_factored_rms", "v_row"),
            Slot("c", "scale_by_factored_rms", "v_col"),
            Slot("velocity", "scale_by_factored_rms", "v"),
        ),
    ),
    "Muon": ((Slot("momentum", "scale_by_muon", "mu"), Slot("velocity", "scale_by_muon", "adam_nu")),),
    "ScheduleFreeAdamW": ((Slot("momentum", "schedule_free", "iterates"), Slot("velocity", "scale_by_rms", "nu")),),
}
_AVERAGE = Slot("average", "average_params", "average")
_ACCUMULATOR = Slot("gradient_accumulator", "accumulate", "grads")


class Cell(NamedTuple):
    """One variable of Keras's, and where its value is here."""

    slot: str
    shape: tuple[int, ...]
    place: Place | None
    """The entry of the state; None for what it does not have: the count of calls, and what Keras never reads."""
    leaf: int | None = None
    """Which leaf of that entry; None for a scalar."""
    sign: int = 1
    of: str = ""
    """The path of the parameter."""

    @property
    def is_kept(self) -> bool:
        return self.place is not None

    def __str__(self) -> str:
        return f"the {self.slot} of {self.of}" if self.of else f"the {self.slot}"


def slots(tx: Transformation, state: State) -> list[list[Slot]]:
    """The blocks of variables that Keras keeps for this preset, in its order."""
    inner = tx.config["inner"] if tx.registered_name == LOSS_SCALE else tx
    blocks = [(_AVERAGE,), (_ACCUMULATOR,), *RULES[keras_class(inner)]]
    found = {(node.rule, field) for node in walk(tx, state) for field in node.state}
    return [list(block) for block in blocks if (block[0].link, block[0].field) in found]


def cells(
    tx: Transformation, state: State, params: Sequence[Entry], order: Sequence[int], has_rate: bool
) -> list[Cell]:
    """Keras's variables in its order.

    Args:
      tx: a preset of Keras's family.
      state: its state, or the shapes of it.
      params: the parameters in the order of our tree.
      order: their positions in the order of Keras's.
      has_rate: whether Keras's learning rate is a variable.
    """
    nodes = {node.rule: node for node in walk(tx, state)}
    made: list[Cell] = []
    if tx.registered_name == LOSS_SCALE:
        unused = [Cell("unused iteration", (), None), Cell("unused learning_rate", (), None)]
        made = [*unused, Cell("step_counter", (), ("good_steps",)), Cell("dynamic_scale", (), ("loss_scale",))]
    made.append(Cell("iteration", (), None))
    if has_rate:
        made.append(Cell("learning_rate", (), rate_place(tx, state)))
    for block in slots(tx, state):
        kept = [(slot, (*nodes[slot.link].path, slot.field), nodes[slot.link].state[slot.field]) for slot in block]
        if block[0].name == "u_product":
            made += [Cell(slot.name, (), place) for slot, place, _ in kept]
            continue
        trees_of_leaves = [(slot, place, jax.tree.leaves(tree)) for slot, place, tree in kept]
        for position in order:
            for slot, place, leaves in trees_of_leaves:
                made += _cell(slot, place, jnp.shape(leaves[position]), params[position], position)
    return made


def _cell(slot: Slot, place: Place, shape: tuple[int, ...], param: Entry, position: int) -> list[Cell]:
    """The cell of one parameter, if Keras has one."""
    factored = len(param.shape) >= 2
    if slot.field == "adam_nu" and len(shape) != len(param.shape):
        return []  # a matrix that Muon makes orthogonal
    if slot.field in ("v_row", "v_col") and not factored:
        return [Cell(slot.name, (), None, of=param.path)]  # Adafactor's placeholder
    if slot.field == "v" and factored:
        return [Cell(slot.name, param.shape, None, of=param.path)]  # made anew of r and c before it is read
    return [Cell(slot.name, shape, place, position, slot.sign, param.path)]


def rate_place(tx: Transformation, state: State) -> Place | None:
    """Where the learning rate is, if it is a value in the state that can be set."""
    for node in walk(tx, state):
        if "learning_rate" in node.state.get("hyperparams", {}):
            return (*node.path, "hyperparams", "learning_rate")
    return None


# Entries of a state ---------------------------------------------------------------------------------------------------


def entry(state: State, place: Place) -> Any:
    for key in place:
        state = state[key]
    return state


def with_entry(state: State, place: Place, value: Any) -> State:
    """The state with another entry; entries off the way to it are shared."""
    if not place:
        return value
    assert isinstance(state, Mapping)
    return {**state, place[0]: with_entry(state[place[0]], place[1:], value)}


# Counts ---------------------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Where a state counts: calls, updates, and the calls of a window."""

    calls: list[Place]
    updates: list[Place]
    window: Place | None


def counts(tx: Transformation, state: State) -> Counts:
    """The places of all counts that Keras's one count of calls says."""
    found = Counts([], [], next((n.path for n in walk(tx, state) if n.rule == "accumulate"), None))
    for node in walk(tx, state):
        if "count" not in node.state or node.rule == "clip_by_global_norm" or node.path == found.window:
            continue
        within = found.window is not None and node.path[: len(found.window)] == found.window
        (found.updates if within else found.calls).append((*node.path, "count"))
    return found


def window_length(tx: Transformation) -> int:
    """How many calls make an update."""
    inner = tx.config["inner"] if tx.registered_name == LOSS_SCALE else tx
    return inner.config["gradient_accumulation_steps"] or 1
