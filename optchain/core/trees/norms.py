"""Norms that neither overflow nor underflow, and safe roots."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optchain.core import devices
from optchain.core.by_platform import by_platform
from optchain.core.factors import Factor, Halves, power_of_two
from optchain.core.row_gradient import values
from optchain.core.trees.dtypes import (
    astype,
    barrier_if_narrow,
    cast,
    default_float,
    is_complex,
    wide,
)
from optchain.core.trees.paths import Tree
from optchain.core.trees.scaled import Scaled, merged, scale_each, unscaled


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
    x = wide(barrier_if_narrow(x))
    if scale is not None:
        x = x * cast(scale, x)
    return jnp.sum(abs_square(x), axis=axes, keepdims=axes is not None)


def _sum_of_squares_behind_barrier(x: Any, axes: tuple[int, ...] | None, scale: jax.Array) -> jax.Array:
    """`sum_of_squares`, where the scale is that of all leaves: XLA's CPU backend would write it out in the leaf's shape."""
    x, scale = lax.optimization_barrier((x, scale))
    return sum_of_squares(x, axes, scale)


def centered(x: Any, axes: tuple[int, ...]) -> jax.Array:
    """The leaf, made wide, without its mean over some axes, which is accumulated wide."""
    return wide(x) - jnp.mean(wide(barrier_if_narrow(x)), axis=axes, keepdims=True) if axes else wide(x)


def norm(x: Any) -> jax.Array:
    """The Euclidean norm of one leaf."""
    return norms(x).value


def norms(updates: Tree | Scaled, axes: Tree | None = None) -> Tree:
    """The Euclidean norm of each leaf as a `Factor`; or, given a tuple of axes for each leaf, its norms over these."""
    leaves, treedef = jax.tree.flatten(values(unscaled(updates)))
    axes_of = [None] * len(leaves) if axes is None else treedef.flatten_up_to(axes)
    found = [_rooted(*of) for of in _sums_of_leaves(leaves, axes_of)]
    return treedef.unflatten([f * abs(updates.factor) for f in found] if isinstance(updates, Scaled) else found)


def clipped_to(updates: Tree | Scaled, bound: Factor) -> Tree:
    """Each leaf, made wide, times what brings its norm down to a scalar bound > 0; all NaN where the norm is NaN.

    The numbers are those of `scale_each` by `bound / norm.at_least(bound)`. What depends on the bound alone is computed once for
    each of the three powers of two with which a sum may have been taken, and a leaf takes that of its own. As `Factor`s the
    norms are a hundred operations on scalars for each leaf: XLA compiles them for a long time, and needs memory for them on a TPU.
    """
    leaves, treedef = jax.tree.flatten(values(unscaled(updates)))
    given = updates.factor if isinstance(updates, Scaled) else None
    bounds: dict[Any, _Bound] = {}
    factors = []
    for square, power in _sums_of_leaves(leaves, [None] * len(leaves)):
        if square.dtype not in bounds:
            bounds[square.dtype] = _Bound.of(bound, given, square.dtype)
        factors.append(_clip(bounds[square.dtype], square, power))
    return scale_each(unscaled(updates), treedef.unflatten(factors))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Bound:
    """What brings a leaf down to a bound: a norm of the leaf, times a power of two, is compared with `limits` of that power, and
    where it is above the leaf is to be multiplied by `significand / norm · halves`, else by `below`.
    """

    limits: list[jax.Array]
    halves: list[Halves]
    significand: jax.Array
    below: Halves

    @classmethod
    def of(cls, bound: Factor, given: Factor | None, dtype: Any) -> "_Bound":
        """A bound for leaves of a dtype, which also are to be multiplied by a factor that is given."""
        factor = Factor.of(jnp.ones((), dtype)) if given is None else given
        limit = bound if given is None else bound / abs(given)
        sign = lax.sign(factor.significand) + (factor.significand - factor.significand)  # NaN of what is not finite
        powers = (0, *_powers_of_rescue(dtype))
        return cls(
            [astype(Factor(limit.significand, limit.exponent + power).value, dtype) for power in powers],
            [_halves(bound.exponent + power, dtype) for power in powers],
            astype(bound.significand, dtype) * astype(sign, dtype),
            factor.for_leaves().halves(dtype),
        )


def _halves(exponent: jax.Array, dtype: Any) -> Halves:
    """`2**exponent`, of which the first half over a norm is in range: a norm is from 2^-51 to 2^64 in float32 if it is not scaled."""
    info = jnp.finfo(dtype)
    second = exponent - jnp.clip(exponent, 4 - info.maxexp // 2, info.maxexp // 2)
    second = jnp.maximum(second, info.minexp)
    return Halves(power_of_two(exponent - second, dtype), power_of_two(second, dtype))


@jax.jit  # traced once for all leaves
def _clip(bound: _Bound, square: jax.Array, power: jax.Array) -> Halves:
    def of_this_power(usual: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jnp.where(power == 0, usual, jnp.where(power > 0, up, down))

    norm, halves = root(square), jax.tree.map(of_this_power, *bound.halves)
    above = ~(norm <= of_this_power(*bound.limits))  # NaN is above
    first = bound.significand / jnp.where(above, norm, jnp.ones_like(norm)) * halves.first
    return Halves(jnp.where(above, first, bound.below.first), jnp.where(above, halves.second, bound.below.second))


def _sums_of_leaves(leaves: list[Any], axes: list[Any]) -> list[tuple[jax.Array, jax.Array]]:
    """`Σ|x|²` of each leaf times a power of two, in range, and the exponent of the power."""
    leaves = [devices.fetched(x) for x in leaves]
    first = [sum_of_squares(x, along) for x, along in zip(leaves, axes, strict=True)]
    # Inside shard_map a value that differs over devices must not decide for one that is the same on all.
    groups: dict[Any, list[int]] = {}
    for place, square in enumerate(first):
        groups.setdefault((devices.varies_over(square), square.dtype), []).append(place)
    found: list[Any] = [None] * len(leaves)
    for places in groups.values():
        parts = _sums([leaves[i] for i in places], tuple(axes[i] for i in places), [first[i] for i in places])
        for i, part in zip(places, parts, strict=True):
            found[i] = part
    return found


@functools.partial(jax.jit, static_argnames="axes", inline=True)  # without `jit` around it, it is compiled once
def _sums(leaves: list[Any], axes: tuple[Any, ...], squares: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    sizes = [jnp.size(x) for x in leaves]

    def sums_all_at_one_power(power: jax.Array) -> list[jax.Array]:
        scale = power_of_two(power, squares[0].dtype)
        return [sum_of_squares(x, along, scale) for x, along in zip(leaves, axes, strict=True)]

    if axes[0] is None:

        def sums_each_at_its_power(powers: list[jax.Array]) -> list[jax.Array]:
            # A scalar each, not a vector of them: leaves of one shape then have one kernel, which is compiled once.
            dtype = squares[0].dtype
            return [sum_of_squares(x, scale=_scale_of(power, dtype)) for x, power in zip(leaves, powers, strict=True)]

        return _in_range(squares, sums_each_at_its_power, sums_all_at_one_power, sizes)

    def sums_at_both_powers(powers: list[jax.Array]) -> list[jax.Array]:
        # Twice, each time with one power for all: a power for each norm would be written out in the leaf's shape.
        dtype = squares[0].dtype
        up, down = (power_of_two(jnp.int32(power), dtype) for power in _powers_of_rescue(dtype))
        return [
            jnp.where(
                power == 0,
                square,
                jnp.where(
                    power > 0,
                    _sum_of_squares_behind_barrier(x, along, up),
                    _sum_of_squares_behind_barrier(x, along, down),
                ),
            )
            for x, along, square, power in zip(leaves, axes, squares, powers, strict=True)
        ]

    return _in_range(squares, sums_at_both_powers, sums_all_at_one_power, sizes)


def global_norm(updates: Tree | Scaled, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """The Euclidean norm of all leaves together, and over the devices of an axis, in JAX's default float.

    A `RowGradient` counts as the dense gradient, where a row that it names twice is one sum.
    """
    with_rows_once = updates if isinstance(updates, Scaled) else merged(updates)
    return joint_norm(with_rows_once, axis_name).value


def joint_norm(updates: Tree | Scaled, axis_name: str | tuple[str, ...] | None = None) -> Factor:
    """The global norm as a `Factor`, which is finite where the leaves are."""
    norm = norm_of(jax.tree.leaves(values(unscaled(updates))), axis_name=axis_name)
    return norm * abs(updates.factor) if isinstance(updates, Scaled) else norm


@functools.partial(jax.jit, static_argnames="axis_name", inline=True)  # without `jit` around it, it is compiled once
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

        def sums_each_at_its_power(
            powers: list[jax.Array], places: list[int] = places, dtype: Any = dtype
        ) -> list[jax.Array]:
            scale = power_of_two(powers[0], dtype)
            return [summed([_sum_of_squares_behind_barrier(leaves[i], None, scale) for i in places])]

        def sums_all_at_one_power(power: jax.Array, places: list[int] = places, dtype: Any = dtype) -> list[jax.Array]:
            scale = power_of_two(power, dtype)
            return [summed([sum_of_squares(leaves[i], scale=scale) for i in places])]

        size = sum(jnp.size(leaves[i]) for i in places)
        (in_range,) = _in_range(
            [summed([squares[i] for i in places])], sums_each_at_its_power, sums_all_at_one_power, [size], dtype
        )
        part = _rooted(*in_range)
        norm = part if norm is None else _hypotenuse(norm, part)
    return Factor.of(jnp.zeros((), default_float())) if norm is None else norm


EXTREMES_SCOPE = "norm_of_extremes"
"""The scope of the branch in which a norm is taken again, for who reads a compiled program."""


def _in_range(
    squares: list[jax.Array],
    sums_each_at_its_power: Callable[[list[jax.Array]], list[jax.Array]],
    sums_all_at_one_power: Callable[[jax.Array], list[jax.Array]],
    sizes: list[Any],
    dtype: Any = None,
) -> list[tuple[jax.Array, jax.Array]]:
    """Sums of squares, each of the numbers times a power of two where it was not in range, and the exponents.

    `sums_each_at_its_power` takes the sums again, of the numbers times a power of two for each sum; `sums_all_at_one_power`
    takes them with one power for all. The first is called in a branch, taken when a sum is infinite or so small that squares
    may have been lost, as in a leaf of zeros: else the numbers are read once. The powers depend on that alone, and no maximum
    is needed: of any number that float32 holds, the square is in range after one of the two.

    A TPU's compiler keeps a gradient in vector memory from its norm to its update, but not across a branch: there the three sums
    are taken in one pass.
    """

    def powers_of(squares: list[jax.Array]) -> list[jax.Array]:
        info = jnp.finfo(dtype or squares[0].dtype)
        # Relative to this, what was flushed is a rounding.
        lost = [np.maximum(size, 1) * 2.0 ** (info.minexp + info.nmant + 1) for size in sizes]
        return [
            _power_of_rescue(square, jnp.asarray(least, square.dtype), jnp.dtype(dtype or square.dtype))
            for square, least in zip(squares, lost, strict=True)
        ]

    powers = powers_of(squares)
    needed = functools.reduce(jnp.logical_or, (jnp.any(power != 0) for power in powers))

    def in_a_branch(squares: list[jax.Array]) -> list[jax.Array]:
        with jax.named_scope(EXTREMES_SCOPE):
            # In the branch the powers are computed again: handed in, each would be kept in memory.
            return lax.cond(
                needed, lambda squares: sums_each_at_its_power(powers_of(squares)), lambda squares: squares, squares
            )

    def in_one_pass(squares: list[jax.Array]) -> list[jax.Array]:
        up, down = (
            sums_all_at_one_power(jnp.asarray(power, jnp.int32))
            for power in _powers_of_rescue(dtype or squares[0].dtype)
        )
        return [
            jnp.where(power == 0, square, jnp.where(power > 0, larger, smaller))
            for power, square, larger, smaller in zip(powers, squares, up, down, strict=True)
        ]

    squares = lax.platform_dependent(squares, tpu=in_one_pass, default=in_a_branch)
    return list(zip(squares, powers, strict=True))


@jax.jit  # traced once for all leaves
def _rooted(square: jax.Array, power: jax.Array) -> Factor:
    return Factor.of(root(square), -power)


_scale_of = jax.jit(power_of_two, static_argnums=1)  # traced once for all leaves


@functools.partial(jax.jit, static_argnames="dtype")  # traced once for all leaves
def _power_of_rescue(square: jax.Array, lost: jax.Array, dtype: Any) -> jax.Array:
    """The exponent of the factor with which a sum of squares is to be taken again; 0 if it is in range."""
    up, down = _powers_of_rescue(dtype)
    up = jnp.where(square < lost, up, 0)
    return astype(jnp.where(jnp.isinf(square), down, up), jnp.int32)


def _powers_of_rescue(dtype: Any) -> tuple[int, int]:
    """The exponents of the factors for numbers whose squares were lost, and for those whose squares overflowed."""
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

    A value above 1.8e19 is finite in float32, but a second moment that has met it is infinite from then on. `values_fit` and
    `squares_fit` are the largest numbers of the dtypes in which values and squares are stored, where these are narrower.
    """
    leaves = [devices.fetched(x) for x in jax.tree.leaves(values(unscaled(updates))) if jnp.size(x)]
    if not leaves:
        return jnp.bool_(True)
    factor = updates.factor if isinstance(updates, Scaled) else None
    usable = _all_usable(lax.stop_gradient(leaves), factor, unscaled_by, values_fit, squares_fit)
    return lax.pmin(usable.astype(jnp.int32), axis_name) == 1 if axis_name else usable


