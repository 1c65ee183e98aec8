"""What runs in a race: a recipe under a name, and what the race has to know of it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import optchain
from optchain.core.arguments import POSITIVE, check_number
from optchain.core.hyperparams import _keyed, is_settable
from optchain.core.lookup import Field, find_fields, find_siblings, find_states
from optchain.core.optax_link import OptaxLink, as_transformation
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk

RATE = "learning_rate"
OWN = "own"


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A recipe in a race.

    The race multiplies every learning rate in the state by one factor, that of the member. One that can be set has the
    share of the race's schedule besides, unless a learning rate of the recipe follows a schedule of its own: then the recipe's
    schedules are all there are. A recipe without a learning rate that can be changed (Optax's, with the rate compiled in or
    from a schedule) runs as it is.

    Args:
      name: what the recipe is called, in tables and in the names of folders.
      tx: a transformation of optchain or Optax.
      rate: the learning rate to run at, the highest where it follows a schedule; `"own"` for those with which the recipe is
        built; None to search for the best.
      narrow: whether the model sees bfloat16 weights, those that `narrow` makes. Under `compact(…, weights=…)` it does anyway.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from optchain.race import Entrant
      >>> Entrant("ours", optchain.adamw(1e-3, gradient_accumulation_steps=4)).calls
      4
    """

    name: str
    tx: optax.GradientTransformation
    rate: float | Literal["own"] | None = None
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate != OWN:
            check_number("rate", self.rate, POSITIVE)

    @property
    def calls(self) -> int:
        """The calls of one update: a batch is handed over in so many parts. Of groups of parameters the most is taken."""
        return max(map(self._calls_of_update, self._accumulations), default=1)

    @property
    def has_optax_links(self) -> bool:
        """Whether any of it is Optax's."""
        return any(isinstance(node.link, OptaxLink) for node in walk(self._link))

    @property
    def has_schedule(self) -> bool:
        """Whether a learning rate, or a factor on updates, follows a schedule of the recipe itself."""
        return any(not {RATE, "factor"}.isdisjoint(node.link.schedules) for node in walk(self._link))

    def settable_rates(self, params: Tree) -> dict[str, float]:
        """The learning rates that can be set, as they are built, by their key in `get_hyperparams`."""
        state = self.tx.init(params)
        fields = self._rate_fields(state)
        return {key: float(field.value) for key, field in fields.items() if is_settable(state, field)}

    def rates(self, params: Tree, updates: int) -> dict[str, float]:
        """The learning rates as they are built, by their key in `get_hyperparams`; of a schedule the highest in a run of so many updates."""
        found, state = {}, self.tx.init(params)
        for key, field in self._rate_fields(state).items():
            if is_settable(state, field):
                found[key] = float(field.value)
            elif field.owner in self._schedules:
                calls = updates * self.calls // self._calls_of_update(field.owner)
                found[key] = float(jnp.max(jax.lax.map(self._schedules[field.owner], jnp.arange(calls))))
        return found

    def factor(self, rates: Mapping[str, float]) -> float | None:
        """The factor on the recipe's own rates that is asked for, None if it is to be searched for.

        Raises:
          ValueError: a rate was given, and the recipe has none or several; its rate is 0, so that every factor is the same.
        """
        if self.rate == OWN or (self.rate is None and not rates):
            return 1.0
        if rates and not any(rates.values()):
            raise ValueError(
                "its learning rate is 0, and no factor changes that: build it with another, or say rate=own"
            )
        if self.rate is None:
            return None
        bases = set(rates.values())
        if len(bases) != 1:
            raise ValueError(f"rate={self.rate} needs one learning rate in the state; there are {len(bases)}")
        return self.rate / bases.pop()

    def scaled_by(self, factor: jax.Array) -> optax.GradientTransformation:
        """The recipe whose scheduled learning rates are multiplied by a factor, which may be traced."""

        def change(name: str, schedule: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
            return (lambda step: schedule(step) * factor) if name == RATE else schedule

        return self._link.with_schedules(change) if self._schedules else self.tx

    def narrowed(self, params: Tree) -> Tree:
        """The parameters to train, of those that a task makes: as wide as the model shall see them."""
        config = self._link.config if next(walk(self._link)).rule == "compact" else {}
        if config.get("weights") is not None:
            return optchain.narrow(params, min_size=config["min_size"], keep=config["keep"])
        return optchain.narrow(params) if self.narrow else params

    def check_for(self, params: Tree) -> None:
        """Requires a recipe whose every accumulation is known.

        Raises:
          ValueError: one lies inside of an Optax transformation.
        """
        state = jax.eval_shape(self.tx.init, params)
        kind = optax.MultiStepsState | optax.ApplyEvery
        theirs = [
            node for node in jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, kind)) if isinstance(node, kind)
        ]
        if theirs or len(find_states(state, "grads", "weight", "count")) > len(self._accumulations):
            raise ValueError(
                "it accumulates gradients inside of an Optax transformation, and a race does not see in how many parts a batch is "
                "to come: put optchain.accumulate around the recipe"
            )

    def is_schedule_free(self, params: Tree) -> bool:
        """Whether an average takes the place of a schedule."""
        return _average(jax.eval_shape(self.tx.init, params)) is not None

    @functools.cached_property
    def _link(self) -> Transformation:
        return as_transformation(self.tx)

    @functools.cached_property
    def _schedules(self) -> dict[tuple[str, ...], Callable[[jax.Array], Any]]:
        """The schedules of learning rates, by the place of the link that has them."""
        return {node.path: node.link.schedules[RATE] for node in walk(self._link) if RATE in node.link.schedules}

    @functools.cached_property
    def _accumulations(self) -> dict[tuple[str, ...], int]:
        """The calls of one update of each accumulation, by the place of what is within it.

        Raises:
          ValueError: the number is no constant.
        """
        found: dict[tuple[str, ...], int] = {}
        for node in walk(self._link):
            if node.rule != "accumulate":
                continue
            if callable(steps := node.link.config["steps"]):
                raise ValueError(
                    f"a race needs a fixed number of calls an update; accumulate has the schedule {steps!r}"
                )
            found[*node.path, "inner"] = int(steps)
        return found

    def _calls_of_update(self, place: tuple[str, ...]) -> int:
        """The calls of the recipe in one call of what is at a place."""
        return math.prod(steps for within, steps in self._accumulations.items() if place[: len(within)] == within)

    def _rate_fields(self, state: Any) -> dict[str, Field]:
        found = _keyed(find_fields(state, "hyperparams", "scheduled"))
        return {key: field for key, field in found.items() if field.name == RATE}


def evaluated(params: Tree, state: Any) -> Tree:
    """The weights to evaluate: the average that the recipe keeps, that of a schedule-free one, or the parameters."""
    params = optchain.wide_params(params, state)
    if (average := _average(state)) is not None:
        return average(params, state)
    return optchain.finalize(params, state)


def _average(state: Any) -> Any:
    """The function that takes a schedule-free average out of a state, Optax's too; None where there is none."""
    if find_siblings(state, "iterates", "count"):
        return optchain.schedule_free_params
    kind = optax.contrib.ScheduleFreeState
    found = [node for node in jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, kind)) if isinstance(node, kind)]
    if not found:
        return None
    return lambda params, state: optax.contrib.schedule_free_eval_params(found[0], params)


def rebuilt(tx: Transformation, **changed: Any) -> Transformation:
    """The transformation with other arguments: `rebuilt(optchain.adamw(1e-3), learning_rate=1.0)`."""
    config: Mapping[str, Any] = optchain.to_config(tx)
    return optchain.from_config({**config, "arguments": {**config["arguments"], **changed}})
