"""What every parity test needs: a small tree, gradients of many sizes, both forms of a step, and the measure of error."""

import contextlib
import unittest.mock
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import hypothesis
import jax
import keras
import numpy as np
import optax
from keras.src.backend.common import dtypes as keras_dtypes

import optchain

Tree = Any

# An example compiles two or three programs, so a tenth of the examples of the profile.
few = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 10)

DTYPES = ["float32", "float64"]
BOUNDS = {"float32": 5e-6, "float64": 1e-10}
"""The largest error allowed. float64 shows a wrong rule that float32's rounding hides."""

SHAPES = {"dense": {"bias": (2,), "kernel": (3, 2)}, "norm": {"gamma": (2,)}}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Scalars too are in `dtype`: JAX's default float, and Keras's, in which it keeps the learning rate.

    On JAX, Keras's promotion turns float64 into float32 whether x64 is on or not, so that `cos` and `floor`, in its
    schedules, lose the digits that the float64 tests are there to see. Its TensorFlow backend keeps float64; so do we.
    """
    floatx = keras.config.floatx()
    keras.config.set_floatx(dtype)
    promotion = unittest.mock.patch.dict(keras_dtypes.BIT64_TO_BIT32_DTYPE, float64=dtype)
    try:
        with promotion, jax.enable_x64(dtype == "float64"):
            yield
    finally:
        keras.config.set_floatx(floatx)


def random_params(rng: np.random.Generator, dtype: str) -> Tree:
    """Parameters of unit size, on the host."""
    return jax.tree.map(lambda shape: rng.normal(size=shape).astype(dtype), SHAPES, is_leaf=_is_shape)


def random_grads(rng: np.random.Generator, dtype: str, steps: int, factor: float = 1.0) -> list[Tree]:
    """Gradients of sizes between 1e-3 and 30, every eighth or so of them zero, all times `factor`."""

    def grad(shape: tuple[int, ...]) -> np.ndarray:
        size = 10 ** rng.uniform(-3, 1.5) * (rng.uniform() > 1 / 8)
        return (factor * size * rng.normal(size=shape)).astype(dtype)

    return [jax.tree.map(grad, SHAPES, is_leaf=_is_shape) for _ in range(steps)]


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


# The two forms -------------------------------------------------------------------------------------------------------


def _apply(tx: optchain.Transformation, params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
    return tx.apply(params, state, grads=grads)


def _update(tx: optax.GradientTransformation, params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


FORMS: dict[str, Callable[..., tuple[Tree, Tree]]] = {"apply": _apply, "update": _update}


def run(
    tx: optax.GradientTransformation, params: Tree, grads: Iterable[Tree], form: str = "update"
) -> tuple[list[Tree], Tree]:
    """The parameters after every step, on the host, and the last state."""
    step = jax.jit(lambda params, state, grads: FORMS[form](tx, params, state, grads))
    params = jax.device_put(params)
    state, history = tx.init(params), []
    for g in grads:
        params, state = step(params, state, g)
        history.append(jax.device_get(params))
    return history, state


# The measure ---------------------------------------------------------------------------------------------------------


def worst_error(ours: Sequence[Tree], theirs: Sequence[Tree]) -> float:
    """`max |a − b| / (max |b| over the run + 1e-3)`, of the worst leaf; NaN if either run has one."""
    return max(_leaf_error(*leaves) for leaves in zip(_stacked(ours), _stacked(theirs), strict=True))


def _leaf_error(a: np.ndarray, b: np.ndarray) -> float:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return float(np.max(np.abs(a - b)) / (np.max(np.abs(b)) + 1e-3))


def _stacked(history: Sequence[Tree]) -> list[np.ndarray]:
    return [np.stack(leaves) for leaves in zip(*map(jax.tree.leaves, history), strict=True)]
