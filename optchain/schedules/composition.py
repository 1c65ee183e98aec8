"""Schedules made of others, and of a function of the epoch."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam
from optchain.core.trees import floating
from optchain.schedules.base import (
    Schedule,
    ScheduleFunction,
    Step,
    as_step,
    as_tuple,
    check_fields,
    check_numbers,
    check_schedule,
    reached,
    register,
    returned_number,
)
from optchain.schedules.decays import InverseTimeDecay


@register
@dataclasses.dataclass(frozen=True, repr=False)
class LegacyDecay(Schedule):
    """`schedule(step) / (1 + decay · step)`: what the `decay` of Keras's legacy optimizers makes of a schedule.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.PolynomialDecay(1.0, 10, 1.0)
      >>> float(optchain.schedules.LegacyDecay(schedule, decay=1.0)(1))
      0.5
    """

    schedule: ScheduleFunction
    decay: float

    def __post_init__(self) -> None:
        check_schedule("schedule", self.schedule)
        check_fields(self, non_negative=["decay"])

    def __call__(self, step: Step) -> jax.Array:
        return jnp.asarray(self.schedule(step), trees.default_float()) / (1 + self.decay * floating(as_step(step)))


def legacy_decay(learning_rate: Hyperparam, decay: float) -> Schedule:
    """The learning rate under the legacy `decay`: `learning_rate / (1 + decay · step)`, where every call is a step."""
    if callable(learning_rate):
        return LegacyDecay(cast(ScheduleFunction, learning_rate), decay)
    if not arguments.is_number(learning_rate):
        raise TypeError(f"with decay, learning_rate must be a number or a schedule; got {learning_rate!r}")
    return InverseTimeDecay(float(learning_rate), 1, decay)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Join(Schedule):
    """One schedule after the other; `join` builds it."""

    schedules: tuple[ScheduleFunction, ...]
    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", as_tuple("schedules", self.schedules, "callables of the step"))
        for schedule in self.schedules:
            if not callable(schedule):
                raise TypeError(f"schedules must be callables of the step; got {schedule!r}")
        object.__setattr__(self, "boundaries", check_numbers("boundaries", self.boundaries))
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                f"schedules must be one more than boundaries; got {len(self.schedules)} schedules and "
                f"{len(self.boundaries)} boundaries"
            )
        if any(later <= earlier for earlier, later in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"boundaries must increase; got {self.boundaries}")

    def __call__(self, step: Step) -> jax.Array:
        step = as_step(step)
        value = jnp.asarray(self.schedules[0](step), trees.default_float())
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            # Before a schedule begins, its own step would be negative: it is evaluated at 0, and that value is not used.
            own = jnp.maximum(step - jnp.asarray(boundary, step.dtype), 0)
            value = jnp.where(reached(step, boundary), jnp.asarray(schedule(own), value.dtype), value)
        return value

    def __repr__(self) -> str:
        return f"join({list(self.schedules)!r}, {list(self.boundaries)!r})"


def join(schedules: Sequence[ScheduleFunction], boundaries: Sequence[float]) -> Join:
    """One schedule after the other: `schedules[i]` from step `boundaries[i − 1]` on, which is its own step 0.

    Args:
      schedules: callables of the step, optchain's or others.
      boundaries: one fewer, increasing.

    Raises:
      ValueError, TypeError: not one fewer, not increasing, not callables.

    Example:
      >>> from optchain.schedules import PolynomialDecay, join
      >>> schedule = join([PolynomialDecay(1.0, 10, 0.0), PolynomialDecay(0.5, 10, 0.0)], [10])
      >>> [float(schedule(step)) for step in (5, 10, 15)]
      [0.5, 0.5, 0.25]
    """
    return Join(
        as_tuple("schedules", schedules, "callables of the step"), as_tuple("boundaries", boundaries, "numbers")
    )


@register
@dataclasses.dataclass(frozen=True, repr=False, init=False)
class PerEpoch(Schedule):
    """Keras's `LearningRateScheduler`: at the start of epoch e, `lr ← fn(e, lr)`, from the rate of the epoch before.

    The function is plain Python, and may branch on the epoch. It is called once per epoch, when the schedule is built; the
    schedule is the table of its results. After the last epoch its value holds.

    Args:
      fn: `fn(epoch, learning_rate) -> learning_rate`, or `fn(epoch)`; epochs count from 0.
      steps_per_epoch: the number of steps in an epoch, >= 1.
      initial_learning_rate: the rate that `fn` gets for epoch 0, >= 0.
      epochs: the number of epochs in the table, >= 1.

    Raises:
      ValueError, TypeError: an argument out of range, or a function that returns no finite number >= 0.

    Example:
      From epoch 5 on, halve the learning rate every 5 epochs:

      >>> import optchain
      >>> schedule = optchain.schedules.PerEpoch(
      ...     lambda epoch, lr: lr / 2 if epoch >= 5 and epoch % 5 == 0 else lr,
      ...     steps_per_epoch=100,
      ...     initial_learning_rate=0.5,
      ...     epochs=20,
      ... )
      >>> [float(schedule(100 * epoch)) for epoch in (0, 5, 10, 15, 30)]
      [0.5, 0.25, 0.125, 0.0625, 0.0625]
    """

    values: tuple[float, ...]
    steps_per_epoch: int

    def __init__(self, fn: Callable[..., float], steps_per_epoch: int, initial_learning_rate: float, epochs: int):
        if not callable(fn):
            raise TypeError(f"fn must be a function of the epoch and the learning rate; got {fn!r}")
        arguments.check_number("initial_learning_rate", initial_learning_rate, arguments.NON_NEGATIVE)
        sees_rate = _takes_two(fn)
        rate, values = float(initial_learning_rate), []
        for epoch in range(arguments.check_integer("epochs", epochs, minimum=1)):
            result = fn(epoch, rate) if sees_rate else fn(epoch)
            rate = returned_number("fn", f"epoch {epoch}", result)
            arguments.check_range("learning_rate", rate, computed=True)
            values.append(rate)
        self._fill(tuple(values), steps_per_epoch)

    @classmethod
    def from_fields(cls, **fields: Any) -> "PerEpoch":
        return cls.from_table(**fields)

    @classmethod
    def from_table(cls, values: Sequence[float], steps_per_epoch: int) -> "PerEpoch":
        """The schedule of a table: one value an epoch."""
        self = cls.__new__(cls)
        self._fill(check_numbers("values", values, computed=True), steps_per_epoch)
        return self

    def _fill(self, values: tuple[float, ...], steps_per_epoch: int) -> None:
        if not values:
            raise ValueError("values must have at least one entry")
        object.__setattr__(self, "values", values)
        object.__setattr__(
            self, "steps_per_epoch", arguments.check_integer("steps_per_epoch", steps_per_epoch, minimum=1)
        )

    def __call__(self, step: Step) -> jax.Array:
        epoch = jnp.asarray(step) // self.steps_per_epoch
        index = jnp.clip(epoch, 0, len(self.values) - 1).astype(jnp.int32)
        return jnp.asarray(self.values, trees.default_float())[index]

    def __repr__(self) -> str:
        return f"PerEpoch.from_table({list(self.values)!r}, {self.steps_per_epoch!r})"


def _takes_two(fn: Callable[..., Any]) -> bool:
    try:
        inspect.signature(fn).bind(0, 0.0)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True
