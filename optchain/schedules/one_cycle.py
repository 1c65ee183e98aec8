"""PyTorch's one-cycle policy: of the learning rate, and of the momentum that goes the other way."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.trees import floating
from optchain.schedules.base import Schedule, check_fields, passed, quotient, register, since


@register
@dataclasses.dataclass(frozen=True, repr=False)
class OneCycleLR(Schedule):
    """Up from `max_lr / div_factor` to `max_lr`, then down to a small fraction of where it started.

        phase                 from       to           ends at step
        1                     initial    max_lr       pct_start · total_steps − 1
        2                     max_lr     minimum      total_steps − 1
        with `three_phase`:
        2                     max_lr     initial      2 · pct_start · total_steps − 2
        3                     initial    minimum      total_steps − 1

    with `initial = max_lr / div_factor` and `minimum = initial / final_div_factor`. After the last step its value holds,
    where PyTorch raises. PyTorch's scheduler cycles the momentum too, unless told not to: see `OneCycleMomentum`.

    Args:
      max_lr: the highest value, >= 0.
      total_steps: the length of the cycle, >= 1; or else `epochs` and `steps_per_epoch`, whose product it is.
      epochs: >= 1.
      steps_per_epoch: >= 1.
      pct_start: the share of the cycle that rises, in [0, 1].
      anneal_strategy: "cos" for half cosines, "linear" for lines.
      div_factor: the divisor of `max_lr` at the start, > 0.
      final_div_factor: the divisor of the start value at the end, > 0.
      three_phase: whether to come down the way it went up, and then fall further.

    Source: Smith & Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2017,
    arXiv:1708.07120; `torch.optim.lr_scheduler.OneCycleLR`.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.OneCycleLR(1.0, total_steps=101, pct_start=0.5, div_factor=10.0)
      >>> [round(float(schedule(step)), 3) for step in (0, 25, 50, 75, 100)]
      [0.1, 0.557, 1.0, 0.492, 0.0]
    """

    max_lr: float
    total_steps: int | None = None
    epochs: int | None = None
    steps_per_epoch: int | None = None
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = dataclasses.field(default=25.0, kw_only=True)
    final_div_factor: float = dataclasses.field(default=1e4, kw_only=True)
    three_phase: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self, positive=["div_factor", "final_div_factor"], non_negative=["max_lr"])
        arguments.check_number("pct_start", self.pct_start, arguments.FRACTION)
        arguments.check_choice("anneal_strategy", self.anneal_strategy, ("cos", "linear"))
        arguments.check_bool("three_phase", self.three_phase)
        unset = [length is None for length in (self.total_steps, self.epochs, self.steps_per_epoch)]
        if unset not in ([False, True, True], [True, False, False]):
            raise ValueError(
                "either total_steps, or epochs and steps_per_epoch, must be set; got "
                f"total_steps={self.total_steps!r}, epochs={self.epochs!r}, steps_per_epoch={self.steps_per_epoch!r}"
            )
        if self.epochs is not None and self.steps_per_epoch is not None:
            check_fields(self, integers=["epochs", "steps_per_epoch"])
            object.__setattr__(self, "total_steps", self.epochs * self.steps_per_epoch)
            object.__setattr__(self, "epochs", None)
            object.__setattr__(self, "steps_per_epoch", None)
        check_fields(self, integers=["total_steps"])

    def value(self, step: jax.Array) -> jax.Array:
        initial = self.max_lr / self.div_factor
        return self.through(
            [initial, self.max_lr, *[initial] * self.three_phase, initial / self.final_div_factor], step
        )

    def through(self, values: Sequence[float], step: jax.Array) -> jax.Array:
        """The way through values, one more than there are phases, from each to the next in its phase."""
        assert self.total_steps is not None
        rise = self.pct_start * self.total_steps
        ends = [rise - 1, *[2 * rise - 2] * self.three_phase, self.total_steps - 1]
        starts = [0.0, *ends[:-1]]
        step = jnp.minimum(step, self.total_steps - 1)
        phases = [
            self._anneal(before, after, quotient(since(step, start), end - start))
            if end != start
            else after + 0 * floating(step)
            for before, after, start, end in zip(values[:-1], values[1:], starts, ends, strict=True)
        ]
        result = phases[-1]
        for end, phase in reversed(list(zip(ends[:-1], phases[:-1], strict=True))):
            result = jnp.where(passed(step, end), result, phase)
        return result

    def _anneal(self, before: float, after: float, fraction: jax.Array) -> jax.Array:
        if self.anneal_strategy == "linear":
            return (after - before) * fraction + before
        return after + (before - after) / 2 * (1 + jnp.cos(math.pi * fraction))


@register
@dataclasses.dataclass(frozen=True, repr=False)
class OneCycleMomentum(Schedule):
    """The momentum, or β₁, of a cycle: from `max_momentum` down to `base_momentum` while the rate rises, and back.

    PyTorch's `OneCycleLR(…, cycle_momentum=True)`, its default, is these two schedules.

    Args:
      cycle: the schedule of the learning rate, whose phases these are.
      base_momentum: the lowest value, in [0, 1].
      max_momentum: the highest value, in [0, 1].

    Example:
      >>> import optchain
      >>> from optchain.schedules import OneCycleLR, OneCycleMomentum
      >>> cycle = OneCycleLR(0.1, total_steps=100)
      >>> tx = optchain.presets.torch.sgd(cycle, momentum=OneCycleMomentum(cycle))
      >>> [round(float(OneCycleMomentum(cycle)(step)), 3) for step in (0, 29, 99)]
      [0.95, 0.85, 0.95]
    """

    cycle: OneCycleLR
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    def __post_init__(self) -> None:
        if not isinstance(self.cycle, OneCycleLR):
            raise TypeError(f"cycle must be a OneCycleLR; got {self.cycle!r}")
        arguments.check_number("base_momentum", self.base_momentum, arguments.KEPT)
        arguments.check_number("max_momentum", self.max_momentum, arguments.KEPT)

    def value(self, step: jax.Array) -> jax.Array:
        low, high = self.base_momentum, self.max_momentum
        return self.cycle.through([high, low, high, *[high] * self.cycle.three_phase], step)
