"""The state of an optimizer, from Keras and into it."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optchain.configs import from_config
from optchain.core import arguments, trees
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.interop.keras import layout, sources
from optchain.interop.keras.layout import Cell
from optchain.interop.keras.recipes import keras_class
from optchain.interop.mapping import Correspondence, both_sides, check_shapes, entries, given_order, match

LARGEST_COUNT = 2**31 - 1


def load_state(
    tx: Transformation,
    params: Tree,
    source: Any,
    mapping: Correspondence = None,
    *,
    hyperparams: Literal["saved", "configured"] = "saved",
) -> State:
    """The state with which `tx` goes on where a Keras optimizer stopped.

    Counts, the learning rate, moments, averages, gradients accumulated so far and the loss scale are taken over; what links
    only noticed (`metrics`) starts anew. Where a window of accumulation is empty, so is the accumulator.

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
    if hyperparams not in ("saved", "configured"):
        raise ValueError(f'hyperparams must be "saved" or "configured"; got {hyperparams!r}')
    keras_class(tx)
    template = tx.init(params)
    ours = entries(params)
    with sources.source_of(source) as found:
        theirs = _variables(found)
        order = _order(ours, found, mapping)
        rate = layout.rate_place(tx, template)
        has_rate = _check_recipe(tx, template, found)
        if has_rate is None:  # nothing says whether it has; the number of variables does
            has_rate = len(layout.cells(tx, template, ours, order, True)) == len(theirs)
        if hyperparams == "saved" and has_rate != (rate is not None):
            kinds = ("a number", "a schedule") if has_rate else ("a schedule", "a number")
            raise ValueError(
                f"the learning rate of {found.name} is {kinds[0]}, that of tx {kinds[1]}: "
                'hyperparams="configured" goes on with that of tx'
            )
        cells = layout.cells(tx, template, ours, order, has_rate)
        _check_cells(cells, theirs, found.name)
        wanted = [(c, v) for c, v in zip(cells, theirs, strict=True) if c.place is not None or c.slot == "iteration"]
        values = [(cell, variable.read()) for cell, variable in wanted]
    (calls,) = (_count(cell.slot, value, found.name) for cell, value in values if cell.slot == "iteration")
    state = template
    by_place: dict[layout.Place, list[tuple[Cell, np.ndarray]]] = {}
    for cell, value in values:
        skipped = (cell.slot == "learning_rate" and hyperparams == "configured") or (
            cell.slot == "average" and not calls
        )
        if cell.place is not None and not skipped:
            _check_scalar(cell, value, found.name)
            by_place.setdefault(cell.place, []).append((cell, value))
    for place, given in by_place.items():
        state = layout.with_entry(state, place, _filled(layout.entry(state, place), given))
    return _resumed(tx, _counted(tx, state, calls))


def save_state(
    tx: Transformation,
    params: Tree,
    state: State,
    target: Any,
    mapping: Correspondence = None,
    *,
    calls: int | None = None,
) -> None:
    """Gives a live Keras optimizer the state with which it goes on where `tx` stopped. `model.save` then makes a file of it.

    Args:
      tx: the preset that the state is of.
      params: the parameters that the state is for.
      state: the state.
      target: the optimizer, `to_keras(tx)` or one like it, built; or a model that is compiled with it. Its variables are
        assigned all together, or not at all.
      mapping: as in `load_state`.
      calls: how many calls were made, where the state does not count them and the optimizer does not depend on it, such as
        plain SGD at a constant rate; None for what the state says.

    Raises:
      ValueError: an optimizer of another class or model; what Keras cannot say: weighted micro-batches in the accumulator,
        counts of a run that was flushed, a hyperparameter other than the learning rate that was changed on the way.

    Example:
      `docs/moving-runs.md` has one.
    """
    keras_class(tx)
    template = jax.eval_shape(tx.init, params)
    trees.check_match("state", state, "the states of tx", template)
    _check_unchanged(tx.init(params), state)
    ours = entries(params)
    found = sources.of_live(target)
    theirs = _variables(found)
    order = _order(ours, found, mapping)
    has_rate = _check_recipe(tx, template, found)
    rate = layout.rate_place(tx, template)
    if has_rate != (rate is not None):
        raise ValueError(f"one of the learning rates of tx and {found.name} is a number, the other one is not")
    cells = layout.cells(tx, template, ours, order, has_rate)
    _check_cells(cells, theirs, found.name)
    made = _calls(tx, state, calls)
    leaves = {cell.place: jax.tree.leaves(layout.entry(state, cell.place)) for cell in cells if cell.place is not None}
    assigned = []
    for cell, variable in zip(cells, theirs, strict=True):
        if cell.slot == "iteration":
            assigned.append((variable, np.asarray(made)))
        elif cell.slot == "gradient_accumulator" and made % layout.window_length(tx) == 0:
            assigned.append((variable, np.zeros(cell.shape)))
        elif cell.place is not None:
            assigned.append((variable, cell.sign * np.asarray(leaves[cell.place][cell.leaf or 0])))
    for variable, value in assigned:
        assert isinstance(variable, sources.Live)
        variable.variable.assign(value.astype(np.dtype(str(variable.variable.dtype))))


