"""What runs in a race: a recipe under a name, and what the race has to know of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

import optchain
from optchain.core.hyperparams import _keyed
from optchain.core.lookup import find_fields, find_siblings
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.race.task import Shape

RATE = "learning_rate"
OWN = "own"


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A recipe in a race.

    The race multiplies every settable learning rate in the state by one factor, that of the member, and by the share that
    the schedule has at the step. A recipe that has none (Optax's, with the rate compiled in) runs as it is.

    Args:
      name: what the recipe is called, in tables and in the names of folders.
      tx: a transformation of optchain or Optax.
      shape: the schedule of the recipe itself, as a share; None for that of the race.
      rate: the learning rate to run at; `"own"` for those with which the recipe is built; None to search for the best.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from optchain.race import Entrant
      >>> Entrant("ours", optchain.adamw(1e-3, gradient_accumulation_steps=4)).calls
      4
    """

    name: str
    tx: optax.GradientTransformation
    shape: Shape | None = None
    rate: float | Literal["own"] | None = None

    @property
    def calls(self) -> int:
        """The calls of one update: a batch is handed over in so many parts."""
        return _accumulated(as_transformation(self.tx))

    def rates(self, params: Tree) -> dict[str, float]:
        """The learning rates that can be set, as they are built, by their key in `get_hyperparams`."""
        state = self.tx.init(params)
        settable = {field.path for field in find_fields(state, "hyperparams")}
        found = _keyed(find_fields(state, "hyperparams") + find_fields(state, "scheduled"))
        return {k: float(f.value) for k, f in found.items() if f.name == RATE and f.path in settable}

    def factor(self, rates: Mapping[str, float]) -> float | None:
        """The factor on the recipe's own rates that is asked for, None if it is to be searched for.

        Raises:
          ValueError: a rate was given, and the recipe has none or several that can be set.
        """
        if self.rate == OWN or (self.rate is None and not rates):
            return 1.0
        if self.rate is None:
            return None
        bases = set(rates.values())
        if len(bases) != 1:
            raise ValueError(f"rate={self.rate} needs one learning rate that can be set; there are {len(bases)}")
        return self.rate / bases.pop()

    def is_schedule_free(self, params: Tree) -> bool:
        """Whether an average takes the place of a schedule."""
        return _average(jax.eval_shape(self.tx.init, params)) is not None


def evaluated(params: Tree, state: Any) -> Tree:
    """The weights to evaluate: the average that the recipe keeps, that of a schedule-free one, or the parameters."""
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


def _accumulated(tx: Transformation) -> int:
    """The calls of one update. Links side by side, as groups of parameters are, must not differ; the most is taken."""
    within = max((_accumulated(link) for link in tx.links), default=1)
    if not tx.is_registered or tx.registered_name != "accumulate":
        return within
    if callable(steps := tx.config["steps"]):
        raise ValueError(f"a race needs a fixed number of calls an update; accumulate has the schedule {steps!r}")
    return within * int(steps)


def rebuilt(tx: Transformation, **changed: Any) -> Transformation:
    """The transformation with other arguments: `rebuilt(optchain.adamw(1e-3), learning_rate=1.0)`."""
    config: Mapping[str, Any] = optchain.to_config(tx)
    return optchain.from_config({**config, "arguments": {**config["arguments"], **changed}})
