"""Trees like the parameters, and what is added to them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from optchain.core.arguments import is_traced
from optchain.core.trees.dtypes import astype, dtype_of, real_dtype, wide, wide_dtype
from optchain.core.trees.paths import Tree


def zeros_like(params: Tree, dtype: Any = None, *, real: bool = False) -> Tree:
    """A tree of zeros of the parameters' shapes, in `dtype`, or else in their dtype made wide; they lie where these lie.

    A complex leaf keeps its dtype, since a real `dtype` would lose its phase; with `real=True` it gets the real one.
    """

    def zeros(p: Any) -> jax.Array:
        own = real_dtype(dtype_of(p)) if real else dtype_of(p)
        use = wide_dtype(own) if dtype is None or jnp.issubdtype(own, jnp.complexfloating) else dtype
        return jnp.zeros_like(p, use)

    return jax.tree.map(zeros, params)


def zeros_without(p: Any, axis: int | tuple[int, ...], dtype: Any, *, keepdims: bool = False) -> jax.Array:
    """Zeros of a leaf's shape without some of its axes. On a mesh of explicit axes they have the type of a sum over them."""
    kind = jax.eval_shape(functools.partial(jnp.sum, axis=axis, keepdims=keepdims), p)
    sharding = kind.sharding
    if sharding is not None and not is_traced(p):  # its mesh is abstract; outside of `jit` the devices must be known
        own = getattr(p, "sharding", None)
        sharding = NamedSharding(own.mesh, sharding.spec) if isinstance(own, NamedSharding) else None
    return lax.full(kind.shape, 0, dtype, sharding=sharding)


def copy(params: Tree, dtype: Any = None) -> Tree:
    """A tree of fresh buffers with the parameters' values, in `dtype`, or else in their dtype made wide."""

    def fresh(p: Any) -> jax.Array:
        own = dtype_of(p)
        use = wide_dtype(own) if dtype is None or jnp.issubdtype(own, jnp.complexfloating) else dtype
        return jnp.array(p, use, copy=True)

    return jax.tree.map(fresh, params)


def as_arrays(tree: Tree) -> Tree:
    """The tree with arrays in place of Python's numbers."""
    if not any(isinstance(leaf, bool | int | float | complex) for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda x: jnp.array(x, dtype_of(x)) if isinstance(x, bool | int | float | complex) else x, tree)


def with_own_buffers(tree: Tree, *others: Tree) -> Tree:
    """The tree with a copy of each array that others have too, or that it has twice: no buffer can be donated twice.

    Traced values have no buffers yet, and the program that is traced makes one for each.
    """
    leaves, treedef = jax.tree.flatten(tree)
    seen = set(map(id, jax.tree.leaves(others)))
    own = list[Any]()
    for leaf in leaves:
        is_shared = id(leaf) in seen and isinstance(leaf, jax.Array) and not is_traced(leaf)
        own.append(jnp.array(leaf, copy=True) if is_shared else leaf)
        seen.add(id(leaf))
    is_changed = any(x is not y for x, y in zip(own, leaves, strict=True))
    return treedef.unflatten(own) if is_changed else tree  # which else keeps the order of its dicts


def map_unzip(function: Callable[..., tuple[Any, ...]], outputs: int, *trees: Tree) -> tuple[Tree, ...]:
    """`jax.tree.map` for a function of leaves that returns `outputs` leaves: returns as many trees."""
    leaves, treedef = jax.tree.flatten(trees[0])
    columns = [leaves, *(treedef.flatten_up_to(tree) for tree in trees[1:])]
    rows = [function(*row) for row in zip(*columns, strict=True)]
    return tuple(treedef.unflatten([row[i] for row in rows]) for i in range(outputs))


def add(params: Tree, updates: Tree) -> Tree:
    """`params + updates`, added wide and rounded once to the parameters' dtypes."""
    return jax.tree.map(lambda p, u: astype(wide(p) + astype(u, wide(p).dtype), dtype_of(p)), params, updates)


def difference(new: Tree, old: Tree) -> Tree:
    """`new − old`, wide."""
    return jax.tree.map(lambda n, o: wide(n) - wide(o), new, old)


def updates_to(new: Tree, applied: Tree, params: Tree, updates: Tree) -> Tree:
    """The updates, wide, that take `params` to `new`, which was made of `applied`, the parameters plus some updates.

    A leaf that is the same object in both was left alone: its update is what it was, to the bit and without a pass.
    """

    def update_to(n: Any, a: Any, p: Any, u: Any) -> Any:
        return u if n is a else wide(n) - wide(p)

    return jax.tree.map(update_to, new, applied, params, updates)


def agreement(x: jax.Array, y: jax.Array) -> jax.Array:
    """Above 0 where two arrays point the same way, below where they do not, 0 where one is 0; of complex numbers the cosine.

    Their product would say the same, and underflow.
    """
    product = jnp.sign(x) * jnp.conj(jnp.sign(y))
    return product.real if jnp.issubdtype(product.dtype, jnp.complexfloating) else product
