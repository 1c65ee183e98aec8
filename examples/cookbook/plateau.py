import jax
import jax.numpy as jnp
import numpy as np

import optchain

rng = np.random.default_rng(0)
x = rng.normal(size=(256, 8)).astype(np.float32)
y = x @ np.linspace(-1, 1, 8, dtype=np.float32)
noisy = y[:192] + rng.normal(size=192).astype(np.float32)  # the rest is held out


def loss_fn(params, x, y):
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)


tx = optchain.adamw(0.3, weight_decay=0.0)  # a number, so that it can be set
step, evaluate = optchain.make_step(loss_fn, tx), jax.jit(loss_fn)
params = {"kernel": jnp.zeros(8), "bias": jnp.zeros(())}
state = tx.init(params)

lower = optchain.ReduceLROnPlateau(factor=0.5, patience=2, min_learning_rate=1e-3)
stop = optchain.EarlyStopping(patience=8)
lowering, stopping = lower.init(), stop.init()
losses, rates = [], []
for _ in range(40):  # epochs
    for rows in rng.permutation(192).reshape(12, 16):
        params, state, metrics = step(params, state, x[rows], noisy[rows])
    losses.append(float(evaluate(params, x[192:], y[192:])))
    rates.append(float(metrics["learning_rate"]))
    lowering, state = lower.update(
        losses[-1], lowering, state
    )  # sets the rate; nothing is compiled again
    stopping = stop.update(losses[-1], stopping)
    if stopping["stop"]:
        break

print(
    f"{len(losses)} epochs, rate {rates[0]:g} -> {rates[-1]:g},",
    f"held-out loss {losses[-1]:.4f}",
)
