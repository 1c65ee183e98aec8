"""Storage: numbers that are kept in one or two bytes between two steps.

An entry of a state that is stored so is a plain dict, `{"codes": tree, "scales": tree, "draws": number}`: codes have the
parameters' shapes, scales have one for each block of 32 numbers, along one axis. Links never see it: what a link keeps is
loaded before it runs and stored after, as it was stored before. Arithmetic is done in float32.

    int8      blocks of 32, signed            s · sign(c) · min(P₄(y / 128), P₈(y / 64) / 16), y = |c| + 8; 0 for c = 0
    int8      blocks of 32, of parameters     s · c / 127
    uint8     blocks of 32, not negative      s · P₄(y / 256), y = c + 1 >= 8; 0 for c = 0
    bfloat16  no blocks                       the upper half of the float32

s is the largest magnitude of the block: of copies of the parameters in float32, and so told apart, of others in bfloat16, rounded up.
Pₖ(y) is yᵏ made of straight lines:

    Pₖ(2^e · (1 + (j + f) / k)) = 2^(k e + j) · (1 + f) for j = 0, …, k − 1 and 0 <= f < 1

The bits of a float32 divided by k are those of its root then: numbers become codes by shifts. Squares have 32 codes a binade in the four
binades below the scale, where most of them are, 16 in the next four, and 8, 4 and 2. Signed numbers have 16 in the first four, then 4 in
eight, 2 in eight, 1 in seven: with fewer for the small ones, their roundings would make some steps several times too long. Parameters
are spread evenly.

A number between two codes becomes one of them at random, so that an average moves on where a step of it is less than a
rounding: `E[load(store(x))] = x` for int8 and bfloat16, but for what is below the least normal number. Of uint8 it is about the
logarithm that is right on average, so that the root by which a second moment divides is. No number but 0 is stored as 0 in uint8. The
random numbers are a hash of the place in the leaf, of the entry's name and of the number of stores: the same on one device and on many.
"""

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optchain.core import memory, trees
from optchain.core.by_platform import by_platform
from optchain.core.trees import Path, Tree

BLOCK = 32
"""The numbers that share a scale."""
_UNIT = 16
"""What the scale is where numbers become codes. With 1 the reciprocal of the largest scales would be no normal number."""
_SIGNED, _SQUARE = np.dtype(np.int8), np.dtype(np.uint8)
_LINES = {_SIGNED: ((2, 128, 1.0), (3, 64, 2.0**-4)), _SQUARE: ((2, 256, 1.0),)}
"""The curves of codes, `(log₂ k, y, x)`: the k-th power that is x, in units of the scale, at y. The least of them holds."""
_ZERO, _TOP = {_SIGNED: 8, _SQUARE: 1}, {_SIGNED: 128, _SQUARE: 256}
"""The y of the code 0, and that of the scale. Signed zeros are rounded too, and `_rounded` keeps even numbers: so theirs is even."""
_LEAST = 8
"""The least y of both. Squares with codes below it, which are a binade and more apart, make steps three times too long."""
_LEAST_SIGNED = 2.0**-27
"""What the code 1 of int8 stands for, in units of the scale."""
_SMALLEST_SCALE = {_SIGNED: 2.0**-122, _SQUARE: 2.0**-106}
"""So that the reciprocal is a number, and what the smallest code of a square stands for a normal one."""
_SMALLEST_EVEN_SCALE = 2.0**-119
"""So that 127 times the reciprocal is a number, and the 127th part a normal one."""


def block_axis(shape: tuple[int, ...]) -> int | None:
    """The axis along which blocks of a leaf lie, counted from the end; None if 32 divides none.

    It depends on the shape alone, so that a state has the same bits however it is split. Of several axes it is the one that
    can be split over the most devices without a block being cut.
    """

    def pieces(axis: int) -> int:
        blocks = shape[axis] // BLOCK
        return blocks & -blocks

    fitting = [axis for axis in (-2, -1, *range(-3, -len(shape) - 1, -1)) if -axis <= len(shape)]
    fitting = [axis for axis in fitting if shape[axis] and shape[axis] % BLOCK == 0]
    return max(fitting, key=pieces, default=None)


