"""A recipe as a user names it: a config file, or a preset."""

import difflib
import functools
import inspect
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optchain
from optchain.cli.errors import UserError
from optchain.core.registry import FACTORIES

NO_UTF8 = "it is not in UTF-8, but UTF-16 or another encoding: save it as UTF-8"

SHOWN = 3
"""How many names are suggested for one that is unknown."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose parser would keep the last of two values of one key; TOML has it an error."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return made


from_json: Callable[[str | bytes], Any] = functools.partial(json.loads, object_pairs_hook=_each_key_once)
"""What JSON says that a user wrote.

Raises:
  ValueError: it is no JSON (a `json.JSONDecodeError`), or a key is there twice.
  RecursionError: it is nested too deep.
"""
PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": from_json,
    ".toml": tomllib.loads,
}


def presets() -> dict[str, Callable[..., optchain.Transformation]]:
    """The presets, by the name in code: `adamw`, `torch.sgd`, `keras_adamw.nadamw`."""
    own = {name: build for name, build in FACTORIES.items() if build.__module__.startswith("optchain.presets.")}
    return {name.removeprefix("presets."): build for name, build in own.items() if name != "loss_scale_optimizer"}


def build(recipe: str) -> optchain.Transformation:
    """The transformation of a config file or of a preset with its defaults.

    Raises:
      UserError: there is no such file or preset, or what the file holds is no config.
    """
    known = presets()
    if Path(recipe).suffix.lower() in PARSERS or (recipe not in known and Path(recipe).is_file()):
        return optchain.from_config(read(Path(recipe), "RECIPE"))
    if recipe not in known:
        similar = difflib.get_close_matches(recipe, known, SHOWN, 0.5)
        hint = f": did you mean {' or '.join(similar)}?" if similar else "."
        raise UserError(
            f"RECIPE {recipe}: no preset has this name{hint} "
            f"There are {', '.join(sorted(known))}; or give a config file whose name ends in {' or '.join(PARSERS)}"
        )
    return with_defaults(known[recipe])


def with_defaults(preset: Callable[..., optchain.Transformation]) -> optchain.Transformation:
    """A preset with its defaults; its learning rate is 0.001 where it has none, as Optax's have not."""
    rate = inspect.signature(preset).parameters.get("learning_rate")
    return preset(0.001) if rate is not None and rate.default is inspect.Parameter.empty else preset()


def complete(incomplete: str) -> list[str]:
    """The names of presets that begin so, for the shell."""
    return [name for name in sorted(presets()) if name.startswith(incomplete)]


def read(path: Path, option: str) -> dict[str, Any]:
    """The config in a file, in the words of `to_config`, so that equal recipes are equal however they were written.

    Raises:
      UserError: there is no such file, it is neither JSON nor TOML, or what it holds is no config.
    """
    config = parsed(path, option)
    try:
        return optchain.to_config(optchain.from_config(config))
    except (TypeError, ValueError) as error:
        raise UserError(f"{option} {path}: {error}") from error


def parsed(path: Path, option: str) -> Any:
    """What a file of JSON or TOML holds.

    Raises:
      UserError: there is no such file, it is neither, or it is not in UTF-8.
    """
    parse = PARSERS.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"{option} {path}: the file's name must end in {' or '.join(PARSERS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        if "\0" in text:  # every other byte of UTF-16 is one
            raise UserError(f"{option} {path}: {NO_UTF8}")
        return parse(text)
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{option} {path}: it is nested too deep") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path}: {NO_UTF8}") from error
    except ValueError as error:
        raise UserError(f"{option} {path}: {error}") from error
