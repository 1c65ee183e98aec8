"""The parameters that the contenders train: shapes like those of models, as shape structs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optchain.cli.bench.names import TreeName
from optchain.core.trees import Tree


def transformer(layers: int = 12, width: int = 384, dtype: Any = jnp.float32) -> Tree:
    """Nine leaves a layer: attention and the two halves of the MLP as matrices, three vectors."""
    square, vector = (width, width), (width,)
    shapes = {"query": square, "key": square, "value": square, "out": square, "scale": vector}
    shapes |= {"up": (width, 4 * width), "up_bias": (4 * width,), "down": (4 * width, width), "down_bias": vector}
    layer = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    return {f"layer_{i:02}": dict(layer) for i in range(layers)}


def vectors(leaves: int, size: int) -> Tree:
    return {f"leaf_{i:04}": jax.ShapeDtypeStruct((size,), jnp.float32) for i in range(leaves)}


TREES: dict[TreeName, tuple[str, Callable[[], Tree]]] = {
    TreeName.TRANSFORMER: ("a 12-layer transformer, 108 leaves", transformer),
    TreeName.LEAF: ("one leaf of 16 M", lambda: vectors(1, 2**24)),
    TreeName.MANY: ("1,000 leaves of 2,000", lambda: vectors(1000, 2000)),
    TreeName.BFLOAT16: ("the transformer in bfloat16", lambda: transformer(dtype=jnp.bfloat16)),
}


def size(tree: Tree) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def itemsize(tree: Tree) -> int:
    """The bytes of a value of the tree's largest leaf."""
    return max(jax.tree.leaves(tree), key=lambda leaf: leaf.size).dtype.itemsize


def filled(tree: Tree, seed: int, scale: float) -> Tree:
    """Arrays of these shapes, of normal values of this size."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    @jax.jit
    def fill(keys: jax.Array) -> list[jax.Array]:
        return [scale * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]

    if len({(leaf.shape, leaf.dtype) for leaf in leaves}) == 1:  # one program for a thousand equal leaves
        rows = scale * jax.random.normal(keys[0], (len(leaves), *leaves[0].shape), leaves[0].dtype)
        return treedef.unflatten([jnp.array(row, copy=True) for row in rows])
    return treedef.unflatten(fill(keys))
