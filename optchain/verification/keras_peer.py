"""Runs of the live Keras, on its JAX backend."""

import contextlib
import os
import unittest.mock
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from optchain.core.precision import enable_x64
from optchain.verification.runs import Tree

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is first imported

import keras
from keras.src.backend.common import dtypes as keras_dtypes


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Scalars too are in `dtype`: JAX's default float, and Keras's, in which it keeps the learning rate.

    On JAX, Keras's promotion turns float64 into float32 whether x64 is on or not, so that `cos` and `floor`, in its
    schedules, lose the digits that a run in float64 is there to see. Its TensorFlow backend keeps float64; so do we.
    """
    floatx = keras.config.floatx()
    keras.config.set_floatx(dtype)
    promotion = unittest.mock.patch.dict(keras_dtypes.BIT64_TO_BIT32_DTYPE, float64=dtype)
    try:
        with promotion, enable_x64(dtype == "float64"):
            yield
    finally:
        keras.config.set_floatx(floatx)


def run_keras(
    optimizer: keras.optimizers.Optimizer, params: Tree, grads: list[Tree]
) -> tuple[list[Tree], Tree | None, Tree]:
    """The parameters after every step, the average if there is one, and the finalized parameters."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    variables = [keras.Variable(leaf, dtype=leaf.dtype.name, name=path[-1].key) for path, leaf in paths]
    optimizer.build(variables)

    @jax.jit
    def step(values: list[jax.Array], state: list[jax.Array], grads: list[jax.Array]) -> Any:
        return optimizer.stateless_apply(state, grads, values)

    values, state = jax.tree.leaves(params), [variable.value for variable in optimizer.variables]
    history = []
    for g in grads:
        values, state = step(values, state, jax.tree.leaves(g))
        history.append(treedef.unflatten(jax.device_get(values)))

    for variable, value in zip([*variables, *optimizer.variables], [*values, *state], strict=True):
        variable.assign(value)
    average = None
    if optimizer.use_ema:
        average = treedef.unflatten(_values(optimizer._model_variables_moving_average))
    optimizer.finalize_variable_values(variables)
    return history, average, treedef.unflatten(_values(variables))


def _values(variables: list[keras.Variable]) -> list[np.ndarray]:
    return [jax.device_get(variable.value) for variable in variables]
