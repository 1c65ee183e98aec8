"""Trees: paths, checks, arithmetic that keeps dtypes, norms and safe roots.

Everything that walks a pytree lives here, so that a transformation file shows its rule and little else.

Two rules hold throughout:

- *Narrow leaves* (bfloat16, float16, float8) are widened to float32 for arithmetic; :func:`wide` is the one place
  that does it. It is a no-op on everything else.
- Scalars meet leaves through :func:`cast`, so that `jax_numpy_dtype_promotion="strict"` holds and a float64 rate never
  widens a float32 leaf.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from optchain.core import devices
from optchain.core.arguments import is_traced
from optchain.core.factors import Factor, LeafFactor, power_of_two
from optchain.core.rows import densified, is_rows, values

Tree: TypeAlias = Any
"""A pytree of arrays with the structure of the parameters; among gradients a `RowGradient` is a leaf too."""
Path: TypeAlias = tuple[Any, ...]


# Paths ---------------------------------------------------------------------------------------------------------------


def path_names(path: Path) -> tuple[str, ...]:
    """The keys of a path as plain strings, without the `value` that a Flax `nnx.Variable` appends.

    `nnx.Optimizer` calls `init` with variables and `update` with bare arrays; dropping it makes both agree.
    """
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def path_string(path: Path) -> str:
    """A path as one string, `layers/0/bias`: what the patterns of `matching` are searched in."""
    return "/".join(path_names(path))


def path_code(root: str, path: Path) -> str:
    """A path as the code that reaches it, `grads["dense"]["bias"]`: what error messages show."""
    parts = [root]
    for key in path:
        match key:
            case DictKey(key=name) | FlattenedIndexKey(key=name):
                parts.append(f"[{json.dumps(name) if isinstance(name, str) else repr(name)}]")
            case SequenceKey(idx=index):
                parts.append(f"[{index}]")
            case GetAttrKey(name=name):
                parts.append(f".{name}")
            case _:
                parts.append(str(key))
    return "".join(parts)


def leaves_with_paths(tree: Tree) -> list[tuple[Path, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_rows)[0]


# Checks --------------------------------------------------------------------------------------------------------------


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
    if all(jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact) for leaf in jax.tree.leaves(params)):
        return params  # no module with other leaves: the check says which update is missing
    dropped = {path_names(path): (path, leaf) for path, leaf in leaves_with_paths(params) if path not in left}
    for state_path, entry in leaves_with_paths(state):
        names = path_names(state_path)
        for start in range(len(names)):
            path, leaf = dropped.get(names[start:], ((), None))
            if leaf is not None and jnp.shape(entry) == getattr(leaf, "shape", None):
                raise ValueError(f"{path_code(root, path)} is missing, params have {_describe(leaf)} there")
    return kept


def filled(new: Tree, params: Tree) -> Tree:
    """The new parameters, with the old ones where :func:`with_update` put None."""
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


# Dtypes --------------------------------------------------------------------------------------------------------------


def default_float() -> jnp.dtype:
    """JAX's default float: float64 when x64 is enabled, else float32. Scalars in a state have this dtype."""
    return jax.dtypes.canonicalize_dtype(float)


def is_complex(x: Any) -> bool:
    return jnp.issubdtype(dtype_of(x), jnp.complexfloating)


def dtype_of(x: Any) -> jnp.dtype:
    return x.dtype if isinstance(x, jax.Array) else jax.dtypes.canonicalize_dtype(getattr(x, "dtype", type(x)))


def wide_dtype(dtype: Any) -> jnp.dtype:
    """float32 for floating-point dtypes narrower than it, every other dtype unchanged."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype


def real_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of `|x|`: float32 for complex64, float64 for complex128, every other dtype unchanged."""
    return jnp.finfo(dtype).dtype


def wide(x: Any) -> Any:
    """The leaf in the dtype in which arithmetic is done (see :func:`wide_dtype`)."""
    if is_rows(x):
        return x.with_rows(wide(x.rows))
    return astype(x, wide_dtype(dtype_of(x)))


def astype(x: Any, dtype: Any) -> jax.Array:
    """`x` in `dtype`, strongly typed; no operation is traced when it is so already."""
    if isinstance(x, jax.Array) and x.dtype == dtype and not x.weak_type:
        return x
    return lax.convert_element_type(x, dtype)


