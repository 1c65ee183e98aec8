"""The training loop: steps, a record of them, checkpoints, and an orderly end when it is interrupted."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

import optchain
from optchain.cli.train import checkpoints, digits, recipe
from optchain.cli.train.interruption import Interruption
from optchain.cli.train.progress import progress
from optchain.cli.train.record import Line, Record
from optchain.cli.train.settings import Settings
from optchain.core.trees import global_norm

READ_EVERY = 20
NORMS = {"gradient_norm", "global_norm"}
"""The metrics of links that measure the gradient."""


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
    """The accuracies with the raw weights and, if there are any, with the averaged ones. Computed asynchronously."""
    weights = {"test_accuracy": run.params}
    averaged = optchain.finalize(run.params, run.state)
    if averaged is not run.params:
        weights["test_accuracy_averaged"] = averaged
    return {name: digits.accuracy(params, data.test_images, data.test_labels) for name, params in weights.items()}


def check(settings: Settings, data: digits.Digits) -> None:
    """Traces all that a run computes, and runs nothing.

    Raises:
      TypeError, ValueError, NameError: what its recipe does not go with: parameters that it expects, a second average, an
        axis of devices.
    """
    step = _step(settings)

    def once(images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        run = begin(settings)
        params, state, _ = step(run.params, run.state, images, labels)
        return test_accuracies(Run(1, params, state), data)

    jax.eval_shape(once, *digits.batch(data, settings.seed, 0, settings.batch_size))


def train(
    run: Run, settings: Settings, data: digits.Digits, folder: Path, record: Record, stop: Interruption, out: Console
) -> Run:
    """Trains to the last step, or to the end of the step in which `stop` is asked for; ends with a checkpoint.

    Raises:
      FloatingPointError: raised by `optchain.raise_if_nonfinite`, for the first step that failed. There is a checkpoint of the last
        step: the recipe applied no update that is not finite.
    """
    take_step = _step(settings)
    saved = run.step
    failures: list[FloatingPointError] = []
    with progress(out, run.step, settings.steps) as shown:
        unread: list[tuple[int, dict[str, Any]]] = []

        def read(count: int) -> None:
            """Takes the oldest `count` from the device: into the record, and the last of them to the screen."""
            taken = jax.device_get(unread[:count])
            lines = [_line(step, logged, settings) for step, logged in taken]
            del unread[:count]
            record.append(lines)
            for line in lines:
                shown.show(line)
            for _, logged in taken:
                try:
                    optchain.raise_if_nonfinite(logged)
                except FloatingPointError as error:
                    failures.append(error)

        def save() -> None:
            nonlocal saved
            read(len(unread))
            record.sync()
            checkpoints.save(folder, run.step, run.arrays, settings)
            saved = run.step

        while run.step < settings.steps and stop.signal is None and not failures:
            images, labels = digits.batch(data, settings.seed, run.step, settings.batch_size)
            params, state, logged = take_step(run.params, run.state, images, labels)
            run = Run(run.step + 1, params, state)
            # Nothing special at the last step: a run that trains on later has the lines of one that never stopped.
            if run.step % settings.evaluate_every == 0:
                logged = logged | test_accuracies(run, data)
            unread.append((run.step, logged))
            if run.step % settings.checkpoint_every == 0:
                save()
            elif len(unread) == 2 * READ_EVERY:
                # The older half: the device goes on with the younger one, and nobody waits for the other.
                read(READ_EVERY)
        if saved != run.step:
            save()
    if failures:
        raise failures[0]
    return run


def _step(settings: Settings) -> Callable[..., Any]:
    """A step whose metrics have the norm of the gradient, whether or not a link of the recipe measures one."""
    loss = functools.partial(digits.loss, label_smoothing=settings.label_smoothing)
    step = optchain.make_step(loss, recipe.optimizer(settings))
    if settings.recipe is None:
        return step

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def measured(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        # One program: the compiler finds the gradient that it has already, unless the recipe scales the loss.
        norm = global_norm(jax.grad(loss)(params, images, labels))
        params, state, logged = step(params, state, images, labels)
        return params, state, logged if logged.keys() & NORMS else logged | {"gradient_norm": norm}

    return measured


def _line(step: int, logged: dict[str, Any], settings: Settings) -> Line:
    """A line of the record. With a recipe of one's own it has all metrics; those of links inside a gate are of its last update."""
    if settings.recipe is None:
        chosen = {"loss": logged["loss"], "learning_rate": logged["learning_rate"]}
        # A step that only accumulates makes no update, and has no norm of one.
        if step % settings.accumulation_steps == 0:
            chosen["gradient_norm"] = logged["global_norm"]
        logged = chosen | {name: value for name, value in logged.items() if name.startswith("test_accuracy")}
    values = {"loss": logged["loss"]} | logged  # the loss first
    return {"step": step, **{name: _number(value) for name, value in values.items()}}


def _number(value: np.ndarray) -> float | int:
    # Through its text a float32 becomes the shortest number that is read back as it: 0.003, not 0.003000000026077032.
    return int(value) if np.issubdtype(value.dtype, np.integer) else float(str(value[()]))
