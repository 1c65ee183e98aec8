"""Programs of JAX, read and run equation by equation."""

from collections.abc import Iterable
from typing import Any

from jax.extend.core import Literal


def run_equation(equation: Any, inputs: Iterable[Any]) -> list[Any]:
    """What an equation of a program makes of its inputs."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # older JAX returns a pair
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*functions, *inputs, **params)
    return outputs if equation.primitive.multiple_results else [outputs]


def is_call(equation: Any) -> bool:
    """Whether an equation calls a function under `jit`."""
    return equation.primitive.name in ("jit", "pjit")


def value_in(known: dict[Any, Any], atom: Any) -> Any:
    """The value of what an equation takes: a number that stands in it, or what was made before."""
    return atom.val if isinstance(atom, Literal) else known[atom]
