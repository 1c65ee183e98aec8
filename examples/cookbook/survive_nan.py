import jax
import jax.numpy as jnp
import numpy as np

import optchain

rng = np.random.default_rng(0)
x = rng.normal(size=(256, 4)).astype(np.float32)
y = x @ np.array([1.0, -1.0, 2.0, 0.0], np.float32)


def loss_fn(params, x, y):
    return jnp.mean((x @ params["kernel"] - y) ** 2)


evaluate = jax.jit(loss_fn)


def train(tx, bad=(20, 21, 50)):
    step = optchain.make_step(loss_fn, tx)
    params = {"kernel": jnp.zeros(4)}
    state, losses = tx.init(params), []
    for call in range(80):
        rows = rng.integers(0, 256, 32)
        batch = x[rows]
        if call in bad:
            batch[0, 0] = np.nan
        params, state, metrics = step(params, state, batch, y[rows])
        losses.append(float(evaluate(params, x, y)))
        if call % 10 == 9:  # where the run logs anyway
            # FloatingPointError, were the last five steps all bad
            optchain.raise_if_nonfinite(metrics)
    return losses, metrics


adamw = optchain.adamw(5e-2, global_clipnorm=1.0)
losses, metrics = train(optchain.skip_nonfinite(adamw, max_consecutive=5))
without, _ = train(adamw)
print(
    f"with skip_nonfinite: loss {losses[-1]:.4f},",
    f"{int(metrics['skipped_steps'])} steps skipped",
)
print(f"without: loss {without[-1]}")
