"""What the memory gives: a pass over arrays in place, the speed that an optimizer step can hope for."""

import statistics
import time

import jax

SIZE = 2**25
PASSES = 20


def in_place_gigabytes_per_second() -> float:
    """Reads and writes 128 MiB in place, many times; the median."""
    scale = jax.jit(lambda x: x * 0.999, donate_argnums=0)
    x = jax.block_until_ready(scale(jax.numpy.ones(SIZE)))
    seconds = []
    for _ in range(PASSES):
        began = time.perf_counter()
        x = jax.block_until_ready(scale(x))
        seconds.append(time.perf_counter() - began)
    return 2 * x.nbytes / statistics.median(seconds) / 1e9