def cast(scalar: Any, like: jax.Array | jax.ShapeDtypeStruct) -> Any:
    """A scalar ready to meet the leaf `like`: Python numbers as they are (they are weakly typed), arrays in its dtype."""
    return scalar if isinstance(scalar, int | float) else astype(scalar, like.dtype)


def cast_tree(tree: Tree, like: Tree, convert: Callable[[Any], Any] = lambda dtype: dtype) -> Tree:
    """Casts each leaf of `tree` to `convert(dtype of the leaf of like)`."""
    return jax.tree.map(lambda x, y: astype(x, convert(dtype_of(y))), tree, like)


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


def increment(count: jax.Array) -> jax.Array:
    """A counter plus one, which stays at its largest value instead of wrapping round."""
    return astype(optax.safe_increment(count), count.dtype)


# Construction and mapping --------------------------------------------------------------------------------------------


def zeros_like(params: Tree, dtype: Any = None, *, real: bool = False) -> Tree:
    """A tree of zeros of the parameters' shapes, in `dtype`, or else in their dtype made wide; they lie where these lie.

    A complex leaf keeps its dtype, since a real `dtype` would lose its phase; with `real=True` it gets the real one.
    """

    def zeros(p: Any) -> jax.Array:
        own = real_dtype(dtype_of(p)) if real else dtype_of(p)
        use = wide_dtype(own) if dtype is None or jnp.issubdtype(own, jnp.complexfloating) else dtype
        return jnp.zeros_like(p, use)

    return jax.tree.map(zeros, params)


def zeros_without(p: Any, axis: int, dtype: Any) -> jax.Array:
    """Zeros of a leaf's shape without one of its axes. On a mesh of explicit axes they have the type of a sum over that axis."""
    kind = jax.eval_shape(functools.partial(jnp.sum, axis=axis), p)
    sharding = kind.sharding
    if sharding is not None and not is_traced(p):  # its mesh is abstract; outside of `jit` the devices must be known
        sharding = NamedSharding(p.sharding.mesh, sharding.spec)
    return lax.full(kind.shape, 0, dtype, sharding=sharding)


def copy(params: Tree, dtype: Any = None) -> Tree:
    """A tree of fresh buffers with the parameters' values, in `dtype`, or else in their dtype made wide."""

    def fresh(p: Any) -> jax.Array:
        own = dtype_of(p)
        use = wide_dtype(own) if dtype is None or jnp.issubdtype(own, jnp.complexfloating) else dtype
        return jnp.array(p, use, copy=True)

    return jax.tree.map(fresh, params)


def map_unzip(function: Callable[..., tuple[Any, ...]], outputs: int, *trees: Tree) -> tuple[Tree, ...]:
    """`jax.tree.map` for a function of leaves that returns `outputs` leaves: returns as many trees."""
    leaves, treedef = jax.tree.flatten(trees[0])
    columns = [leaves, *(treedef.flatten_up_to(tree) for tree in trees[1:])]
    rows = [function(*row) for row in zip(*columns, strict=True)]
    return tuple(treedef.unflatten([row[i] for row in rows]) for i in range(outputs))


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
    """Every leaf, made wide, times a scalar or a `Factor` of its own."""

    def scale_one(x: Any, factor: Any) -> Any:
        return scale_leaf(x, _as_factor(factor) * updates.factor if isinstance(updates, Scaled) else factor)

    return jax.tree.map(scale_one, unscaled(updates), factors, is_leaf=is_rows)


def scale_leaf(x: Any, factor: Any) -> Any:
    """The leaf, made wide, times a scalar or a `Factor`."""
    x = wide(x)
    if is_rows(x):
        return x.with_rows(scale_leaf(x.rows, factor))
    if isinstance(factor, Factor):
        return _times(factor, x)
    return factor.times(x) if isinstance(factor, LeafFactor) else x * cast(factor, x)


_times = jax.jit(Factor.times)
"""Traced once for all leaves of a shape."""


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


def add(params: Tree, updates: Tree) -> Tree:
    """`params + updates`, added wide and rounded once to the parameters' dtypes."""
    return jax.tree.map(lambda p, u: astype(wide(p) + astype(u, wide(p).dtype), dtype_of(p)), params, updates)


