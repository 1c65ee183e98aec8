"""Trees that must fit each other; an error names the path of the first leaf that does not."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.row_gradient import is_rows
from optchain.core.trees.dtypes import astype, dtype_of, is_complex, wide_dtype
from optchain.core.trees.paths import Path, Tree, leaves_with_paths, path_code, path_names, path_string


def check_leaves(root: str, tree: Tree) -> None:
    """Refuses leaves that cannot be trained: not arrays, or neither real nor complex floating point."""
    for path, leaf in leaves_with_paths(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and isinstance(leaf, float | complex):
            continue
        if dtype is None and not isinstance(leaf, int):
            raise TypeError(
                f"{path_code(root, path)} is {_describe(leaf)}; parameters must be floating-point or complex arrays. "
                "Take other leaves out of the tree, or put None or optax.MaskedNode() in their place."
            )
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{path_code(root, path)} has dtype {dtype or type(leaf).__name__}; parameters must be floating-point or "
                "complex arrays. Take integer leaves out of the tree, or put None or optax.MaskedNode() in their place."
            )


def check_arrays(root: str, tree: Tree) -> None:
    """Refuses shapes in the place of arrays."""
    for path, leaf in leaves_with_paths(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{path_code(root, path)} is a jax.ShapeDtypeStruct, and init makes arrays out of arrays: "
                f"jax.eval_shape(tx.init, {root}) gives the shapes of the state"
            )


def check_match(root: str, tree: Tree, reference_root: str, reference: Tree, *, per_example: bool = False) -> None:
    """Requires `tree` to have the structure and the shapes of `reference`; the error names the first leaf that differs.

    With `per_example` the leaves of `tree` have a leading axis besides, of the same length in all.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_rows)
    reference_leaves, reference_treedef = jax.tree.flatten(reference, is_leaf=is_rows)
    if treedef != reference_treedef:
        _raise_structure(root, tree, reference_root, reference)
    examples = shape_of(leaves[0])[:1] if per_example and leaves else ()
    for index, (leaf, expected) in enumerate(zip(leaves, reference_leaves, strict=True)):
        shape, wanted = shape_of(leaf), shape_of(expected)
        if shape != (*examples, *wanted):
            path = leaves_with_paths(tree)[index][0]
            each = (
                f", and the gradients an axis of {examples[0] if examples else 'the'} examples before"
                if per_example
                else ""
            )
            raise ValueError(f"{path_code(root, path)}: shape {shape}, {reference_root} have {wanted}{each}")


def check_real(root: str, tree: Tree, reference: Tree) -> None:
    """Requires the leaves of `tree` to be real where those of `reference`, of the same structure, are."""
    for (path, leaf), (_, expected) in zip(leaves_with_paths(tree), leaves_with_paths(reference), strict=True):
        if is_complex(leaf) and not is_complex(expected):
            raise TypeError(
                f"{path_code(root, path)} is complex ({dtype_of(leaf)}), its parameter is real ({dtype_of(expected)})"
            )


def of_one_example(updates: Tree) -> Tree:
    """The shapes of the updates without their leading axis."""
    return jax.tree.map(lambda g: jax.ShapeDtypeStruct(shape_of(g)[1:], dtype_of(g)), updates, is_leaf=is_rows)


def with_update(root: str, updates: Tree, params: Tree, state: Any) -> Tree:
    """The parameters, with None in the place of those whose update is None: they are not trained, and may be anything.

    So a whole Equinox module may be given with the gradients of its arrays. Where all leaves could be trained, or the state
    keeps something for one, its update is missing.
    """
    if jax.tree.structure(updates, is_leaf=is_rows) == jax.tree.structure(params):
        return params
    try:
        kept = jax.tree.map(lambda u, p: None if u is None else p, updates, params, is_leaf=_is_none_or_rows)
    except (ValueError, TypeError, KeyError):
        return params  # the trees differ in more than that, and the check says in what
    if not jax.tree.leaves(kept):
        return params
    left = {path for path, _ in leaves_with_paths(kept)}
    if trainable(params) is params:
        return params  # no module with other leaves: the check says which update is missing
    dropped = {path_names(path): (path, leaf) for path, leaf in leaves_with_paths(params) if path not in left}
    for state_path, entry in leaves_with_paths(state):
        names = path_names(state_path)
        for start in range(len(names)):
            path, leaf = dropped.get(names[start:], ((), None))
            if leaf is not None and jnp.shape(entry) == getattr(leaf, "shape", None):
                raise ValueError(f"{path_code(root, path)} is missing, params have {_describe(leaf)} there")
    return kept


