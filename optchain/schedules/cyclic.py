"""PyTorch's cyclical learning rate, and the momentum that goes the other way."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.trees import floating
from optchain.schedules.base import (
    Schedule,
    ScheduleFunction,
    check_fields,
    check_schedule,
    periods,
    quotient,
    register,
)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class CyclicLR(Schedule):
    """Up from `base_lr` to `max_lr` on a line, down again, over and over, each time as high as the mode lets it.

        base_lr + (max_lr − base_lr) · x · scale

    with `x` from 0 to 1 in `step_size_up` steps and back in `step_size_down`, and the scale

        triangular      1
        triangular2     ½^(the number of whole cycles before)
        exp_range       gamma^step
        scale_fn        scale_fn(cycle), the first being 1, or scale_fn(step) with `scale_mode="iterations"`

    PyTorch's scheduler cycles the momentum too, unless told not to: see `CyclicMomentum`.

    Args:
      base_lr: the value at the start of every cycle, >= 0.
      max_lr: the value at the top of a cycle whose scale is 1, >= 0.
      step_size_up: the number of steps up, >= 1.
      step_size_down: the number of steps down, >= 1; None for as many as up.
      mode: "triangular", "triangular2" or "exp_range".
      gamma: the factor of every step in "exp_range", >= 0.
      scale_fn: a scale of one's own, in which case `mode` has no effect: a function of a number or an array that JAX can
        trace. A schedule is one; any other function has no config, and `to_config` says so.
      scale_mode: whether `scale_fn` is given the "cycle" or the step ("iterations").

    Raises:
      ValueError, TypeError: an argument out of range.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186;
    `torch.optim.lr_scheduler.CyclicLR`.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.CyclicLR(0.0, 1.0, step_size_up=4, step_size_down=2, mode="triangular2")
      >>> [float(schedule(step)) for step in (0, 2, 4, 5, 6, 10)]
      [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]
    """

    base_lr: float
    max_lr: float
    step_size_up: int = 2000
    step_size_down: int | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0
    scale_fn: ScheduleFunction | None = None
    scale_mode: Literal["cycle", "iterations"] = "cycle"

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["base_lr", "max_lr", "gamma"], integers=["step_size_up"])
        if self.step_size_down is not None:
            check_fields(self, integers=["step_size_down"])
        arguments.check_choice("mode", self.mode, ("triangular", "triangular2", "exp_range"))
        arguments.check_choice("scale_mode", self.scale_mode, ("cycle", "iterations"))
        if self.scale_fn is not None:
            check_schedule("scale_fn", self.scale_fn)

    def value(self, step: jax.Array) -> jax.Array:
        return self.between(self.base_lr, self.max_lr, step)

    def between(self, start: float, top: float, step: jax.Array) -> jax.Array:
        """The cycles of this schedule between two other values."""
        up = self.step_size_up
        down = up if self.step_size_down is None else self.step_size_down
        cycles, elapsed = periods(step, up + down)
        x = jnp.where(elapsed <= up, quotient(elapsed, up), quotient(up + down - elapsed, down))
        return start + (top - start) * x * self._scale(cycles, step)

    def _scale(self, cycles: jax.Array, step: jax.Array) -> float | jax.Array:
        if self.scale_fn is not None:
            scale = self.scale_fn(cycles + 1 if self.scale_mode == "cycle" else step)
            return jnp.asarray(scale, trees.default_float())
        if self.mode == "triangular":
            return 1.0
        return 0.5**cycles if self.mode == "triangular2" else self.gamma ** floating(step)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class CyclicMomentum(Schedule):
    """The momentum, or β₁, of a `CyclicLR`: from `max_momentum` down to `base_momentum` while the rate rises, and back.

        max_momentum − (max_momentum − base_momentum) · x · scale

    with the `x` and the scale of the cycle. PyTorch's `CyclicLR(…, cycle_momentum=True)`, its default, is these two schedules.

    Args:
      cycle: the schedule of the learning rate, whose cycles these are.
      base_momentum: the value at the top of the rate, in [0, 1].
      max_momentum: the value at the start of every cycle, in [0, 1].

    Raises:
      ValueError, TypeError: an argument out of range, or a cycle that is no `CyclicLR`.

    Source: `torch.optim.lr_scheduler.CyclicLR`.

    Example:
      >>> import optchain
      >>> from optchain.schedules import CyclicLR, CyclicMomentum
      >>> cycle = CyclicLR(0.01, 0.1, step_size_up=10)
      >>> tx = optchain.presets.torch.sgd(cycle, momentum=CyclicMomentum(cycle))
      >>> [round(float(CyclicMomentum(cycle)(step)), 3) for step in (0, 5, 10, 20)]
      [0.9, 0.85, 0.8, 0.9]
    """

    cycle: CyclicLR
    base_momentum: float = 0.8
    max_momentum: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.cycle, CyclicLR):
            raise TypeError(f"cycle must be a CyclicLR; got {self.cycle!r}")
        arguments.check_number("base_momentum", self.base_momentum, arguments.KEPT)
        arguments.check_number("max_momentum", self.max_momentum, arguments.KEPT)

    def value(self, step: jax.Array) -> jax.Array:
        return self.cycle.between(self.max_momentum, self.base_momentum, step)
