"""PyTorch's schedulers made of others: all at once, and one after the other."""

import dataclasses
import itertools

import jax

from optchain.core import arguments
from optchain.schedules.base import Schedule, ScheduleFunction, as_tuple, register
from optchain.schedules.composition import Join
from optchain.schedules.torch import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from optchain.schedules.torch_functions import MultiplicativeLR

Multiplying = (
    ConstantLR | CosineAnnealingLR | ExponentialLR | LinearLR | MultiplicativeLR | MultiStepLR | PolynomialLR | StepLR
)
"""The schedules whose values are their `lr` times a factor, by which PyTorch's multiply the rate that they find."""


@register
@dataclasses.dataclass(frozen=True, repr=False)
class ChainedScheduler(Schedule):
    """The factors of several schedules at once: `lr · Π (scheduler(step) / lr)`, all with the same `lr`.

    PyTorch's schedulers of a chain act on the rate that the one before left. Those that multiply it are taken: `ConstantLR`,
    `LinearLR`, `ExponentialLR`, `StepLR`, `MultiStepLR`, `PolynomialLR`, `MultiplicativeLR`, and `CosineAnnealingLR` without
    `eta_min`. Those that write a rate of their own undo in PyTorch what came before, and are refused. After its `T_max`
    PyTorch's `CosineAnnealingLR` forgets the factors of the others; here they stay.

    Args:
      schedulers: one or more, of one `lr`.

    Raises:
      TypeError: a scheduler that does not multiply.
      ValueError: none, different `lr`, or a `CosineAnnealingLR` with `eta_min`.

    Source: `torch.optim.lr_scheduler.ChainedScheduler`.

    Example:
      >>> from optchain.schedules import ChainedScheduler, ConstantLR, ExponentialLR
      >>> schedule = ChainedScheduler([ConstantLR(1.0, factor=0.5, total_iters=2), ExponentialLR(1.0, gamma=0.5)])
      >>> [float(schedule(step)) for step in (0, 1, 2)]
      [0.5, 0.25, 0.25]
    """

    schedulers: tuple[Multiplying, ...]

    def __post_init__(self) -> None:
        schedulers = as_tuple("schedulers", self.schedulers, "schedules")
        object.__setattr__(self, "schedulers", schedulers)
        if not schedulers:
            raise ValueError("schedulers must have at least one entry")
        for scheduler in schedulers:
            if not isinstance(scheduler, Multiplying):
                raise TypeError(
                    "schedulers must be schedules that multiply the rate, such as LinearLR and ExponentialLR; "
                    f"got {scheduler!r}"
                )
            if isinstance(scheduler, CosineAnnealingLR) and scheduler.eta_min != 0:
                raise ValueError(f"schedulers must have no eta_min, which is no factor of the rate; got {scheduler!r}")
            if scheduler.lr != schedulers[0].lr:
                raise ValueError(f"schedulers must have the same lr; got {schedulers[0].lr!r} and {scheduler.lr!r}")

    def value(self, step: jax.Array) -> jax.Array:
        value = self.schedulers[0].value(step)
        for scheduler in self.schedulers[1:]:
            value = value * _factor(scheduler).value(step)
        return value


def _factor(scheduler: Multiplying) -> Schedule:
    """The schedule with an `lr` of 1: no rate is divided by, which may be 0."""
    fields = {field.name: getattr(scheduler, field.name) for field in dataclasses.fields(scheduler)}
    return type(scheduler).from_fields(**fields | {"lr": 1.0})


@register
@dataclasses.dataclass(frozen=True, repr=False)
class SequentialLR(Schedule):
    """One schedule after the other: `schedulers[i]` from step `milestones[i − 1]` on, which is its own step 0.

    It is `join` by PyTorch's names, of steps alone.

    Args:
      schedulers: callables of the step, each with a rate of its own. `MultiplicativeLR`, which in PyTorch goes on from the rate
        that it finds, may stand first only.
      milestones: one fewer, integers >= 0, increasing.

    Raises:
      ValueError, TypeError: not one fewer, not increasing, not callables, or a `MultiplicativeLR` that is not the first.

    Source: `torch.optim.lr_scheduler.SequentialLR`.

    Example:
      >>> from optchain.schedules import CosineAnnealingLR, LinearLR, SequentialLR
      >>> warmup, cosine = LinearLR(1.0, start_factor=0.5, total_iters=4), CosineAnnealingLR(1.0, T_max=10)
      >>> schedule = SequentialLR([warmup, cosine], milestones=[4])
      >>> [round(float(schedule(step)), 3) for step in (0, 2, 4, 9, 14)]
      [0.5, 0.75, 1.0, 0.5, 0.0]
    """

    schedulers: tuple[ScheduleFunction, ...]
    milestones: tuple[int, ...]

    def __post_init__(self) -> None:
        schedulers = as_tuple("schedulers", self.schedulers, "callables of the step")
        milestones = as_tuple("milestones", self.milestones, "integers >= 0")
        milestones = tuple(arguments.check_integer("a milestone", step, minimum=0) for step in milestones)
        object.__setattr__(self, "schedulers", schedulers)
        object.__setattr__(self, "milestones", milestones)
        for scheduler in schedulers:
            if not callable(scheduler):
                raise TypeError(f"schedulers must be callables of the step; got {scheduler!r}")
        if any(isinstance(scheduler, MultiplicativeLR) for scheduler in schedulers[1:]):
            raise ValueError(
                "schedulers must have a MultiplicativeLR as the first or not at all: PyTorch's goes on from the rate that it "
                f"finds; got {list(schedulers)!r}"
            )
        if len(schedulers) != len(milestones) + 1:
            raise ValueError(
                f"schedulers must be one more than milestones; got {len(schedulers)} schedulers and "
                f"{len(milestones)} milestones"
            )
        if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
            raise ValueError(f"milestones must increase; got {milestones}")

    def value(self, step: jax.Array) -> jax.Array:
        return Join(self.schedulers, self.milestones)(step)
