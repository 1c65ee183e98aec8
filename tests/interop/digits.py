"""One small convolutional network, in Keras and in Flax, and its data."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from sklearn.datasets import load_digits

BATCH = 16
CLASSES = 10


def keras_model(optimizer: keras.optimizers.Optimizer | None, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="tanh", name="conv_1"),
            keras.layers.Conv2D(8, 3, strides=2, activation="tanh", name="conv_2"),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )
    if optimizer is not None:
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        optimizer.build(model.trainable_variables)
    return model


class Network(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = nn.tanh(nn.Conv(4, (3, 3), padding="VALID", name="conv_1")(images))
        hidden = nn.tanh(nn.Conv(8, (3, 3), strides=2, padding="VALID", name="conv_2")(hidden))
        return nn.Dense(CLASSES, name="logits")(hidden.reshape(len(hidden), -1))


def flax_params() -> Any:
    """Parameters of the network, with other values than Keras's."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(Network().init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape).astype("float32")), shapes)


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits: Any = Network().apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches(first: int, last: int) -> list[tuple[np.ndarray, np.ndarray]]:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return [(images[i * BATCH :][:BATCH], labels[i * BATCH :][:BATCH].astype(np.int32)) for i in range(first, last)]
