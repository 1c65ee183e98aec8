"""Presets against the live Keras, over all their arguments together."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optchain
from optchain.verification.keras_peer import run_keras
from optchain.verification.suite import FROM_THE_START, OWN_BOUNDS

from .helpers import BOUNDS, DTYPES, few, fewer, precision, random_grads, random_params, run_forms, worst_error
from .recipes import OWN, Recipe, preset, recipes

MOST_USED = ["AdamW", "Adam", "SGD"]


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", MOST_USED)
@given(data=st.data())
@few
def test_a_preset_equals_keras_step_for_step(
    optimizer: str, dtype: str, data: st.DataObject, record_error: Callable
) -> None:
    check_recipe(optimizer, dtype, data.draw(recipes(optimizer)), record_error)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [name for name in OWN if name not in MOST_USED])
@given(data=st.data())
@fewer
def test_a_preset_of_the_family_equals_keras_step_for_step(
    optimizer: str, dtype: str, data: st.DataObject, record_error: Callable
) -> None:
    check_recipe(optimizer, dtype, data.draw(recipes(optimizer)), record_error)


@pytest.mark.parametrize("optimizer", OWN)
def test_arguments_order_and_defaults_are_keras(optimizer: str) -> None:
    theirs = inspect.signature(getattr(keras.optimizers, optimizer)).parameters.values()
    ours = inspect.signature(preset(optimizer)).parameters.values()
    expected = [(p.name, p.default) for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "name"]
    extras = {"name", "moment_dtype", "exclude_from_weight_decay", "decay", "lazy"}
    assert [(p.name, p.default) for p in ours if p.name not in extras] == expected


# Keras's schedule is called outside of `jit`, where its divisions are divisions.
@pytest.mark.parametrize("decay_steps", [5, 7, 41])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ExponentialDecay", {"decay_rate": 0.5, "staircase": True}),
        ("InverseTimeDecay", {"decay_rate": 0.5, "staircase": True}),
        ("PolynomialDecay", {"end_learning_rate": 0.1, "power": 0.5}),
        ("PolynomialDecay", {"end_learning_rate": 0.1, "power": 1.5, "cycle": True}),
        ("CosineDecayRestarts", {"t_mul": 1.0}),
        ("CosineDecayRestarts", {"t_mul": 2.0}),
    ],
)
def test_jitted_schedules_equal_keras_where_they_jump_or_end(
    name: str, arguments: dict[str, Any], decay_steps: int
) -> None:
    ours = jax.jit(getattr(optchain.schedules, name)(1.0, decay_steps, **arguments))
    theirs = getattr(keras.optimizers.schedules, name)(1.0, decay_steps, **arguments)
    steps = [turn * decay_steps + offset for turn in (1, 2, 3, 4) for offset in (-1, 0, 1)]
    expected = [float(theirs(step)) for step in steps]
    np.testing.assert_allclose([ours(step) for step in steps], expected, rtol=0, atol=1e-6)


def check_recipe(optimizer: str, dtype: str, recipe: Recipe, record_error: Callable) -> None:
    rng = np.random.default_rng(recipe.seed)
    params = random_params(rng, dtype)
    grads = random_grads(rng, dtype, recipe.steps, recipe.loss_scale)
    with precision(dtype):
        theirs, their_average, their_final = run_keras(recipe.build_keras(optimizer), params, grads)
        for form, (ours, state) in run_forms(recipe.build_optchain(optimizer), params, grads).items():
            # The average and the final values are like another step: the same leaves, measured by the same run.
            final = jax.device_get(optchain.finalize(ours[-1], state))
            start = [params] if optimizer in FROM_THE_START else []
            compared = [*start, *ours, final], [*start, *theirs, their_final]
            if recipe.arguments["use_ema"]:
                compared[0].append(jax.device_get(optchain.averaged_params(state)))
                compared[1].append(their_average)
            error = worst_error(*compared)
            record_error(("Keras", optimizer, dtype, form), error)
            assert error <= OWN_BOUNDS.get(("Keras", optimizer, dtype), BOUNDS[dtype]), form
