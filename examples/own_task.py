"""A task of one's own for `optchain race`: two spirals that a small network has to tell apart.

    optchain race --tasks examples/own_task.py --recipes adamw,sgd:momentum=0.9

A task is a few pure functions, in whatever library you like: here plain JAX. `task` is a `Task`, or a function that makes one,
whose arguments the command can set: `--tasks examples/own_task.py:turns=3`.
"""

import jax
import jax.numpy as jnp

from optchain.race import Task

WIDTH, BATCH, HELD_OUT = 32, 64, 512


def task(turns: float = 2.0) -> Task:
    def spirals(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Points on one of two arms, and which."""
        along, arm, noise = jax.random.split(key, 3)
        radius = jax.random.uniform(along, (size,))
        label = jax.random.bernoulli(arm, 0.5, (size,)).astype(jnp.float32)
        angle = 2 * jnp.pi * turns * radius + jnp.pi * label
        points = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return points + 0.01 * jax.random.normal(noise, points.shape), label

    def init(key: jax.Array) -> dict[str, jax.Array]:
        first, second, last = jax.random.split(key, 3)
        return {
            "kernel_1": jax.random.normal(first, (2, WIDTH)) * 2.0,
            "bias_1": jnp.zeros(WIDTH),
            "kernel_2": jax.random.normal(second, (WIDTH, WIDTH)) / WIDTH**0.5,
            "bias_2": jnp.zeros(WIDTH),
            "kernel_3": jax.random.normal(last, (WIDTH,)) / WIDTH**0.5,
        }

    def loss(params: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        points, label = batch
        hidden = jnp.tanh(points @ params["kernel_1"] + params["bias_1"])
        hidden = jnp.tanh(hidden @ params["kernel_2"] + params["bias_2"])
        return jnp.mean(jnp.logaddexp(0.0, hidden @ params["kernel_3"]) - label * (hidden @ params["kernel_3"]))

    held_out = spirals(jax.random.key(0), HELD_OUT)
    return Task(
        "spirals",
        init,
        batch=lambda key: spirals(key, BATCH),
        loss=loss,
        held_out_loss=lambda params: loss(params, held_out),
        steps=600,
        target=0.1,
        about="two spirals, nats a point",
    )
