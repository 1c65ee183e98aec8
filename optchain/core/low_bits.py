"""Weights in bfloat16 with the rest of their bits beside them.

    bits of the float32  =  bits of the bfloat16 · 2¹⁶ + low · 2^(16 − width)

The bfloat16 is the nearest to the number, and `low` is signed: 8 bits make 24 in all, an error of at most 2⁻¹⁶ of the number;
16 bits make it exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LARGEST = np.int32(0x7F7F)
"""The bits of the largest finite bfloat16."""


def split(x: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """float32 to the nearest bfloat16 and the low bits, as int8 or int16."""
    # Only bit casts of 32 bits: on a TPU others change the layout.
    bits = lax.bitcast_convert_type(x, jnp.int32)
    magnitude, sign = bits & np.int32(0x7FFFFFFF), bits & np.int32(-0x80000000)
    dropped = 16 - width
    kept = (magnitude + (1 << dropped >> 1)) >> dropped
    high = jnp.minimum((kept + (1 << width >> 1)) >> width, _LARGEST)
    low = jnp.minimum(kept - (high << width), (1 << width >> 1) - 1)
    is_finite = jnp.isfinite(x)
    high = jnp.where(is_finite, high, magnitude >> 16)
    low = jnp.where(is_finite, low, 0)
    hi = lax.bitcast_convert_type(high << 16 | sign, jnp.float32).astype(jnp.bfloat16)
    return hi, low.astype(jnp.int8 if width == 8 else jnp.int16)


def join(hi: jax.Array, low: jax.Array) -> jax.Array:
    """The float32 number of which `hi` and `low` are the parts."""
    width = 8 if low.dtype == jnp.int8 else 16
    bits = lax.bitcast_convert_type(hi.astype(jnp.float32), jnp.int32)
    sum_of_bits = bits + (low.astype(jnp.int32) << (16 - width))
    return lax.bitcast_convert_type(sum_of_bits, jnp.float32)
