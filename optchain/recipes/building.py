"""Looks up and builds what data names; an error says where in the data the name is."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optchain.schedules.base import REGISTERED, Schedule, field_names


def built(where: str, name: str, build: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Calls a builder, and says of its errors where they come from."""
    try:
        return build(*args, **kwargs)
    except ConfigError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {name}: {error}") from error


class ConfigError(ValueError):
    """An error that says where it happened."""


def text_key(key: Any, where: str) -> str:
    """The key, which must be a string."""
    if not isinstance(key, str):
        raise ConfigError(f"{where} has a key that is not a string: {key!r}")
    return key


def look_up(table: Mapping[str, Any], kind: str, name: str, where: str) -> Any:
    """What a table has by this name, and nothing else: no name in data imports anything."""
    if name not in table:
        known = f"{suggestion(name, table)}; there are: {', '.join(sorted(table))}"
        raise ConfigError(f"{where}: no {kind} is registered as {name!r}{known}")
    return table[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """The nearest name, as the end of a sentence, if one is near: whichever case it is written in."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def key_suggestion(given: Iterable[Any], known: Iterable[str]) -> str:
    """The nearest names of the keys that are not known, likewise."""
    known = list(known)
    hints = {str(key): suggestion(str(key), known) for key in given if key not in known}
    return "".join(f"; {key!r}{hint}" for key, hint in sorted(hints.items()) if hint)


def check_names(known: Iterable[str], given: Iterable[str]) -> None:
    """Refuses an argument that a builder does not have."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"there is no argument {name!r}{suggestion(name, known)}; there are: {', '.join(known)}")


def check_arguments(builder: Callable[..., Any], given: Iterable[str]) -> None:
    """Likewise, of the builder's signature."""
    parameters = inspect.signature(builder).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_names(parameters, given)


def registered_schedule(name: str, given: dict[str, Any], where: str) -> Schedule:
    """The registered schedule that has these fields."""
    kind = look_up(REGISTERED, "schedule", name, where)
    given = {key: tuple(item) if isinstance(item, list) else item for key, item in given.items()}
    check_names(field_names(kind), given)
    return kind.from_fields(**given)
