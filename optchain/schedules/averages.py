"""Momenta of an average of the parameters: what `average_params` takes besides a number."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments
from optchain.core.arguments import Range
from optchain.core.trees import floating
from optchain.schedules.base import Schedule, check_fields, register

WIDTHS = Range(0.0, 0.2886, low_open=True)
"""Of the average that counts all parameters alike it is 1/√12."""


@register
@dataclasses.dataclass(frozen=True, repr=False)
class DebiasedEMA(Schedule):
    """The momentum of an exponential moving average that does not favour where it began:

        m_t = momentum · (1 − momentum^(t−1)) / (1 − momentum^t),   with t counting updates from 1

    `average_params(0.999)` begins with the first parameters, and these keep the share `0.999^(t−1)`. With this they have the share that
    any others have at their age: the average is that which begins at 0, divided by `1 − momentum^t`, as Adam's are.

    Args:
      momentum: what the momentum grows to, in [0, 1).

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980, sections 3 and 7.2.

    Example:
      >>> import optchain
      >>> [round(float(optchain.schedules.DebiasedEMA(0.9)(step)), 3) for step in (0, 1, 9, 99)]
      [0.0, 0.474, 0.846, 0.9]
    """

    momentum: float

    def __post_init__(self) -> None:
        arguments.check_number("momentum", self.momentum, arguments.BELOW_ONE)
        object.__setattr__(self, "momentum", float(self.momentum))

    def value(self, step: jax.Array) -> jax.Array:
        if self.momentum == 0:
            return jnp.zeros_like(floating(step))
        t, log = floating(step), math.log(self.momentum)
        return self.momentum * (jnp.expm1(t * log) / jnp.expm1((t + 1) * log))


@register
@dataclasses.dataclass(frozen=True, repr=False)
class WarmedUpEMA(Schedule):
    """The momentum of an exponential moving average that is short at first: `min(momentum, (1 + step) / (10 + step))`.

    Args:
      momentum: what the momentum grows to, in [0, 1].

    Source: `num_updates` of TensorFlow's `ExponentialMovingAverage`.

    Example:
      >>> import optchain
      >>> [round(float(optchain.schedules.WarmedUpEMA(0.99)(step)), 3) for step in (1, 10, 100, 10000)]
      [0.182, 0.55, 0.918, 0.99]
    """

    momentum: float

    def __post_init__(self) -> None:
        arguments.check_number("momentum", self.momentum, arguments.FRACTION)
        object.__setattr__(self, "momentum", float(self.momentum))

    def value(self, step: jax.Array) -> jax.Array:
        step = floating(step)
        return jnp.minimum(self.momentum, (1 + step) / (10 + step))


@register
@dataclasses.dataclass(frozen=True, repr=False)
class TailAverage(Schedule):
    """The momentum of the plain mean of the parameters from one step on, every so many steps: stochastic weight averaging.

    Before `start` the average is the parameters of the last call. It takes in those of the steps `start`, `start + every`,
    `start + 2 · every`, …, all with the same share.

    Args:
      start: the first step whose parameters count, >= 0.
      every: the number of steps from one to the next, >= 1, such as those of an epoch.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, arXiv:1803.05407, Algorithm 1.

    Example:
      >>> import optchain
      >>> [round(float(optchain.schedules.TailAverage(4, every=2)(step)), 3) for step in range(9)]
      [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 1.0, 0.667]
    """

    start: int
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", arguments.check_integer("start", self.start, minimum=0))
        check_fields(self, integers=["every"])

    def value(self, step: jax.Array) -> jax.Array:
        since = step - self.start
        taken = floating(jnp.maximum(since, 0) // self.every)
        counts = (since <= 0) | (since % self.every == 0)
        return jnp.where(counts, taken / (taken + 1), 1)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class PowerEMA(Schedule):
    """The momentum of an average whose length is a fixed share of the run so far, a power function EMA:

        m_t = (1 − 1/t)^(γ + 1),   with t counting updates from 1

    so that the parameters of update s have a share that grows as `s^γ`. The width is the standard deviation of this profile over t. Of a
    few averages of two widths that were saved during a run `posthoc_average` makes that of any other width.

    Args:
      width: the relative standard deviation, in (0, 0.2886]; 0.05 and 0.1 are those that the authors keep. With the last nearly all count alike.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024, arXiv:2312.02696, section 3.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.PowerEMA(0.1)
      >>> round(schedule.exponent, 2), round(float(schedule(99)), 3)
      (6.94, 0.923)
    """

    width: float

    def __post_init__(self) -> None:
        arguments.check_number("width", self.width, WIDTHS)
        object.__setattr__(self, "width", float(self.width))

    @property
    def exponent(self) -> float:
        """γ: of the profile `s^γ` the variance is `(γ + 1) / ((γ + 2)² (γ + 3))`."""
        precision = self.width**-2
        return max(float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max()), 0.0)

    def value(self, step: jax.Array) -> jax.Array:
        step = floating(step)
        return (step / (step + 1)) ** (self.exponent + 1)
