"""What every schedule is, and how its arguments are checked."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments, trees

Step: TypeAlias = int | jax.Array
ScheduleFunction: TypeAlias = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A function of the step: equal to any other with the same arguments, printed as the code that builds it."""

    def __call__(self, step: Step) -> jax.Array:
        return self.value(jnp.asarray(step, trees.default_float()))

    def value(self, step: jax.Array) -> jax.Array:
        """The value at `step`, given in JAX's default float."""
        raise NotImplementedError

    def __mul__(self, factor: float) -> "Schedule":
        from optchain.schedules.composition import Scaled  # which is a schedule itself

        return Scaled(self, factor)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        fields = [(field, getattr(self, field.name)) for field in dataclasses.fields(self) if field.init]
        shown = [
            repr(value) if field.default is dataclasses.MISSING else f"{field.name}={value!r}"
            for field, value in fields
            if field.default is dataclasses.MISSING or value != field.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def quotient(step: jax.Array, length: float | jax.Array) -> jax.Array:
    """`step / length`, rounded as a division is, compiled or not.

    XLA multiplies by the reciprocal of a constant or of a scalar instead, and 41 · (1/41) is below 1: a schedule that rounds
    the quotient down would jump one step late. A divisor that depends on the step, as 0 · step makes it, is divided by.
    """
    return step / (length + 0 * step)


def check_fields(
    schedule: Schedule, positive: Sequence[str] = (), non_negative: Sequence[str] = (), integers: Sequence[str] = ()
) -> None:
    """Checks the fields of a schedule by the range that each is in; integers are >= 1."""
    for name in integers:
        object.__setattr__(schedule, name, arguments.check_integer(name, getattr(schedule, name), minimum=1))
    for names, allowed in ((positive, arguments.POSITIVE), (non_negative, arguments.NON_NEGATIVE)):
        for name in names:
            value = getattr(schedule, name)
            arguments.check_number(name, value, allowed)
            object.__setattr__(schedule, name, value.item() if isinstance(value, np.generic) else value)


def check_numbers(name: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(map(arguments.is_number, values)):
        raise TypeError(f"{name} must be a sequence of numbers; got {values!r}")
    for value in values:
        if value not in arguments.NON_NEGATIVE:
            raise ValueError(f"{name} must be finite numbers >= 0; got {value!r}")
    return tuple(value.item() if isinstance(value, np.generic) else value for value in values)


def check_schedule(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a callable of the step; got {value!r}")