def block_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the scales of a leaf: one for each block; None if it has no blocks."""
    axis = block_axis(shape)
    if axis is None:
        return None
    return tuple(n // BLOCK if i - len(shape) == axis else n for i, n in enumerate(shape))


# One leaf -------------------------------------------------------------------------------------------------------------


def load_leaf(codes: jax.Array, scale: jax.Array | None) -> jax.Array:
    """What a leaf of codes stands for, in float32; a leaf that is stored wide as it is."""
    if scale is None:
        return trees.wide(codes)
    q = _in_blocks(codes.astype(jnp.int32), codes.shape)
    s = jnp.expand_dims(scale.astype(jnp.float32), _within(codes.shape))
    if _is_even(scale):
        return (q.astype(jnp.float32) * (s * np.float32(1 / 127))).reshape(codes.shape)
    x = _power(jnp.abs(q) + _ZERO[codes.dtype], codes.dtype)
    if codes.dtype == _SIGNED:
        x = jnp.where(q < 0, -x, x)
    return (jnp.where(q == 0, 0, x) * s).reshape(codes.shape)


def store_leaf(
    x: jax.Array, codes: jax.Array, scale: jax.Array | None, draw: Callable[[tuple[int, ...]], jax.Array]
) -> tuple[jax.Array, jax.Array | None]:
    """A leaf stored as `codes, scale` were. `draw(shape)` are random bits, as uint32."""
    if scale is None:
        return (round_at_random(x, draw(x.shape)) if codes.dtype == jnp.bfloat16 else x.astype(codes.dtype)), None
    blocks, random = _in_blocks(x, x.shape), _in_blocks(draw(x.shape), x.shape)
    magnitude = _bits(blocks) & np.int32(0x7FFFFFFF)
    largest = _largest(magnitude, _within(x.shape))
    if _is_even(scale):
        q, s = _even(blocks, largest, random)
        return q.astype(codes.dtype).reshape(x.shape), jnp.squeeze(s, _within(x.shape))
    s = _as_float(_scale(largest, _SMALLEST_SCALE[codes.dtype]))
    # From here on the reciprocal alone says what a block's scale is: XLA divides once a block, and computes all else once a number.
    inverse = _UNIT / jnp.where(s > 0, s, 1)
    n = _as_float(magnitude) * inverse
    y = _root(n, codes.dtype)
    if codes.dtype == _SIGNED:
        least = np.float32(_UNIT * _LEAST_SIGNED)
        y = jnp.where(n < least, n / least + _ZERO[_SIGNED], y)
    y = _as_float(jnp.clip(_bits(y), *(np.float32(end).view(np.int32) for end in (_LEAST, _TOP[codes.dtype]))))
    random_part = _uniform(random)
    if codes.dtype == _SQUARE:
        random_part = _of_logarithm(random_part, y)
    q = _rounded(y, random_part) - _ZERO[codes.dtype]
    q = jnp.where(blocks < 0, -q, q) if codes.dtype == _SIGNED else jnp.where(magnitude > 0, q, 0)
    return q.astype(codes.dtype).reshape(x.shape), jnp.squeeze(s, _within(x.shape)).astype(scale.dtype)


def _is_even(scale: jax.Array) -> bool:
    """Whether codes are as far apart for large numbers as for small ones."""
    return scale.dtype == jnp.float32


def _even(blocks: jax.Array, largest: jax.Array, random: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The codes, and the scales, of numbers whose codes are evenly spaced, by the bits of the largest magnitudes."""
    s = _as_float(
        jnp.where(_is_usable(largest), jnp.maximum(largest, np.float32(_SMALLEST_EVEN_SCALE).view(np.int32)), largest)
    )
    inverse = 127 / jnp.where(s > 0, s, 1)
    n = blocks * inverse
    lower = jnp.floor(n)
    q = lower.astype(jnp.int32) + (_uniform(random) < n - lower).astype(jnp.int32)
    return jnp.where(inverse > 0, jnp.clip(q, -127, 127), 1), s


