"""Fully sharded training with accumulated gradients: parameters, gradients and state are all split over all devices.

    python examples/fully_sharded_accumulation.py

To try it without accelerators: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain


def loss_fn(params, x, y):
    hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
    return jnp.mean((hidden @ params["down"]["kernel"] + params["down"]["bias"] - y) ** 2)


def fully_sharded(leaf, mesh):
    """Along the first dimension that the devices divide; a leaf that has none is on every device."""
    for dimension, length in enumerate(leaf.shape):
        if length % mesh.size == 0:
            return NamedSharding(mesh, P(*[None] * dimension, "data"))
    return NamedSharding(mesh, P())


def main(steps: int = 400):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    params = {
        "up": {"kernel": rng.normal(size=(4, 64)).astype(np.float32), "bias": np.zeros(64, np.float32)},
        "down": {"kernel": 0.1 * rng.normal(size=(64, 1)).astype(np.float32), "bias": np.zeros(1, np.float32)},
    }
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, fully_sharded(leaf, mesh)), params)

    # An update is made of four calls; the other three add to the accumulator and touch nothing else.
    tx = optchain.adamw(1e-2, weight_decay=1e-4, global_clipnorm=1.0, gradient_accumulation_steps=4, use_ema=True)
    state = optchain.init_sharded(tx, params, mesh)
    step = optchain.make_step(loss_fn, tx, mesh=mesh)

    losses = []
    for _ in range(steps):
        x = rng.uniform(-1, 1, size=(16, 4)).astype(np.float32)
        y = np.sin(3 * x[..., :1]) * x[..., 1:2]
        batch = jax.device_put((x, y), NamedSharding(mesh, P("data")))
        params, state, metrics = step(params, state, *batch)
        losses.append(float(metrics["loss"]))
    print(optchain.describe(tx, params))
    return losses, (params, state)


if __name__ == "__main__":
    losses, _ = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} on {jax.device_count()} devices")
