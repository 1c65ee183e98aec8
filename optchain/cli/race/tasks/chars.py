"""A character-level transformer: four pre-norm blocks of width 128, 0.8 M parameters."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.cli.race.tasks import text
from optchain.core.arguments import check_bool
from optchain.race import Task

WIDTH, HEADS, BLOCKS, LENGTH = 128, 4, 4, 64
BATCH, STEPS, EVALUATIONS = 4, 160, 10
HELD_OUT_WINDOWS = 32
SPREAD = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Attention and a perceptron, each on a norm of what it is added to."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = jnp.split(
            nn.Dense(3 * WIDTH, use_bias=False, name="qkv")(nn.LayerNorm(name="norm_1")(x)), 3, -1
        )
        heads = [part.reshape(*part.shape[:-1], HEADS, WIDTH // HEADS) for part in (query, key, value)]
        mixed = jax.nn.dot_product_attention(*heads, is_causal=True).reshape(x.shape)
        x = x + nn.Dense(WIDTH, use_bias=False, name="out")(mixed)
        wide = nn.gelu(nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm(name="norm_2")(x)))
        return x + nn.Dense(WIDTH, name="down")(wide)


class Transformer(nn.Module):
    """Logits of the next character at each place."""

    characters: int
    tied: bool
    scanned: bool

    @nn.compact
    def __call__(self, numbers: jax.Array) -> jax.Array:
        embedding = nn.Embed(self.characters, WIDTH, embedding_init=SPREAD, name="embedding")
        x = embedding(numbers) + self.param("position_embedding", SPREAD, (LENGTH, WIDTH))
        if self.scanned:
            body = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=BLOCKS,
            )
            x, _ = body(Block(name="blocks"), x, None)
        else:
            for number in range(BLOCKS):
                x = Block(name=f"block_{number}")(x)
        x = nn.LayerNorm(name="norm")(x)
        return embedding.attend(x) if self.tied else nn.Dense(self.characters, use_bias=False, name="head")(x)


def chars(*, tied: bool = False, scanned: bool = False) -> Task:
    """The next character of a text.

    Args:
      tied: whether the embedding is the last layer too.
      scanned: whether the blocks are one with a leading axis, looped over, or a list. A rule that takes a norm of a leaf takes
        it over all of them if they are one.
    """
    tied, scanned = check_bool("tied", tied), check_bool("scanned", scanned)
    numbers, characters = text.characters()
    train, held_out = map(jnp.asarray, text.split(numbers))
    model = Transformer(characters, tied, scanned)
    places = np.arange(LENGTH + 1)
    first = np.linspace(0, len(held_out) - LENGTH - 1, HELD_OUT_WINDOWS).astype(int)
    windows = held_out[first[:, None] + places]

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, LENGTH), jnp.int32))["params"]

    def batch(key: jax.Array) -> jax.Array:
        return train[jax.random.randint(key, (BATCH, 1), 0, len(train) - LENGTH) + places]

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        windows = windows.astype(jnp.int32)
        logits = cast(jax.Array, model.apply({"params": params}, windows[:, :-1]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    options = "".join(f"-{name}" for name, given in {"tied": tied, "scanned": scanned}.items() if given)
    return Task(
        f"chars{options}",
        init,
        batch,
        loss,
        lambda params: loss(params, windows),
        STEPS,
        EVALUATIONS,
        target=2.6,
        about="a character-level transformer on CPython's documentation, nats a character",
    )
