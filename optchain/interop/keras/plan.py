"""Which variable of a Keras run is which entry of a state: all that can be checked before a value is read or written."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk
from optchain.interop import checks
from optchain.interop.keras import rules, sources
from optchain.interop.keras.recipes import keras_class
from optchain.interop.keras.rules import Cell
from optchain.interop.mapping import (
    Correspondence,
    Entry,
    both_sides,
    check_shapes,
    given_order,
    match,
    parameter_entries,
)
from optchain.recipes.config import from_config


def check_preset(tx: Any) -> None:
    """Requires a preset of Keras's family."""
    keras_class(tx)


def pair_with_variables(
    tx: Transformation,
    state: State,
    params: Tree,
    found: sources.Source,
    mapping: Correspondence,
    *,
    same_rate: bool,
) -> list[tuple[Cell, sources.Variable]]:
    """The optimizer's variables in Keras's order, each with what it is here.

    Args:
      tx: the preset.
      state: a state of it, or the shapes of one.
      params: the parameters.
      found: the Keras run.
      mapping: which parameter is which variable.
      same_rate: whether the learning rates must be of one kind, a number or not.

    Raises:
      ValueError: another optimizer, another model, a mapping that does not tell which is which.
    """
    if not found.optimizer:
        raise ValueError(f"{found.name} has no state of an optimizer: the model was not compiled, or saved without it")
    ours, theirs = parameter_entries(params), list(found.optimizer)
    order = _order(ours, found, mapping)
    rated = rules.rate_place(tx, state) is not None
    # Whether Keras's rate is a variable: the recipe says so; without one, the number of variables.
    cells = {flag: rules.cells(tx, state, ours, order, flag) for flag in (rated, not rated)}
    if found.recipe is not None:
        _check_recipe(tx, state, found)
        has_rate = sources.has_rate(found.recipe)
    else:
        has_rate = next((flag for flag, made in cells.items() if len(made) == len(theirs)), rated)
    if same_rate and has_rate != rated:
        kinds = ("a number", "a schedule") if has_rate else ("a schedule", "a number")
        raise ValueError(
            f"the learning rate of {found.name} is {kinds[0]}, that of tx {kinds[1]}: "
            'load_state(…, hyperparams="configured") goes on with that of tx'
        )
    _check_shapes(cells[has_rate], theirs, found.name)
    return list(zip(cells[has_rate], theirs, strict=True))


def _order(ours: Sequence[Entry], found: sources.Source, mapping: Correspondence) -> list[int]:
    """The positions of our parameters in Keras's order."""
    if found.ordered:
        order = match(ours, found.variable_entries(), mapping, found.name, aliases=sources.ALIASES)
        check_shapes(ours, found.variable_entries(), order, found.name)
        return order
    order = given_order(ours, mapping)
    if order is None:
        raise ValueError(
            f"{found.name}: {found.unnamed}. Give a mapping: the paths of params in the order of Keras's variables.\n"
            + both_sides(ours, found.variable_entries(), found.name)
        )
    return order


def _check_recipe(tx: Transformation, state: State, found: sources.Source) -> None:
    """Requires that both recipes keep the same things in the same places."""
    assert found.recipe is not None
    # The rate may have no counterpart here, and what Muon excludes shows in the variables.
    theirs = from_config(sources.without_rate(found.recipe, "exclude_layers"))
    wanted, name = (keras_class(one) for one in (tx, theirs))
    if wanted == name == "LossScaleOptimizer":
        wanted, name = (keras_class(one.config["inner"]) for one in (tx, theirs))
    if wanted != name:
        raise ValueError(
            f"tx is an optimizer of the class {wanted}, that of {found.name} is {name}: build tx with from_keras"
        )
    windows = rules.window_length(tx), rules.window_length(theirs)
    if windows[0] != windows[1]:
        raise ValueError(f"gradient_accumulation_steps is {windows[0]} in tx, and {windows[1]} in {found.name}")
    kept, saved = (
        [slot.name for block in rules.slots(one, of_one) for slot in block]
        for one, of_one in ((tx, state), (theirs, jax.eval_shape(theirs.init, jnp.zeros((1, 1)))))
    )
    if kept != saved:
        raise ValueError(f"tx keeps {kept}, and {found.name} keeps {saved}: build tx with from_keras")


def _check_shapes(cells: Sequence[Cell], theirs: Sequence[sources.Variable], name: str) -> None:
    if len(cells) != len(theirs):
        raise ValueError(
            f"the optimizer of {name} has {len(theirs)} variables, and tx has a place for {len(cells)}: "
            f"{', '.join(map(str, cells[:8]))}{', …' * (len(cells) > 8)}. It is the state of another optimizer or model"
        )
    for index, (cell, variable) in enumerate(zip(cells, theirs, strict=True)):
        if cell.shape != variable.shape:
            raise ValueError(
                f"variable {index} of the optimizer of {name} has shape {variable.shape}, and should be {cell} with shape "
                f"{cell.shape}: it is the state of another optimizer or model"
            )


# Values ---------------------------------------------------------------------------------------------------------------


def check_value(cell: Cell, value: np.ndarray, name: str) -> None:
    """Requires a variable of Keras's to be what such a variable can be."""
    what = f"{cell} of {name}"
    match cell.slot:
        case "learning_rate":
            checks.hyperparam(what, "learning_rate", value)
        case "dynamic_scale":
            checks.hyperparam(what, "initial_scale", value)
        case "iteration" | "step_counter":
            checks.count(what, value)
        case _ if cell.place is not None and cell.place[-1] in checks.MOMENTS:
            checks.moment(what, cell.place[-1], cell.sign * value, np.float32)
        case "u_product":
            checks.number(what, value, arguments.FRACTION)


def check_unchanged(tx: Transformation, state: State) -> None:
    """Requires hyperparameters that Keras keeps as constants to be what they were when `tx` was built."""
    for node in walk(tx, state):
        for name, value in node.state.get("hyperparams", {}).items():
            built_with = node.link.hyperparams.settable[name]
            if name != "learning_rate" and float(value) != float(built_with):
                raise ValueError(
                    f"{name} is {float(value)!r} in the state and {float(built_with)!r} in tx; Keras keeps it as a constant: "
                    "build tx and target with the value of the state"
                )
