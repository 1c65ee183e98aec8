"""Runs that change the library half way: the parameters are those of a run that did not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest

import optchain
from optchain.interop.keras import from_keras, load_params, load_state, save_params, save_state, to_keras
from tests.sampling import others_for_release

from .digits import batches, flax_params, keras_model, loss

# Keras's own: how it turns a variable into an array when it saves one.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

HALF = 31  # with windows of 4 calls it ends within one
BOUND = 2e-6
"""float32's rounding over some 30 steps; of the largest value that a leaf takes."""

RECIPES: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "AdamW, EMA, accumulation": lambda: keras.optimizers.AdamW(
        0.01, weight_decay=0.1, epsilon=1e-3, use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=4
    ),
    "SGD, Nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "Adam, AMSGrad": lambda: keras.optimizers.Adam(0.003, beta_2=0.9, epsilon=1e-3, amsgrad=True),
    "Nadam": lambda: keras.optimizers.Nadam(
        keras.optimizers.schedules.CosineDecay(0.003, 60), epsilon=1e-3, global_clipnorm=1.0
    ),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.001, momentum=0.9, epsilon=1e-3, centered=True),
}


def in_keras(model: keras.Model, first: int, last: int) -> Any:
    for images, labels in batches(first, last):
        model.train_on_batch(images, labels)
    return variables(model)


def in_optchain(tx: optchain.Transformation, params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
    step = optchain.make_step(loss, tx)
    for images, labels in batches(first, last):
        params, state, _ = step(params, state, images, labels)
    return params, state


def variables(model: keras.Model) -> Any:
    """The parameters of a Keras model as a tree, by hand."""
    tree: dict[str, Any] = {}
    for variable in model.trainable_variables:
        *_, layer, name = variable.path.split("/")
        tree.setdefault(layer, {})[name] = np.array(keras.ops.convert_to_numpy(variable.value))
    return tree


def error(ours: Any, theirs: Any) -> float:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.max(np.abs(a - b)) / (np.max(np.abs(b)) + 1e-3)) for a, b in pairs)


def remembered(state: Any) -> Any:
    """The state without the metrics, which Keras does not have."""
    return {name: entry for name, entry in state.items() if name != "clip_by_global_norm"}


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", others_for_release(RECIPES, "AdamW, EMA, accumulation", "Nadam"))
def test_a_run_goes_on_in_the_other_library(recipe: str, tmp_path: Path, record_error: Callable) -> None:
    model = keras_model(RECIPES[recipe]())
    start = load_params(flax_params(), model)
    half = in_keras(model, 0, HALF)
    model.save(tmp_path / "run.keras")
    whole = in_keras(model, HALF, 2 * HALF)
    assert error(half, whole) > 1e-2  # there is something to get wrong

    # Keras, then optchain: all that is known is the file.
    tx = from_keras(tmp_path / "run.keras")
    params = load_params(flax_params(), tmp_path / "run.keras")
    assert error(params, half) == 0
    state = load_state(tx, params, tmp_path / "run.keras")
    params, state = in_optchain(tx, params, state, HALF, 2 * HALF)
    there = max(error(params, whole), error(*map(remembered, (state, load_state(tx, whole, model)))))
    record_error(("Keras", recipe, "float32", "moved in"), there)
    assert there <= BOUND

    # optchain, then Keras: an optimizer that has been elsewhere since.
    params, state = in_optchain(tx, start, tx.init(start), 0, HALF)
    save_params(params, model)
    save_state(tx, params, state, model)
    back = error(in_keras(model, HALF, 2 * HALF), whole)
    record_error(("Keras", recipe, "float32", "moved out"), back)
    assert back <= BOUND


def test_the_average_moves_too_and_a_model_file_is_made_of_it(tmp_path: Path) -> None:
    tx = optchain.adamw(0.01, epsilon=1e-3, use_ema=True, ema_momentum=0.9, exclude_from_weight_decay=["bias$"])
    params, state = in_optchain(tx, flax_params(), tx.init(flax_params()), 0, 3)
    model = keras_model(None)
    optimizer = to_keras(tx, params, model.trainable_variables)
    optimizer.build(model.trainable_variables)
    assert [optimizer._use_weight_decay(v) for v in model.trainable_variables] == [True, False] * 3
    model.compile(optimizer, "mse")
    save_params(params, model)
    save_state(tx, params, state, model)
    model.save(tmp_path / "run.keras")

    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert error(variables(loaded), params) == 0
    loaded.optimizer.finalize_variable_values(loaded.trainable_variables)
    assert error(variables(loaded), optchain.averaged_params(state)) == 0
