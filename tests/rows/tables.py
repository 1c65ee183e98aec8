"""A tree with a table, and gradients of it: as rows with duplicates and padding, and as the dense array they stand for."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import optchain as oc

HEIGHT, WIDTH = 7, 3
BATCHES = [[2, 0, 2, 5], [5, -1, 5, 2], [HEIGHT, 6, -3, 6], [1, 0, 2, 0], [-1, HEIGHT + 4, -1, -1], [3, 2, 1, 0]]
"""Duplicates, padding on both sides, a batch of padding alone; row 4 is never named."""

Tree = Any


def params(dtype: Any = np.float64) -> Tree:
    rng = np.random.default_rng(0)
    return {"head": {"bias": rng.normal(size=2).astype(dtype)}, "table": rng.normal(size=(HEIGHT, WIDTH)).astype(dtype)}


def batches(dtype: Any = np.float64) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each step the indices, their rows and the gradient of the other parameter."""
    rng = np.random.default_rng(1)
    return [
        (
            np.array(indices, np.int32),
            rng.normal(size=(len(indices), WIDTH)).astype(dtype),
            rng.normal(size=2).astype(dtype),
        )
        for indices in BATCHES
    ]


def named(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Tree:
    """The gradients, of which the table's names rows."""
    indices, rows, bias = batch
    return {"head": {"bias": bias}, "table": oc.RowGradient(jnp.asarray(indices), jnp.asarray(rows), (HEIGHT, WIDTH))}


def dense(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Tree:
    """The same as arrays, added up by a loop."""
    indices, rows, bias = batch
    table = np.zeros((HEIGHT, WIDTH), rows.dtype)
    for index, row in zip(indices, rows, strict=True):
        if 0 <= index < HEIGHT:
            table[index] += row
    return {"head": {"bias": bias}, "table": table}
