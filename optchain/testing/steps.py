"""Running a transformation, and comparing what came out. A transformation is a jit argument like any other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.core.trees import path_string
from optchain.testing.trees import PLAIN, Tree, grads_of, params_of

STEPS = 4


@jax.jit
def apply_step(tx: Any, params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
    return tx.apply(params, state, grads=grads)


@jax.jit
def update_step(tx: Any, params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def run(tx: Any, tree: Any = PLAIN, dtype: Any = jnp.float32, *, steps: int = STEPS, step: Any = apply_step) -> Any:
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


def assert_same_avals(actual: Tree, expected: Tree, what: str) -> None:
    """Equal in structure, shapes, dtypes and weak types; the message names what differs."""
    ours, theirs = _described(actual), _described(expected)
    for path in dict.fromkeys([*theirs, *ours]):
        if ours.get(path) != theirs.get(path):
            was, is_ = theirs.get(path, "nothing"), ours.get(path, "nothing")
            raise AssertionError(f"{what}: {path or 'the leaf'} is {is_}, and should be {was}")
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        structures = jax.tree.structure(actual), jax.tree.structure(expected)
        raise AssertionError(f"{what}: the structure is {structures[0]}, and should be {structures[1]}")


def _described(tree: Tree) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        path_string(path): f"{'weakly typed ' * bool(getattr(leaf, 'weak_type', False))}"
        f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in leaves
    }


def assert_same(actual: Tree, expected: Tree) -> None:
    """Equal in structure, dtypes and every bit."""
    assert_same_avals(actual, expected, "compared trees")
    leaves = jax.tree_util.tree_flatten_with_path(actual)[0]
    for (path, a), b in zip(leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path_string(path))


def assert_close(
    actual: Tree, expected: Tree, dtype: Any = jnp.float32, roundings: float = 8, what: str = "compared trees"
) -> None:
    """Equal in structure, and each leaf to some roundings of `dtype` at its largest number (at least 1)."""
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        structures = jax.tree.structure(actual), jax.tree.structure(expected)
        raise AssertionError(f"{what}: the structure is {structures[0]}, not {structures[1]}")
    eps = float(jnp.finfo(dtype).eps)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(actual)[0], jax.tree.leaves(expected), strict=True):
        if jnp.result_type(a) != jnp.result_type(b):
            dtypes = jnp.result_type(a), jnp.result_type(b)
            raise AssertionError(f"{what}: {path_string(path)} is {dtypes[0]}, and should be {dtypes[1]}")
        wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
        a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
        largest = max(1.0, np.abs(b).max(initial=0.0))
        np.testing.assert_allclose(a, b, rtol=0, atol=roundings * eps * largest, err_msg=f"{what}: {path_string(path)}")


def assert_finite(tree: Tree, what: str) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not np.isfinite(np.asarray(leaf, np.complex128)).all():
            raise AssertionError(f"{what}: {path_string(path)} is not finite: {leaf}")
