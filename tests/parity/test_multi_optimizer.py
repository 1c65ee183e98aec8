"""`multi_optimizer` against Keras's `MultiOptimizer`, with all the arguments of the optimizers within."""

import dataclasses
from collections.abc import Callable

import jax
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras.src.optimizers.multi_optimizer import OptimizerMap

import optchain

from .helpers import BOUNDS, DTYPES, fewer, precision, random_grads, random_params, run_forms, worst_error
from .recipes import Recipe, recipes
from .test_keras import run_keras


def parts(name: str) -> st.SearchStrategy[Recipe]:
    """Recipes of one group: the outer optimizer has the only loss scale, and exclusions name parameters of all groups."""
    return recipes(name).map(
        lambda recipe: dataclasses.replace(
            recipe, undecayed=[], arguments=recipe.arguments | {"loss_scale_factor": None}
        )
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(vectors=parts("SGD"), rest=parts("AdamW"), loss_scale=st.none() | st.just(64.0))
@fewer
def test_multi_optimizer_equals_keras_step_for_step(
    dtype: str, vectors: Recipe, rest: Recipe, loss_scale: float | None, record_error: Callable
) -> None:
    rng = np.random.default_rng(rest.seed)
    params, grads = random_params(rng, dtype), random_grads(rng, dtype, rest.steps, loss_scale or 1.0)
    with precision(dtype):
        pattern = OptimizerMap(rest.build_keras("AdamW"))
        pattern["bias|gamma"] = vectors.build_keras("SGD")
        theirs, _, their_final = run_keras(
            keras.optimizers.MultiOptimizer(pattern, loss_scale_factor=loss_scale), params, grads
        )
        ours = optchain.multi_optimizer(
            ("vectors", "(^|/)(bias|gamma)$", vectors.build_optchain("SGD")), default=rest.build_optchain("AdamW")
        )
        if loss_scale is not None:
            ours = optchain.chain(optchain.unscale_gradients(loss_scale), ours)
        for form, (history, state) in run_forms(ours, params, grads).items():
            final = jax.device_get(optchain.finalize(history[-1], state))
            error = worst_error([*history, final], [*theirs, their_final])
            record_error(("Keras", "MultiOptimizer", dtype, form), error)
            assert error <= BOUNDS[dtype], form