# Checks ---------------------------------------------------------------------------------------------------------------


def _variables(found: sources.Source) -> list[sources.Variable]:
    if not found.optimizer:
        raise ValueError(f"{found.name} has no state of an optimizer: the model was not compiled, or saved without it")
    return list(found.optimizer)


def _order(ours: list, found: sources.Source, mapping: Correspondence) -> list[int]:
    """The positions of our parameters in Keras's order."""
    if not found.ordered:
        order = given_order(ours, mapping)
        if order is None:
            raise ValueError(
                f"{found.name}: {found.unnamed}. Give a mapping: the paths of params in the order of Keras's variables.\n"
                + both_sides(ours, found.entries(), found.name)
            )
        return order
    order = match(ours, found.entries(), mapping, found.name, aliases=sources.ALIASES)
    check_shapes(ours, found.entries(), order, found.name)
    return order


def _check_recipe(tx: Transformation, template: State, found: sources.Source) -> bool | None:
    """Whether the learning rate is one of Keras's variables, None if that is not known; the recipes must agree."""
    if found.recipe is None:
        return None
    # The rate may have no counterpart here, and what Muon excludes shows in the variables.
    theirs = from_config(sources.without_rate(found.recipe, "exclude_layers"))
    expected, name = keras_class(tx), keras_class(theirs)
    if expected == name == "LossScaleOptimizer":
        expected, name = keras_class(tx.config["inner"]), keras_class(theirs.config["inner"])
    if expected != name:
        raise ValueError(f"tx goes on for a {expected}, and {found.name} is a run of {name}: build tx with from_keras")
    if layout.window_length(tx) != layout.window_length(theirs):
        raise ValueError(
            f"gradient_accumulation_steps is {layout.window_length(tx)} in tx, {layout.window_length(theirs)} in {found.name}"
        )
    kept = [slot.name for block in layout.slots(tx, template) for slot in block]
    in_source = [
        slot.name for block in layout.slots(theirs, jax.eval_shape(theirs.init, jnp.zeros((1, 1)))) for slot in block
    ]
    if kept != in_source:
        raise ValueError(f"tx keeps {kept}, and {found.name} {in_source}: build tx with from_keras")
    return sources.has_rate(found.recipe)


def _check_cells(cells: list[Cell], theirs: list[sources.Variable], name: str) -> None:
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


def _check_scalar(cell: Cell, value: np.ndarray, name: str) -> None:
    ranges = {"learning_rate": "learning_rate", "dynamic_scale": "initial_scale"}
    if cell.slot in ranges and float(value) not in arguments.RANGES[ranges[cell.slot]]:
        raise ValueError(f"{cell} of {name} must be {arguments.RANGES[ranges[cell.slot]]}; it is {float(value)!r}")
    if cell.slot == "step_counter":
        _count(cell.slot, value, name)


