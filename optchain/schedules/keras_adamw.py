"""keras-adamw's multiplier of the learning rate: cosine annealing with warm restarts."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.schedules.base import Schedule, check_fields, quotient, register


@register
@dataclasses.dataclass(frozen=True, repr=False)
class CosineMultiplier(Schedule):
    """keras-adamw's η: 1 at step 0, then, with `t = t_cur + step`,

        η = eta_min + ½(eta_max − eta_min)(1 + cos(π · t / (total_iterations − 1)))

    where with `autorestart` t returns to 0 after `total_iterations − 1`; without, η rises again.

    Args:
      total_iterations: the number of updates from one restart to the next, >= 2.
      eta_min: the lowest value, >= 0.
      eta_max: the value of a restart, >= 0.
      t_cur: where in its period the run starts, >= 0; with restarts below `total_iterations`.
      autorestart: whether to restart.

    Example:
      >>> import optchain
      >>> schedule = optchain.schedules.CosineMultiplier(5)
      >>> [round(float(schedule(step)), 3) for step in range(6)]
      [1.0, 0.854, 0.5, 0.146, 0.0, 1.0]
    """

    total_iterations: int
    eta_min: float = 0.0
    eta_max: float = 1.0
    t_cur: int = 0
    autorestart: bool = True

    def __post_init__(self) -> None:
        check_fields(self, non_negative=["eta_min", "eta_max"])
        for name, minimum in (("total_iterations", 2), ("t_cur", 0)):
            value = arguments.check_integer(name, getattr(self, name), minimum=minimum)
            object.__setattr__(self, name, value)
        if arguments.check_bool("autorestart", self.autorestart) and self.t_cur >= self.total_iterations:
            raise ValueError(
                f"t_cur must be below total_iterations where there are restarts; got {self.t_cur} and {self.total_iterations}"
            )

    def value(self, step: jax.Array) -> jax.Array:
        half = self.total_iterations - 1
        # Without restarts too t is taken within one period, where the angle has all its digits.
        period = self.total_iterations if self.autorestart else 2 * half
        # (t_cur + step) % period, of which the sum could go beyond the largest integer.
        start, t = self.t_cur % period, step % period
        t = jnp.where(t >= period - start, t - (period - start), t + start)
        cosine = 0.5 * (1 + jnp.cos(math.pi * quotient(t, half)))
        return jnp.where(step == 0, 1.0, self.eta_min + (self.eta_max - self.eta_min) * cosine)
