"""Data-parallel training of a Flax linen model with `pmap`: each device has a part of the batch and its own copy of the rest.

    python examples/data_parallel_pmap.py

To try it without accelerators: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import optchain
from optchain.flax import TrainState


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(x)))


# The mean of the replicas' gradients comes first: all that follows then sees the same gradient on every device.
tx = optchain.chain(
    optchain.cross_replica_mean("batch"),
    optchain.adamw(1e-2, weight_decay=1e-4, global_clipnorm=1.0, use_ema=True),
)


@functools.partial(jax.pmap, axis_name="batch", donate_argnums=0)
def train_step(state, x, y):
    def loss_fn(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), jax.lax.pmean(loss, "batch")


def main(steps: int = 100) -> tuple[list[float], TrainState]:
    devices = jax.local_device_count()
    model = Network()
    params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * devices), state)

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        x = rng.uniform(-1, 1, size=(devices, 8, 4)).astype(np.float32)
        y = np.sin(3 * x[..., :1]) * x[..., 1:2]
        state, loss = train_step(state, x, y)
        losses.append(float(loss[0]))
    return losses, state


if __name__ == "__main__":
    losses, state = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} on {jax.local_device_count()} devices")
    one = jax.tree.map(lambda leaf: leaf[0], state)
    averaged = optchain.finalize(one.params, one.opt_state)  # the weights to evaluate with
