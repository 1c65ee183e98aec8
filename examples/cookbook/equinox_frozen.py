import equinox as eqx
import jax
import jax.numpy as jnp

import optchain

model = eqx.nn.MLP(in_size=2, out_size=1, width_size=16, depth=2, key=jax.random.key(0))
params, static = eqx.partition(model, eqx.is_inexact_array)  # the arrays, and all else


def loss_fn(params, x, y):
    network = eqx.combine(params, static)
    return jnp.mean((jax.vmap(network)(x) - y) ** 2)


# layers/0 and layers/1 stand still; layers/2, the head, trains.
tx = optchain.freeze(optchain.adamw(3e-2), optchain.matching("^layers/[01]/"))
print(optchain.describe(tx, params))

x = jax.random.normal(jax.random.key(1), (64, 2))
y = x[:, :1] * x[:, 1:]
before = jax.tree.map(jnp.copy, params)  # the step takes the old arrays away
step = optchain.make_step(loss_fn, tx)
state, losses = tx.init(params), []
for _ in range(100):
    params, state, metrics = step(params, state, x, y)
    losses.append(float(metrics["loss"]))

model = eqx.combine(params, static)
still = [
    bool((new.weight == old.weight).all())
    for new, old in zip(model.layers, before.layers, strict=True)
]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; layers that stand still: {still}")
