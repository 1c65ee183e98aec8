"""`optchain describe`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from optchain.cli.arguments import AsJson, Recipe
from optchain.cli.errors import UserError

if TYPE_CHECKING:
    from optchain.recipes.description import Description

EXAMPLE = """optchain describe adamw --params '{"kernel": [784, 10], "bias": [10]}'"""


def describe(
    recipe: Recipe,
    params: Annotated[
        str,
        typer.Option(
            help="Of what: shapes as .json, .toml or in the line itself; .safetensors; .npz; the folder of an Orbax "
            "checkpoint, or of a run of optchain train.",
            metavar="SHAPES|CHECKPOINT",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Shows a recipe link by link, what each keeps in the state, and the bytes of it.

    No array is read or made, so that a model of any size can be described on a laptop. Then what happens to each parameter: its
    group, what trains it, its rate, its decay, what clips it, what is kept for it.

    A shape is a list, [784, 10], which is float32, or a string with its dtype: "bfloat16[784, 10]".
    """
    import optchain
    from optchain.cli import recipes
    from optchain.cli.describe import parameters

    tx, shapes = recipes.build(recipe), parameters.read(params)
    try:
        description = optchain.describe(tx, shapes)
    except (TypeError, ValueError) as error:
        raise UserError(f"{recipe} does not go with --params: {error}") from error
    if as_json:
        typer.echo(json.dumps(description.to_dict(), indent=1))
    else:
        _show(description)


def _show(description: "Description") -> None:
    from optchain.cli.screen import console, say, show
    from optchain.recipes.description import contents, size
    from optchain.recipes.per_parameter import table

    screen = console()
    rows = []
    for row in description.rows:
        kept = "\n".join(f"{name}: {contents(what)}" for name, what in row.entries.items())
        rows.append(("  " * row.depth + row.code, size(row.bytes) if row.bytes else "", kept))
    show(screen, ("link", "bytes", "keeps"), rows, right=["bytes"])
    if description.per_parameter:
        header, *lines = table(description.per_parameter)
        show(screen, header, lines, right=["how many", "rate", "decay"])
    say(screen, description.total)