def updates_to(new: Tree, applied: Tree, params: Tree, updates: Tree) -> Tree:
    """The updates, wide, that take `params` to `new`, which was made of `applied`, the parameters plus some updates.

    A leaf that is the same object in both was left alone: its update is what it was, to the bit and without a pass.
    """

    def update_to(n: Any, a: Any, p: Any, u: Any) -> Any:
        return u if n is a else wide(n) - wide(p)

    return jax.tree.map(update_to, new, applied, params, updates)


# Norms ---------------------------------------------------------------------------------------------------------------


def root(x: jax.Array) -> jax.Array:
    """`sqrt(x)` for `x >= 0`, whose gradient is 0, not NaN, where `x` is 0."""
    # The maximum has no gradient where it is the constant, and the sign has none: 0 · finite. NaN and inf come through.
    tiny = lax.full_like(x, jnp.finfo(x.dtype).tiny)
    return lax.sqrt(lax.max(x, tiny)) * lax.sign(x)


def abs_square(x: jax.Array) -> jax.Array:
    """`|x|²`, real for complex leaves."""
    return jnp.square(x.real) + jnp.square(x.imag) if is_complex(x) else jnp.square(x)


def sum_of_squares(x: Any, axes: tuple[int, ...] | None = None, scale: jax.Array | None = None) -> jax.Array:
    """`Σ|x|²` of one leaf, or of `scale · x`, accumulated wide; over some axes, which then have length 1.

    It overflows from 1.8e19 on and underflows, which a norm does not.
    """
    x = wide(_apart(x))
    if scale is not None:
        x = x * cast(scale, x)
    return jnp.sum(abs_square(x), axis=axes, keepdims=axes is not None)


def _with_scale_of_its_own(x: Any, axes: tuple[int, ...] | None, scale: jax.Array) -> jax.Array:
    """`sum_of_squares`, where the scale is that of all leaves: XLA's CPU backend would write it out in the leaf's shape."""
    x, scale = lax.optimization_barrier((x, scale))
    return sum_of_squares(x, axes, scale)


def mean(x: Any, axes: tuple[int, ...]) -> jax.Array:
    """The mean of one leaf over some axes, which then have length 1, accumulated wide."""
    return jnp.mean(wide(_apart(x)), axis=axes, keepdims=True)


def _apart(x: Any) -> Any:
    """The operand of a norm or a mean, kept apart from the update's where it is narrow.

    Without the barrier XLA's CPU backend shares the widened copy of a narrow leaf between the reduction and the rule that
    follows, and writes it out: 4 bytes per parameter of temporary memory.
    """
    return lax.optimization_barrier(x) if wide_dtype(dtype_of(x)) != dtype_of(x) else x


def norm(x: Any) -> jax.Array:
    """The Euclidean norm of one leaf."""
    return norms(x).value


def norms(updates: Tree | Scaled, axes: Tree | None = None) -> Tree:
    """The Euclidean norm of each leaf as a `Factor`; or, given a tuple of axes for each leaf, its norms over these."""
    leaves, treedef = jax.tree.flatten(values(unscaled(updates)))
    axes_of = [None] * len(leaves) if axes is None else treedef.flatten_up_to(axes)
    first = [sum_of_squares(x, along) for x, along in zip(leaves, axes_of, strict=True)]
    # What devices differ in inside shard_map may decide for nothing that is the same on all.
    groups: dict[Any, list[int]] = {}
    for place, square in enumerate(first):
        groups.setdefault((devices.varies_over(square), square.dtype), []).append(place)
    found: list[Any] = [None] * len(leaves)
    for places in groups.values():
        parts = _norms([leaves[i] for i in places], [axes_of[i] for i in places], [first[i] for i in places])
        for i, factor in zip(places, parts, strict=True):
            found[i] = factor * abs(updates.factor) if isinstance(updates, Scaled) else factor
    return treedef.unflatten(found)


