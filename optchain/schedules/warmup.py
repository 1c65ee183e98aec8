"""Schedules of large runs: a constant, warmup-stable-decay, the inverse square root, a power of the step."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from optchain.core.trees import floating
from optchain.schedules.base import Schedule, check_fields, reached, register, since


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """`rate` at every step: a part of `join`, or a rate that a config may replace by a schedule.

    Args:
      rate: the value, >= 0.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.join(
      ...     [optchain.schedules.Constant(1.0), optchain.schedules.PolynomialDecay(1.0, 10, 0.0)], [100]
      ... )
      >>> [float(schedule(step)) for step in (0, 99, 105)]
      [1.0, 1.0, 0.5]
    """

    rate: float

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["rate"])

    def value(self, step: jax.Array) -> jax.Array:
        return jnp.full_like(floating(step), self.rate)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class WarmupStableDecay(Schedule):
    """Linear from 0 to `peak`, then `peak`, then down to `end`: a run can be decayed from any of its steps. Also called WSD.

        warmup   peak · step / warmup_steps                     below warmup_steps
        stable   peak                                           for stable_steps from there
        decay    peak + (end − peak) · f(x),  x from 0 to 1     in decay_steps; then end

    `f(x)` is `x` (linear), `½ (1 − cos πx)` (cosine), `√x` (sqrt), whose value falls as `1 − √x` and so fastest at first.

    Args:
      peak: the highest value, >= 0.
      warmup_steps: >= 0; with 0 it begins at `peak`.
      stable_steps: >= 0.
      decay_steps: >= 0; with 0 it is `end` from `warmup_steps + stable_steps` on.
      end: the value after the decay, >= 0.
      shape: `"linear"`, `"cosine"` or `"sqrt"`.

    Source: Hu et al., "MiniCPM", 2024, arXiv:2404.06395, section 4; the tails: Hägele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", 2024, arXiv:2405.18392, section 3.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.WarmupStableDecay(1.0, warmup_steps=10, stable_steps=80, decay_steps=10)
      >>> [float(schedule(step)) for step in (0, 5, 10, 90, 95, 100)]
      [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    peak: float
    warmup_steps: float
    stable_steps: float
    decay_steps: float
    end: float = 0.0
    shape: Literal["linear", "cosine", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["peak", "warmup_steps", "stable_steps", "decay_steps", "end"])
        if not isinstance(self.shape, str):
            raise TypeError(f"shape must be 'linear', 'cosine' or 'sqrt'; got {self.shape!r}")
        if self.shape not in ("linear", "cosine", "sqrt"):
            raise ValueError(f"shape must be 'linear', 'cosine' or 'sqrt'; got {self.shape!r}")

    def value(self, step: jax.Array) -> jax.Array:
        warming = self.peak * floating(step) / max(self.warmup_steps, 1)
        start = self.warmup_steps + self.stable_steps
        elapsed = jnp.clip(since(step, start) / max(self.decay_steps, 1), 0.0, 1.0)
        if self.shape == "cosine":
            elapsed = 0.5 * (1 - jnp.cos(math.pi * elapsed))
        elif self.shape == "sqrt":
            elapsed = jnp.sqrt(elapsed)
        falling = self.peak + (self.end - self.peak) * elapsed
        late = jnp.where(reached(step, start + self.decay_steps), self.end, falling)
        return jnp.where(reached(step, self.warmup_steps), late, warming)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class InverseSquareRoot(Schedule):
    """Linear from 0 to `peak` in `warmup_steps`, then `peak / √(1 + (step − warmup_steps) / timescale)`.

    With `timescale` the warmup's length it is the Transformer's, `peak · √(warmup_steps / step)`, and
    `get_inverse_sqrt_schedule` of Hugging Face's transformers.

    Args:
      peak: the highest value, >= 0.
      warmup_steps: >= 0.
      timescale: the number of steps after the warmup in which the value falls to `peak / √2`, > 0; None for `warmup_steps`.

    Raises:
      ValueError: neither a warmup nor a timescale.

    Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 5.3.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.InverseSquareRoot(1.0, warmup_steps=100)
      >>> [float(schedule(step)) for step in (0, 50, 100, 400)]
      [0.0, 0.5, 1.0, 0.5]
    """

    peak: float
    warmup_steps: float
    timescale: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["peak", "warmup_steps"])
        if self.timescale is not None:
            check_fields(self, positive=["timescale"])
        elif self.warmup_steps == 0:
            raise ValueError("timescale must be given where warmup_steps is 0; got None")

    def value(self, step: jax.Array) -> jax.Array:
        warming = self.peak * floating(step) / max(self.warmup_steps, 1)
        timescale = self.warmup_steps if self.timescale is None else self.timescale
        late = jnp.maximum(since(step, self.warmup_steps), 0.0)
        falling = self.peak / jnp.sqrt(1 + late / timescale)
        return jnp.where(reached(step, self.warmup_steps), falling, warming)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class PowerDecay(Schedule):
    """Linear from 0 to `peak`, then `peak`, then a power of the step: no number of steps to the end is in it.

        warmup   peak · step / warmup_steps        below warmup_steps
        stable   peak                              for stable_steps from there
        decay    peak · (start / step)^power       from start = warmup_steps + stable_steps on

    This is the power scheduler's `min(peak, a · step^−power)` after a warmup, with `start` where the two meet. Without stable
    steps and with the power ½ it is `InverseSquareRoot(peak, warmup_steps)`. A fall at the end is joined to it: `join`.

    Args:
      peak: the highest value, >= 0.
      warmup_steps: >= 0; with 0 it begins at `peak`.
      stable_steps: >= 0.
      power: > 0.

    Raises:
      ValueError: an argument out of range, or neither a warmup nor stable steps: a power of 0 steps is infinite.
      TypeError: an argument that is no number.

    Source: Shen et al., "Power Scheduler: A Batch Size and Token Number Agnostic Learning Rate Scheduler", 2024,
    arXiv:2408.13359, where the power is 0.51.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.PowerDecay(1.0, warmup_steps=10, stable_steps=90, power=0.5)
      >>> [float(schedule(step)) for step in (0, 5, 10, 100, 400)]
      [0.0, 0.5, 1.0, 1.0, 0.5]
    """

    peak: float
    warmup_steps: float
    stable_steps: float = 0
    power: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, positive=["power"], non_negative=["peak", "warmup_steps", "stable_steps"])
        if self.warmup_steps + self.stable_steps == 0:
            raise ValueError("stable_steps must be > 0 where warmup_steps is 0; got 0")

    def value(self, step: jax.Array) -> jax.Array:
        warming = self.peak * floating(step) / max(self.warmup_steps, 1)
        start = self.warmup_steps + self.stable_steps
        falling = self.peak * (start / jnp.maximum(floating(step), start)) ** self.power
        return jnp.where(reached(step, self.warmup_steps), falling, warming)
