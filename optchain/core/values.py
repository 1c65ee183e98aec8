"""The values of a configuration: printed as the code that builds them, compared by value, kept apart from the caller's arrays."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.core import arguments, keys

WIDTH = 88
NAME = "registered_name"


class Ordered(dict[str, Any]):
    """An argument whose order counts: patterns, of which the first that is found decides."""


def registered_name(factory: Callable[..., Any]) -> str:
    """The name of a factory in the registry, and in code."""
    return getattr(factory, NAME)


def given_arguments(signature: inspect.Signature, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that differ from their defaults."""
    parameters = signature.parameters
    return {name: value for name, value in values.items() if not _is_default(value, parameters[name].default)}


def call_code(function: str, signature: inspect.Signature, given: Mapping[str, Any], *, one_line: bool = False) -> str:
    """`function(…)` with the given arguments, one a line where the line would be long or holds a transformation, unless all
    are to be on one line.
    """
    parts = []
    for name, value in given.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts += [to_code(item) for item in value]
        elif parameter.default is parameter.empty:
            parts.append(to_code(value))
        else:
            parts.append(f"{name}={to_code(value)}")
    nested = any(holds_link(value) for value in given.values())
    short = not nested and "\n" not in "".join(parts) and len(function) + len(", ".join(parts)) + 2 <= WIDTH
    if one_line or short:
        return f"{function}({', '.join(parts)})"
    body = "".join(f"    {part},\n" for part in (part.replace("\n", "\n    ") for part in parts))
    return f"{function}(\n{body})"


def to_code(value: Any) -> str:
    """A value of a configuration as code, as far as it has any: a function prints as its name."""
    match value:
        # Arrays first: to newer versions of NumPy they are sequences, which a pattern asks for their length.
        case jax.Array() if arguments.is_traced(value):
            return str(value)
        case jax.Array() | np.ndarray():
            return f"jnp.array({np.asarray(value).tolist()!r}, {value.dtype.name!r})"
        case (str() as name, optax.GradientTransformation() as link):
            return f"({name!r}, {link!r})" if hasattr(link, "config") else f"optax({name})"
        case optax.GradientTransformation():
            return repr(value) if hasattr(value, "config") else "optax(optax)"
        case np.generic():
            return repr(value.item())
        case dict():
            return "{" + ", ".join(f"{key!r}: {to_code(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(to_code, value)) + "]"
        case tuple():
            return f"({', '.join(map(to_code, value))}{',' * (len(value) == 1)})"
        case _ if inspect.isroutine(value) or inspect.isclass(value):
            return getattr(value, "__qualname__", repr(value))
        case _:
            return repr(value)


def _is_default(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if isinstance(value, tuple) and isinstance(default, tuple) and len(value) == len(default):
        return all(map(_is_default, value, default))
    simple = (bool, int, float, str)
    return isinstance(value, simple) and isinstance(default, simple) and value == default


def holds_link(value: Any) -> bool:
    """Whether a value is, or holds, a transformation: these are printed one a line."""
    if isinstance(value, optax.GradientTransformation):
        return True
    return isinstance(value, tuple) and any(map(holds_link, value))


def on_host(value: Any) -> Any:
    """A concrete array as a copy on the host, so that no config shares a buffer with its caller; a dtype as its name, and a
    typed key, which no host array can be, as a raw one.
    """
    if isinstance(value, type | np.dtype):
        return jnp.dtype(value).name
    if isinstance(value, jax.Array) and not arguments.is_traced(value):
        value = np.array(keys.key_data(value) if keys.is_key(value) else value)
    if type(value) in (list, tuple):
        return type(value)(map(on_host, value))
    if type(value) is Ordered:
        return Ordered({key: on_host(item) for key, item in value.items()})
    if type(value) is dict:
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
    return value


def freeze(value: Any) -> Any:
    """A hashable stand-in that is equal for equal configurations."""
    match value:
        case Ordered():
            return ("ordered", tuple((key, freeze(item)) for key, item in value.items()))
        case dict():
            return ("dict", frozenset((key, freeze(item)) for key, item in value.items()))
        case list() | tuple() if not isinstance(value, optax.GradientTransformation):
            # Of numbers or strings a list and a tuple mean the same (JSON has only lists); trees of bools differ by them.
            plain = all(isinstance(item, int | float | str) and not isinstance(item, bool) for item in value)
            return ("sequence" if plain else type(value).__name__, tuple(freeze(item) for item in value))
        case np.ndarray():
            return ("array", str(value.dtype), value.shape, value.tobytes())
        case _:
            pass
    try:
        hash(value)
    except TypeError:
        leaves, treedef = jax.tree.flatten(value)
        same = len(leaves) == 1 and leaves[0] is value
        return ("object", id(value)) if same else ("tree", treedef, tuple(freeze(leaf) for leaf in leaves))
    return value
