"""The commands. Each is a module of its own, which imports what is slow to import only when it runs."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from optchain import __version__
from optchain.cli.bench import command as bench
from optchain.cli.convert import command as convert
from optchain.cli.describe import command as describe
from optchain.cli.plot import command as plot
from optchain.cli.race import command as race
from optchain.cli.train import command as train
from optchain.cli.verify import command as verify

app = typer.Typer(no_args_is_help=True, epilog="optchain COMMAND --help explains a command, with an example.")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"optchain {__version__}")
        raise typer.Exit


@app.callback()
def optchain(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Training recipes for JAX, with the arguments and the numbers of Keras and PyTorch."""


def _unwrapped(docstring: str | None) -> str:
    """The paragraphs of a docstring, each a line: typer would keep the line breaks of the source."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _add(command: Callable[..., Any], example: str) -> None:
    app.command(command.__name__, help=_unwrapped(command.__doc__), epilog=f"Example: {example}")(command)


_add(train.train, train.EXAMPLE)
_add(describe.describe, describe.EXAMPLE)
_add(plot.plot, plot.EXAMPLE)
_add(verify.verify, verify.EXAMPLE)
_add(bench.bench, bench.EXAMPLE)
_add(race.race, race.EXAMPLE)
_add(convert.convert, convert.EXAMPLE)
