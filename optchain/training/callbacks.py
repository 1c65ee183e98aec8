"""What a hand-written loop decides after each evaluation: to lower the learning rate, to stop.

Both are pure: `init` makes a state of scalars, `update` takes a metric and returns the next one. They run under `jit`, or
on the host between steps. Arguments and rules are those of Keras's callbacks of these names.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.calls import with_clear_call_errors
from optchain.core.hyperparams import find_settable, set_hyperparams

WatchState = dict[str, jax.Array]


def _check_watching(mode: str, patience: Any, min_delta: Any) -> None:
    arguments.check_choice("mode", mode, ("min", "max"))
    arguments.check_integer("patience", patience, minimum=0)
    arguments.check_number("min_delta", min_delta, arguments.NON_NEGATIVE)


def _worst(mode: str) -> jax.Array:
    """What any first metric improves on."""
    return jnp.array(jnp.inf if mode == "min" else -jnp.inf, trees.default_float())


def _improved(mode: str, min_delta: float, metric: jax.Array, best: jax.Array) -> jax.Array:
    return metric + min_delta < best if mode == "min" else metric - min_delta > best


@with_clear_call_errors
@dataclasses.dataclass(frozen=True)
class ReduceLROnPlateau:
    """Multiplies the learning rate by `factor` when a metric has not improved for `patience` evaluations.

    This is Keras's; PyTorch's, which waits one evaluation longer, is `optchain.presets.torch.ReduceLROnPlateau`.

    It acts through `set_hyperparams`, so the training step is not compiled again, and the rate must be settable: a number
    or an array, not a schedule.

    Args:
      factor: the factor of a reduction, in (0, 1).
      patience: the number of evaluations without improvement to wait for, >= 0.
      mode: whether the metric should fall (`min`) or rise (`max`).
      min_delta: the least improvement of the metric that counts, >= 0.
      cooldown: the number of evaluations after a reduction that do not count, >= 0.
      min_learning_rate: the rate is not lowered below this, >= 0.
      name: which hyperparameter, as `get_hyperparams` keys it.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(0.1)
      >>> state = tx.init(jnp.zeros(1))
      >>> plateau = optchain.ReduceLROnPlateau(factor=0.5, patience=2)
      >>> watched = plateau.init()
      >>> for loss in (1.0, 1.0, 1.0):
      ...     watched, state = plateau.update(loss, watched, state)
      >>> round(float(optchain.get_hyperparams(state)["learning_rate"]), 3)
      0.05
    """

    factor: float = 0.1
    patience: int = 10
    mode: Literal["min", "max"] = "min"
    min_delta: float = 1e-4
    cooldown: int = 0
    min_learning_rate: float = 0.0
    name: str = "learning_rate"

    def __post_init__(self) -> None:
        _check_watching(self.mode, self.patience, self.min_delta)
        arguments.check_number("factor", self.factor, arguments.Range(0.0, 1.0, low_open=True, high_open=True))
        arguments.check_integer("cooldown", self.cooldown, minimum=0)
        arguments.check_number("min_learning_rate", self.min_learning_rate, arguments.NON_NEGATIVE)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string; got {self.name!r} ({type(self.name).__name__})")

    def init(self) -> WatchState:
        """The state before the first evaluation."""
        zeros = {name: jnp.zeros((), jnp.int32) for name in ("evaluations", "wait", "cooldown")}
        return {"best": _worst(self.mode), **zeros}

    def update(self, metric: Any, state: WatchState, optimizer_state: Any) -> tuple[WatchState, Any]:
        """The state after one evaluation, and the optimizer's state with the rate that follows from it.

        Args:
          metric: the value of this evaluation, a scalar.
          state: what `init` or the last `update` returned.
          optimizer_state: any pytree with an optchain state in it.
        """
        metric = jnp.asarray(metric, trees.default_float())
        cooling = state["cooldown"] > 0
        cooldown = jnp.maximum(state["cooldown"] - 1, 0)
        # The first metric is an improvement, whatever it is.
        improved = (state["evaluations"] == 0) | _improved(self.mode, self.min_delta, metric, state["best"])
        counts = ~improved & (cooldown == 0)
        wait = jnp.where(improved | cooling, 0, state["wait"]) + counts
        rate = find_settable(optimizer_state, self.name).value
        reduce = counts & (wait >= self.patience) & (rate > self.min_learning_rate)
        lower = jnp.maximum(rate * self.factor, self.min_learning_rate)
        optimizer_state = set_hyperparams(optimizer_state, {self.name: jnp.where(reduce, lower, rate)})
        new = {
            "best": jnp.where(improved, metric, state["best"]),
            "evaluations": trees.increment(state["evaluations"]),
            "wait": jnp.where(reduce, 0, wait).astype(jnp.int32),
            "cooldown": jnp.where(reduce, self.cooldown, cooldown).astype(jnp.int32),
        }
        return new, optimizer_state


@with_clear_call_errors
@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Says when a metric has not improved for `patience` evaluations.

    Args:
      patience: the number of evaluations without improvement to wait for, >= 0.
      mode: whether the metric should fall (`min`) or rise (`max`).
      min_delta: the least improvement of the metric that counts, >= 0.
      baseline: the value that an improvement must beat to start the waiting over; None for no such value.
      start_from: the number of evaluations to skip at first, >= 0.

    Example:
      >>> import optchain
      >>> stopping = optchain.EarlyStopping(patience=2)
      >>> state = stopping.init()
      >>> for loss in (1.0, 0.5, 0.6, 0.7):
      ...     state = stopping.update(loss, state)
      >>> bool(state["stop"]), float(state["best"])
      (True, 0.5)
    """

    patience: int = 0
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    baseline: float | None = None
    start_from: int = 0

    def __post_init__(self) -> None:
        _check_watching(self.mode, self.patience, self.min_delta)
        arguments.check_integer("start_from", self.start_from, minimum=0)
        if self.baseline is not None:
            arguments.check_number("baseline", self.baseline, arguments.Range(-jnp.inf))

    def init(self) -> WatchState:
        """The state before the first evaluation."""
        zeros = {name: jnp.zeros((), jnp.int32) for name in ("evaluations", "wait")}
        return {"best": _worst(self.mode), "stop": jnp.array(False), **zeros}

    def update(self, metric: Any, state: WatchState) -> WatchState:
        """The state after one evaluation; its `stop` says whether to stop, and stays true.

        Args:
          metric: the value of this evaluation, a scalar.
          state: what `init` or the last `update` returned.
        """
        metric = jnp.asarray(metric, trees.default_float())
        looked_at = state["evaluations"] >= self.start_from
        first = state["evaluations"] == self.start_from
        improved = looked_at & (first | _improved(self.mode, self.min_delta, metric, state["best"]))
        beats_baseline = self.baseline is None or _improved(
            self.mode, self.min_delta, metric, jnp.asarray(self.baseline)
        )
        wait = jnp.where(improved & beats_baseline, 0, state["wait"] + looked_at)
        stop = looked_at & ~improved & (wait >= self.patience) & (state["evaluations"] > 0)
        return {
            "best": jnp.where(improved, metric, state["best"]),
            "stop": state["stop"] | stop,
            "wait": wait.astype(jnp.int32),
            "evaluations": trees.increment(state["evaluations"]),
        }
