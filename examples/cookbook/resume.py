import tempfile

import jax
import jax.numpy as jnp

import optchain
from optchain.interop.orbax import restore, save

x = jax.random.normal(jax.random.key(0), (64, 4))
y = x @ jnp.array([1.0, -1.0, 2.0, 0.0])


def loss_fn(params, x, y):
    return jnp.mean((x @ params["kernel"] - y) ** 2)


# Monday: a run, and a checkpoint of parameters and state together.
tx = optchain.adamw(1e-2)
step = optchain.make_step(loss_fn, tx)
params = {"kernel": jnp.zeros(4)}
state = tx.init(params)
for _ in range(50):
    params, state, metrics = step(params, state, x, y)
folder = tempfile.mkdtemp()
save(folder, 50, {"params": params, "state": state})

# Tuesday: the recipe has changed. It clips, keeps an average, and has a rate of its own.
tx = optchain.adamw(3e-3, global_clipnorm=1.0, use_ema=True)
target = {"params": params, "state": tx.init(params)}  # shapes and what is new
restored, report = restore(
    folder, target, hyperparams="configured"
)  # or "saved", for the saved rate
print(report)

params, state = restored["params"], restored["state"]
step = optchain.make_step(loss_fn, tx)
resumed_at = int(optchain.steps_taken(state))
for _ in range(50):
    params, state, metrics = step(params, state, x, y)
print(
    f"updates: {resumed_at} -> {optchain.steps_taken(state)};",
    f"the rate is {float(metrics['learning_rate']):g}",
)
