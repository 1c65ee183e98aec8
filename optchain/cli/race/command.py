"""`optchain race`."""

import contextlib
import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optchain.cli.errors import UserError
from optchain.cli.race.settings import ScheduleName, Settings, parts

if TYPE_CHECKING:
    from rich.console import Console

    from optchain.cli.race.folder import Folder
    from optchain.cli.race.results import Result
    from optchain.race import Entrant, Task

DEFAULT_OUT = Path("runs/race")
EXAMPLE = "optchain race --tasks digits,chars --recipes adamw,sgd:momentum=0.9,mine=recipe.toml --seeds 8"
QUICK = {"seeds": 4, "tuning_seeds": 1, "shorter": 4}
LONGEST_NAME = 200
"""In bytes: file systems take 255."""
DEFAULTS = {"tasks": "digits", "recipes": "adamw,sgd"}


def race(
    tasks: Annotated[
        str | None,
        typer.Option(
            help="digits, conv, autoencoder, chars, skip-gram, or a .py file with a `task` of your own, which is run; options "
            "after colons, chars:scanned=true:tied=true.",
            metavar="TASK,…",
            show_default=DEFAULTS["tasks"],
        ),
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(
            help="[NAME=]RECIPE[:ARGUMENT=VALUE]…, where RECIPE is a preset, a config file, or optax.NAME. The first is the "
            "reference. `rate=0.001` keeps a learning rate that would be searched for.",
            metavar="RECIPE,…",
            show_default=DEFAULTS["recipes"],
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="That are compared.", show_default="8")] = None,
    tuning_seeds: Annotated[
        int | None, typer.Option(help="By which rates are chosen; others than those.", show_default="2")
    ] = None,
    first_seed: Annotated[int | None, typer.Option(help="The first of the seeds.", show_default="0")] = None,
    schedule: Annotated[
        ScheduleName | None,
        typer.Option(help="Of recipes without one: a warmup, then half a cosine or constant.", show_default="cosine"),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(help="How often, at most, a race without a difference may show one.", show_default="0.01"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in a minute: a quarter of the steps, 4 seeds.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the race.", metavar="DIR", show_default=str(DEFAULT_OUT))
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the race in this folder.", metavar="DIR", show_default=False)
    ] = None,
) -> None:
    """Trains small tasks with several recipes and many seeds, and says which differences are real.

    For each recipe on each task the learning rate is searched for, on seeds of its own. Then every recipe is run with the same
    seeds: the same initial parameters, the same batches. Each is compared with the first by a paired test.

    Writes race.json, report.html, report.png and table.md. Ctrl-C or a kill loses at most half a minute: the same
    command, or --resume DIR, goes on to the same numbers. Nothing is downloaded.
    """
    options = {
        "tasks": None if tasks is None else parts(tasks, ","),
        "recipes": None if recipes is None else parts(recipes, ","),
        "seeds": seeds,
        "tuning_seeds": tuning_seeds,
        "first_seed": first_seed,
        "schedule": None if schedule is None else schedule.value,
        "level": level,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if resume is not None and (given or quick or out is not None):
        raise UserError("--resume goes on with a race as it was begun: give no other option")
    folder = resume or out or DEFAULT_OUT
    try:
        _race(folder, {**(QUICK if quick else {}), **given}, resumed=resume is not None)
    except KeyboardInterrupt:
        begun = (folder / "race.json").is_file()
        how = _how_to_resume(folder) if begun else "nothing was begun yet"
        typer.echo(f"interrupted; {how}", err=True)
        raise typer.Exit(130) from None


def _race(path: Path, given: dict[str, Any], resumed: bool) -> None:
    settings = None if resumed else _chosen(given)  # a mistake is told before anything slow is imported
    _use_all_cores()
    from optchain.cli.race import named, run
    from optchain.cli.race.folder import Folder
    from optchain.cli.screen import console, say
    from optchain.cli.train.folder import locked
    from optchain.cli.train.interruption import Interruption
    from optchain.race import StoppedError

    folder = Folder(path)
    if settings is None:
        settings = folder.settings()
    screen = console()
    entrants = [named.entrant(spec) for spec in settings.recipes]
    tasks = [
        task if settings.shorter == 1 else task.shortened(settings.shorter) for task in map(named.task, settings.tasks)
    ]
    _check_names("--recipes", [entrant.name for entrant in entrants])
    _check_names("--tasks", [task.name for task in tasks])
    recipes = {entrant.name: named.described(entrant) for entrant in entrants}
    folder.begin(settings, recipes, {task.name: run.digest(task) for task in tasks})
    with locked(path), Interruption() as stop, stop.held():
        try:
            results = run.race(settings, tasks, entrants, folder, screen, lambda: stop.signal is not None)
        except StoppedError:
            say(screen, f"stopped; {_how_to_resume(path)}")
            raise typer.Exit(128 + (stop.signal or 0)) from None
    _report(screen, folder, settings, tasks, entrants, results)


def _chosen(given: dict[str, Any]) -> Settings:
    """The settings of a new race."""
    values: dict[str, Any] = {name: value.split(",") for name, value in DEFAULTS.items()}
    return Settings(**values | given)


def _report(
    console: "Console",
    folder: "Folder",
    settings: Settings,
    tasks: "list[Task]",
    entrants: "list[Entrant]",
    results: "list[Result]",
) -> None:
    from optchain.cli.bench.results import place
    from optchain.cli.bench.table import described
    from optchain.cli.files import written
    from optchain.cli.race import chart, page, table
    from optchain.cli.race.results import as_json, judged
    from optchain.cli.screen import say

    reference = entrants[0].name
    results = judged(results, {task.name: task for task in tasks}, reference, settings.level)
    about = {task.name: f"{task.about or 'a task of your own'}, {task.steps} steps" for task in tasks}
    where, command = place(), _command(settings)
    kept = folder.read()
    caption = table.caption(settings.seeds, settings.level, reference)
    said = {"command": command, "caption": caption, "place": where, "about": about}
    folder.write({**kept, **said, "results": [as_json(r) for r in results]})
    with written(folder.path / "table.md") as partial:
        partial.write_text(table.markdown(results, about), encoding="utf-8")
    page.write(folder.path / "report.html", results, about, command, described(where), caption, settings.level)
    chart.draw(folder.path / "report.png", results, settings.level)
    table.show(console, results, about)
    say(console, caption)
    say(console, f"see {folder.path / 'report.html'}")


def _command(settings: Settings) -> str:
    """The command that makes the race again."""
    said = ["optchain", "race"]
    quick = QUICK if settings.shorter != 1 else {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "shorter":
            said += ["--quick"] * bool(quick)
        elif field.default is dataclasses.MISSING or value != quick.get(field.name, field.default):
            shown = ",".join(value) if isinstance(value, list) else str(value)
            said += [f"--{field.name.replace('_', '-')}", shlex.quote(shown)]
    return " ".join(said)


def _check_names(option: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option}: two are called {name}: give one another name, NAME=RECIPE")
        usable = name.isprintable() and not name.startswith(".") and len(name.encode()) <= LONGEST_NAME
        if not name or not usable or "/" in name or "\\" in name:
            shown = repr(name) if len(name) <= LONGEST_NAME else f"a name of {len(name)} letters"
            raise UserError(f"{option}: {shown} is no name for a folder: give another, NAME=RECIPE")


def _use_all_cores() -> None:
    """A device for each core of a CPU: members are independent, and small ones leave cores idle within one device."""
    import jax

    if jax.config.jax_num_cpu_devices == -1:  # pyright: ignore[reportAttributeAccessIssue]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # JAX has looked for devices already
            jax.config.update("jax_num_cpu_devices", cores)
            # LAPACK's calls on a batch (SOAP's refresh) wait in a thread for others of the same pool: as many devices as the pool
            # has threads, which is this number or one a core, would wait for each other forever.
            os.environ.setdefault("NPROC", str(2 * cores))


def _how_to_resume(folder: Path) -> str:
    return f"go on with: optchain race --resume {shlex.quote(str(folder))}"
