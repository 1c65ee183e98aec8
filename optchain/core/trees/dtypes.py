"""Dtypes: arithmetic in float32 at least, scalars that meet leaves, counters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optchain.core.row_gradient import is_rows
from optchain.core.trees.paths import Tree


def default_float() -> jnp.dtype:
    """JAX's default float: float64 when x64 is enabled, else float32. Scalars in a state have this dtype."""
    return jax.dtypes.canonicalize_dtype(float)


def is_complex(x: Any) -> bool:
    return jnp.issubdtype(dtype_of(x), jnp.complexfloating)


def dtype_of(x: Any) -> jnp.dtype:
    if isinstance(x, jax.Array) or (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.extended)):
        return x.dtype  # of typed keys it is one of JAX's own
    return jax.dtypes.canonicalize_dtype(getattr(x, "dtype", type(x)))


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


def barrier_if_narrow(x: Any) -> Any:
    """A narrow leaf behind an optimization barrier, any other as it is: XLA cannot move the widening to the other side.

    Before a norm, XLA's CPU backend would else share the widened copy between the reduction and the rule that follows, and
    write it out: 4 bytes a parameter of temporary memory. After a gate, XLA would move it into the gate's branches, and
    both would write the wide parameters out: 8 bytes a parameter of a call that waits, on a TPU.
    """
    return lax.optimization_barrier(x) if wide_dtype(dtype_of(x)) != dtype_of(x) else x


def astype(x: Any, dtype: Any) -> jax.Array:
    """`x` in `dtype`, strongly typed; no operation is traced when it is so already."""
    if isinstance(x, jax.Array) and x.dtype == dtype and not x.weak_type:
        return x
    return lax.convert_element_type(x, dtype)


def floating(x: Any) -> jax.Array:
    """`x` in JAX's default float; from 2**24 on float32 does not hold every integer."""
    return astype(x, default_float())


def share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """`part / whole` of two counters, in JAX's default float; 0 before anything is counted."""
    return floating(part) / jnp.maximum(floating(whole), 1)


def cast(scalar: Any, like: jax.Array | jax.ShapeDtypeStruct) -> Any:
    """A scalar ready to meet the leaf `like`: Python numbers as they are (they are weakly typed), arrays in its dtype."""
    return scalar if isinstance(scalar, int | float) else astype(scalar, like.dtype)


def cast_tree(tree: Tree, like: Tree, convert: Callable[[Any], Any] = lambda dtype: dtype) -> Tree:
    """Casts each leaf of `tree` to `convert(dtype of the leaf of like)`."""
    return jax.tree.map(lambda x, y: astype(x, convert(dtype_of(y))), tree, like)


def increment(count: jax.Array) -> jax.Array:
    """A counter plus one, which stays at its largest value instead of wrapping round."""
    return astype(optax.safe_increment(jnp.asarray(count)), dtype_of(count))
