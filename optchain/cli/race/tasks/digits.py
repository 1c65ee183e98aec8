"""Handwritten digits: a perceptron with layer norms, a convolutional net with batch norms, an autoencoder."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.cli.train.digits import CLASSES, Network, load
from optchain.race import Task

BATCH = 64
SPLIT = 0
"""The seed of the split, which is the same in every run."""
SIDE = 8
CODE = 8


def digits() -> Task:
    """Which digit it is, by a perceptron of 52,000 parameters."""
    return _classifier(
        "digits", Network(), 200, 0.1, "handwritten digits, a perceptron with layer norms, nats an image"
    )


def conv() -> Task:
    """Which digit it is, by two convolutions with batch norms.

    The statistics for the held-out images are those of training images under the weights that are evaluated: running ones would
    be of other weights, where a recipe evaluates an average.
    """
    data = load(SPLIT)
    model = Convolutional()
    images, labels = _images(data.train_images), jnp.asarray(data.train_labels)
    known, shown, answers = images[:512], _images(data.test_images), jnp.asarray(data.test_labels)

    def logits(params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        made, variables = model.apply({"params": params}, images, True, mutable=["batch_stats"])
        return cast(jax.Array, made), variables["batch_stats"]

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _cross_entropy(logits(params, batch[0])[0], batch[1])

    def held_out_loss(params: Any) -> jax.Array:
        statistics = logits(params, known)[1]
        made = model.apply({"params": params, "batch_stats": statistics}, shown, False)
        return _cross_entropy(cast(jax.Array, made), answers)

    return Task(
        "conv",
        lambda key: model.init(key, images[:1], True)["params"],
        _sampled(images, labels),
        loss,
        held_out_loss,
        200,
        target=0.08,
        about="handwritten digits, convolutions with batch norms, nats an image",
    )


def autoencoder() -> Task:
    """Digits through eight numbers and back."""
    data = load(SPLIT)
    model = Autoencoder()
    images, shown = jnp.asarray(data.train_images), jnp.asarray(data.test_images)

    def loss(params: Any, batch: tuple[jax.Array]) -> jax.Array:
        made = cast(jax.Array, model.apply({"params": params}, batch[0]))
        return jnp.mean(jnp.sum((made - batch[0]) ** 2, axis=-1))

    return Task(
        "autoencoder",
        lambda key: model.init(key, shown[:1])["params"],
        _sampled(images),
        loss,
        lambda params: loss(params, (shown,)),
        400,
        target=1.2,
        about="an autoencoder of handwritten digits, squared error an image",
    )


class Convolutional(nn.Module):
    """Two convolutions, each with a batch norm."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images
        for number, channels in enumerate((16, 32), start=1):
            x = Convolution(channels, name=f"conv_{number}")(x)
            # With a momentum of 0 the running statistics are those of the last batch.
            x = nn.relu(nn.BatchNorm(not train, momentum=0.0, name=f"norm_{number}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(CLASSES, name="logits")(x.reshape(len(x), -1))


class Convolution(nn.Module):
    """A convolution by 3 × 3, as a product of patches: under `vmap` over kernels XLA's own is slow on a CPU."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        _, height, width, _ = x.shape
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return jnp.concatenate(patches, -1) @ kernel.reshape(-1, self.channels)


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for number, width in enumerate((128, 64), start=1):
            x = nn.gelu(nn.Dense(width, name=f"in_{number}")(x))
        x = nn.Dense(CODE, name="code")(x)
        for number, width in enumerate((64, 128), start=1):
            x = nn.gelu(nn.Dense(width, name=f"out_{number}")(x))
        return nn.Dense(SIDE * SIDE, name="pixels")(x)


def _classifier(name: str, model: nn.Module, steps: int, target: float, about: str) -> Task:
    data = load(SPLIT)

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _cross_entropy(cast(jax.Array, model.apply({"params": params}, batch[0])), batch[1])

    shown = jnp.asarray(data.test_images), jnp.asarray(data.test_labels)
    return Task(
        name,
        lambda key: model.init(key, shown[0][:1])["params"],
        _sampled(jnp.asarray(data.train_images), jnp.asarray(data.train_labels)),
        loss,
        lambda params: loss(params, shown),
        steps,
        target=target,
        about=about,
    )


def _sampled(*arrays: jax.Array) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Batches of examples drawn at random, with repetition: a function of the key alone."""

    def batch(key: jax.Array) -> tuple[jax.Array, ...]:
        chosen = jax.random.randint(key, (BATCH,), 0, len(arrays[0]))
        return tuple(array[chosen] for array in arrays)

    return batch


def _images(rows: np.ndarray) -> jax.Array:
    return jnp.asarray(rows).reshape(-1, SIDE, SIDE, 1)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
