"""Printing a configuration as the code that builds it."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

WIDTH = 88


def call_code(function: str, signature: inspect.Signature, values: Mapping[str, Any]) -> str:
    """`function(…)` with the arguments that differ from their defaults, one a line where the line would be long."""
    parts = []
    for name, parameter in signature.parameters.items():
        value = values.get(name, parameter.default)
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts += [to_code(item) for item in value]
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts += [f"{key}={to_code(item)}" for key, item in value.items()]
        elif parameter.default is parameter.empty:
            parts.append(to_code(value))
        elif not _same(value, parameter.default):
            parts.append(f"{name}={to_code(value)}")
    nested = any(_is_link(value) for value in values.values())
    if not nested and "\n" not in "".join(parts) and len(function) + len(", ".join(parts)) + 2 <= WIDTH:
        return f"{function}({', '.join(parts)})"
    body = "".join(f"    {part},\n" for part in (part.replace("\n", "\n    ") for part in parts))
    return f"{function}(\n{body})"


def to_code(value: Any) -> str:
    """A value of a configuration as code, as far as it has any: a function prints as its name."""
    match value:
        case (str() as name, optax.GradientTransformation() as link):
            return f"({name!r}, {link!r})" if hasattr(link, "config") else f"optax({name})"
        case optax.GradientTransformation():
            return repr(value) if hasattr(value, "config") else "optax(optax)"
        case jax.Array() if isinstance(value, jax.core.Tracer):
            return str(value)
        case jax.Array() | np.ndarray():
            return f"jnp.array({np.asarray(value).tolist()!r}, {value.dtype.name!r})"
        case np.generic():
            return repr(value.item())
        case dict():
            return "{" + ", ".join(f"{key!r}: {to_code(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(to_code, value)) + "]"
        case _ if inspect.isroutine(value) or inspect.isclass(value):
            return getattr(value, "__qualname__", repr(value))
        case _:
            return repr(value)


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    simple = (bool, int, float, str)
    return isinstance(value, simple) and isinstance(default, simple) and value == default


def _is_link(value: Any) -> bool:
    """Whether a value is, or holds, a transformation: these are printed one a line."""
    if isinstance(value, optax.GradientTransformation):
        return True
    return isinstance(value, tuple) and any(map(_is_link, value))
