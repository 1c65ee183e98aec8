"""The state of Keras's optimizers, brought in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optchain.core import arguments
from optchain.core.slot_paths import SlotPaths
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.interop import checks
from optchain.interop.keras import rules, sources
from optchain.interop.keras.recipes import LOSS_SCALE, inner_of, keras_class
from optchain.interop.keras.rules import Cell
from optchain.interop.links import Place, gate_of, places, schedule_entries
from optchain.interop.mapping import Correspondence, Entry, both_sides, given_order, parameter_entries
from optchain.interop.merging import merge_entries
from optchain.interop.report import Choice, Names, Report
from optchain.recipes.config import from_config


def load_state(
    tx: Transformation,
    params: Tree,
    source: Any,
    mapping: Correspondence = None,
    *,
    hyperparams: Choice = "saved",
) -> State:
    """The state with which `tx` goes on where a Keras optimizer stopped.

    Counts, the learning rate, moments, averages, gradients accumulated so far and the loss scale are taken over; the
    metrics start anew. Where a window of accumulation is empty, so is the accumulator.

    Args:
      tx: the preset, `from_keras(…)` or one like it.
      params: the parameters that the state is for.
      source: a live optimizer that is built, a compiled model, or the path of a `.keras` archive or a `.weights.h5` file.
        A `.weights.h5` file does not say which variable is which: it needs a `mapping` that gives the order.
      mapping: which of our parameters is which of Keras's variables. None: by names, in which `gamma`, `beta` and
        `embeddings` are Flax's `scale`, `bias` and `embedding`, and what all paths begin with does not count. A sequence of
        our paths in the order of Keras's variables. `"order"`: the leaves of `params` are in that order themselves. A table
        `{our path: Keras's path}`.
      hyperparams: whether the learning rate is the one saved, or the one that `tx` was built with. A number cannot be saved
        into a schedule.

    Returns:
      A fresh state.

    Raises:
      ValueError: a file that is damaged or none of Keras's, the state of another optimizer or model, a mapping that is
        ambiguous or incomplete. The message says what was expected, and prints both sides.
      FileNotFoundError, ImportError: there is no file, or no h5py to read it.

    Example:
      `docs/moving-runs.md` has one of each kind.
    """
    return load_with_report(tx, params, source, mapping, hyperparams=hyperparams)[0]


def load_with_report(
    tx: Transformation,
    params: Tree,
    source: Any,
    mapping: Correspondence = None,
    *,
    hyperparams: Choice = "saved",
) -> tuple[State, Report]:
    """`load_state`, with a report of what became of each entry."""
    if hyperparams not in ("saved", "configured"):
        raise ValueError(f'hyperparams must be "saved" or "configured"; got {hyperparams!r}')
    keras_class(tx)  # refuses what is no preset of Keras's
    found, fresh = places(tx, params), tx.init(params)
    slots = SlotPaths.of(fresh)
    with sources.source_of(source) as theirs:
        pairs = pair_with_variables(found, slots.leaves, params, theirs, mapping, same_rate=hyperparams == "saved")
        values = [(cell, variable.read()) for cell, variable in pairs if cell.place or cell.slot == "iteration"]
    for cell, value in values:
        _check_value(cell, value, theirs.name, slots)
    (calls,) = (int(value) for cell, value in values if cell.slot == "iteration")
    saved = _count_entries(found, calls)
    # Before the first call Keras's average is zero, which it never reads; ours is the parameters.
    saved |= {cell.place: cell.sign * v for cell, v in values if cell.place and (calls or cell.slot != "average")}
    if tx.registered_name == LOSS_SCALE:
        saved[("metrics", "loss_scale")] = saved[("loss_scale",)]
    return merge_entries(saved, fresh, hyperparams=hyperparams)


def pair_with_variables(
    found: Sequence[Place],
    arrays: Mapping[Names, Any],
    params: Tree,
    theirs: sources.Source,
    mapping: Correspondence,
    *,
    same_rate: bool,
) -> list[tuple[Cell, sources.Variable]]:
    """The optimizer's variables in Keras's order, each with what it is here.

    Args:
      found: the links of the preset.
      arrays: those of its state by their paths, or their shapes.
      params: the parameters.
      theirs: the Keras run.
      mapping: which parameter is which variable.
      same_rate: whether the learning rates must be of one kind, a number or not.

    Raises:
      ValueError: another optimizer, another model, a mapping that does not tell which is which.
    """
    if not theirs.optimizer:
        raise ValueError(f"{theirs.name} has no state of an optimizer: the model was not compiled, or saved without it")
    ours, variables = parameter_entries(params), list(theirs.optimizer)
    order = _order(ours, theirs, mapping)
    rated = rules.rate_place(found) is not None
    # Whether Keras's rate is a variable: the recipe says so; without one, the number of variables.
    cells = {flag: rules.cells(found, arrays, ours, order, flag) for flag in (rated, not rated)}
    if theirs.recipe is not None:
        _check_recipe(found[0].link, theirs.recipe, theirs.name)
        has_rate = sources.has_rate(theirs.recipe)
    else:
        has_rate = next((flag for flag, made in cells.items() if len(made) == len(variables)), rated)
    if same_rate and has_rate != rated:
        kinds = ("a number", "a schedule") if has_rate else ("a schedule", "a number")
        raise ValueError(
            f"the learning rate of {theirs.name} is {kinds[0]}, that of tx {kinds[1]}: "
            'load_state(…, hyperparams="configured") goes on with that of tx'
        )
    _check_shapes(cells[has_rate], variables, theirs.name)
    return list(zip(cells[has_rate], variables, strict=True))


def _order(ours: Sequence[Entry], theirs: sources.Source, mapping: Correspondence) -> list[int]:
    """The positions of our parameters in Keras's order."""
    if theirs.ordered:
        return sources.matched(ours, theirs.variable_entries(), mapping, theirs.name)
    order = given_order(ours, mapping)
    if order is None:
        raise ValueError(
            f"{theirs.name}: {theirs.unnamed}. Give a mapping: the paths of params in the order of Keras's variables.\n"
            + both_sides(ours, theirs.variable_entries(), theirs.name)
        )
    return order


