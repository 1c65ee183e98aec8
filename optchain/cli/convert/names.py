"""The table of names: which parameter here is which there."""

from pathlib import Path

from optchain.cli.errors import UserError
from optchain.cli.recipes import parsed
from optchain.cli.trees import nested


def names_in(path: Path) -> dict[str, str]:
    """A table of paths to names.

    Raises:
      UserError: there is no such file, it is neither JSON nor TOML, or what it holds is no such table.
    """
    table = parsed(path, "--names")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f'--names {path}: it must be a table of strings, {{"dense/kernel": "fc.weight"}}')
    empty = next((name for name in table if "" in name.split("/")), None)
    if empty is not None:
        raise UserError(f"--names {path}: {empty!r} is no path, such as dense/kernel")
    try:
        nested(table)
    except ValueError as error:
        raise UserError(f"--names {path}: {error}") from error
    return table
