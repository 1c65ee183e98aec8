"""A Flax nnx model under one sharded `jit`: tensor-parallel layers, a batch split over the rest of the devices, ZeRO-1.

    python examples/sharded_nnx.py

To try it without accelerators: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(4, 64, rngs=rngs)
        self.down = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.tanh(self.up(x)))


# How the parameters lie: the neurons of the hidden layer are split over the axis `model`.
LAYOUT = {("up", "kernel"): P(None, "model"), ("up", "bias"): P("model"), ("down", "kernel"): P("model", None)}


def main(steps: int = 100):
    model_axis = 2 if jax.device_count() % 2 == 0 else 1
    shape = (jax.device_count() // model_axis, model_axis)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    params = nnx.to_pure_dict(params)
    params = {
        layer: {
            name: jax.device_put(leaf, NamedSharding(mesh, LAYOUT.get((layer, name), P())))
            for name, leaf in leaves.items()
        }
        for layer, leaves in params.items()
    }

    def loss_fn(params, x, y):
        return jnp.mean((nnx.merge(graph, nnx.State(params))(x) - y) ** 2)

    tx = optchain.adamw(1e-2, weight_decay=1e-4, global_clipnorm=1.0, use_ema=True)
    state = optchain.init_sharded(tx, params, mesh, axis="data")
    step = optchain.make_step(loss_fn, tx, mesh=mesh, axis="data")

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        x = rng.uniform(-1, 1, size=(64, 4)).astype(np.float32)
        y = np.sin(3 * x[..., :1]) * x[..., 1:2]
        batch = jax.device_put((x, y), NamedSharding(mesh, P("data")))
        params, state, metrics = step(params, state, *batch)
        losses.append(float(metrics["loss"]))
    print(optchain.describe(tx, params, axis="data"))
    return losses, (params, state)


if __name__ == "__main__":
    losses, _ = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} on {jax.device_count()} devices")
