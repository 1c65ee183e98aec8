import jax
import jax.numpy as jnp
import numpy as np

import optchain
from optchain.schedules import WarmupStableDecay

rng = np.random.default_rng(0)
x = rng.normal(size=(256, 8)).astype(np.float32)
y = np.tanh(x @ rng.normal(size=(8, 1)).astype(np.float32))


def loss_fn(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["head"] - y) ** 2)


evaluate = jax.jit(loss_fn)


def train(schedule, params, state, calls):
    step = optchain.make_step(loss_fn, optchain.adamw(schedule))
    rates, losses = [], []
    for call in calls:
        noisy = np.random.default_rng(call)  # the same batches in each run
        rows = noisy.integers(0, 256, 16)
        labels = y[rows] + noisy.normal(size=(16, 1)).astype(np.float32)
        params, state, metrics = step(params, state, x[rows], labels)
        rates.append(float(metrics["learning_rate"]))
        losses.append(float(evaluate(params, x, y)))
    return params, state, rates, losses


# One run that could go on for ever, up to call 200.
long = WarmupStableDecay(
    3e-2, warmup_steps=20, stable_steps=10_000, decay_steps=100, shape="sqrt"
)
params = {
    "hidden": rng.normal(size=(8, 32)).astype(np.float32) / 3,
    "head": np.zeros((32, 1), np.float32),
}
params = jax.tree.map(jnp.asarray, params)
params, state, rates, losses = train(
    long, params, optchain.adamw(long).init(params), range(200)
)
kept = jax.tree.map(jnp.copy, (params, state))  # a checkpoint

# It goes on at the full rate; and from the checkpoint it is brought down in 100 calls.
_, _, more_rates, more_losses = train(long, params, state, range(200, 300))
short = WarmupStableDecay(
    3e-2, warmup_steps=20, stable_steps=180, decay_steps=100, shape="sqrt"
)
_, _, down_rates, down_losses = train(short, *kept, range(200, 300))

print(
    f"at 200 {losses[-1]:.4f}; at 300, {more_losses[-1]:.4f} with the full rate,",
    f"{down_losses[-1]:.4f} with the decay",
)
