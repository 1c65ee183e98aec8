"""Factors and norms that neither overflow nor underflow: a significand, and an exponent of its own.

The reciprocal of a loss scale of 2¹²⁷ is subnormal in float32, and XLA flushes it to 0; the norm of four elements of 3e38 is
beyond float32. The gradient times such a factor is an ordinary number all the same. So products and quotients of scalars
act on the significands, and the powers of two are added up separately. A leaf is multiplied by half of the power at a
time: the number in between is in range if the leaf and the result are.
"""

import dataclasses
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factor:
    """The number `significand · 2**exponent`; arrays of them too."""

    significand: jax.Array
    """Within a few powers of two of 1; or 0, infinite, NaN."""
    exponent: jax.Array
    """int32."""

    @classmethod
    def of(cls, value: jax.Array, exponent: Any = 0) -> "Factor":
        """The factor `value · 2**exponent`."""
        own = _exponent(value)
        return cls(_shifted(value, -own), own + exponent)

    @classmethod
    def reciprocal(cls, value: jax.Array) -> "Factor":
        """The factor `1 / value`."""
        return cls.of(jnp.ones_like(value)) / cls.of(value)

    def __mul__(self, other: "Factor") -> "Factor":
        return Factor(self.significand * _like(other.significand, self), self.exponent + other.exponent)

    def __truediv__(self, other: "Factor") -> "Factor":
        return Factor(self.significand / _like(other.significand, self), self.exponent - other.exponent)

    def __abs__(self) -> "Factor":
        return Factor(jnp.abs(self.significand), self.exponent)

    def above(self, other: "Factor") -> jax.Array:
        """Whether this is above the other, both being >= 0; False where one is NaN."""
        return _shifted(self.significand, self.exponent - other.exponent) > _like(other.significand, self)

    def at_least(self, other: "Factor") -> "Factor":
        """The larger of the two, both being >= 0; NaN where this is NaN."""
        return self.where(~other.above(self), other)

    def where(self, condition: jax.Array, other: "Factor") -> "Factor":
        """This where the condition holds, else the other."""
        significand = jnp.where(condition, self.significand, _like(other.significand, self))
        return Factor(significand, jnp.where(condition, self.exponent, other.exponent))

    def nan_unless_finite(self, norm: "Factor") -> "Factor":
        """This, or NaN where the norm is not finite."""
        nothing = norm.significand - norm.significand  # 0 for a finite norm, NaN for any other
        return Factor(self.significand + _like(nothing, self), self.exponent)

    @property
    def value(self) -> jax.Array:
        """The number as a float: infinite or 0 where it is beyond them."""
        return _shifted(self.significand, self.exponent)

    def times(self, x: jax.Array) -> jax.Array:
        """`x` times this, in the dtype of `x`."""
        return self.for_leaves().times(x)

    def for_leaves(self) -> "LeafFactor":
        """The same, for multiplying several arrays with."""
        return LeafFactor(self)


class LeafFactor:
    """A scalar `Factor` that several arrays are multiplied with: what depends on it alone is computed once for each dtype."""

    def __init__(self, factor: Factor):
        self._factor, self._halves = factor, dict[Any, Halves]()

    def times(self, x: jax.Array) -> jax.Array:
        """`x` times the factor, in the dtype of `x`."""
        return self.halves(x.dtype).times(x)

    def halves(self, dtype: Any) -> "Halves":
        """The two scalars of a dtype, or of the real one of a complex dtype, that arrays are multiplied with."""
        real = jnp.finfo(dtype).dtype
        if real not in self._halves:
            first, second = _powers(self._factor.exponent, real)
            self._halves[real] = Halves(lax.convert_element_type(self._factor.significand, real) * first, second)
        return self._halves[real]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halves:
    """Two scalars whose product may be beyond the range of floats."""

    first: jax.Array
    second: jax.Array

    def times(self, x: jax.Array) -> jax.Array:
        """`x` times the product, in the dtype of `x`."""
        # The first before the second: XLA keeps the order, and what is between is in range.
        return x * lax.convert_element_type(self.first, x.dtype) * lax.convert_element_type(self.second, x.dtype)


def near_one(x: jax.Array, axes: tuple[int, ...] | None = None) -> tuple[jax.Array, Factor]:
    """The array times a power of two that brings its largest magnitude near 1, and that power; over some axes, which then have length 1.

    Its squares neither overflow nor underflow.
    """
    peak = Factor.of(jnp.max(jnp.abs(x), axes, keepdims=axes is not None, initial=0))
    power = Factor(jnp.ones_like(peak.significand), -peak.exponent)
    return power.times(x), power


def is_factor(x: Any) -> TypeGuard[Factor]:
    """Whether a node is a `Factor`, to be taken for a leaf."""
    return isinstance(x, Factor)


def _like(significand: jax.Array, other: Factor) -> jax.Array:
    return lax.convert_element_type(significand, other.significand.dtype)


def _exponent(x: jax.Array) -> jax.Array:
    """The exponent of floats, int32; of 0 and of infinity one beyond the range. It has no derivative."""
    info = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(x, _integer(info))
    field = (bits >> info.nmant) & (2**info.nexp - 1)
    return lax.convert_element_type(field, jnp.int32) - (info.maxexp - 1)


def power_of_two(exponent: jax.Array, dtype: Any) -> jax.Array:
    """`2**exponent` to the bit; 0 below the range, and above it its largest power."""
    info = jnp.finfo(dtype)
    field = lax.convert_element_type(jnp.clip(exponent + info.maxexp - 1, 0, 2 * info.maxexp - 2), _integer(info))
    return lax.bitcast_convert_type(field << info.nmant, info.dtype)


def _powers(exponent: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Two powers of two whose product is `2**exponent`, neither of them beyond the range before the product is."""
    half = exponent // 2
    return power_of_two(half, dtype), power_of_two(exponent - half, dtype)


def _shifted(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """`x · 2**exponent`."""
    first, second = _powers(exponent, x.dtype)
    return x * first * second


def _integer(info: Any) -> Any:
    return jnp.int32 if info.bits == 32 else jnp.int64
