"""PyTorch's schedulers as schedules: the base learning rate, `lr`, stands where PyTorch has the optimizer.

The value at step s is what `scheduler.get_last_lr()` gives after s calls of `scheduler.step()`: a scheduler that PyTorch
users step once an epoch is here a function of epochs, and `PerEpoch` makes steps of it. The forms are closed, where PyTorch
multiplies its way from step to step.
"""

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.trees import floating
from optchain.schedules.base import Schedule, at_most, check_fields, periods, quotient, reached, register


@register
@dataclasses.dataclass(frozen=True, repr=False)
class StepLR(Schedule):
    """`lr · gamma^⌊step / step_size⌋`.

    Args:
      lr: the value at step 0, >= 0.
      step_size: the number of steps from one decay to the next, >= 1.
      gamma: the factor of a decay, >= 0.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.StepLR(1.0, step_size=10, gamma=0.5)
      >>> [float(schedule(step)) for step in (9, 10, 20)]
      [1.0, 0.5, 0.25]
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr", "gamma"], integers=["step_size"])

    def value(self, step: jax.Array) -> jax.Array:
        return self.lr * self.gamma ** periods(step, self.step_size)[0]


@register
@dataclasses.dataclass(frozen=True, repr=False)
class MultiStepLR(Schedule):
    """`lr · gamma^(the number of milestones <= step)`.

    Args:
      lr: the value before the first milestone, >= 0.
      milestones: steps, >= 0, in any order; one that stands twice counts twice.
      gamma: the factor of a decay, >= 0.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.MultiStepLR(1.0, [10, 20], gamma=0.5)
      >>> [float(schedule(step)) for step in (9, 10, 20)]
      [1.0, 0.5, 0.25]
    """

    lr: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr", "gamma"])
        if isinstance(self.milestones, str) or not isinstance(self.milestones, Iterable):
            raise TypeError(f"milestones must be integers >= 0; got {self.milestones!r}")
        checked = (arguments.check_integer("a milestone", step, minimum=0) for step in self.milestones)
        object.__setattr__(self, "milestones", tuple(sorted(checked)))

    def value(self, step: jax.Array) -> jax.Array:
        passed = (jnp.where(step >= m, 1.0, 0.0) for m in self.milestones)
        return self.lr * self.gamma ** sum(passed, 0 * floating(step))


@register
@dataclasses.dataclass(frozen=True, repr=False)
class ExponentialLR(Schedule):
    """`lr · gamma^step`.

    Args:
      lr: the value at step 0, >= 0.
      gamma: the factor of every step, >= 0.

    Example:
      >>> import optchain
      >>> float(optchain.schedules.ExponentialLR(1.0, gamma=0.5)(2))
      0.25
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr", "gamma"])

    def value(self, step: jax.Array) -> jax.Array:
        return self.lr * self.gamma ** floating(step)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class ConstantLR(Schedule):
    """`lr · factor` below step `total_iters`, and `lr` from there on.

    Args:
      lr: the value from `total_iters` on, >= 0.
      factor: in [0, 1]; PyTorch, which multiplies by its reciprocal at the end, divides by zero with 0.
      total_iters: the number of steps that the factor stays, >= 1.

    Raises:
      ValueError, TypeError: an argument out of range.

    Source: `torch.optim.lr_scheduler.ConstantLR`.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.ConstantLR(1.0, factor=0.25, total_iters=4)
      >>> [float(schedule(step)) for step in (0, 3, 4)]
      [0.25, 0.25, 1.0]
    """

    lr: float
    factor: float = 1 / 3
    total_iters: int = 5

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr"], integers=["total_iters"])
        arguments.check_number("factor", self.factor, arguments.FRACTION)

    def value(self, step: jax.Array) -> jax.Array:
        return self.lr * jnp.where(reached(step, self.total_iters), 1.0, self.factor + 0 * floating(step))


