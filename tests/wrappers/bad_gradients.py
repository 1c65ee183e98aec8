"""What the tests of the gates share: a compiled step, gradients with one bad value, and equality to the bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


@jax.jit
def apply_step(tx: Any, params: Tree, state: Tree, grads: Tree, **extra: Any) -> tuple[Tree, Tree]:
    """One step in the `apply` form; transformations that are equal share a program."""
    return tx.apply(params, state, grads=grads, **extra)


def bad(grads: Tree, value: float = np.nan) -> Tree:
    """The gradients with one value of the last leaf replaced."""
    leaves, treedef = jax.tree.flatten(grads)
    last = jnp.asarray(leaves[-1])
    leaves[-1] = last.ravel().at[-1].set(value).reshape(last.shape)
    return treedef.unflatten(leaves)


def assert_same_bits(actual: Tree, expected: Tree) -> None:
    """Equal in structure, dtypes and every bit: a −0 is not a 0, and a NaN is itself."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.tobytes() == b.tobytes(), path