def _norms(leaves: list[Any], axes: list[Any], squares: list[jax.Array]) -> list[Factor]:
    sizes = [jnp.size(x) for x in leaves]

    def beside(power: jax.Array) -> list[jax.Array]:
        scale = power_of_two(power, squares[0].dtype)
        return [sum_of_squares(x, along, scale) for x, along in zip(leaves, axes, strict=True)]

    if axes[0] is None:

        def every(powers: list[jax.Array]) -> list[jax.Array]:
            scales = power_of_two(jnp.stack(powers), squares[0].dtype)
            return [sum_of_squares(x, scale=scales[i]) for i, x in enumerate(leaves)]

        return _roots(squares, every, beside, sizes)

    def again(powers: list[jax.Array]) -> list[jax.Array]:
        # Twice, each time with one power for all: a power for each norm would be written out in the leaf's shape.
        dtype = squares[0].dtype
        up, down = (power_of_two(jnp.int32(power), dtype) for power in _powers_of_rescue(dtype))
        return [
            jnp.where(
                power == 0,
                square,
                jnp.where(power > 0, _with_scale_of_its_own(x, along, up), _with_scale_of_its_own(x, along, down)),
            )
            for x, along, square, power in zip(leaves, axes, squares, powers, strict=True)
        ]

    return _roots(squares, again, beside, sizes)


