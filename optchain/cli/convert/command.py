"""`optchain convert`."""

import enum
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from optchain.cli.arguments import AsJson
from optchain.cli.errors import UserError

EXAMPLE = "optchain convert run.pt --to orbax --out run --recipe recipe.json --names names.json"


class Library(enum.StrEnum):
    """What to convert to."""

    KERAS = "keras"
    TORCH = "torch"
    OPTAX = "optax"
    ORBAX = "orbax"


class Hyperparams(enum.StrEnum):
    """Which learning rate the run goes on with."""

    SAVED = "saved"
    CONFIGURED = "configured"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help=".keras, .weights.h5 (Keras); .pt, .pth, .safetensors (PyTorch); a folder (Orbax: of optchain, or of an Optax run)",
            show_default=False,
        ),
    ],
    to: Annotated[Library, typer.Option(help="The library that goes on with the run.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            help="A new file, .keras, .pt or .safetensors; for Optax and Orbax a new folder.", show_default=False
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="JSON or TOML: the optimizer, as optchain.to_config writes it. A .keras archive has its own, and so has a "
            "folder that convert or train wrote.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="JSON or TOML: a table of the paths here to the names there, in the order of the optimizer. PyTorch needs it; "
            "Keras's names are known.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="For --to keras: a .keras archive of the model.", show_default=False, metavar="FILE"),
    ] = None,
    hyperparams: Annotated[
        Hyperparams, typer.Option(help="Whose learning rate: the one in SOURCE, or the recipe's.")
    ] = Hyperparams.SAVED,
    step: Annotated[
        int | None,
        typer.Option(help="Calls made so far, where SOURCE does not tell: SGD counts none.", show_default=False),
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Leave behind what the other library has no place for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Converts the parameters and the optimizer's state of a half-trained run, and shows what went where.

    The recipe says what the state belongs to. Nothing is guessed: an entry that is ambiguous, missing or without a place
    on the other side is an error that says so, and then nothing is written.

    SOURCE is read as data alone: no code in it is run.
    """
    import optchain
    from optchain.cli import recipes
    from optchain.cli.convert.names import names_in
    from optchain.cli.convert.sources import read, recipe_in
    from optchain.cli.convert.targets import write
    from optchain.cli.screen import console, say, show

    for option, path in {"SOURCE": source, "--recipe": recipe, "--names": names, "--model": model}.items():
        if path is not None and not path.exists():
            raise UserError(f"{option} {path}: there is no such file{' or folder' * (path is source)}")
    table = None if names is None else names_in(names)
    if out.exists():
        raise UserError(f"--out {out} is there already: choose another name")
    if (to is Library.KERAS) != (model is not None):
        raise UserError("--model FILE, a .keras archive of the model, goes with --to keras, and only with it")
    try:
        tx = recipe_in(source) if recipe is None else optchain.from_config(recipes.read(recipe, "--recipe"))
        run = read(source, tx, table, hyperparams.value, step)
        lost = write(to.value, out, tx, run, table, model, step, lossy)
    except MemoryError as error:
        raise UserError(f"{source}: there is not enough memory for it") from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(with_source(str(error.args[0] if error.args else error), source)) from error

    if as_json:
        entries = [
            {"entry": entry, "arrays": int(arrays), "became": fate, "note": note}
            for entry, arrays, fate, note in run.report.lines()
        ]
        said = {"source": str(source), "out": str(out), "hyperparameters": run.report.hyperparams}
        typer.echo(json.dumps(said | {"entries": entries, "left_behind": lost}, indent=1))
        return

    screen = console()
    rows = [*run.report.lines(), *((path, "", "left behind", f"{to.value} has no place for it") for path in lost)]
    show(screen, ("entry", "arrays", "became", "note"), rows, right=["arrays"], title=f"{source} to {out}")
    say(screen, f"hyperparameters: {run.report.hyperparams}")
    say(screen, f"wrote {out}")


def with_source(said: str, source: Path) -> str:
    """What was said of SOURCE, with its name in front unless it is named already."""
    place = "^" if source.is_dir() else r"(^|\s)"  # a folder may be called as a word is
    return said if re.search(rf"{place}{re.escape(str(source))}([\s:,;/]|$)", said) else f"{source}: {said}"
