"""`optchain plot`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from optchain.cli.arguments import AsJson, Recipe
from optchain.cli.errors import UserError

EXAMPLE = "optchain plot recipe.toml --steps 5000 --out schedule.png"


def plot(
    recipe: Recipe,
    steps: Annotated[int, typer.Option(help="The calls of the step function to show.", min=1, max=10_000_000)] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(help="Draw a PNG instead of characters.", metavar="FILE.png", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draws the learning rate, and every other hyperparameter that is scheduled, over a run.

    A schedule inside an accumulation counts updates. It is drawn over calls, as if every call were good.
    """
    from optchain.cli import recipes
    from optchain.cli.plot import values
    from optchain.cli.screen import say

    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the file's name must end in .png")
    tx = recipes.build(recipe)
    found = values.over(tx, steps)
    if as_json:
        typer.echo(json.dumps({"steps": steps, "hyperparams": {name: v.tolist() for name, v in found.items()}}))
    elif not found:
        raise UserError(f"{recipe} has neither a learning rate nor a schedule of its own")
    elif out is None:
        _show(found)
    if out is not None and found:
        from optchain.cli.plot import picture
        from optchain.cli.screen import console

        try:
            picture.draw(out, f"{tx.name}: {steps:,} calls", found)
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}") from error
        say(console(stderr=as_json), f"see {out}")


def _show(found: dict) -> None:
    from optchain.cli.plot import terminal
    from optchain.cli.screen import console, say

    screen = console()
    braille = screen.encoding.lower().startswith("utf")
    for name, values in found.items():
        say(screen, name)
        for line in terminal.chart(values, min(screen.width, 100), braille=braille):
            say(screen, line)
        say(screen, "")
