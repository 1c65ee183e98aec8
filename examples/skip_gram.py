"""Skip-gram with negative sampling, trained three times: with dense gradients, with exact rows, with lazy rows.

    python examples/skip_gram.py

The corpus is made up: a thousand words in fifty topics, and a sentence keeps to its topic, but for a few words. Two tables are trained so
that a word's row in the one is near the rows, in the other, of the words around it:

    loss = −log σ(center · context) − Σ log σ(−center · other)

Then the words next to a word, by the cosine of their rows, should be of its topic. Source: Mikolov et al., "Distributed
Representations of Words and Phrases and their Compositionality", 2013, arXiv:1310.4546.
"""

import argparse
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import optchain

WORDS, TOPICS, WIDTH = 1000, 50, 16
BATCH, OTHERS = 256, 4
STRAY = 0.1
"""How often a word is one of any topic."""

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def corpus(steps: int, seed: int = 0) -> Iterator[Batch]:
    """Batches of centers, of a word around each, and of words drawn at random. Word w is of the topic w % TOPICS."""
    rng = np.random.default_rng(seed)

    def words_of(topic: np.ndarray) -> np.ndarray:
        stray = rng.uniform(size=BATCH) < STRAY
        word = topic + TOPICS * rng.integers(0, WORDS // TOPICS, BATCH)
        return np.where(stray, rng.integers(0, WORDS, BATCH), word).astype(np.int32)

    for _ in range(steps):
        topic = rng.integers(0, TOPICS, BATCH)
        yield words_of(topic), words_of(topic), rng.integers(0, WORDS, (BATCH, OTHERS), np.int32)


def initial() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    return {
        name: 0.3 * jax.random.normal(key, (WORDS, WIDTH))
        for name, key in zip(("center", "context"), keys, strict=True)
    }


def loss_with(look_up: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """The loss, by a way to look up rows."""

    def loss_fn(params: dict[str, jax.Array], centers: jax.Array, contexts: jax.Array, others: jax.Array) -> jax.Array:
        center = look_up(params["center"], centers)
        context, other = look_up(params["context"], contexts), look_up(params["context"], others)
        near = jnp.einsum("bd,bd->b", center, context)
        far = jnp.einsum("bd,bod->bo", center, other)
        return jnp.mean(-jax.nn.log_sigmoid(near) - jax.nn.log_sigmoid(-far).sum(-1))

    return loss_fn


def train(kind: str, steps: int) -> tuple[dict[str, jax.Array], np.ndarray]:
    """The parameters, and the loss of every step, with gradients that are `dense`, `exact` or `lazy`."""
    loss_fn = loss_with((lambda table, ids: table[ids]) if kind == "dense" else optchain.rows_of)
    tx = optchain.adam(0.02, lazy=kind == "lazy")
    step = optchain.make_step(loss_fn, tx)
    params = initial()
    state, losses = tx.init(params), []
    for batch in corpus(steps):
        params, state, metrics = step(params, state, *batch)
        losses.append(metrics["loss"])
    return params, np.asarray(losses)


def share_of_neighbors_in_topic(params: dict[str, jax.Array], neighbors: int = 5) -> float:
    """How many of each word's nearest words are of its topic."""
    rows = np.asarray(params["center"] / jnp.linalg.norm(params["center"], axis=1, keepdims=True))
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    nearest = np.argsort(-cosines, axis=1)[:, :neighbors]
    return float(np.mean(nearest % TOPICS == np.arange(WORDS)[:, None] % TOPICS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    for kind in ("dense", "exact", "lazy"):
        params, losses = train(kind, given.steps)
        share = share_of_neighbors_in_topic(params)
        print(
            f"{kind:>6}: loss {losses[:20].mean():.3f} → {losses[-50:].mean():.3f}, neighbors of the same topic {share:.0%}"
        )


if __name__ == "__main__":
    main()
