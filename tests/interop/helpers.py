"""What tests of states that move share."""

from typing import Any

import jax
import numpy as np


def without_types(tree: Any) -> Any:
    """What a checkpoint that is restored without a target has: dicts, lists, string keys, None for what is empty."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, dict):
        return {str(key): without_types(part) for key, part in tree.items()} or None
    if isinstance(tree, tuple | list):
        return [without_types(part) for part in tree] or None
    return np.asarray(tree)


def assert_same(actual: Any, expected: Any) -> None:
    """Equal in structure, dtypes and every bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        np.testing.assert_array_equal(a, b, err_msg=str(path))