def _count(slot: str, value: np.ndarray, name: str) -> int:
    if value.dtype.kind not in "iu" or not 0 <= int(value) <= LARGEST_COUNT:
        raise ValueError(f"the {slot} of {name} must be an integer in [0, {LARGEST_COUNT}]; it is {value!r}")
    return int(value)


def _check_unchanged(initial: State, state: State) -> None:
    """Requires hyperparameters that Keras keeps as constants to be what they were when `tx` was built."""
    for path, leaf in trees.leaves_with_paths(state):
        names = trees.path_names(path)
        if len(names) > 1 and names[-2] == "hyperparams" and names[-1] != "learning_rate":
            built_with = layout.entry(initial, names)
            if float(leaf) != float(built_with):
                raise ValueError(
                    f"{names[-1]} is {float(leaf)!r} in the state and {float(built_with)!r} in tx; Keras keeps it as a constant: "
                    "build tx and target with the value of the state"
                )


# From variables to a state --------------------------------------------------------------------------------------------


def _filled(old: Any, given: list[tuple[Cell, np.ndarray]]) -> Any:
    """An entry of a state with values from Keras, in the dtypes of the entry."""
    leaves, treedef = jax.tree.flatten(old)
    for cell, value in given:
        index = cell.leaf or 0
        leaves[index] = jnp.array(cell.sign * value if cell.sign < 0 else value, leaves[index].dtype, copy=True)
    return treedef.unflatten(leaves)


def _counted(tx: Transformation, state: State, calls: int) -> State:
    """The state with all its counts."""
    found, window = layout.counts(tx, state), layout.window_length(tx)
    values = dict.fromkeys(found.calls, calls) | dict.fromkeys(found.updates, calls // window)
    if found.window is not None:
        values |= {(*found.window, name): calls % window for name in ("count", "weight")}
    for place, value in values.items():
        state = layout.with_entry(state, place, jnp.array(value, layout.entry(state, place).dtype))
    return state


def _resumed(tx: Transformation, state: State) -> State:
    """The state with what its schedules gave at the last call, and the metrics that say what was used."""
    for node in layout.walk(tx, state):
        last = dict(node.link.hyperparams.last(node.state))
        if node.link.hyperparams.schedules:
            step = jnp.maximum(node.state["count"] - 1, 0)
            last |= {name: schedule(step) for name, schedule in node.link.hyperparams.schedules.items()}
            for name in node.state["scheduled"]:
                state = _with_scalar(state, (*node.place, "scheduled", name), last[name])
        if "loss_scale" in node.state:
            last["loss_scale"] = node.state["loss_scale"]
        for name in node.state.get("metrics", {}).keys() & last.keys():
            state = _with_scalar(state, (*node.place, "metrics", name), last[name])
    return state


def _with_scalar(state: State, place: layout.Place, value: Any) -> State:
    return layout.with_entry(state, place, jnp.array(value, layout.entry(state, place).dtype, copy=True))


# From a state to variables --------------------------------------------------------------------------------------------


def _calls(tx: Transformation, state: State, given: int | None) -> int:
    """How many calls were made, by all counts in the state; they must agree."""
    found, window = layout.counts(tx, state), layout.window_length(tx)
    held = 0
    if found.window is not None:
        held, weight = (
            int(layout.entry(state, found.window)["count"]),
            float(layout.entry(state, found.window)["weight"]),
        )
        if held and weight != held:
            raise ValueError(
                f"the accumulator holds {held} gradients of weight {weight} together; Keras's have weight 1 each: "
                "save at the end of a window"
            )
    calls = [int(layout.entry(state, place)) for place in found.calls]
    updates = [int(layout.entry(state, place)) for place in found.updates]
    made = calls[0] if calls else updates[0] * window + held if updates else held if given is None else given
    if (
        {*calls, made if given is None else given} != {made}
        or {*updates, made // window} != {made // window}
        or (found.window is not None and made % window != held)
    ):
        raise ValueError(
            f"Keras has one count, of calls; the state has {calls} calls, {updates} updates of {window} calls and {held} "
            f"gradients in the accumulator, calls={given} was given: they do not go together (after a flush they cannot)"
        )
    return made