def global_norm(updates: Tree | Scaled, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """The Euclidean norm of all leaves together, and over the devices of an axis, in JAX's default float."""
    return joint_norm(updates, axis_name).value


def joint_norm(updates: Tree | Scaled, axis_name: str | tuple[str, ...] | None = None) -> Factor:
    """The global norm as a `Factor`, which is finite where the leaves are."""
    norm = norm_of(jax.tree.leaves(values(unscaled(updates))), axis_name=axis_name)
    return norm * abs(updates.factor) if isinstance(updates, Scaled) else norm


def norm_of(
    leaves: list[Any], squares: list[jax.Array] | None = None, *, axis_name: str | tuple[str, ...] | None = None
) -> Factor:
    """The Euclidean norm of some leaves together, whose sums of squares may be known already."""
    squares = [sum_of_squares(x) for x in leaves] if squares is None else squares
    groups: dict[Any, list[int]] = {}  # by dtype: float32 and float64 have other bounds
    for place, square in enumerate(squares):
        groups.setdefault(square.dtype, []).append(place)

    def summed(squares: list[jax.Array]) -> jax.Array:
        squares = [astype(square, default_float()) for square in squares]
        return devices.sum_over(squares, axis_name) if axis_name else total(squares)

    norm: Factor | None = None
    for dtype, places in groups.items():

        def again(powers: list[jax.Array], places: list[int] = places, dtype: Any = dtype) -> list[jax.Array]:
            scale = power_of_two(powers[0], dtype)
            return [summed([_with_scale_of_its_own(leaves[i], None, scale) for i in places])]

        def beside(power: jax.Array, places: list[int] = places, dtype: Any = dtype) -> list[jax.Array]:
            scale = power_of_two(power, dtype)
            return [summed([sum_of_squares(leaves[i], scale=scale) for i in places])]

        size = sum(jnp.size(leaves[i]) for i in places)
        (part,) = _roots([summed([squares[i] for i in places])], again, beside, [size], dtype)
        norm = part if norm is None else _hypotenuse(norm, part)
    return Factor.of(jnp.zeros((), default_float())) if norm is None else norm


RARELY = "norm_of_extremes"
"""The scope of the branch in which a norm is taken again, for who reads a compiled program."""


def _roots(
    squares: list[jax.Array],
    again: Callable[[list[jax.Array]], list[jax.Array]],
    beside: Callable[[jax.Array], list[jax.Array]],
    sizes: list[Any],
    dtype: Any = None,
) -> list[Factor]:
    """The roots of sums of squares; `again` gives the sums of the same numbers times powers of two, `beside` times one of two.

    It is called in a branch, taken when a sum is infinite or so small that squares may have been lost, as in a leaf of
    zeros: else the numbers are read once. With powers that depend on that alone no maximum is needed: whatever float32
    holds, its squares are in range after one of the two.

    A TPU's compiler keeps a gradient in vector memory from its norm to its update, but not across a branch: there the three sums
    are taken in one pass.
    """

    @jax.jit  # traced once for all leaves
    def power(square: jax.Array, lost: jax.Array) -> jax.Array:
        up, down = _powers_of_rescue(dtype or square.dtype)
        up = jnp.where(square < lost, up, 0)
        return astype(jnp.where(jnp.isinf(square), down, up), jnp.int32)

    @jax.jit
    def rooted(square: jax.Array, power: jax.Array) -> Factor:
        return Factor.of(root(square), -power)

    def powers_of(squares: list[jax.Array]) -> list[jax.Array]:
        info = jnp.finfo(dtype or squares[0].dtype)
        # Relative to this, what was flushed is a rounding.
        lost = [np.maximum(size, 1) * 2.0 ** (info.minexp + info.nmant + 1) for size in sizes]
        return [power(square, jnp.asarray(least, square.dtype)) for square, least in zip(squares, lost, strict=True)]

    powers = powers_of(squares)
    needed = functools.reduce(jnp.logical_or, (jnp.any(power != 0) for power in powers))

    def in_a_branch(squares: list[jax.Array]) -> list[jax.Array]:
        with jax.named_scope(RARELY):
            # In the branch the powers are computed again: handed in, each would be kept in memory.
            return lax.cond(needed, lambda squares: again(powers_of(squares)), lambda squares: squares, squares)

    def in_one_pass(squares: list[jax.Array]) -> list[jax.Array]:
        up, down = (beside(jnp.asarray(power, jnp.int32)) for power in _powers_of_rescue(dtype or squares[0].dtype))
        return [
            jnp.where(power == 0, square, jnp.where(power > 0, larger, smaller))
            for power, square, larger, smaller in zip(powers, squares, up, down, strict=True)
        ]

    squares = lax.platform_dependent(squares, tpu=in_one_pass, default=in_a_branch)
    return [rooted(square, power) for square, power in zip(squares, powers, strict=True)]


def _powers_of_rescue(dtype: Any) -> tuple[int, int]:
    """What numbers are multiplied by whose squares were lost, and by whose squares overflowed."""
    largest = jnp.finfo(dtype).maxexp
    return 5 * largest // 8, -3 * largest // 4


def _hypotenuse(a: Factor, b: Factor) -> Factor:
    largest = a.at_least(b).at_least(Factor.of(jnp.full_like(a.significand, jnp.finfo(a.significand.dtype).tiny)))
    return largest * Factor.of(root(jnp.square((a / largest).value) + jnp.square((b / largest).value)))


def total(values: Iterable[jax.Array]) -> jax.Array:
    """The sum of scalars, in JAX's default float; 0 if there are none."""
    return functools.reduce(jnp.add, (astype(v, default_float()) for v in values), jnp.zeros((), default_float()))


def all_usable(
    updates: Tree | Scaled,
    axis_name: str | tuple[str, ...] | None = None,
    *,
    unscaled_by: Factor | None = None,
    values_fit: float = np.inf,
    squares_fit: float = np.inf,
) -> jax.Array:
    """Whether every value is finite and, times `unscaled_by`, has a finite square; on all devices of an axis too.

    A value above 1.8e19 is finite in float32, but a second moment that has met it is infinite from then on. The largest
    magnitude decides: a single reduction of each leaf. `values_fit` and `squares_fit` are the largest numbers of the dtypes
    in which values and squares are stored, where these are narrower.
    """
    largest: dict[
        tuple[Any, bool], jax.Array
    ] = {}  # of all leaves together, since tracing and compiling a `Factor` takes its time
    for x in jax.tree.leaves(values(unscaled(updates))):
        for part in (x.real, x.imag) if is_complex(x) else (x,):
            magnitude = wide(jnp.max(jnp.abs(part), initial=0))
            kind = magnitude.dtype, is_complex(x)
            largest[kind] = (
                jnp.maximum(largest[kind], magnitude) if kind in largest else magnitude
            )  # NaN is the largest
    usable = jnp.bool_(True)
    for (dtype, of_complex), magnitude in largest.items():
        given = Factor.of(magnitude) * updates.factor if isinstance(updates, Scaled) else Factor.of(magnitude)
        met = given if unscaled_by is None else given * unscaled_by
        # Of a complex number |x|² is the sum of two squares.
        square = min(float(jnp.finfo(dtype).max), squares_fit) / (2 if of_complex else 1)
        bound = min(square**0.5, values_fit)
        usable &= jnp.isfinite(given.value) & (met.value < bound)
    return lax.pmin(usable.astype(jnp.int32), axis_name) == 1 if axis_name else usable
