"""Skip-gram with negative sampling on the words of the documentation; gradients name the rows that a batch looks up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optchain
from optchain.cli.race.tasks import text
from optchain.race import Task

WIDTH, BATCH, OTHERS, REACH = 32, 256, 4, 2
HELD_OUT_PAIRS = 4096
FLATTENED = 0.75
"""The power of a word's frequency by which it is drawn as one that does not stand nearby."""


def skip_gram() -> Task:
    """Which words stand near a word.

    Source: Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", 2013, arXiv:1310.4546.
    """
    numbers, counts = text.words()
    train, held_out = map(jnp.asarray, text.split(numbers))
    frequency = counts**FLATTENED
    below = jnp.asarray(np.cumsum(frequency / frequency.sum()), jnp.float32)

    def pairs(key: jax.Array, words: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Words, for each one that stands near it, and some that are drawn from all."""
        place, step, other = jax.random.split(key, 3)
        at = jax.random.randint(place, (size,), REACH, len(words) - REACH)
        apart = jax.random.randint(step, (size,), 1, 2 * REACH + 1)  # 1 … 4 is +1, +2, −1, −2
        near = at + jnp.where(apart > REACH, REACH - apart, apart)
        drawn = jnp.searchsorted(below, jax.random.uniform(other, (size, OTHERS)))
        return words[at], words[near], jnp.minimum(drawn, len(counts) - 1)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key)
        names = ("center_embedding", "context_embedding")
        return {name: 0.3 * jax.random.normal(k, (len(counts), WIDTH)) for name, k in zip(names, keys, strict=True)}

    def loss(params: dict[str, jax.Array], batch: tuple[Any, Any, Any]) -> jax.Array:
        centers, contexts, others = batch
        center = optchain.rows_of(params["center_embedding"], centers)
        context = optchain.rows_of(params["context_embedding"], contexts)
        other = optchain.rows_of(params["context_embedding"], others)
        near, far = jnp.einsum("bd,bd->b", center, context), jnp.einsum("bd,bod->bo", center, other)
        return jnp.mean(-jax.nn.log_sigmoid(near) - jax.nn.log_sigmoid(-far).sum(-1))

    shown = pairs(jax.random.key(0), held_out, HELD_OUT_PAIRS)
    return Task(
        "skip-gram",
        init,
        lambda key: pairs(key, train, BATCH),
        loss,
        lambda params: loss(params, shown),
        400,
        target=2.7,
        about="skip-gram embeddings of CPython's documentation, nats a pair",
    )
