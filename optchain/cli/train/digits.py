"""The data and the network: scikit-learn's handwritten digits, and a perceptron with layer norms."""

import functools
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
PIXELS = 64
LARGEST_PIXEL = 16.0
TEST_SHARE = 0.2


class Digits(NamedTuple):
    """Images of 8 by 8 pixels in [0, 1] and their labels, in a part to train on and a part to test on."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(seed: int) -> Digits:
    """The digits, split by the seed so that every class has the same share in both parts."""
    images, labels = load_digits(return_X_y=True)
    images = (images / LARGEST_PIXEL).astype(np.float32)
    rows = np.arange(len(labels))
    train, test = map(np.asarray, train_test_split(rows, test_size=TEST_SHARE, stratify=labels, random_state=seed))
    return Digits(images[train], labels[train], images[test], labels[test])


def batch(digits: Digits, seed: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a step: a function of seed and step alone, so that a resumed run sees what it would have seen."""
    epoch, position = divmod(step, len(digits.train_labels) // size)
    chosen = _shuffled(len(digits.train_labels), seed, epoch)[position * size : (position + 1) * size]
    return digits.train_images[chosen], digits.train_labels[chosen]


@functools.lru_cache(maxsize=1)
def _shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


class Network(nn.Module):
    """Two hidden layers, each with a norm: kernels, biases and scales, which a recipe treats differently."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = images
        for number, width in enumerate((256, 128), start=1):
            hidden = nn.Dense(width, name=f"dense_{number}")(hidden)
            hidden = nn.gelu(nn.LayerNorm(name=f"norm_{number}")(hidden))
        return nn.Dense(CLASSES, name="logits")(hidden)


def init(seed: int) -> Any:
    """Fresh parameters."""
    return _init(jax.random.key(seed))


@jax.jit
def _init(key: jax.Array) -> Any:
    return Network().init(key, jnp.zeros((1, PIXELS)))["params"]


def loss(params: Any, images: jax.Array, labels: jax.Array, *, label_smoothing: float) -> jax.Array:
    """The mean cross-entropy with smoothed labels, in nats."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), label_smoothing)
    return optax.softmax_cross_entropy(_logits(params, images), targets).mean()


@jax.jit
def accuracy(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of images that are classified right."""
    return jnp.mean(_logits(params, images).argmax(axis=-1) == labels)


def _logits(params: Any, images: jax.Array) -> jax.Array:
    return cast(jax.Array, Network().apply({"params": params}, images))
