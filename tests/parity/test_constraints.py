"""Projections of the parameters against `keras.constraints`: alone, and as the constraints of variables in a run."""

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optchain

from .helpers import BOUNDS, DTYPES, Tree, few, precision, random_grads, random_params, run_forms, worst_error
from .recipes import Recipe, floats32, log_uniform, recipes

pytestmark = pytest.mark.each_value

OWN: dict[str, tuple[Callable[..., optchain.Transformation], dict[str, Any]]] = {
    "NonNeg": (optchain.project_non_negative, {}),
    "UnitNorm": (optchain.project_unit_norm, {}),
    "MaxNorm": (optchain.project_max_norm, {"max_value": log_uniform(-2, 2)}),
    "MinMaxNorm": (
        optchain.project_min_max_norm,
        {"min_value": log_uniform(-3, -1), "max_value": log_uniform(-1, 1), "rate": floats32(0, 1)},
    ),
}
AXES = st.sampled_from([0, 1, -1, [0, 1], [0, 1, 2]])
every_constraint = pytest.mark.parametrize("name", OWN)


@every_constraint
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@few
def test_a_projection_gives_the_values_of_the_constraint(
    name: str, dtype: str, data: st.DataObject, seed: int, record_error: Callable
) -> None:
    project, own = OWN[name]
    arguments = data.draw(st.fixed_dictionaries(own | ({"axis": AXES} if name != "NonNeg" else {})))
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(2, 3, 4)) * (rng.uniform(size=(2, 3, 4)) < 0.7)).astype(dtype)
    values[:, 1, 2] = 0
    with precision(dtype):
        expected = np.asarray(getattr(keras.constraints, name)(**arguments)(values))
        tx = project(**arguments)
        for form, (history, _) in run_forms(tx, values, [np.zeros_like(values)]).items():
            error = worst_error([values, *history], [values, expected])
            record_error(("Keras", name, dtype, form), error)
            assert error <= BOUNDS[dtype], form


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
@given(name=st.sampled_from(list(OWN)), data=st.data(), recipe=recipes("AdamW"))
@few
def test_a_projection_after_a_preset_is_the_constraint_of_a_variable_in_a_run(
    dtype: str, name: str, data: st.DataObject, recipe: Recipe, record_error: Callable
) -> None:
    """It acts at every call, mid-accumulation too, after the average, and on the variables that have it."""
    project, own = OWN[name]
    arguments = data.draw(st.fixed_dictionaries(own))
    rng = np.random.default_rng(recipe.seed)
    params = random_params(rng, dtype)
    grads = random_grads(rng, dtype, recipe.steps, recipe.loss_scale)
    constraints = {"kernel": getattr(keras.constraints, name)(**arguments)}
    with precision(dtype):
        theirs = run_keras(recipe.build_keras("AdamW"), constraints, params, grads)
        tx = optchain.chain(recipe.build_optchain("AdamW"), project(**arguments, mask=optchain.matching("kernel$")))
        for form, (history, _) in run_forms(tx, params, grads).items():
            error = worst_error(history, theirs)
            record_error(("Keras", f"AdamW, {name}", dtype, form), error)
            assert error <= BOUNDS[dtype], form


def run_keras(
    optimizer: keras.optimizers.Optimizer, constraints: dict[str, Any], params: Tree, grads: list[Tree]
) -> list[Tree]:
    """The parameters after every step, of variables of which some have a constraint."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    variables = [keras.Variable(leaf, dtype=leaf.dtype.name, name=path[-1].key) for path, leaf in paths]
    for variable in variables:
        variable.constraint = constraints.get(variable.name)
    optimizer.build(variables)
    step = jax.jit(lambda values, state, grads: optimizer.stateless_apply(state, grads, values))
    values, state = jax.tree.leaves(params), [variable.value for variable in optimizer.variables]
    history = []
    for g in grads:
        values, state = step(values, state, jax.tree.leaves(g))
        history.append(treedef.unflatten(jax.device_get(values)))
    return history