def map_like(function: Callable[[Tree], Tree], extra: Mapping[str, Any], reference: Tree) -> dict[str, Any]:
    """A call's extra arguments, with `function` of each that is a tree of the reference's structure and shapes.

    Such as a diagonal of the Hessian. What is like single numbers may be anything, and stays as it is.
    """
    leaves, treedef = jax.tree.flatten(reference, is_leaf=is_rows)
    shapes = [shape_of(leaf) for leaf in leaves]

    def is_like(value: Any) -> bool:
        values, structure = jax.tree.flatten(value, is_leaf=is_rows)
        return structure == treedef and any(shapes) and shapes == [shape_of(leaf) for leaf in values]

    return {name: function(value) if is_like(value) else value for name, value in extra.items()}


def trainable(params: Tree) -> Tree:
    """The parameters, with None in the place of what can be trained by nobody, as in a whole module: see :func:`filled`."""

    def is_number(leaf: Any) -> bool:
        return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)

    if all(map(is_number, jax.tree.leaves(params))):
        return params
    return jax.tree.map(lambda leaf: leaf if is_number(leaf) else None, params)


def filled(new: Tree, params: Tree) -> Tree:
    """The new parameters, with the old ones where :func:`with_update` or :func:`trainable` put None."""
    return jax.tree.map(lambda n, p: p if n is None else n, new, params, is_leaf=lambda x: x is None)


def _is_none_or_rows(x: Any) -> bool:
    return x is None or is_rows(x)


def check_axes(owner: str, path: Path, leaf: Any, axes: tuple[int, ...]) -> None:
    """Requires a leaf to have the axes over which a link reduces it."""
    for axis in axes:
        if not -jnp.ndim(leaf) <= axis < jnp.ndim(leaf):
            raise ValueError(
                f"{owner}: {path_string(path) or 'the array'} of shape {jnp.shape(leaf)} has no axis {axis}: leave it out by a mask"
            )
    if len({axis % jnp.ndim(leaf) for axis in axes}) < len(axes):
        raise ValueError(
            f"{owner}: {path_string(path) or 'the array'} of shape {jnp.shape(leaf)} has one axis twice among {axes}"
        )


def _raise_structure(root: str, tree: Tree, reference_root: str, reference: Tree) -> None:
    ours, theirs = dict(leaves_with_paths(tree)), dict(leaves_with_paths(reference))
    for path in theirs:
        if path not in ours:
            raise ValueError(
                f"{path_code(root, path)} is missing, {reference_root} have {_describe(theirs[path])} there"
            )
    for path in ours:
        if path not in theirs:
            raise ValueError(
                f"{path_code(root, path)} has no counterpart: {reference_root} have no leaf there "
                f"({root} have {_describe(ours[path])})"
            )
    raise ValueError(
        f"{root} and {reference_root} have the same paths in different containers: "
        f"{jax.tree.structure(tree)} and {jax.tree.structure(reference)}"
    )


def shape_of(leaf: Any) -> tuple[int, ...]:
    return leaf.shape if is_rows(leaf) else jnp.shape(leaf)


def _describe(leaf: Any) -> str:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"an array of shape {tuple(leaf.shape)}"
    return f"{leaf!r} ({type(leaf).__name__})"


def align(root: str, updates: Tree, params: Tree) -> Tree:
    """The updates as they came, but for those whose wide dtype is not their parameter's: these are cast to it."""

    def cast_one(path: Path, g: Any, p: Any) -> Any:
        dtype, wanted = dtype_of(g), wide_dtype(dtype_of(p))
        if is_rows(g):
            return g.with_rows(cast_one(path, g.rows, p))
        if wide_dtype(dtype) == wanted:
            return g
        if is_complex(g) and not is_complex(p):
            raise TypeError(f"{path_code(root, path)} is complex ({dtype}), its parameter is real ({dtype_of(p)})")
        return astype(g, wanted)

    return jax.tree_util.tree_map_with_path(cast_one, updates, params, is_leaf=is_rows)
