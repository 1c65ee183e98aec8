"""Small tasks that compile in seconds."""

import jax
import jax.numpy as jnp

from optchain.race import Task

WIDTH = 8


def line(steps: int = 40, evaluations: int = 4, size: int = 8, noise: float = 0.5) -> Task:
    """A noisy line through points: the gradient's noise is that of the batch."""
    wanted = jnp.linspace(-1.0, 1.0, WIDTH)
    shown = jax.random.normal(jax.random.key(7), (64, WIDTH))

    def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        points, errors = jax.random.split(key)
        x = jax.random.normal(points, (size, WIDTH))
        return x, x @ wanted + noise * jax.random.normal(errors, (size,))

    def loss(params: dict[str, jax.Array], examples: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = examples
        return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)

    return Task(
        "line",
        lambda key: {"kernel": jax.random.normal(key, (WIDTH,)), "bias": jnp.zeros(())},
        batch,
        loss,
        lambda params: loss(params, (shown, shown @ wanted)),
        steps,
        evaluations,
    )


task = line
