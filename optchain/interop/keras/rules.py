"""Which variables an optimizer of Keras's keeps, in its order, and where a preset's state has them.

    iteration, learning_rate        the second only where the rate is a number
    average                         of every variable, with use_ema
    gradient_accumulator            of every variable, with gradient_accumulation_steps
    then block by block what the rule keeps: all of a block for the first variable, all of it for the second, …

`LossScaleOptimizer` puts `iteration, learning_rate, step_counter, dynamic_scale` before all that, the first two unused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optchain.core.transformation import Transformation
from optchain.core.walk import walk
from optchain.interop.keras.recipes import LOSS_SCALE, inner_of, keras_class
from optchain.interop.links import Place
from optchain.interop.mapping import Entry
from optchain.interop.report import Names


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
    place: Names | None
    """The array in the state; None for what it does not have: the count of calls, and what Keras never reads."""
    sign: int = 1
    of: str = ""
    """The path of the parameter."""

    def __str__(self) -> str:
        return f"the {self.slot} of {self.of}" if self.of else f"the {self.slot}"


def slots(tx: Transformation) -> list[list[Slot]]:
    """The blocks of variables that Keras keeps for this preset, in its order."""
    blocks = [(_AVERAGE,), (_ACCUMULATOR,), *RULES[keras_class(inner_of(tx))]]
    kept = {(node.rule, field) for node in walk(tx) for field in node.link.fields}
    return [list(block) for block in blocks if (block[0].link, block[0].field) in kept]


def cells(
    found: Sequence[Place], arrays: Mapping[Names, Any], params: Sequence[Entry], order: Sequence[int], has_rate: bool
) -> list[Cell]:
    """Keras's variables in its order.

    Args:
      found: the links of a preset of Keras's family.
      arrays: those of its state by their paths, or their shapes.
      params: the parameters in the order of our tree.
      order: their positions in the order of Keras's.
      has_rate: whether Keras's learning rate is a variable.
    """
    tx, paths = found[0].link, found[0].parameters
    links = {place.rule: place.path for place in found}
    made: list[Cell] = []
    if tx.registered_name == LOSS_SCALE:
        unused = [Cell("unused iteration", (), None), Cell("unused learning_rate", (), None)]
        made = [*unused, Cell("step_counter", (), ("good_steps",)), Cell("dynamic_scale", (), ("loss_scale",))]
    made.append(Cell("iteration", (), None))
    if has_rate:
        made.append(Cell("learning_rate", (), rate_place(found)))
    for block in slots(tx):
        if block[0].name == "u_product":
            made += [Cell(slot.name, (), (*links[slot.link], slot.field)) for slot in block]
            continue
        for position in order:
            for slot in block:
                place = (*links[slot.link], slot.field, *paths[position])
                made += _cell(slot, place, arrays[place].shape, params[position])
    return made


def _cell(slot: Slot, place: Names, shape: tuple[int, ...], param: Entry) -> list[Cell]:
    """The cell of one parameter, if Keras has one."""
    factored = len(param.shape) >= 2
    if slot.field == "adam_nu" and len(shape) != len(param.shape):
        return []  # a matrix that Muon makes orthogonal
    if slot.field in ("v_row", "v_col") and not factored:
        return [Cell(slot.name, (), None, of=param.path)]  # Adafactor's placeholder
    if slot.field == "v" and factored:
        return [Cell(slot.name, param.shape, None, of=param.path)]  # made anew of r and c before it is read
    return [Cell(slot.name, shape, place, slot.sign, param.path)]


def rate_place(found: Sequence[Place]) -> Names | None:
    """Where the learning rate is, if it is a value in the state that can be set."""
    owner = next((place for place in found if "learning_rate" in place.settable), None)
    return None if owner is None else (*owner.path, "hyperparams", "learning_rate")


def counters(found: Sequence[Place]) -> list[Place]:
    """The links that count what Keras has one count for: calls, or the updates of an accumulation."""
    return [p for p in found if "count" in p.link.fields and p.rule not in ("accumulate", "clip_by_global_norm")]


def window_length(tx: Transformation) -> int:
    """How many calls make an update."""
    return inner_of(tx).config["gradient_accumulation_steps"] or 1
