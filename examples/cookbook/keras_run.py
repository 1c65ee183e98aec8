import os

os.environ.setdefault("KERAS_BACKEND", "jax")
import tempfile

import jax.numpy as jnp
import keras
import numpy as np

import optchain
from optchain.interop.keras import from_keras, load_params, load_state

# Their half: a model that Keras trained for a while, and saved.
x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
y = x @ np.array([[1.0], [-2.0], [0.5]], "float32")
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="head")])
model.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.05, use_ema=True), "mse")
for _ in range(5):
    model.train_on_batch(x, y)
path = f"{tempfile.mkdtemp()}/run.keras"
model.save(path)

# Our half: the recipe, the weights and the state are read from the file.
like = {
    "head": {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1)}
}  # paths and shapes of the network here
tx = from_keras(path)
params = load_params(like, path)
state = load_state(tx, params, path)


def loss_fn(params, x, y):
    return jnp.mean((x @ params["head"]["kernel"] + params["head"]["bias"] - y) ** 2)


step = optchain.make_step(loss_fn, tx)
losses, theirs = [], []
for _ in range(5):
    params, state, metrics = step(params, state, x, y)
    losses.append(float(metrics["loss"]))
    theirs.append(float(model.train_on_batch(x, y)))

print("the loss here: ", np.round(losses, 4))
print("and in Keras:  ", np.round(theirs, 4))