def _uniform(random: jax.Array) -> jax.Array:
    """Random bits as a number in [0, 1), a multiple of 2⁻²³."""
    return _as_float((random >> 9).astype(jnp.int32) | np.float32(1).view(np.int32)) - 1


def _is_usable(largest: jax.Array) -> jax.Array:
    """Whether the bits are those of a finite number above 0."""
    return (largest > 0) & (largest < np.int32(0x7F800000))


def _largest(bits: jax.Array, axis: int) -> jax.Array:
    """The largest of 32 integers over an axis, which then has length 1.

    As integers the bits of numbers that are not negative have their order, NaN above all others; XLA's CPU backend drops NaN from
    a maximum of numbers. And along an axis that is not the last it gathers what it reduces number by number: halves are vectors.
    """

    def over_axis(bits: jax.Array) -> list[jax.Array]:
        return [jnp.max(bits, axis, keepdims=True)]

    def by_halves(bits: jax.Array) -> list[jax.Array]:
        for length in (16, 8):
            bits = jnp.maximum(*(lax.slice_in_dim(bits, i, i + length, axis=axis) for i in (0, length)))
        first, second = bits, bits
        for length in (4, 2, 1):
            first = jnp.maximum(*(lax.slice_in_dim(first, i, i + length, axis=axis) for i in (0, length)))
            second = jnp.maximum(*(lax.slice_in_dim(second, i, None, 2, axis) for i in (0, 1)))
        # Both are the largest. XLA fuses what a kernel then computes up to 15 times: so it writes out the 8 and not the 16 before.
        return [jnp.maximum(first, second)]

    is_last = axis == bits.ndim - 1
    return by_platform(over_axis, bits, cpu=over_axis if is_last else by_halves)[0]


def _scale(largest: jax.Array, smallest: float) -> jax.Array:
    """The least bfloat16 that is not below a number >= 0, which is neither 0 nor less than `smallest`, as the bits of a float32.

    At most the largest finite one. 0, infinity and NaN are what they are.
    """
    up = (largest + np.int32(0xFFFF)) & np.int32(-0x10000)
    up = jnp.clip(up, np.float32(smallest).view(np.int32), np.int32(0x7F7F0000))
    return jnp.where(_is_usable(largest), up, largest)


def _power(y: jax.Array, codes: np.dtype) -> jax.Array:
    """What an integer y stands for, in units of the scale."""
    bits = _bits(y.astype(jnp.float32))
    return _as_float(functools.reduce(jnp.minimum, [bits - shift << power for power, shift in _shifts(codes, 1)]))


def _root(n: jax.Array, codes: np.dtype) -> jax.Array:
    """The y, no integer as a rule, of a number."""
    return _as_float(
        functools.reduce(jnp.maximum, [(_bits(n) >> power) + shift for power, shift in _shifts(codes, _UNIT)])
    )


def _shifts(codes: np.dtype, unit: int) -> list[tuple[int, np.int32]]:
    """For each curve the logarithm of its power, and what the bits of y have more than those of a number divided by the power."""
    return [
        (power, np.float32(y).view(np.int32) - (np.float32(x * unit).view(np.int32) >> power))
        for power, y, x in _LINES[codes]
    ]


def _of_logarithm(r: jax.Array, y: jax.Array) -> jax.Array:
    """A random part r in [0, 1) for squares: `r + c · r (1 − r)`.

    With r alone the mean of what is stored would be right, with c = 3/8 of the distance of the codes in binades that of its logarithm.
    It is a sixteenth more: steps of Adam, which divide by the root of an average that roundings spread, are as long then as with
    float32.
    """
    binade = np.int32(0x7F800000)
    reciprocal = _as_float(2 * np.float32(1).view(np.int32) - (_bits(y) & binade))
    c = np.float32(3 / 8 * 4 * 17 / 16) * reciprocal
    return r + c * (r - r * r)