def _check_recipe(tx: Transformation, recipe: Mapping[str, Any], name: str) -> None:
    """Requires that both recipes keep the same things in the same places."""
    # The rate may have no counterpart here, and what Muon excludes shows in the variables.
    theirs = from_config(sources.without_rate(recipe, "exclude_layers"))
    classes = [(keras_class(one), keras_class(inner_of(one))) for one in (tx, theirs)]
    for wanted, saved in zip(*classes, strict=True):
        if wanted != saved:
            raise ValueError(
                f"tx is an optimizer of the class {wanted}, that of {name} is {saved}: build tx with from_keras"
            )
    steps, window = map(rules.window_length, (tx, theirs))
    if steps != window:
        raise ValueError(f"gradient_accumulation_steps is {steps} in tx, and {window} in {name}")
    kept, saved = ([slot.name for block in rules.slots(one) for slot in block] for one in (tx, theirs))
    if kept != saved:
        raise ValueError(f"tx keeps {kept}, and {name} keeps {saved}: build tx with from_keras")


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


def _check_value(cell: Cell, value: np.ndarray, name: str, slots: SlotPaths) -> None:
    """Requires a variable of Keras's to be what such a variable can be."""
    what = f"{cell} of {name}"
    match cell.slot:
        case "learning_rate":
            checks.hyperparam(what, "learning_rate", value)
        case "dynamic_scale":
            checks.hyperparam(what, "initial_scale", value)
        case "iteration" | "step_counter":
            checks.count(what, value)
        case "u_product":
            checks.number(what, value, arguments.FRACTION)
        case _ if cell.place and checks.is_moment(field := slots.split(cell.place)[1]):
            checks.moment(what, field, cell.sign * value, np.float32)


def _count_entries(found: list[Place], calls: int) -> dict[Names, Any]:
    """All counts of a state after so many calls, and what its schedules gave at the last one."""
    window = rules.window_length(found[0].link)
    entries: dict[Names, Any] = {}
    counters = rules.counters(found)
    for place in found:
        made = calls if gate_of(place, found) is None else calls // window
        entries |= schedule_entries(place, made)
        if place.rule == "accumulate":
            entries |= {(*place.path, name): calls % window for name in ("count", "weight")}
        elif place in counters:
            entries[*place.path, "count"] = made
    return entries
