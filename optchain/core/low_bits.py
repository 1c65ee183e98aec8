"""Weights in bfloat16 with the rest of their bits beside them.

    bits of |float32|  =  bits of |bfloat16| · 2¹⁶ + low · 2^(16 − width)

The bfloat16 is the nearest to the number, and `low` is signed: 8 bits make 24 in all, an error of at most 2⁻¹⁶ of the number;
16 bits make it exact. Numbers above the largest bfloat16, 3.39e38, are cut.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_MAGNITUDE, _SIGN = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
_LARGEST = np.int32(0x7F7F)
"""The bits of the largest finite bfloat16."""


def split(x: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """float32 to the nearest bfloat16 and the low bits, as int8 or int16."""
    # Only bit casts of 32 bits: on a TPU others change the layout.
    bits = lax.bitcast_convert_type(x, jnp.int32)
    magnitude, sign = bits & _MAGNITUDE, bits & _SIGN
    high = jnp.minimum((_kept(magnitude, width) + (1 << width >> 1)) >> width, _LARGEST)
    high = jnp.where(jnp.isfinite(x), high, magnitude >> 16)
    hi = lax.bitcast_convert_type(high << 16 | sign, jnp.float32).astype(jnp.bfloat16)
    return hi, _rest(x, magnitude, high, width)


def rest(x: jax.Array, hi: jax.Array, width: int) -> jax.Array:
    """The low bits of a float32 beside a bfloat16 that was made of it: as near as they come where it was rounded otherwise."""
    bits, of_hi = (lax.bitcast_convert_type(y, jnp.int32) & _MAGNITUDE for y in (x, hi.astype(jnp.float32)))
    return _rest(x, bits, of_hi >> 16, width)


def join(hi: jax.Array, low: jax.Array) -> jax.Array:
    """The float32 number of which `hi` and `low` are the parts; of a `hi` that was set to 0 by others, 0."""
    bits = lax.bitcast_convert_type(hi.astype(jnp.float32), jnp.int32)
    dropped = 16 - 8 * low.dtype.itemsize
    magnitude = jnp.maximum((bits & _MAGNITUDE) + (low.astype(jnp.int32) << dropped), 0)
    return lax.bitcast_convert_type(magnitude | bits & _SIGN, jnp.float32)


def _kept(magnitude: jax.Array, width: int) -> jax.Array:
    """The upper bits of a magnitude, rounded."""
    dropped = 16 - width
    return (magnitude + (1 << dropped >> 1)) >> dropped


def _rest(x: jax.Array, magnitude: jax.Array, high: jax.Array, width: int) -> jax.Array:
    half = 1 << width >> 1
    low = jnp.clip(_kept(magnitude, width) - (high << width), -half, half - 1)
    return jnp.where(jnp.isfinite(x), low, 0).astype(jnp.int8 if width == 8 else jnp.int16)
