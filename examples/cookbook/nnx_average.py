import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import optchain
from optchain.flax import Optimizer


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(1, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.hidden(x)))


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@nnx.jit
def train_step(model, optimizer, x, y):
    loss, grads = nnx.value_and_grad(loss_fn)(model, x, y)
    optimizer.update(model, grads)
    return loss


evaluate = nnx.jit(loss_fn)


def averaged(model, optimizer):
    """The same network with the averaged weights. The model that trains keeps its own."""
    copy = nnx.clone(model)
    weights = optchain.finalize(nnx.state(model, nnx.Param), optimizer.opt_state)
    nnx.update(copy, jax.tree.map(jnp.copy, nnx.as_pure(weights)))
    return copy


x = np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
y = np.sin(3 * x)
model = Network(nnx.Rngs(0))
optimizer = Optimizer(
    model, optchain.adam(2e-2, use_ema=True, ema_momentum=0.98), wrt=nnx.Param
)

rng, losses, of_average = np.random.default_rng(0), [], []
for call in range(400):
    rows = rng.integers(0, 64, 8)
    noise = rng.normal(size=(8, 1)).astype(np.float32)
    train_step(model, optimizer, x[rows], y[rows] + 0.5 * noise)
    if call % 20 == 19:
        losses.append(float(evaluate(model, x, y)))
        of_average.append(float(evaluate(averaged(model, optimizer), x, y)))

print(f"loss of the weights {losses[-1]:.4f}, of their average {of_average[-1]:.4f}")
