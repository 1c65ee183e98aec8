"""The base class of schedules, and the checks of their arguments."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments, trees
from optchain.core.calls import with_clear_call_errors
from optchain.core.trees import floating

Step: TypeAlias = int | jax.Array
ScheduleFunction: TypeAlias = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A function of the step: equal to any other with the same arguments, printed as the code that builds it.

    The step is the number of calls made before, 0 at the first. Inside `accumulate` it is the number of updates.

    The arguments are the fields of a subclass that is a dataclass. The arguments of any other subclass are unknown: it is equal
    to itself alone.
    """

    def __init_subclass__(cls) -> None:
        # Not inherited: a parent's would compare the fields of the parent. The decorator leaves these in place.
        if "__eq__" not in vars(cls):
            cls.__eq__, cls.__hash__ = _equal, _hash

    def __call__(self, step: Step) -> jax.Array:
        return self.value(as_step(step))

    def value(self, step: jax.Array) -> jax.Array:
        """The value at `step`: integers stay integers, for boundaries; `floating` makes floats of them, for arithmetic."""
        raise NotImplementedError

    @classmethod
    def from_fields(cls, **fields: Any) -> "Schedule":
        """The schedule that has these fields, as a config holds them. A class whose arguments are others says how."""
        return cls(**fields)

    def __mul__(self, factor: float) -> "Schedule":
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        if not _is_dataclass(type(self)):
            return object.__repr__(self)
        fields = [(field, getattr(self, field.name)) for field in dataclasses.fields(self) if field.init]
        shown = [
            repr(value) if field.default is dataclasses.MISSING else f"{field.name}={value!r}"
            for field, value in fields
            if field.default is dataclasses.MISSING or value != field.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _is_dataclass(kind: type) -> bool:
    """Whether the class itself is a frozen dataclass, and not only one that it is derived from."""
    return "__dataclass_fields__" in vars(kind) and vars(kind)["__dataclass_params__"].frozen


def _compared(schedule: Schedule) -> tuple[Any, ...]:
    return tuple(getattr(schedule, field.name) for field in dataclasses.fields(schedule) if field.compare)


def _equal(self: Schedule, other: object) -> bool:
    if type(other) is not type(self):
        return NotImplemented
    return self is other or (_is_dataclass(type(self)) and _compared(self) == _compared(other))


def _hash(self: Schedule) -> int:
    return hash((type(self), _compared(self))) if _is_dataclass(type(self)) else object.__hash__(self)


S = TypeVar("S", bound=type[Schedule])

REGISTERED: dict[str, type[Schedule]] = {}
"""All schedules, by the names under which a config has them."""


def register(kind: S) -> S:
    """Lets a config hold a schedule of one's own: `to_config` writes the fields of the class, `from_config` builds it of them.

    Args:
      kind: a subclass of `Schedule`, a frozen dataclass whose fields are its arguments.

    Returns:
      The class. A call with an unknown argument raises an error that suggests the right name.

    Raises:
      TypeError: something else, such as a class without the decorator, whose arguments are unknown.
      ValueError: the name of the class is taken by another schedule.

    Example:
      >>> import dataclasses, optchain
      >>> @optchain.schedules.register
      ... @dataclasses.dataclass(frozen=True, repr=False)
      ... class Halved(optchain.schedules.Schedule):
      ...     rate: float
      ...     def value(self, step):
      ...         return self.rate + 0 * step
      >>> optchain.from_config(optchain.to_config(optchain.sgd(Halved(0.5))))
      sgd(learning_rate=Halved(0.5))
    """
    if not (isinstance(kind, type) and issubclass(kind, Schedule) and _is_dataclass(kind)):
        raise TypeError(
            "register takes a subclass of Schedule that is itself a frozen dataclass, whose fields are its arguments: decorate "
            f"it with @dataclasses.dataclass(frozen=True, repr=False); got {kind!r}"
        )
    others = [name for name in inspect.signature(kind).parameters if name not in field_names(kind)]
    if others and "from_fields" not in vars(kind):
        raise TypeError(f"{kind.__name__} takes {', '.join(others)}, which is no field of it: a config would lose it")
    name = kind.__name__
    known = REGISTERED.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(
            f"name {name!r} is taken by {known.__module__}.{known.__qualname__}: give the class another name"
        )
    REGISTERED[name] = with_clear_call_errors(kind)
    return kind


def field_names(kind: type[Schedule]) -> list[str]:
    """What a config has of a schedule."""
    return [field.name for field in dataclasses.fields(kind) if field.init]  # pyright: ignore


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Scaled(Schedule):
    """A schedule times a constant; `schedule * 0.5` builds it.

    Example:
      >>> import optchain
      >>> float((optchain.schedules.PolynomialDecay(1.0, 10, 0.0) * 0.5)(0))
      0.5
    """

    schedule: ScheduleFunction
    factor: float

    def __post_init__(self) -> None:
        check_schedule("schedule", self.schedule)
        check_fields(self, non_negative=["factor"])

    def __call__(self, step: Step) -> jax.Array:
        return jnp.asarray(self.schedule(step), trees.default_float()) * self.factor

    def __repr__(self) -> str:
        return f"{self.schedule!r} * {self.factor!r}"


def as_step(step: Step) -> jax.Array:
    """The step as an array: an integer as it is, all else in JAX's default float."""
    if isinstance(step, int) and abs(step) > arguments.LARGEST_INTEGER:
        step = jnp.asarray(float(step), trees.default_float())
    step = jnp.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        return floating(step)
    if jnp.issubdtype(step.dtype, jnp.unsignedinteger):
        step = jnp.minimum(step, arguments.LARGEST_INTEGER)
    return step if step.dtype == jnp.int64 else step.astype(jnp.int32)


def reached(step: jax.Array, boundary: float) -> jax.Array:
    """`step >= boundary`, without rounding where steps are integers."""
    if not jnp.issubdtype(step.dtype, jnp.integer):
        return step >= boundary
    first = math.ceil(boundary)
    return step >= first if first <= jnp.iinfo(step.dtype).max else jnp.zeros(step.shape, bool)


def passed(step: jax.Array, boundary: float) -> jax.Array:
    """`step > boundary`, likewise."""
    if not jnp.issubdtype(step.dtype, jnp.integer):
        return step > boundary
    return reached(step, math.floor(boundary) + 1)


def since(step: jax.Array, start: float) -> jax.Array:
    """`step - start` as a float, without rounding where both are integers."""
    return floating(step - int(start)) if _are_integers(step, start) else floating(step) - start


def at_most(step: jax.Array, last: float) -> jax.Array:
    """`min(step, last)` as a float."""
    return jnp.minimum(floating(step), last)


def periods(step: jax.Array, length: float) -> tuple[jax.Array, jax.Array]:
    """`⌊step / length⌋` and the remainder as floats; both exact where steps and length are integers."""
    if _are_integers(step, length):
        return floating(step // int(length)), floating(step % int(length))
    elapsed = quotient(step, length)
    whole = jnp.floor(elapsed)
    return whole, jnp.where(elapsed == whole, 0.0, floating(step) - whole * length)


def _are_integers(step: jax.Array, length: float) -> bool:
    return jnp.issubdtype(step.dtype, jnp.integer) and length == int(length) and length <= jnp.iinfo(step.dtype).max


def quotient(step: jax.Array, length: float | jax.Array) -> jax.Array:
    """`step / length`, rounded as a division is, compiled or not.

    XLA multiplies by the reciprocal of a constant or of a scalar instead, and 41 · (1/41) is below 1: a schedule that rounds
    the quotient down would jump one step late. A divisor that depends on the step, as 0 · step makes it, is divided by.
    """
    step = floating(step)
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


def as_tuple(name: str, values: Any, of: str) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of {of}; got {values!r}")
    return tuple(values)


def check_numbers(name: str, values: Any, *, computed: bool = False) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(map(arguments.is_number, values)):
        raise TypeError(f"{name} must be a sequence of numbers; got {values!r}")
    for index, value in enumerate(values):
        if value not in arguments.NON_NEGATIVE:
            raise ValueError(f"{name} must be finite numbers >= 0; got {value!r}")
        arguments.check_number(f"{name}[{index}]", value, arguments.NON_NEGATIVE, computed=computed)
    return tuple(value.item() if isinstance(value, np.generic) else value for value in values)


def check_schedule(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a callable of the step; got {value!r}")


def returned_number(function: str, at: str, result: Any) -> float:
    """What a function of the user gave, which must be a number or an array of one."""
    if not (arguments.is_number(result) or arguments.is_array(result)) or jnp.shape(result) != ():
        raise TypeError(f"{function} must return a number; for {at} it returned {result!r}")
    return float(result)
