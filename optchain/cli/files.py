"""Files that a user writes: a recipe, a table of names."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optchain
from optchain.cli.errors import UserError

PARSERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".toml": tomllib.loads}


def recipe(path: Path) -> optchain.Transformation:
    """The transformation of a config.

    Raises:
      UserError: there is no such file, it is neither JSON nor TOML, or what it holds is no config.
    """
    try:
        return optchain.from_config(parsed("--recipe", path))
    except (TypeError, ValueError) as error:
        raise UserError(f"--recipe {path}: {error}") from error


def names(path: Path) -> dict[str, str]:
    """A table of paths to names.

    Raises:
      UserError: there is no such file, it is neither JSON nor TOML, or what it holds is no such table.
    """
    table = parsed("--names", path)
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f'--names {path}: it must be a table of strings, {{"dense/kernel": "fc.weight"}}')
    return table


def parsed(option: str, path: Path) -> Any:
    parse = PARSERS.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"{option} {path}: the file's name must end in {' or '.join(PARSERS)}")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{option} {path}: it is nested too deep") from error
    except ValueError as error:
        raise UserError(f"{option} {path}: {error}") from error
