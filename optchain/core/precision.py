"""Float64 for the length of a block."""

from contextlib import AbstractContextManager

import jax


def enable_x64(enabled: bool = True) -> AbstractContextManager[None]:
    """`jax.enable_x64`, which was in `jax.experimental` before JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax.experimental import enable_x64 as experimental  # pyright: ignore[reportAttributeAccessIssue]

    return experimental(enabled)
