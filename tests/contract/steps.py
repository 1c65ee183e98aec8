"""Running a transformation, and comparing what came out. A transformation is a jit argument like any other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .trees import PLAIN, grads_of, params_of

Tree = Any
STEPS = 4


@jax.jit
def apply_step(tx: Any, params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
    return tx.apply(params, state, grads=grads)


@jax.jit
def update_step(tx: Any, params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def run(tx: Any, tree: str = PLAIN, dtype: Any = jnp.float32, *, steps: int = STEPS, step: Any = apply_step) -> Any:
    """`(params, state)` after some steps from the tree's own numbers."""
    params = params_of(tree, dtype)
    state = tx.init(params)
    for number in range(steps):
        params, state = step(tx, params, state, grads_of(tree, dtype, number))
    return params, state


def avals(tree: Tree) -> Any:
    """What JAX compiles for: structure, and each leaf's shape, dtype and weak type."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(jnp.shape(x), jnp.result_type(x), getattr(x, "weak_type", None)) for x in leaves]


def assert_same(actual: Tree, expected: Tree) -> None:
    """Equal in structure, dtypes and every bit."""
    assert avals(actual) == avals(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_close(actual: Tree, expected: Tree, dtype: Any = jnp.float32, roundings: float = 8) -> None:
    """Equal in structure, and each leaf to some roundings of `dtype` at its largest number (at least 1)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    eps = float(jnp.finfo(dtype).eps)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(actual)[0], jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b), path
        wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
        a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
        largest = max(1.0, np.abs(b).max(initial=0.0))
        np.testing.assert_allclose(a, b, rtol=0, atol=roundings * eps * largest, err_msg=str(path))
