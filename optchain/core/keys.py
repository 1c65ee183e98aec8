"""Seeds and keys of JAX's random numbers, as the data that a state can keep and a checkpoint can hold."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments

GENERATOR = "threefry2x32"
"""Named, so that a run goes on with the same numbers whatever JAX's default becomes."""


def is_key(value: Any) -> bool:
    """Whether it is an array of typed keys, `jax.random.key(0)`."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def without_type(value: Any) -> Any:
    """Typed keys as the integers that a file can hold; anything else as it is."""
    if is_key(value):
        return jax.random.key_data(value)
    is_shape = isinstance(value, jax.ShapeDtypeStruct) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, value) if is_shape else value


def typed_like(value: Any, like: Any) -> Any:
    """Integers as keys where the other is typed keys; anything else as it is."""
    if not jnp.issubdtype(getattr(like, "dtype", jnp.float32), jax.dtypes.prng_key):
        return value
    return jax.random.wrap_key_data(value, impl=jax.random.key_impl(jnp.empty((), like.dtype)))


def is_raw_key(value: Any) -> bool:
    """Whether it is an array of raw keys, `jax.random.PRNGKey(0)`, along the last axis."""
    return arguments.is_array(value) and value.shape[-1:] == (2,) and value.dtype == jnp.uint32


def check_seed(name: str, value: Any) -> None:
    """Requires an integer >= 0, a key, typed or raw, or any of these traced."""
    if is_key(value) or is_raw_key(value):
        if value.shape != (() if is_key(value) else (2,)):
            raise ValueError(f"{name} must be one key; got an array of them, of shape {value.shape}")
    elif arguments.is_traced(value):
        if value.shape or not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name} must be an integer or a key; got a traced {value.dtype} of shape {value.shape}")
    elif arguments.is_array(value) and value.shape:
        raise TypeError(f"{name} must be an integer or a key; got an array of shape {value.shape}, dtype {value.dtype}")
    else:
        arguments.check_integer(name, value, minimum=0)


def key_data(seed: Any) -> jax.Array:
    """The two uint32 that a seed or a key comes to in our generator; a key of another generator gives them by a draw."""
    if is_raw_key(seed):
        return jnp.array(seed, copy=True)
    key = seed if is_key(seed) else jax.random.key(seed, impl=GENERATOR)
    if str(jax.random.key_impl(key)) != GENERATOR:
        return jax.random.bits(key, (2,), jnp.uint32)
    return jax.random.key_data(key)
