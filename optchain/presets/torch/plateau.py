"""PyTorch's `ReduceLROnPlateau`, for loops that one writes oneself."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.calls import with_clear_call_errors
from optchain.core.hyperparams import find_settable, set_hyperparams


@with_clear_call_errors
@dataclasses.dataclass(frozen=True)
class ReduceLROnPlateau:
    """Multiplies the learning rate by `factor` when a metric was not better more than `patience` times in a row.

        better(metric)   metric < best · (1 − threshold)     or, with "abs", metric < best − threshold
        rate             max(rate · factor, min_lr), if that is lower by more than eps

    and the signs turned with `mode="max"`. It is `scheduler.step(metric)` as a pure function: `init` makes a state of scalars,
    `update` the next. Keras's, `optchain.ReduceLROnPlateau`, lowers one evaluation earlier with the same `patience`, and its
    threshold is absolute.

    It acts through `set_hyperparams`, so the training step is not compiled again, and the rate must be settable: a number
    or an array, not a schedule.

    Args:
      mode: whether the metric should fall ("min") or rise ("max").
      factor: the factor of a reduction, in [0, 1).
      patience: the number of evaluations in a row that may be no better, >= 0: the one after them lowers the rate.
      threshold: the least improvement of the metric that counts, >= 0: a fraction of the best, or in the metric's unit.
      threshold_mode: "rel" for a fraction, "abs" for the metric's unit.
      cooldown: the number of evaluations after a reduction that do not count, >= 0.
      min_lr: the rate is not lowered below this, >= 0.
      eps: a reduction by no more than this is left out, >= 0.
      name: which hyperparameter, as `get_hyperparams` keys it.

    Raises:
      ValueError, TypeError: an argument out of range; by `update`, a rate that is scheduled, or a name that is not there.

    Source: `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from optchain.presets import torch
      >>> tx = torch.adamw(0.1)
      >>> state = tx.init(jnp.zeros(1))
      >>> plateau = torch.ReduceLROnPlateau(factor=0.5, patience=2)
      >>> watched = plateau.init()
      >>> for loss in (1.0, 1.0, 1.0, 1.0):
      ...     watched, state = plateau.update(loss, watched, state)
      >>> round(float(optchain.get_hyperparams(state)["learning_rate"]), 3)
      0.05
    """

    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    name: str = "learning_rate"

    def __post_init__(self) -> None:
        arguments.check_choice("mode", self.mode, ("min", "max"))
        arguments.check_choice("threshold_mode", self.threshold_mode, ("rel", "abs"))
        arguments.check_number("factor", self.factor, arguments.Range(0.0, 1.0, high_open=True))
        for name in ("patience", "cooldown"):
            arguments.check_integer(name, getattr(self, name), minimum=0)
        for name in ("threshold", "min_lr", "eps"):
            arguments.check_number(name, getattr(self, name), arguments.NON_NEGATIVE)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string; got {self.name!r} ({type(self.name).__name__})")

    def init(self) -> dict[str, jax.Array]:
        """The state before the first evaluation: the best metric, the evaluations no better since, those of the cooldown left."""
        worst = jnp.array(jnp.inf if self.mode == "min" else -jnp.inf, trees.default_float())
        return {"best": worst, "bad": jnp.zeros((), jnp.int32), "cooldown": jnp.zeros((), jnp.int32)}

    def update(
        self, metric: Any, state: dict[str, jax.Array], optimizer_state: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """The state after one evaluation, and the optimizer's state with the rate that follows from it.

        Args:
          metric: the value of this evaluation, a scalar.
          state: what `init` or the last `update` returned.
          optimizer_state: any pytree with an optchain state in it.
        """
        metric = jnp.asarray(metric, trees.default_float())
        better = self._is_better(metric, state["best"])
        cooling = state["cooldown"] > 0
        bad = jnp.where(better | cooling, 0, state["bad"] + 1)
        reduce = bad > self.patience

        rate = find_settable(optimizer_state, self.name).value
        lower = jnp.maximum(rate * self.factor, self.min_lr)
        lowered = jnp.where(reduce & (rate - lower > self.eps), lower, rate)
        new = {
            "best": jnp.where(better, metric, state["best"]),
            "bad": jnp.where(reduce, 0, bad).astype(jnp.int32),
            "cooldown": jnp.where(reduce, self.cooldown, state["cooldown"] - cooling).astype(jnp.int32),
        }
        return new, set_hyperparams(optimizer_state, {self.name: lowered})

    def _is_better(self, metric: jax.Array, best: jax.Array) -> jax.Array:
        sign = -1.0 if self.mode == "min" else 1.0
        by = sign * self.threshold
        bound = best * (1 + by) if self.threshold_mode == "rel" else best + by
        return metric < bound if self.mode == "min" else metric > bound
