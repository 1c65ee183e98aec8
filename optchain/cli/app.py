"""The commands. Each is a module of its own, which imports what is slow to import only when it runs."""

import inspect

import typer

from optchain.cli.bench import command as bench
from optchain.cli.convert import command as convert
from optchain.cli.train import command as train

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def optchain() -> None:
    """Training recipes for JAX, with the arguments and the numbers of Keras and PyTorch."""


def _unwrapped(docstring: str | None) -> str:
    """The paragraphs of a docstring, each a line: typer would keep the line breaks of the source."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


app.command("train", help=_unwrapped(train.train.__doc__))(train.train)
app.command("bench", help=_unwrapped(bench.bench.__doc__))(bench.bench)
app.command("convert", help=_unwrapped(convert.convert.__doc__))(convert.convert)
