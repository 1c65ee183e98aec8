import jax
import jax.numpy as jnp

import optchain

x = jax.random.normal(
    jax.random.key(0), (22, 3)
)  # 22 examples: five batches of 4, and one of 2
y = x @ jnp.array([1.0, -2.0, 0.5])


def loss_fn(params, x, y):
    return jnp.mean((x @ params - y) ** 2)


tx = optchain.accumulate(optchain.sgd(0.1), 4)  # an update in four calls
step = optchain.make_step(loss_fn, tx)
params = jnp.zeros(3)
state, updates = tx.init(params), []
for start in range(0, 22, 4):
    batch = x[start : start + 4], y[start : start + 4]
    before = jnp.copy(params)
    params, state, metrics = step(
        params, state, *batch, weight=len(batch[0])
    )  # what the batch counts for
    updates.append(bool((params != before).any()))

params, state = optchain.flush(
    tx, params, state
)  # the end of the epoch: what waits becomes an update

# The same in two large batches: one of 16, and the tail of 6.
expected = jnp.zeros(3)
for rows in (slice(0, 16), slice(16, 22)):
    expected = expected - 0.1 * jax.grad(loss_fn)(expected, x[rows], y[rows])

print("calls that updated:", updates)
print("parameters:", params, "large batches:", expected)
