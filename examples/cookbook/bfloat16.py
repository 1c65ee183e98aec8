import jax.numpy as jnp
import numpy as np

import optchain

rng = np.random.default_rng(0)
x = rng.normal(size=(512, 32)).astype(np.float32)
y = np.sin(x @ rng.normal(size=(32, 1)).astype(np.float32) / 3)


def loss_fn(params, x, y):
    """The arithmetic in float32, so that the weights are all that differs."""
    hidden, head = (params[name].astype(jnp.float32) for name in ("hidden", "head"))
    return jnp.mean((jnp.tanh(x @ hidden) @ head - y) ** 2)


def train(tx, params, state):
    step, losses = optchain.make_step(loss_fn, tx), []
    for call in range(300):
        rows = slice(64 * (call % 8), 64 * (call % 8 + 1))
        params, state, metrics = step(params, state, x[rows], y[rows])
        losses.append(float(metrics["loss"]))
    return params, state, losses


def initial():
    rng = np.random.default_rng(1)
    hidden, head = rng.normal(size=(32, 128)) / 6, rng.normal(size=(128, 1)) / 11
    return {
        "hidden": jnp.asarray(hidden, jnp.float32),
        "head": jnp.asarray(head, jnp.float32),
    }


adamw = optchain.adamw(3e-4, weight_decay=0.0)
kept = optchain.compact(
    adamw, weights=24
)  # 16 bits of a weight in the parameters, 8 more in the state

wide = initial()
_, _, float32 = train(adamw, initial(), adamw.init(initial()))
_, _, plain = train(
    adamw, optchain.narrow(initial()), adamw.init(optchain.narrow(initial()))
)
params, state, compact = train(
    kept, optchain.narrow(wide), kept.init(wide)
)  # the state of the wide weights

print("the model sees", params["hidden"].dtype, "and the state has the rest")
last = {"float32": float32, "bfloat16": plain, "bfloat16, weights=24": compact}
print({name: round(sum(losses[-8:]) / 8, 5) for name, losses in last.items()})
whole = optchain.wide_params(params, state)  # float32 again, to publish
