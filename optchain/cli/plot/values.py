"""What a recipe's hyperparameters are over a run, from its schedules alone: nothing is trained."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain import Transformation

Calls = np.ndarray
"""The number of calls that a link has had, at each call of the whole recipe."""


def over(tx: Transformation, steps: int) -> dict[str, np.ndarray]:
    """The learning rates and everything scheduled, at the first `steps` calls, keyed as `get_hyperparams` keys them."""
    found = list(_found(tx, "", np.arange(steps)))
    names = [path.rpartition("/")[2] for path, _ in found]
    return {path if names.count(name) > 1 else name: values for (path, values), name in zip(found, names, strict=True)}


def _found(link: Transformation, owner: str, calls: Calls) -> Iterator[tuple[str, np.ndarray]]:
    for name, schedule in link.schedules.items():
        yield f"{owner}{name}", np.asarray(jax.vmap(schedule)(jnp.asarray(calls)), float)
    for name, value in link.settable.items():
        if name == "learning_rate":
            yield f"{owner}{name}", np.full(calls.shape, float(value))
    for name, inner in link.parts.items():
        yield from _found(inner, f"{owner}{name}/", _updates(link, calls))


def _updates(link: Transformation, calls: Calls) -> Calls:
    """What a link within counts: of `accumulate` the updates, which a window of calls makes."""
    if not link.is_registered or link.registered_name != "accumulate":
        return calls
    steps = link.config["steps"]
    if isinstance(steps, int):
        return calls // steps
    window: Callable[[int], Any] = steps
    ends, updates = [0], 0
    while ends[-1] <= calls.max(initial=0):
        ends.append(ends[-1] + max(round(float(window(updates))), 1))
        updates += 1
    return np.searchsorted(ends, calls, side="right") - 1
