import csv
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import optchain


def to_csv(folder):
    def log(step, row):
        # Opened anew each time, so that a run that is killed has all its rows.
        with (Path(folder) / "run.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["step", *row])
            writer.writerow([step, *row.values()])

    return log


def to_tensorboard(folder):
    from tensorboardX import SummaryWriter  # or from torch.utils.tensorboard

    writer = SummaryWriter(folder)

    def log(step, row):
        for name, value in row.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def to_wandb(folder):
    import wandb

    # What is logged offline, `wandb sync` sends later.
    run = wandb.init(project="optchain", dir=folder, mode="offline")
    return lambda step, row: run.log(row, step=step)


def train(log, steps=60, every=10):
    x = jax.random.normal(jax.random.key(0), (64, 4))
    y = x @ jnp.array([1.0, -1.0, 2.0, 0.0])
    schedule = optchain.schedules.CosineDecay(
        0.0, decay_steps=50, warmup_target=0.1, warmup_steps=10
    )
    tx = optchain.chain(optchain.adamw(schedule, global_clipnorm=1.0), optchain.monitor())
    step = optchain.make_step(
        lambda params, x, y: jnp.mean((x @ params["kernel"] - y) ** 2), tx
    )
    params = {"kernel": jnp.zeros(4)}
    state = tx.init(params)
    for number in range(steps):
        params, state, metrics = step(params, state, x, y)
        if number % every == 0:  # the host waits for the device here, and here alone
            log(number, {name: float(value) for name, value in metrics.items()})


folder = tempfile.mkdtemp()
train(to_csv(folder))  # or to_tensorboard, or to_wandb
print((Path(folder) / "run.csv").read_text())