@functools.partial(jax.jit, static_argnums=(3, 4), inline=True)  # without `jit` around it, it is compiled once
def _all_usable(
    leaves: list[Any], factor: Factor | None, unscaled_by: Factor | None, values_fit: float, squares_fit: float
) -> jax.Array:
    """The largest magnitude decides. It is not above the norm, which a CPU computes faster, and has at hand behind a clip."""
    of_complex = [is_complex(x) for x in leaves]

    def decided_by(magnitudes: list[jax.Array], factor: Factor | None, unscaled_by: Factor | None) -> jax.Array:
        # Of all leaves together, since tracing and compiling a `Factor` takes its time.
        largest: dict[tuple[Any, bool], jax.Array] = {}
        for magnitude, is_of_complex in zip(magnitudes, of_complex, strict=True):
            kind = magnitude.dtype, is_of_complex
            largest[kind] = jnp.maximum(largest[kind], magnitude) if kind in largest else magnitude
        usable = jnp.bool_(True)
        for (dtype, is_of_complex), magnitude in largest.items():
            given = Factor.of(magnitude) if factor is None else Factor.of(magnitude) * abs(factor)
            met = given if unscaled_by is None else given * abs(unscaled_by)
            # Of a complex number |x|² is the sum of two squares.
            square = min(float(jnp.finfo(dtype).max), squares_fit) / (2 if is_of_complex else 1)
            bound = min(square**0.5, values_fit)
            usable &= jnp.isfinite(given.value) & (met.value < bound)
        return usable

    def by_maximum(leaves: list[Any], *factors: Factor | None) -> list[jax.Array]:
        return [decided_by([_largest_part(x, jnp.inf) for x in leaves], *factors)]

    def by_norm(leaves: list[Any], *factors: Factor | None) -> list[jax.Array]:
        squares = [sum_of_squares(x) for x in leaves]
        # What is so small that its square was lost is below the last term.
        bounds = [root(square) * 1.001 + 2.0 ** (jnp.finfo(square.dtype).minexp // 2 + 1) for square in squares]
        norms_are_usable = decided_by(bounds, *factors)

        def by_maximum() -> jax.Array:
            # Of 4,096 numbers or more XLA's CPU backend may drop NaN from a maximum, and never from a sum.
            largest = zip(map(_largest_part, leaves), squares, strict=True)
            return decided_by([jnp.where(jnp.isnan(square), jnp.inf, x) for x, square in largest], *factors)

        with jax.named_scope(EXTREMES_SCOPE):
            return [lax.cond(norms_are_usable, lambda: norms_are_usable, by_maximum)]

    return by_platform(by_maximum, leaves, factor, unscaled_by, cpu=by_norm)[0]


@functools.partial(jax.jit, static_argnums=1)  # traced once for all leaves of a shape
def _largest_part(x: jax.Array, nan: Any = None) -> jax.Array:
    """The largest `|x|`, of a complex leaf `|x.real|` or `|x.imag|`. A number may stand for NaN."""

    def largest(part: jax.Array) -> jax.Array:
        magnitudes = jnp.abs(part) if nan is None else jnp.where(jnp.isnan(part), nan, jnp.abs(part))
        return wide(jnp.max(magnitudes))

    return jnp.maximum(largest(x.real), largest(x.imag)) if is_complex(x) else largest(x)
