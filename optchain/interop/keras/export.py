"""The state of Keras's optimizers, made of ours."""

from typing import Any

import jax
import numpy as np

from optchain.core import trees
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.interop.keras import rules, sources
from optchain.interop.keras.recipes import keras_class
from optchain.interop.keras.rules import Cell
from optchain.interop.keras.state import pair_with_variables
from optchain.interop.links import Place, gate_of, places
from optchain.interop.mapping import Correspondence
from optchain.interop.merging import by_names


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
    keras_class(tx)  # refuses what is no preset of Keras's
    shapes = jax.eval_shape(tx.init, params)
    trees.check_match("state", state, "the states of tx", shapes)
    found, arrays = places(tx, params), by_names(state)
    _check_unchanged(found, state)
    theirs = sources.of_live(target)
    pairs = pair_with_variables(found, by_names(shapes), params, theirs, mapping, same_rate=True)
    made = _calls(found, state, calls)
    empty = made % rules.window_length(tx) == 0

    def value(cell: Cell) -> np.ndarray | None:
        """What a variable of Keras's is to be; None where Keras does not look at it."""
        if cell.slot == "iteration":
            return np.asarray(made)
        if cell.slot == "gradient_accumulator" and empty:
            return np.zeros(cell.shape)  # ours starts from zero when a window begins, Keras's when it ends
        return cell.sign * np.asarray(arrays[cell.place]) if cell.place else None

    for variable, new in [(variable, value(cell)) for cell, variable in pairs]:
        if new is not None:
            assert isinstance(variable, sources.Live)
            variable.assign(new)


def _check_unchanged(found: list[Place], state: State) -> None:
    """Requires hyperparameters that Keras keeps as constants to be what they were when the preset was built."""
    for place in found:
        for name, built_with in place.link.hyperparams.settable.items():
            value = place.state_in(state)["hyperparams"][name]
            if name != "learning_rate" and float(value) != float(built_with):
                raise ValueError(
                    f"{name} is {float(value)!r} in the state and {float(built_with)!r} in tx; Keras keeps it as a constant: "
                    "build tx and target with the value of the state"
                )


def _calls(found: list[Place], state: State, given: int | None) -> int:
    """How many calls were made, by all counts in the state, which must agree."""
    window = rules.window_length(found[0].link)
    calls, updates = set[int](), set[int]()
    for place in rules.counters(found):
        (calls if gate_of(place, found) is None else updates).add(int(place.state_in(state)["count"]))
    accumulator = next((p.state_in(state) for p in found if p.rule == "accumulate"), {"count": 0, "weight": 0})
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
