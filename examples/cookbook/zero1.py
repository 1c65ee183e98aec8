import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain
from optchain.flax import TrainState

# Without accelerators: XLA_FLAGS=--xla_force_host_platform_device_count=8
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
x = jax.device_put(jnp.ones((64, 16)), split)  # each device has a part of the batch
tx = optchain.adamw(1e-2, global_clipnorm=1.0)

# 1. make_step
params = {"kernel": jnp.ones((16, 8)) / 16, "bias": jnp.zeros(8)}
params = jax.device_put(params, whole)  # all of them on each device


def loss_fn(params, x):
    return jnp.mean((x @ params["kernel"] + params["bias"]) ** 2)


state = optchain.init_sharded(
    tx, params, mesh, axis="data"
)  # each device makes its part of the state
step = optchain.make_step(loss_fn, tx, mesh=mesh, axis="data")
params, state, metrics = step(params, state, x)

# 2. Flax's TrainState
model = nn.Dense(8)
variables = jax.device_put(model.init(jax.random.key(0), x)["params"], whole)
train_state = TrainState(
    step=jnp.zeros((), int),
    apply_fn=model.apply,
    params=variables,
    tx=tx,
    opt_state=optchain.init_sharded(tx, variables, mesh, axis="data"),
)
layout = train_state.replace(
    step=whole,
    params=jax.tree.map(lambda _: whole, variables),
    opt_state=optchain.state_shardings(tx, variables, mesh, axis="data"),
)


def train_step(train_state, x):
    grads = jax.grad(
        lambda params: jnp.mean(train_state.apply_fn({"params": params}, x) ** 2)
    )(train_state.params)
    return train_state.apply_gradients(grads=grads)


train_state = jax.jit(train_step, donate_argnums=0, out_shardings=layout)(train_state, x)

# 3. nnx
network = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
graph, weights = nnx.split(network, nnx.Param)
weights = jax.device_put(nnx.to_pure_dict(weights), whole)


def nnx_loss(weights, x):
    return jnp.mean(nnx.merge(graph, nnx.State(weights))(x) ** 2)


nnx_state = optchain.init_sharded(tx, weights, mesh, axis="data")
nnx_step = optchain.make_step(nnx_loss, tx, mesh=mesh, axis="data")
weights, nnx_state, _ = nnx_step(weights, nnx_state, x)
nnx.update(network, weights)

moments = [
    state["scale_by_adam"]["mu"]["kernel"],
    train_state.opt_state["scale_by_adam"]["mu"]["kernel"],
]
moments.append(nnx_state["scale_by_adam"]["mu"]["kernel"])
for moment in moments:
    print(
        f"a moment of {moment.shape}; each of {mesh.size} devices has",
        moment.addressable_shards[0].data.shape,
    )
