import jax
import jax.numpy as jnp
import numpy as np

import optchain

rng = np.random.default_rng(0)
x = rng.normal(size=(512, 16)).astype(np.float32)
y = np.sin(x @ rng.normal(size=(16, 1)).astype(np.float32) / 2)


def loss_fn(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["head"] - y) ** 2)


LOW, HIGH, CALLS = 1e-5, 10.0, 200


def rising(step):
    """From LOW to HIGH, by the same factor each call."""
    return LOW * (HIGH / LOW) ** (step / (CALLS - 1))


tx = optchain.sgd(rising, momentum=0.9)
step = optchain.make_step(loss_fn, tx)
params = {
    "hidden": jax.random.normal(jax.random.key(2), (16, 64)) / 4,
    "head": jax.random.normal(jax.random.key(3), (64, 1)) / 8,
}
state, rates, losses, smooth = tx.init(params), [], [], []
for call in range(CALLS):
    rows = rng.integers(0, 512, 64)
    params, state, metrics = step(params, state, x[rows], y[rows])
    rates.append(float(metrics["learning_rate"]))
    losses.append(float(metrics["loss"]))
    smooth.append(losses[-1] if call == 0 else 0.9 * smooth[-1] + 0.1 * losses[-1])
    if not smooth[-1] < 4 * min(smooth):  # it has gone astray, perhaps to NaN
        break

lowest = rates[smooth.index(min(smooth))]
print(
    f"the loss is lowest at {lowest:.2g} and astray at {rates[-1]:.2g}:",
    f"start with {lowest / 10:.1g}",
)
