import jax
import jax.numpy as jnp

import optchain

x = jax.random.normal(jax.random.key(0), (128, 8))
y = jnp.tanh(x @ jax.random.normal(jax.random.key(1), (8, 1)))


def loss_fn(params, x, y):
    """Parameters in float32, the network in float16."""
    half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
    predicted = jnp.tanh(x.astype(jnp.float16) @ half["hidden"]) @ half["head"]
    return jnp.mean((predicted.astype(jnp.float32) - y) ** 2)


tx = optchain.dynamic_loss_scale(
    optchain.adamw(1e-2), initial_scale=2.0**24, growth_steps=20
)
step = optchain.make_step(loss_fn, tx)  # scales the loss, and divides the gradient again
params = {
    "hidden": jax.random.normal(jax.random.key(2), (8, 32)) / 3,
    "head": jnp.zeros((32, 1)),
}
state, losses, scales = tx.init(params), [], []
for _ in range(150):
    params, state, metrics = step(params, state, x, y)
    losses.append(float(metrics["loss"]))  # the loss itself, not the scaled one
    scales.append(float(metrics["loss_scale"]))

print(
    f"loss {losses[0]:.3f} -> {losses[-1]:.4f}; {metrics['skipped_steps']} steps skipped;",
    f"the scale is 2^{jnp.log2(scales[-1]):.0f}",
)
