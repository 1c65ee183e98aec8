"""What several commands take, said once."""

from typing import Annotated

import typer


def _complete(incomplete: str) -> list[str]:
    from optchain.cli import recipes

    return recipes.complete(incomplete)


Recipe = Annotated[
    str,
    typer.Argument(
        help="A preset (adamw, torch.sgd, keras_adamw.nadamw, …) with its defaults, or a config file, .json or .toml, as "
        "optchain train --recipe takes it.",
        metavar="RECIPE",
        show_default=False,
        autocompletion=_complete,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print data for a program instead of a table.")]
