"""Keras's schedules, and the linear one of Hugging Face's transformers."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.trees import floating
from optchain.schedules.base import (
    Schedule,
    at_most,
    check_fields,
    check_numbers,
    passed,
    periods,
    quotient,
    reached,
    register,
    since,
)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class ExponentialDecay(Schedule):
    """`initial_learning_rate · decay_rate^(step / decay_steps)`; with `staircase` the exponent is rounded down.

    Args:
      initial_learning_rate: the value at step 0, >= 0.
      decay_steps: the number of steps in which the value falls by `decay_rate`, > 0.
      decay_rate: > 0.
      staircase: whether the value stays the same for `decay_steps` steps and then falls at once.

    Example:
      >>> import optchain
      >>> float(optchain.schedules.ExponentialDecay(1.0, decay_steps=10, decay_rate=0.5)(20))
      0.25
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False

    def __post_init__(self) -> None:
        check_fields(self, positive=["decay_steps", "decay_rate"], non_negative=["initial_learning_rate"])
        arguments.check_bool("staircase", self.staircase)

    def value(self, step: jax.Array) -> jax.Array:
        exponent = periods(step, self.decay_steps)[0] if self.staircase else quotient(step, self.decay_steps)
        return self.initial_learning_rate * self.decay_rate**exponent


@register
@dataclasses.dataclass(frozen=True, repr=False)
class InverseTimeDecay(Schedule):
    """`initial_learning_rate / (1 + decay_rate · step / decay_steps)`; with `staircase` the quotient is rounded down.

    Args:
      initial_learning_rate: the value at step 0, >= 0.
      decay_steps: > 0.
      decay_rate: >= 0.
      staircase: whether the value stays the same for `decay_steps` steps and then falls at once.

    Example:
      >>> import optchain
      >>> float(optchain.schedules.InverseTimeDecay(1.0, decay_steps=10, decay_rate=1.0)(10))
      0.5
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False

    def __post_init__(self) -> None:
        check_fields(self, positive=["decay_steps"], non_negative=["initial_learning_rate", "decay_rate"])
        arguments.check_bool("staircase", self.staircase)

    def value(self, step: jax.Array) -> jax.Array:
        elapsed = periods(step, self.decay_steps)[0] if self.staircase else quotient(step, self.decay_steps)
        return self.initial_learning_rate / (1 + self.decay_rate * elapsed)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class PiecewiseConstantDecay(Schedule):
    """`values[i]` for the first `i` with `step <= boundaries[i]`, else the last: a boundary belongs to the value before it.

    Args:
      boundaries: steps, increasing.
      values: one more than boundaries, each >= 0.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.25])
      >>> [float(schedule(step)) for step in (10, 11, 21)]
      [1.0, 0.5, 0.25]
    """

    boundaries: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boundaries", check_numbers("boundaries", self.boundaries))
        object.__setattr__(self, "values", check_numbers("values", self.values))
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"values must have one more entry than boundaries; got {len(self.values)} values and "
                f"{len(self.boundaries)} boundaries"
            )
        if any(later <= earlier for earlier, later in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"boundaries must increase; got {self.boundaries}")

    def value(self, step: jax.Array) -> jax.Array:
        value = jnp.full_like(floating(step), self.values[0])
        for boundary, after in zip(self.boundaries, self.values[1:], strict=True):
            value = jnp.where(passed(step, boundary), after, value)
        return value


@register
@dataclasses.dataclass(frozen=True, repr=False)
class PolynomialDecay(Schedule):
    """`(initial − end) · (1 − step / decay_steps)^power + end`, then `end`; or, with `cycle`, over and over.

    With `cycle` the decay starts again where it ended, over the next multiple of `decay_steps`.

    Args:
      initial_learning_rate: the value at step 0, >= 0.
      decay_steps: > 0.
      end_learning_rate: >= 0.
      power: > 0; 1 is linear.
      cycle: whether to start again.

    Example:
      >>> import optchain
      >>> float(optchain.schedules.PolynomialDecay(1.0, decay_steps=10, end_learning_rate=0.0)(5))
      0.5
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False

    def __post_init__(self) -> None:
        check_fields(self, ["decay_steps", "power"], ["initial_learning_rate", "end_learning_rate"])
        arguments.check_bool("cycle", self.cycle)

    def value(self, step: jax.Array) -> jax.Array:
        if self.cycle:
            # Rounded up: a multiple of decay_steps is the end of its cycle, but for 0.
            whole, rest = periods(step, self.decay_steps)
            steps = self.decay_steps * jnp.maximum(whole + (rest > 0), 1.0)
        else:
            steps = self.decay_steps
            step = at_most(step, steps)
        span = self.initial_learning_rate - self.end_learning_rate
        return span * (1 - quotient(step, steps)) ** self.power + self.end_learning_rate


