"""PyTorch's schedulers that take a function: of the step, and from one step to the next."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments, trees
from optchain.schedules.base import (
    Schedule,
    ScheduleFunction,
    check_fields,
    check_numbers,
    check_schedule,
    register,
    returned_number,
)

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class LambdaLR(Schedule):
    """`lr · lr_lambda(step)`.

    The function is called with the step as an array, and where a training step is compiled JAX traces it: `0.95**step`,
    `step // 30`, `jnp.where(…)`, and no `if`, `max` or `math.cos`. A function of plain Python becomes a table of its values:
    `PerEpoch(lambda step: lr * lr_lambda(step), 1, initial_learning_rate=lr, epochs=total_steps)`.

    A function is no data, so there is no config, and `to_config` says so; with a schedule as the function there is one.

    Args:
      lr: what the function multiplies, >= 0.
      lr_lambda: the factor of a step, a function of an integer or an array of them.

    Raises:
      ValueError, TypeError: an argument out of range; when called, a function that JAX cannot trace.

    Source: `torch.optim.lr_scheduler.LambdaLR`.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.LambdaLR(1.0, lambda step: 0.5 ** (step // 10))
      >>> [float(schedule(step)) for step in (9, 10, 20)]
      [1.0, 0.5, 0.25]
    """

    lr: float
    lr_lambda: ScheduleFunction

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr"])
        check_schedule("lr_lambda", self.lr_lambda)

    def value(self, step: jax.Array) -> jax.Array:
        try:
            factor = self.lr_lambda(step)
        except UNTRACEABLE as error:
            raise TypeError(
                f"lr_lambda must be a function that JAX can trace, with jnp.where for `if` and jnp.minimum for `min`, and "
                f"{self.lr_lambda!r} is none; PerEpoch(fn, 1, …) takes any, and makes a table of its values"
            ) from error
        return jnp.broadcast_to(self.lr * jnp.asarray(factor, trees.default_float()), step.shape)


@register
@dataclasses.dataclass(frozen=True, repr=False, init=False)
class MultiplicativeLR(Schedule):
    """`lr · lr_lambda(1) · lr_lambda(2) · … · lr_lambda(step)`.

    The function is plain Python, and may branch on the step. It is called once for each of `total_iters` steps, when the
    schedule is built; the schedule, and its config, is the table of its factors. After the last the value holds.

    Args:
      lr: the value at step 0, >= 0.
      lr_lambda: the factor from one step to the next, >= 0; steps count from 1.
      total_iters: the number of factors in the table, >= 1. PyTorch has none: it multiplies for ever.

    Raises:
      ValueError, TypeError: an argument out of range, a function that returns no finite number >= 0, or a product that is not
        finite.

    Source: `torch.optim.lr_scheduler.MultiplicativeLR`.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.MultiplicativeLR(1.0, lambda step: 0.5 if step % 10 == 0 else 1.0, total_iters=20)
      >>> [float(schedule(step)) for step in (9, 10, 20, 30)]
      [1.0, 0.5, 0.25, 0.25]
    """

    lr: float
    factors: tuple[float, ...]

    def __init__(self, lr: float, lr_lambda: Callable[[int], float], total_iters: int):
        if not callable(lr_lambda):
            raise TypeError(f"lr_lambda must be a callable of the step; got {lr_lambda!r}")
        steps = range(1, arguments.check_integer("total_iters", total_iters, minimum=1) + 1)
        self._fill(lr, [returned_number("lr_lambda", f"step {step}", lr_lambda(step)) for step in steps])

    @classmethod
    def from_fields(cls, **fields: object) -> "MultiplicativeLR":
        return cls.from_table(**fields)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_table(cls, lr: float, factors: Sequence[float]) -> "MultiplicativeLR":
        """The schedule of a table: the factors of step 1, 2, …"""
        self = cls.__new__(cls)
        self._fill(lr, factors)
        return self

    def _fill(self, lr: float, factors: Sequence[float]) -> None:
        object.__setattr__(self, "lr", lr)
        check_fields(self, non_negative=["lr"])
        object.__setattr__(self, "factors", check_numbers("factors", factors, computed=True))
        if not self.factors:
            raise ValueError("factors must have at least one entry")
        arguments.check_range("learning_rate", float(self._rates().max()), computed=True)

    def _rates(self) -> np.ndarray:
        return np.cumprod(np.array([self.lr, *self.factors], np.float64))

    def value(self, step: jax.Array) -> jax.Array:
        index = jnp.clip(step, 0, len(self.factors)).astype(jnp.int32)
        return jnp.asarray(self._rates(), trees.default_float())[index]

    def __repr__(self) -> str:
        return f"MultiplicativeLR.from_table({self.lr!r}, {list(self.factors)!r})"
