"""Recipes and tasks as a user names them on the command line.

[NAME=]RECIPE[:ARGUMENT=VALUE]…      adamw    mine=recipe.toml    slow=adamw:beta_2=0.99:rate=0.003    optax.lion
TASK[:ARGUMENT=VALUE]…               digits   chars:scanned=true  my_task.py
"""

import difflib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optchain
from optchain.cli import recipes
from optchain.cli.errors import UserError
from optchain.cli.race.settings import parts
from optchain.core.arguments import NON_NEGATIVE, POSITIVE, check_number, is_number
from optchain.core.values import to_code
from optchain.race import Entrant, Task, rebuilt
from optchain.race.entrant import OWN, RATE
from optchain.recipes.building import suggestion

OPTAX = "optax."
DEFAULT_RATE = 1e-3
"""Of an optimizer that has none of its own."""
COMPACT, NARROW = "compact", "narrow"
"""The arguments that store a recipe's state compactly, with the arguments of `compact` or without, and that make weights bfloat16."""
KEPT = "rate"
"""The argument that gives a learning rate to run at, instead of a search for the best."""


def entrant(spec: str) -> Entrant:
    """The recipe of a specification.

    Raises:
      UserError: there is no such recipe, or it does not take the arguments.
    """
    given, words = spec, parts(spec, ":")
    if "=" in words[0]:
        name, _, words[0] = words[0].partition("=")
    else:
        name = Path(words[0]).stem if Path(words[0]).suffix in recipes.PARSERS else spec.replace(":", "-")
    if not words[0]:
        raise UserError(f"--recipes: {given!r} names no recipe")
    arguments = _arguments(given, words[1:])
    rate = _rate(arguments.pop(KEPT, None), given)
    compact, narrow = arguments.pop(COMPACT, False), arguments.pop(NARROW, False)
    for option, value in {COMPACT: compact, NARROW: narrow}.items():
        if not isinstance(value, bool) and not (option == COMPACT and isinstance(value, dict)):
            raise UserError(f"--recipes {given}: {option} must be true or false; got {value!r}")
    tx = _built(words[0], arguments, given)
    if compact is not False:
        try:
            tx = optchain.compact(tx, **(compact if isinstance(compact, dict) else {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"--recipes {given}: {error}") from error
    return Entrant(name, tx, rate, narrow)


def described(made: Entrant) -> str:
    """What is kept of a recipe in a record: its config, or its code where it has none."""
    try:
        return json.dumps(optchain.to_config(made.tx), sort_keys=True)
    except TypeError:
        return to_code(made.tx)


def task(spec: str) -> Task:
    """The task of a specification: one of ours, or `task` in a Python file, which is run.

    Raises:
      UserError: there is no such task, or it does not take the arguments.
    """
    from optchain.cli.race.tasks import TASKS

    name, *words = parts(spec, ":")
    build = _own(Path(name)) if name.endswith(".py") else TASKS.get(name)
    if build is None:
        similar = difflib.get_close_matches(name, TASKS, 2, 0.5)
        hint = f": did you mean {' or '.join(similar)}?" if similar else "."
        raise UserError(f"--tasks {name}: there is no such task{hint} There are {', '.join(TASKS)}; or give a .py file")
    try:
        made = build(**_arguments(spec, words))
    except (TypeError, ValueError) as error:
        raise UserError(f"--tasks {spec}: {error}") from error
    if not isinstance(made, Task):
        raise UserError(f"--tasks {spec}: task must be a Task, or a function that makes one; got {made!r}")
    return made


def _own(path: Path) -> Callable[..., Any]:
    """`task` in the file of a user: a `Task`, or a function that makes one."""
    if not path.is_file():
        raise UserError(f"--tasks {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"task_in_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look annotations up
    sys.path.insert(0, str(path.parent.resolve()))  # as for any program: what lies beside it can be imported
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--tasks {path}: line {error.lineno}: {error.msg}") from error
    if not hasattr(module, "task"):
        raise UserError(f"--tasks {path}: the file has no `task`, a Task or a function that makes one")
    return module.task if callable(module.task) else lambda: module.task


def _arguments(spec: str, words: list[str]) -> dict[str, Any]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"{spec}: {word!r} is no ARGUMENT=VALUE")
        if name in found:
            raise UserError(f"{spec}: the argument {name!r} is there twice")
        try:
            found[name] = recipes.from_json(value)
        except json.JSONDecodeError:
            found[name] = value
        except RecursionError as error:
            raise UserError(f"{spec}: {name} is nested too deep") from error
        except ValueError as error:
            raise UserError(f"{spec}: {name}: {error}") from error
    return found


def _built(recipe: str, arguments: Mapping[str, Any], spec: str) -> optax.GradientTransformation:
    try:
        if recipe.startswith(OPTAX):
            return _optax(recipe.removeprefix(OPTAX), arguments)
        tx = recipes.build(recipe)
        return rebuilt(tx, **arguments) if arguments else tx
    except (TypeError, ValueError) as error:
        raise UserError(f"--recipes {spec}: {error}") from error


def _optax(name: str, arguments: Mapping[str, Any]) -> optax.GradientTransformation:
    """An alias of Optax, or of `optax.contrib`, with its learning rate in the state; all else is compiled in."""
    place: Any = optax.contrib if name.startswith("contrib.") else optax
    name = name.removeprefix("contrib.")
    factory: Any = getattr(place, name, None)
    if not _has_rate(factory):
        known = [other for other, made in vars(place).items() if _has_rate(made)]
        raise ValueError(f"{place.__name__} has no optimizer {name} with a {RATE}{suggestion(name, known)}")
    parameters = inspect.signature(factory).parameters
    usual = parameters[RATE].default
    rate = arguments.get(RATE, usual if is_number(usual) else DEFAULT_RATE)
    check_number(RATE, rate, NON_NEGATIVE)
    inject: Any = optax.inject_hyperparams
    made = inject(factory, [other for other in parameters if other != RATE])(**{**arguments, RATE: rate})
    _try_out(made)
    return made


def _try_out(tx: optax.GradientTransformation) -> None:
    """A step on one parameter, traced: Optax does not look at its arguments before.

    Raises:
      ValueError: the arguments are of no use.
    """
    params = {"w": jnp.zeros(2)}
    try:
        state = jax.eval_shape(tx.init, params)
        update: Any = tx.update
        jax.eval_shape(lambda p, s: update(p, s, p, value=0.0), params, state)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _has_rate(factory: Any) -> bool:
    return inspect.isroutine(factory) and RATE in inspect.signature(factory).parameters


def _rate(rate: Any, spec: str) -> Any:
    """The learning rate that is kept; None to search for one."""
    if rate is None or rate == OWN:
        return rate
    try:
        check_number(KEPT, rate, POSITIVE)
    except (TypeError, ValueError) as error:
        raise UserError(f"--recipes {spec}: {error}; or say {OWN}") from error
    return float(rate)
