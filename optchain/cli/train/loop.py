"""The training loop: steps, a record of them, checkpoints, and an orderly end when it is interrupted."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

import optchain
from optchain.cli.train import checkpoints, digits, recipe
from optchain.cli.train.interruption import Interruption
from optchain.cli.train.progress import progress
from optchain.cli.train.record import Line, Record
from optchain.cli.train.settings import Settings

READ_EVERY = 20


class Run(NamedTuple):
    """Where a run stands."""

    step: int
    params: Any
    state: Any

    @property
    def arrays(self) -> dict[str, Any]:
        return {"params": self.params, "state": self.state}


def begin(settings: Settings) -> Run:
    """A run before its first step."""
    params = digits.init(settings.seed)
    return Run(0, params, recipe.optimizer(settings).init(params))


def test_accuracies(run: Run, data: digits.Digits) -> dict[str, jax.Array]:
    """The accuracies with the raw and with the averaged weights. Computed asynchronously."""
    averaged = optchain.finalize(run.params, run.state)
    return {
        "test_accuracy": digits.accuracy(run.params, data.test_images, data.test_labels),
        "test_accuracy_averaged": digits.accuracy(averaged, data.test_images, data.test_labels),
    }


def train(
    run: Run, settings: Settings, data: digits.Digits, folder: Path, record: Record, stop: Interruption, out: Console
) -> Run:
    """Trains to the last step, or to the end of the step in which `stop` is asked for; ends with a checkpoint."""
    loss = functools.partial(digits.loss, label_smoothing=settings.label_smoothing)
    take_step = optchain.make_step(loss, recipe.optimizer(settings))
    with progress(out, run.step, settings.steps) as shown:
        unread: list[tuple[int, dict[str, Any]]] = []

        def read(count: int) -> None:
            """Takes the oldest `count` from the device: into the record, and the last of them to the screen."""
            lines = [_line(step, noticed, settings) for step, noticed in jax.device_get(unread[:count])]
            del unread[:count]
            record.append(lines)
            for line in lines:
                shown.show(line)

        while run.step < settings.steps:
            images, labels = digits.batch(data, settings.seed, run.step, settings.batch_size)
            params, state, noticed = take_step(run.params, run.state, images, labels)
            run = Run(run.step + 1, params, state)
            last = run.step == settings.steps or stop.signal is not None
            # Nothing special at the last step: a run that trains on later has the lines of one that never stopped.
            if run.step % settings.evaluate_every == 0:
                noticed = noticed | test_accuracies(run, data)
            unread.append((run.step, noticed))
            if last or run.step % settings.checkpoint_every == 0:
                read(len(unread))
                record.sync()
                checkpoints.save(folder, run.step, run.arrays, settings)
            elif len(unread) == 2 * READ_EVERY:
                # The older half: the device goes on with the younger one, and nobody waits for the other.
                read(READ_EVERY)
            if last:
                break
    return run


def _line(step: int, noticed: dict[str, Any], settings: Settings) -> Line:
    """A line of the record. A step that only accumulates makes no update, and has no norm of one."""
    line = {"step": step, "loss": noticed["loss"], "learning_rate": noticed["learning_rate"]}
    if step % settings.accumulation_steps == 0:
        line["gradient_norm"] = noticed["global_norm"]
    line |= {name: value for name, value in noticed.items() if name.startswith("test_accuracy")}
    # Through its text a float32 becomes the shortest number that is read back as it: 0.003, not 0.003000000026077032.
    return {name: value if name == "step" else float(str(value[()])) for name, value in line.items()}
