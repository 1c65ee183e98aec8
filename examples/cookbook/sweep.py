import jax
import jax.numpy as jnp
import numpy as np

import optchain

rng = np.random.default_rng(0)
x = rng.normal(size=(256, 8)).astype(np.float32)
y = np.sin(x @ rng.normal(size=(8, 1)).astype(np.float32))


def loss_fn(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["head"] - y) ** 2)


def step(params, state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    params, state = tx.apply(params, state, grads=grads)
    return params, state, loss


rates = jnp.logspace(-4, 0.5, 40)
tx = optchain.adamw(1e-3, global_clipnorm=1.0)
params = {
    "hidden": jax.random.normal(jax.random.key(2), (8, 32)) / 3,
    "head": jnp.zeros((32, 1)),
}

states, axes = optchain.sweep(tx.init(params), learning_rate=rates)  # forty states in one
members = jax.tree.map(
    lambda p: jnp.repeat(p[None], len(rates), axis=0), params
)  # forty copies
step_all = jax.jit(jax.vmap(step, in_axes=(0, axes, None, None), out_axes=(0, axes, 0)))
for _ in range(150):
    rows = rng.integers(0, 256, 32)
    members, states, _ = step_all(members, states, x[rows], y[rows])

final = jax.vmap(loss_fn, in_axes=(0, None, None))(members, x, y)
best = int(jnp.nanargmin(final))
print(
    f"{len(rates)} runs, one program: the best rate is {rates[best]:.2g},",
    f"with a loss of {final[best]:.4f}",
)
