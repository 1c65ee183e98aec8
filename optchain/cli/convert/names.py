"""The table of names: which parameter here is which there."""

from pathlib import Path

from optchain.cli.errors import UserError
from optchain.cli.recipes import parsed


def names_in(path: Path) -> dict[str, str]:
    """A table of paths to names.

    Raises:
      UserError: there is no such file, it is neither JSON nor TOML, or what it holds is no such table.
    """
    table = parsed(path, "--names")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f'--names {path}: it must be a table of strings, {{"dense/kernel": "fc.weight"}}')
    return table
