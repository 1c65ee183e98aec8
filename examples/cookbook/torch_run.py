import tempfile

import jax.numpy as jnp
import numpy as np
import torch

import optchain
from optchain.interop import torch as interop

# Their half: a model that PyTorch trained for a while, and saved.
x = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 3)).astype("float32"))
y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)


def train_torch():
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    scheduler.step()
    return loss.item()


for _ in range(5):
    train_torch()
path = f"{tempfile.mkdtemp()}/run.pt"
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

# Our half. PyTorch's kernels are transposed; the paths say which ones.
names = {
    "head/kernel": "weight",
    "head/bias": "bias",
}  # ours: theirs, in the order of the optimizer
halfway = interop.read(path)
like = {"head": {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1)}}
params = interop.load_params(like, halfway.model, names)
schedule = optchain.schedules.StepLR(
    1e-2, step_size=4, gamma=0.5
)  # no file has the scheduler
tx = interop.from_torch(optimizer, list(names), lr=schedule)
state = interop.load_state_dict(tx, params, halfway.optimizer, list(names))


def loss_fn(params, x, y):
    return jnp.mean((x @ params["head"]["kernel"] + params["head"]["bias"] - y) ** 2)


step = optchain.make_step(loss_fn, tx)
losses, theirs = [], []
for _ in range(5):
    params, state, metrics = step(params, state, x.numpy(), y.numpy())
    losses.append(float(metrics["loss"]))
    theirs.append(train_torch())

print("the loss here: ", np.round(losses, 4))
print("and in PyTorch:", np.round(theirs, 4))
