"""Updates times a scalar that is not multiplied in yet, and gradients that name rows, on their way through a chain."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.factors import Factor, Halves, LeafFactor
from optchain.core.row_gradient import densified, is_rows
from optchain.core.trees.dtypes import astype, cast, default_float, real_dtype, wide
from optchain.core.trees.paths import Tree


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A tree times a scalar that has not been multiplied in yet: how links hand on gradients that they only scale.

    XLA's CPU backend writes out a product that both a norm and the update read, 4 bytes per parameter. Here a norm is taken
    of the tree, and then multiplied.
    """

    tree: Tree
    factor: Factor


def scale(updates: Tree | Scaled, factor: Any) -> Tree:
    """Every leaf, made wide, times one scalar; two scalars are multiplied first."""
    if isinstance(updates, Scaled):
        updates = rescale(updates, factor)
        updates, factor = updates.tree, updates.factor
    factor = factor.for_leaves() if isinstance(factor, Factor) else factor
    return jax.tree.map(lambda x: scale_leaf(x, factor), updates, is_leaf=is_rows)


def scale_each(updates: Tree | Scaled, factors: Tree) -> Tree:
    """Every leaf, made wide, times a scalar, a `Factor` or `Halves` of its own; only the first two for a scaled tree."""

    def scale_one(x: Any, factor: Any) -> Any:
        return scale_leaf(x, _as_factor(factor) * updates.factor if isinstance(updates, Scaled) else factor)

    return jax.tree.map(scale_one, unscaled(updates), factors, is_leaf=is_rows)


def scale_leaf(x: Any, factor: Any) -> Any:
    """The leaf, made wide, times a scalar, or one of more range than floats."""
    x = wide(x)
    if isinstance(factor, int | float) and factor == 1:
        return x  # no operation is traced
    if is_rows(x):
        return x.with_rows(scale_leaf(x.rows, factor))
    if isinstance(factor, Factor | Halves):
        return _times(factor, x)
    return factor.times(x) if isinstance(factor, LeafFactor) else x * cast(factor, x)


@jax.jit  # traced once for all leaves of a shape
def _times(factor: Factor | Halves, x: jax.Array) -> jax.Array:
    return factor.times(x)


def decay_rows(x: jax.Array, beta: Any, steps: jax.Array) -> jax.Array:
    """Each row, made wide, times a power of its own of a number."""
    x = wide(x)
    real = real_dtype(x.dtype)
    powers = jnp.asarray(beta, real) ** astype(steps, real)
    return x * astype(powers, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def rescale(updates: Tree | Scaled, factor: jax.Array | Factor) -> Scaled:
    """The updates times one more scalar, not multiplied in yet."""
    factor = _as_factor(factor)
    if isinstance(updates, Scaled):
        return Scaled(updates.tree, updates.factor * factor)
    return Scaled(updates, factor)


def _as_factor(scalar: Any) -> Factor:
    return scalar if isinstance(scalar, Factor) else Factor.of(jnp.asarray(scalar, default_float()))


def unscaled(updates: Tree | Scaled) -> Tree:
    """The tree without the factor: all that structure and shapes are read from."""
    return updates.tree if isinstance(updates, Scaled) else updates


def merged(updates: Tree) -> Tree:
    """The updates with every `RowGradient` made wide and merged, so that duplicates are added up wide."""
    return jax.tree.map(lambda x: wide(x).merge() if is_rows(x) else x, updates, is_leaf=is_rows)


def dense(updates: Tree | Scaled) -> Tree | Scaled:
    """The updates with an array in place of each `RowGradient`."""
    return (
        dataclasses.replace(updates, tree=densified(updates.tree))
        if isinstance(updates, Scaled)
        else densified(updates)
    )


def multiplied(updates: Tree | Scaled) -> Tree:
    """The updates as a tree, with the factor multiplied in."""
    return scale(updates.tree, updates.factor) if isinstance(updates, Scaled) else updates


def force(updates: Tree | Scaled) -> Tree:
    """The updates as a tree of arrays."""
    return multiplied(dense(updates))


def zeros_unless(condition: jax.Array, updates: Tree | Scaled) -> Tree | Scaled:
    """The updates where the condition holds, else zeros, whatever they are."""
    if isinstance(updates, Scaled):
        factor = updates.factor.where(condition, Factor.of(jnp.ones((), default_float())))
        return Scaled(zeros_unless(condition, updates.tree), factor)

    def select(x: Any) -> Any:
        return x.with_rows(select(x.rows)) if is_rows(x) else jnp.where(condition, x, jnp.zeros_like(x))

    return jax.tree.map(select, updates, is_leaf=is_rows)


def widened(updates: Tree | Scaled) -> Tree:
    """The updates as a tree in the dtypes of :func:`wide`, in which links that contain links hand them on."""
    return jax.tree.map(wide, force(updates))
