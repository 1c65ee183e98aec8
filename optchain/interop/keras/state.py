"""The state of an optimizer, from Keras and into it."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import trees
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk
from optchain.interop.keras import plan, rules, sources
from optchain.interop.keras.rules import Cell
from optchain.interop.mapping import Correspondence


def load_state(
    tx: Transformation,
    params: Tree,
    source: Any,
    mapping: Correspondence = None,
    *,
    hyperparams: Literal["saved", "configured"] = "saved",
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
    if hyperparams not in ("saved", "configured"):
        raise ValueError(f'hyperparams must be "saved" or "configured"; got {hyperparams!r}')
    saved = hyperparams == "saved"
    plan.check_preset(tx)
    state = tx.init(params)
    with sources.source_of(source) as found:
        pairs = plan.pair_with_variables(tx, state, params, found, mapping, same_rate=saved)
        values = [(cell, variable.read()) for cell, variable in pairs if cell.is_kept or cell.slot == "iteration"]
    for cell, value in values:
        plan.check_value(cell, value, found.name)
    (calls,) = (int(value) for cell, value in values if cell.slot == "iteration")
    # Before the first call Keras's average is zero, which it never reads; ours is the parameters.
    left = {"iteration", *["learning_rate"] * (not saved), *["average"] * (not calls)}
    for place, given in _by_place([(cell, value) for cell, value in values if cell.slot not in left]).items():
        state = rules.with_entry(state, place, _filled(rules.entry(state, place), given))
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
      calls: the number of calls made, where the state does not count them and the optimizer does not depend on it, such as
        plain SGD at a constant rate; None for what the state says.

    Raises:
      ValueError: an optimizer of another class or model; what Keras cannot say: weighted micro-batches in the accumulator,
        counts of a run that was flushed, a hyperparameter other than the learning rate that was changed on the way.

    Example:
      `docs/moving-runs.md` has one.
    """
    plan.check_preset(tx)
    shapes = jax.eval_shape(tx.init, params)
    trees.check_match("state", state, "the states of tx", shapes)
    plan.check_unchanged(tx, state)
    pairs = plan.pair_with_variables(tx, shapes, params, sources.of_live(target), mapping, same_rate=True)
    values = _values([cell for cell, _ in pairs], state, _calls(tx, state, calls), rules.window_length(tx))
    for (_, variable), value in zip(pairs, values, strict=True):
        if value is not None:
            assert isinstance(variable, sources.Live)
            variable.assign(value)


# From variables to a state --------------------------------------------------------------------------------------------


def _by_place(values: list[tuple[Cell, np.ndarray]]) -> dict[rules.Place, list[tuple[Cell, np.ndarray]]]:
    grouped: dict[rules.Place, list[tuple[Cell, np.ndarray]]] = {}
    for cell, value in values:
        assert cell.place is not None
        grouped.setdefault(cell.place, []).append((cell, value))
    return grouped


def _filled(old: Any, given: list[tuple[Cell, np.ndarray]]) -> Any:
    """An entry of a state with values from Keras, in the dtypes of the entry."""
    leaves, treedef = jax.tree.flatten(old)
    for cell, value in given:
        index = cell.leaf or 0
        leaves[index] = jnp.array(cell.sign * value, leaves[index].dtype, copy=True)
    return treedef.unflatten(leaves)


def _counted(tx: Transformation, state: State, calls: int) -> State:
    """The state with all its counts."""
    found, window = rules.counts(tx, state), rules.window_length(tx)
    values = dict.fromkeys(found.calls, calls) | dict.fromkeys(found.updates, calls // window)
    if found.window is not None:
        values |= {(*found.window, name): calls % window for name in ("count", "weight")}
    for place, value in values.items():
        state = rules.with_entry(state, place, jnp.array(value, rules.entry(state, place).dtype))
    return state


def _resumed(tx: Transformation, state: State) -> State:
    """The state with what its schedules gave at the last call, and the metrics that say what was used."""
    for node in walk(tx, state):
        last = dict(node.link.hyperparams.last(node.state))
        if node.link.hyperparams.schedules:
            step = jnp.maximum(node.state["count"] - 1, 0)
            last |= {name: schedule(step) for name, schedule in node.link.hyperparams.schedules.items()}
            for name in node.state["scheduled"]:
                state = _with_scalar(state, (*node.path, "scheduled", name), last[name])
        if "loss_scale" in node.state:
            last["loss_scale"] = node.state["loss_scale"]
        for name in node.state.get("metrics", {}).keys() & last.keys():
            state = _with_scalar(state, (*node.path, "metrics", name), last[name])
    return state


def _with_scalar(state: State, place: rules.Place, value: Any) -> State:
    return rules.with_entry(state, place, jnp.array(value, rules.entry(state, place).dtype, copy=True))


# From a state to variables --------------------------------------------------------------------------------------------


def _values(cells: list[Cell], state: State, calls: int, window: int) -> list[np.ndarray | None]:
    """What the variables of Keras's are to be; None where Keras does not look at them."""
    leaves = {cell.place: jax.tree.leaves(rules.entry(state, cell.place)) for cell in cells if cell.place is not None}

    def value(cell: Cell) -> np.ndarray | None:
        if cell.slot == "iteration":
            return np.asarray(calls)
        if cell.slot == "gradient_accumulator" and calls % window == 0:
            return np.zeros(cell.shape)  # ours starts from zero when a window begins, Keras's when it ends
        return None if cell.place is None else cell.sign * np.asarray(leaves[cell.place][cell.leaf or 0])

    return list(map(value, cells))


def _calls(tx: Transformation, state: State, given: int | None) -> int:
    """How many calls were made, by all counts in the state, which must agree."""
    found, window = rules.counts(tx, state), rules.window_length(tx)
    calls, updates = ({int(rules.entry(state, place)) for place in places} for places in (found.calls, found.updates))
    accumulator = {"count": 0, "weight": 0} if found.window is None else rules.entry(state, found.window)
    held, weight = int(accumulator["count"]), float(accumulator["weight"])
    if held and weight != held:
        raise ValueError(
            f"the accumulator holds {held} gradients of weight {weight} together; Keras's have weight 1 each: "
            "save at the end of a window"
        )
    said = calls | {number for number in [given] if number is not None}
    said = said or {update * window + held for update in updates} or {held}
    made = min(said)
    if len(said) > 1 or updates - {made // window} or made % window != held:
        raise ValueError(
            f"Keras has one count, of calls; the state has counted {sorted(calls)} calls, {sorted(updates)} updates of {window} "
            f"calls, {held} gradients in the accumulator, and calls={given} was given: they do not go together, and after a "
            "flush they cannot"
        )
    return made