@register
@dataclasses.dataclass(frozen=True, repr=False)
class CosineDecay(Schedule):
    """Half a cosine from the start to `alpha` times the start, after an optional linear warmup.

        step < warmup_steps:   initial + (warmup_target − initial) · step / warmup_steps
        after it, with s = min(step − warmup_steps, decay_steps):
            start · ((1 − alpha) · ½(1 + cos(π s / decay_steps)) + alpha)

    `start` is `warmup_target`, or `initial_learning_rate` where that is None; then there is no warmup.

    Args:
      initial_learning_rate: the value at step 0, >= 0.
      decay_steps: the length of the decay, without the warmup, > 0.
      alpha: the share of the start that remains, >= 0.
      warmup_target: the value after the warmup, >= 0; None for none.
      warmup_steps: the length of the warmup, >= 0.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, arXiv:1608.03983.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.CosineDecay(0.0, decay_steps=100, warmup_target=1.0, warmup_steps=10)
      >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 60, 110)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    warmup_target: float | None = None
    warmup_steps: float = 0

    def __post_init__(self) -> None:
        check_fields(self, positive=["decay_steps"], non_negative=["initial_learning_rate", "alpha", "warmup_steps"])
        if self.warmup_target is not None:
            check_fields(self, non_negative=["warmup_target"])

    def value(self, step: jax.Array) -> jax.Array:
        if self.warmup_target is None:
            return self._decayed(step, self.initial_learning_rate)
        if self.warmup_steps == 0:
            return self._decayed(step, self.warmup_target)
        fraction = quotient(step, self.warmup_steps)
        warming = (self.warmup_target - self.initial_learning_rate) * fraction + self.initial_learning_rate
        decayed = self._decayed(since(step, self.warmup_steps), self.warmup_target)
        return jnp.where(reached(step, self.warmup_steps), decayed, warming)

    def _decayed(self, step: jax.Array, start: float) -> jax.Array:
        cosine = 0.5 * (1 + jnp.cos(math.pi * (quotient(at_most(step, self.decay_steps), self.decay_steps))))
        return start * ((1 - self.alpha) * cosine + self.alpha)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class CosineDecayRestarts(Schedule):
    """Half cosines one after the other, each `t_mul` times as long and `m_mul` times as high as the one before.

    Args:
      initial_learning_rate: the value at step 0, >= 0.
      first_decay_steps: the length of the first period, > 0.
      t_mul: the length of each period over that of the one before, > 0.
      m_mul: the start of each period over that of the one before, > 0.
      alpha: the share of the initial learning rate at the end of a period, >= 0.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, arXiv:1608.03983.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.CosineDecayRestarts(1.0, first_decay_steps=10)
      >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 20)]
      [1.0, 0.5, 1.0, 0.5]
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, ["first_decay_steps", "t_mul", "m_mul"], ["initial_learning_rate", "alpha"])

    def value(self, step: jax.Array) -> jax.Array:
        if self.t_mul == 1:
            period, elapsed = periods(step, self.first_decay_steps)
            fraction = quotient(elapsed, self.first_decay_steps)
        else:
            # Operation for operation as Keras compiled: a rounding decides on which side of a restart a step falls.
            elapsed = floating(step) / self.first_decay_steps
            t_mul = jnp.asarray(self.t_mul, elapsed.dtype)
            period = jnp.floor(jnp.log(1 - elapsed * (1 - t_mul)) / jnp.log(t_mul))
            start = (1 - t_mul**period) / (1 - t_mul)
            fraction = (elapsed - start) / t_mul**period
        cosine = 0.5 * self.m_mul**period * (1 + jnp.cos(math.pi * fraction))
        return self.initial_learning_rate * ((1 - self.alpha) * cosine + self.alpha)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class LinearWarmupDecay(Schedule):
    """Linear from 0 to `peak` in `warmup_steps`, then linear to `end` at `total_steps`, then `end`.

    With `end=0` this is the linear schedule with warmup of Hugging Face's transformers.

    Args:
      peak: the highest value, >= 0.
      warmup_steps: >= 0, below `total_steps`.
      total_steps: warmup included, > 0.
      end: the value from `total_steps` on, >= 0.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.LinearWarmupDecay(1.0, warmup_steps=10, total_steps=30)
      >>> [float(schedule(step)) for step in (0, 5, 10, 20, 30)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    peak: float
    warmup_steps: float
    total_steps: float
    end: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, positive=["total_steps"], non_negative=["peak", "warmup_steps", "end"])
        if self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps must be below total_steps; got {self.warmup_steps} and {self.total_steps}")

    def value(self, step: jax.Array) -> jax.Array:
        warming = self.peak * floating(step) / max(self.warmup_steps, 1)
        remaining = -since(step, self.total_steps) / (self.total_steps - self.warmup_steps)
        decaying = self.end + (self.peak - self.end) * jnp.maximum(remaining, 0.0)
        return jnp.where(reached(step, self.warmup_steps), decaying, warming)