def _rounded(y: jax.Array, random_part: jax.Array) -> jax.Array:
    """`⌊y + random_part⌋` for 0 <= y < 2²², without a conversion, which has to mind what no integer can hold.

    The bits of 2²³ plus a number are those of 2²³ plus its nearest integer, and the even one of two. So an even y stays as it is; an odd one
    becomes a neighbour where the random part is as near to 0 or 1 as a rounding of y, with the same chance for both.
    """
    large = np.float32(2**23)
    return _bits(y + (random_part - np.float32(0.5)) + large) - large.view(np.int32)


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _as_float(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def round_at_random(x: jax.Array, random: jax.Array) -> jax.Array:
    """float32 to one of the two bfloat16 around it, the nearer the likelier, by random bits."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) + (random >> 16)
    up = lax.bitcast_convert_type(bits & np.uint32(0xFFFF0000), jnp.float32)
    largest = float(jnp.finfo(jnp.bfloat16).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(up, -largest, largest), x).astype(jnp.bfloat16)


def _in_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The leaf with its block axis as two: the blocks, and the 32 numbers of one."""
    axis = _within(shape) - 1
    return x.reshape(*shape[:axis], shape[axis] // BLOCK, BLOCK, *shape[axis + 1 :])


def _within(shape: tuple[int, ...]) -> int:
    """The axis of the numbers of one block, of a leaf in blocks."""
    axis = block_axis(shape)
    assert axis is not None
    return len(shape) + axis + 1


def random_bits(
    shape: tuple[int, ...], draws: jax.Array, salt: np.uint32, first_row: jax.Array | None = None
) -> jax.Array:
    """Random uint32 that differ with the place in the leaf, with `draws` and with `salt`.

    They are random, and not a sequence that fills the interval evenly: with such a one averages go astray, since what was
    drawn last shows in where a number lies between its codes.

    Args:
      shape: that of the leaf, or of rows of it.
      draws: how often there were drawn some before.
      salt: what the numbers are for.
      first_row: where the rows begin; None for a whole leaf.
    """
    first = 0 if first_row is None else first_row.astype(jnp.uint32) * np.uint32(math.prod(shape[1:]) % 2**32)
    place = jnp.full(shape, first, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place += lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    key = _mixed(draws.astype(jnp.uint32) * _GOLDEN + salt)
    # Numbers in a row are spread over all bits first: of themselves the hash leaves a trace.
    return _mixed(place * _GOLDEN ^ key)


def salt_of(name: str) -> np.uint32:
    """What sets the random numbers of one entry apart from those of another."""
    return np.uint32(zlib.crc32(name.encode()))


_GOLDEN = np.uint32(0x9E3779B9)
"""2³² by the golden ratio."""


def _mixed(bits: jax.Array) -> jax.Array:
    """A hash of 32 bits, the best of two rounds that Wellons' hash prospector lists, https://github.com/skeeto/hash-prospector."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    return bits ^ (bits >> 15)


# An entry of a state -----------------------------------------------------------------------------------------------------


def is_packed(entry: Any) -> bool:
    """Whether an entry of a state is stored in codes. No tree of parameters is, for it has no integers."""
    return (
        isinstance(entry, Mapping)
        and set(entry) == {"codes", "scales", "draws"}
        and jnp.issubdtype(getattr(entry["draws"], "dtype", jnp.float32), jnp.integer)
    )


def pack(
    entry: Tree, name: str, kind: Any, *, signed: bool, even: bool = False, keep_wide: Callable[[Path, jax.Array], bool]
) -> Tree:
    """A wide entry of a state, stored; the entry itself where no leaf of it is.

    Args:
      entry: a tree of arrays.
      name: what it is called: two entries do not draw the same random numbers.
      kind: `"int8"` or `"bfloat16"`.
      signed: whether its numbers may be negative.
      even: whether its codes are evenly spaced, as those of parameters.
      keep_wide: of the path of a leaf and the leaf, whether it stays as it is. Leaves that are not float32 do, and for
        `"int8"` those with no axis that 32 divides.
    """
    code_dtype = jnp.bfloat16 if kind == "bfloat16" else jnp.int8 if signed else jnp.uint8

    def of_kind(path: Path, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        scale_shape = block_shape(x.shape)
        if keep_wide(path, x) or x.dtype != jnp.float32 or (kind == "int8" and scale_shape is None):
            return x, None
        scale_dtype = jnp.float32 if even else jnp.bfloat16
        scale = jnp.zeros(scale_shape, scale_dtype) if kind == "int8" and scale_shape is not None else None
        return jnp.zeros_like(x, code_dtype), scale

    leaves, treedef = jax.tree_util.tree_flatten_with_path(entry)
    like = [of_kind(path, x) for path, x in leaves]
    if all(codes is x for (codes, _), (_, x) in zip(like, leaves, strict=True)):
        return entry
    first = {
        "codes": treedef.unflatten([codes for codes, _ in like]),
        "scales": treedef.unflatten([scale for _, scale in like]),
        "draws": jnp.zeros((), jnp.int32),
    }
    # XLA would work out at length, when it compiles, what is made of zeros.
    return store(jax.tree.map(lax.optimization_barrier, entry), first, name)


def check(root: str, entry: Tree, reference_root: str, reference: Tree) -> None:
    """Requires an entry of the shapes of the reference, and of one that is packed scales for its blocks.

    Raises:
      ValueError: another structure or shape (the message names the leaf).
    """
    if not is_packed(entry):
        trees.check_match(root, entry, reference_root, reference)
        return
    trees.check_match(f'{root}["codes"]', entry["codes"], reference_root, reference)
    codes, treedef = jax.tree_util.tree_flatten_with_path(entry["codes"])
    try:
        scales = treedef.flatten_up_to(entry["scales"])
    except ValueError as error:
        raise ValueError(
            f'{root}["scales"] must have the structure of the codes, with None for a leaf that has none: {error}'
        ) from error
    for (path, code), scale in zip(codes, scales, strict=True):
        expected = block_shape(code.shape) if jnp.issubdtype(code.dtype, jnp.integer) else None
        if (None if scale is None else jnp.shape(scale)) != expected:
            found = "no scale" if scale is None else f"shape {jnp.shape(scale)}"
            where = trees.path_code(f'{root}["scales"]', path)
            raise ValueError(f"{where}: {found}, the codes ask for {expected or 'none'}")


def load(entry: Tree) -> Tree:
    """An entry of a state as links see it: what is packed, in float32; anything else as it is."""
    if not is_packed(entry):
        return entry
    codes, treedef = jax.tree.flatten(jax.tree.map(memory.fetched, entry["codes"]))
    scales = treedef.flatten_up_to(jax.tree.map(memory.fetched, entry["scales"]))
    return treedef.unflatten(map(_load_leaf, codes, scales))


def widened(state: Tree) -> Tree:
    """A state, or any pytree with one in it, with every packed entry in float32."""
    return jax.tree.map(load, state, is_leaf=is_packed)


def store(new: Tree, old: Tree, name: str, first_row: jax.Array | None = None) -> Tree:
    """An entry that a link made, stored as the old one was. The leaves may be rows of larger ones, from `first_row` on."""
    if not is_packed(old):
        return new
    codes, treedef = jax.tree.flatten(old["codes"])
    scales = treedef.flatten_up_to(old["scales"])
    draws = trees.increment(old["draws"])
    salt = salt_of(name)

    def store_one(x: jax.Array, *old: Any) -> Any:
        made = _store_leaf(x, *jax.tree.map(memory.fetched, old), draws, salt, first_row)
        return jax.tree.map(memory.placed_like, made, old)

    stored = [store_one(*leaf) for leaf in zip(treedef.flatten_up_to(new), codes, scales, strict=True)]
    return {
        "codes": treedef.unflatten([code for code, _ in stored]),
        "scales": treedef.unflatten([scale for _, scale in stored]),
        "draws": draws,
    }


_load_leaf = jax.jit(load_leaf)
"""Traced once for all leaves of a shape."""


@jax.jit
def _store_leaf(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array | None,
    draws: jax.Array,
    salt: np.uint32,
    first_row: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    if codes.dtype == x.dtype:
        return x, None
    return store_leaf(x, codes, scale, lambda shape: random_bits(shape, draws, salt, first_row))