@register
@dataclasses.dataclass(frozen=True, repr=False)
class LinearLR(Schedule):
    """A factor from `start_factor` to `end_factor`, linear, which then stays: PyTorch's warmup.

        lr · (start_factor + (end_factor − start_factor) · min(step / total_iters, 1))

    Args:
      lr: the rate that the factor multiplies, >= 0.
      start_factor: the factor at step 0, in (0, 1].
      end_factor: the factor from `total_iters` on, in [0, 1].
      total_iters: the number of steps between them, >= 1.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.LinearLR(1.0, start_factor=0.5, total_iters=4)
      >>> [float(schedule(step)) for step in (0, 2, 4, 6)]
      [0.5, 0.75, 1.0, 1.0]
    """

    lr: float
    start_factor: float = 1 / 3
    end_factor: float = 1.0
    total_iters: int = 5

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr"], integers=["total_iters"])
        arguments.check_number("start_factor", self.start_factor, arguments.Range(0.0, 1.0, low_open=True))
        arguments.check_number("end_factor", self.end_factor, arguments.FRACTION)

    def value(self, step: jax.Array) -> jax.Array:
        done = quotient(at_most(step, self.total_iters), self.total_iters)
        return self.lr * (self.start_factor + (self.end_factor - self.start_factor) * done)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class PolynomialLR(Schedule):
    """`lr · (1 − min(step / total_iters, 1))^power`.

    Args:
      lr: the value at step 0, >= 0.
      total_iters: the number of steps to 0, >= 1.
      power: > 0; 1 is linear.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.PolynomialLR(1.0, total_iters=4, power=2.0)
      >>> [float(schedule(step)) for step in (0, 2, 4, 6)]
      [1.0, 0.25, 0.0, 0.0]
    """

    lr: float
    total_iters: int = 5
    power: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, positive=["power"], non_negative=["lr"], integers=["total_iters"])

    def value(self, step: jax.Array) -> jax.Array:
        return self.lr * (1 - quotient(at_most(step, self.total_iters), self.total_iters)) ** self.power


@register
@dataclasses.dataclass(frozen=True, repr=False)
class CosineAnnealingLR(Schedule):
    """`eta_min + ½(lr − eta_min)(1 + cos(π · step / T_max))`, which rises again after `T_max`.

    Args:
      lr: the value at step 0, >= 0.
      T_max: half a period, in steps, >= 1.
      eta_min: the lowest value, >= 0.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, arXiv:1608.03983.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.CosineAnnealingLR(1.0, T_max=10)
      >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 20)]
      [1.0, 0.5, 0.0, 1.0]
    """

    lr: float
    T_max: int
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr", "eta_min"], integers=["T_max"])

    def value(self, step: jax.Array) -> jax.Array:
        # The angle is taken within one period, where it has all its digits.
        return _cosine(self.lr, self.eta_min, quotient(periods(step, 2 * self.T_max)[1], self.T_max))


@register
@dataclasses.dataclass(frozen=True, repr=False)
class CosineAnnealingWarmRestarts(Schedule):
    """Half cosines from `lr` to `eta_min`, one after the other, each `T_mult` times as long as the one before.

    Args:
      lr: the value at every restart, >= 0.
      T_0: the length of the first period, in steps, >= 1.
      T_mult: the length of each period over that of the one before, an integer >= 1.
      eta_min: the value that a period falls towards, >= 0.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, arXiv:1608.03983.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.CosineAnnealingWarmRestarts(1.0, T_0=10, T_mult=2)
      >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 20, 30)]
      [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    lr: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["lr", "eta_min"], integers=["T_0", "T_mult"])

    def value(self, step: jax.Array) -> jax.Array:
        if self.T_mult == 1:
            return _cosine(self.lr, self.eta_min, quotient(periods(step, self.T_0)[1], self.T_0))
        # Where each period starts is a whole number: a logarithm would round, and be a step late.
        starts, lengths = [0], [self.T_0]
        while starts[-1] + lengths[-1] <= arguments.LARGEST_INTEGER:
            starts.append(starts[-1] + lengths[-1])
            lengths.append(lengths[-1] * self.T_mult)
        starts = jnp.asarray(starts, step.dtype)
        period = jnp.searchsorted(starts, step, side="right") - 1
        elapsed = floating(step - starts[period])
        return _cosine(self.lr, self.eta_min, elapsed / jnp.asarray(lengths, elapsed.dtype)[period])


def _cosine(start: float, end: float, fraction: jax.Array) -> jax.Array:
    """Half a cosine from `start`, where the fraction is 0, to `end`, where it is 1."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(math.pi * fraction))
