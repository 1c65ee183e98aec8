"""`optchain train`."""

import dataclasses
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optchain.cli.errors import UserError
from optchain.cli.train.folder import check_free, holds_run, locked, made
from optchain.cli.train.interruption import Interruption
from optchain.cli.train.settings import DEFAULT_LEARNING_RATES, DEFAULT_STEPS, Optimizer, Settings, Shape

if TYPE_CHECKING:
    from rich.console import Console

    from optchain.cli.train.digits import Digits
    from optchain.cli.train.loop import Run

DEFAULT_OUT = Path("runs/digits")
EXAMPLE = "optchain train --recipe recipe.toml --steps 500 --out runs/mine"
REPLACED_BY_RECIPE = ("optimizer", "learning_rate", "schedule", "schedule_steps")
RATES = ", ".join(f"{rate} for {optimizer.value}" for optimizer, rate in DEFAULT_LEARNING_RATES.items())


def train(
    steps: Annotated[
        int | None,
        typer.Option(
            help="Batches from the beginning of the run; two make one update. With --resume, the total to train on to.",
            show_default=str(DEFAULT_STEPS),
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of a new run.", show_default=str(DEFAULT_OUT), metavar="DIR")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the split, the weights and the batches.", show_default="0")
    ] = None,
    optimizer: Annotated[Optimizer | None, typer.Option(show_default="adamw")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The constant rate, or the highest of the schedule.", show_default=RATES)
    ] = None,
    schedule: Annotated[
        Shape | None, typer.Option(help="Warmup and half a cosine, or constant.", show_default="cosine")
    ] = None,
    schedule_steps: Annotated[
        int | None, typer.Option(help="The steps that the cosine is laid out over.", show_default="--steps")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="JSON or TOML: an optimizer of your own, in the place of the four options above.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default="250")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder.", show_default=False, metavar="DIR")
    ] = None,
    resume_or_start: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder, or begin it where there is none: one command for a job that may be "
            "ended at any moment and is sent again.",
            show_default=False,
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Trains a small Flax network on scikit-learn's handwritten digits.

    With clipping by the global norm, weight decay of the kernels alone (adamw), gradient accumulation and an average of
    the weights. Writes report.png, metrics.jsonl (a line a step) and checkpoints.

    --recipe FILE trains with what optchain.from_config makes of the file: a config as optchain.to_config or
    keras.optimizers.serialize writes it, as .json, or the same tables as .toml. metrics.jsonl then has all that the recipe
    measures.

    Ctrl-C and SIGTERM leave a checkpoint; --resume DIR goes on from the last one, to the same numbers as if nothing had
    happened, after a kill too. --resume-or-start DIR begins the run where there is none: send the same command again until it
    is done. One process at a time trains in a folder.

    A run keeps its optimizer, its seed and the shape of its schedule. Options beside --resume change it:

    --steps trains on. The schedule stays as it was laid out: beyond its end the rate stays at its last value, 1% of the
    highest. --schedule-steps lays it out anew.

    --learning-rate sets the rate, or the highest rate of the schedule, which goes on where it was.
    """
    options = {
        "steps": steps,
        "seed": seed,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "schedule_steps": schedule_steps,
        "checkpoint_every": checkpoint_every,
    }
    given = {name: value for name, value in options.items() if value is not None}
    folders = {"--out": out, "--resume": resume, "--resume-or-start": resume_or_start}
    named = [option for option, folder in folders.items() if folder is not None]
    if len(named) > 1:
        raise UserError(
            f"{' and '.join(named)}: --out begins a run in the folder that it names, --resume goes on with one, "
            "--resume-or-start does what there is to do: give one of them"
        )
    folder = out or resume or resume_or_start or DEFAULT_OUT
    _check_one_optimizer(given, recipe)
    option = named[0] if named else "--out"
    again: dict[str, Any] = {"--resume": folder}
    if option == "--resume-or-start":  # it is sent again as it is
        again = {option: folder, **{_flag(name): value for name, value in given.items()}, "--recipe": recipe}
    how = f"go on with: {_command(again)}"
    with Interruption() as stop:
        try:
            _train(folder, given, recipe, option, how, stop)
        except KeyboardInterrupt:
            left = how if holds_run(folder) else "no step was made"
            typer.echo(f"interrupted; {left}", err=True)
            raise typer.Exit(128 + (stop.signal or signal.SIGINT)) from None


def _train(folder: Path, given: dict[str, Any], file: Path | None, option: str, how: str, stop: Interruption) -> None:
    fresh = option == "--out" or (option == "--resume-or-start" and not holds_run(folder))
    # A mistake is told before anything slow is imported.
    chosen = None if option == "--resume" else _chosen(given)
    if fresh:
        check_free(folder, option)
    elif not folder.is_dir():
        raise UserError(f"{option} {folder}: there is no such folder")

    from optchain.cli.screen import console, say
    from optchain.cli.train import checkpoints, loop, recipe, record, report

    screen, path = console(), folder / "metrics.jsonl"
    config = None if file is None else recipe.read(file)
    ready = None
    if fresh:
        assert chosen is not None
        ready = _begun(dataclasses.replace(chosen, recipe=config), f"--recipe {file}")
        made(folder, option)
    with locked(folder):
        if ready is None:
            ready = _resumed(screen, folder, given, config, option)
        else:
            check_free(folder, option)  # again: now no other process can be faster
        run, settings, data = ready.run, ready.settings, ready.data
        began = time.perf_counter()
        with stop.held():
            if fresh:
                # A checkpoint at the very beginning: a run that is killed at any later moment can be resumed.
                checkpoints.save(folder, 0, run.arrays, settings)
            try:
                with record.Record(path, ready.kept) as lines:
                    run = loop.train(run, settings, data, folder, lines, stop, screen)
            except FloatingPointError as error:
                at = checkpoints.latest(folder).path
                typer.echo(f"optchain: stopped with the checkpoint {at}: {error}", err=True)
                raise typer.Exit(1) from None
        seconds = time.perf_counter() - began
        if stop.signal is not None:
            say(screen, f"stopped at step {run.step} of {settings.steps}; {how}")
            raise typer.Exit(128 + stop.signal)

        accuracies = {name: float(value) for name, value in loop.test_accuracies(run, data).items()}
        written = record.read(path)
        report.draw(folder / "report.png", [*written, {"step": run.step, **accuracies}], settings)
    if run.step > ready.run.step:
        say(screen, f"steps {ready.run.step + 1} to {run.step} took {seconds:.1f} s, compilation included")
    _print_accuracies(screen, accuracies, len(data.test_labels))
    if written and written[-1]["loss"] is None:
        lower = "--learning-rate" if settings.recipe is None else "learning rate in the recipe"
        say(screen, f"the loss is not finite any more: a lower {lower} may help")
    say(screen, f"see {folder / 'report.png'}")


@dataclasses.dataclass(frozen=True)
class Ready:
    """What a run needs to take a step."""

    run: "Run"
    settings: Settings
    data: "Digits"
    kept: int
    """How many bytes of the record belong to the steps that it has made."""


def _begun(settings: Settings, whose: str) -> Ready:
    """A new run. Nothing is written yet."""
    from optchain.cli.train import digits, loop

    data = digits.load(settings.seed)
    _check_recipe(whose, settings, data)
    return Ready(loop.begin(settings), settings, data, 0)


def _resumed(
    screen: "Console", folder: Path, given: dict[str, Any], config: dict[str, Any] | None, option: str
) -> Ready:
    """The run in a folder, at its last checkpoint. Nothing is written yet."""
    import jax

    from optchain.cli.screen import say
    from optchain.cli.train import checkpoints, digits, loop, record

    checkpoint = checkpoints.latest(folder, option)
    settings = _changed(folder, checkpoint.settings, checkpoint.step, given, config)
    data = digits.load(settings.seed)
    _check_recipe(f"{option} {folder}: its recipe", settings, data)
    expected = jax.eval_shape(lambda: loop.begin(settings).arrays)
    run = loop.Run(checkpoint.step, **checkpoints.restore(checkpoint, expected))
    kept = record.bytes_up_to(folder / "metrics.jsonl", run.step)
    nothing_left = ", the last: --steps trains on" if run.step == settings.steps else ""
    say(screen, f"resuming {folder} at step {run.step}{nothing_left}")
    return Ready(_with_changes(screen, run, checkpoint.settings, settings), settings, data, kept)


def _chosen(given: dict[str, Any]) -> Settings:
    """The settings of a new run."""
    rate = DEFAULT_LEARNING_RATES[given.get("optimizer", Settings.optimizer)]
    horizon = given.get("steps", DEFAULT_STEPS)
    settings = Settings(**{"learning_rate": rate, "schedule_steps": max(horizon, 1), **given})
    _check_schedule(settings, given)
    return settings


def _changed(
    folder: Path, saved: Settings, step: int, given: dict[str, Any], config: dict[str, Any] | None
) -> Settings:
    """The settings of a run that goes on."""
    if config not in (None, saved.recipe):
        has = f"optimizer {saved.optimizer}" if saved.recipe is None else "another recipe"
        raise UserError(f"--recipe: the run in {folder} has {has}, and keeps it")
    if saved.recipe is not None:
        for name in REPLACED_BY_RECIPE:
            if name in given:
                raise UserError(f"{_flag(name)} {given[name]}: the run in {folder} has a recipe, and keeps it")
    for name in ("optimizer", "seed", "schedule"):
        if given.get(name, getattr(saved, name)) != getattr(saved, name):
            was = getattr(saved, name)
            raise UserError(f"--{name} {given[name]}: the run in {folder} has {name} {was}, and keeps it")
    settings = dataclasses.replace(saved, **given)
    _check_schedule(settings, given)
    if settings.steps < step:
        raise UserError(f"--steps {settings.steps} counts from the beginning, and {folder} is at step {step} already")
    if settings.steps == step and dataclasses.replace(settings, steps=saved.steps) != saved:
        raise UserError(f"{folder} is complete at step {step}: a change needs --steps above it")
    return settings


def _check_one_optimizer(given: dict[str, Any], recipe: Path | None) -> None:
    for name in REPLACED_BY_RECIPE:
        if recipe is not None and name in given:
            raise UserError(f"{_flag(name)} {given[name]}: --recipe {recipe} says it already, give one of them")


def _check_recipe(whose: str, settings: Settings, data: "Digits") -> None:
    """Refuses a recipe that does not go with this run, before anything is written."""
    from optchain.cli.train import loop

    if settings.recipe is None:
        return
    try:
        loop.check(settings, data)
    except (TypeError, ValueError, NameError) as error:  # the last is JAX's for an axis that is not there
        raise UserError(f"{whose}: {error}") from error


def _check_schedule(settings: Settings, given: dict[str, Any]) -> None:
    if settings.schedule is Shape.CONSTANT and "schedule_steps" in given:
        raise UserError("--schedule-steps lays out a cosine, and the schedule is constant")


def _with_changes(console: "Console", run: "Run", old: Settings, new: Settings) -> "Run":
    """The run with what was changed by options, which are said. The count in its state goes on, and so does a schedule."""
    import optchain
    from optchain.cli.screen import say
    from optchain.cli.train import recipe

    if new.recipe is not None:
        return run
    if new.schedule is Shape.CONSTANT:
        if new.learning_rate == old.learning_rate:
            return run
        say(console, f"learning rate: {old.learning_rate:g} -> {new.learning_rate:g}")
        return run._replace(state=optchain.set_hyperparams(run.state, learning_rate=new.learning_rate))
    changes = []
    if new.learning_rate != old.learning_rate:
        changes.append(f"its highest {old.learning_rate:g} -> {new.learning_rate:g}")
    if new.schedule_steps != old.schedule_steps:
        changes.append(f"the steps of its schedule {old.schedule_steps} -> {new.schedule_steps}")
    if changes:
        here = f"{recipe.rate_at(old, run.step):.3g} -> {recipe.rate_at(new, run.step):.3g} from here on"
        say(console, f"learning rate: {' and '.join(changes)}, so {here}")
    if new.steps > max(new.schedule_steps, run.step):
        last = f"{recipe.rate_at(new, new.schedule_steps):.3g}"
        anew = f"(--schedule-steps {new.steps} lays it out anew)"
        say(console, f"the schedule ends at step {new.schedule_steps}; after it the rate stays {last} {anew}")
    return run


def _print_accuracies(console: "Console", accuracies: dict[str, float], images: int) -> None:
    from rich.table import Table

    table = Table("weights", title=f"Test accuracy on {images} images")
    table.add_column("accuracy", justify="right")
    table.add_column("errors", justify="right")
    for name, accuracy in zip(("raw", "averaged"), accuracies.values(), strict=False):  # without an average, the first
        table.add_row(name, f"{accuracy:.2%}", str(round((1 - accuracy) * images)))
    console.print(table)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _command(options: dict[str, Any]) -> str:
    """The command with these options, for a shell."""
    said = [f"{option} {shlex.quote(str(value))}" for option, value in options.items() if value is not None]
    return " ".join(["optchain train", *said])
