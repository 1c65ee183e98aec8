"""How many updates a run has made, by what its state counts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.slot_paths import Names, SlotPaths

GATES = ({"grads", "count", "weight"}, {"skipped_steps", "consecutive"}, {"skipped_steps", "good_steps"})
"""What the state of a gate has, next to the `inner` that it lets run or not."""

ADDED = ({"clipped", "metrics"}, {"usual_norm", "metrics"}, {"average"})
"""What the state of a clip or an average has, next to its count and hyperparameters, and nothing else."""

WHICH = (
    "Adam's rules have one, and a schedule, average_params and clip_by_global_norm; sgd, rmsprop, adagrad, adadelta, ftrl and lion "
    "have none of their own. Count in the loop instead"
)


def steps_taken(state: Any) -> jax.Array:
    """The number of updates that the parameters have had.

    Calls at which a gate held back are not counted: with `accumulate(…, 4)` it is 2 after 8 calls, with `skip_nonfinite`
    a bad step does not count, and where gates nest what lies within all of them does. Where groups of parameters are
    updated at different calls, it is the number of the group that has had the fewest. It is read from the `count` that links
    keep within the state; the calls of a chain with a schedule are the `count` beside its `scheduled`. A clip and an average may have
    been added in mid-run: their counts are read where nothing else beside them counts.

    Not every rule needs a count: `sgd`, `rmsprop`, `adagrad`, `adadelta`, `ftrl`, `lion` and PyTorch's and keras-adamw's of these
    kinds keep none, with moments or without, and nothing is stored for this alone. With a schedule as the rate, `use_ema` or
    `global_clipnorm` there is one; where they accumulate, only what is inside of the gate counts updates.

    Args:
      state: any pytree with an optchain state in it: Optax's, a Flax `TrainState`, an `nnx.Optimizer`.

    Returns:
      An int32 of shape (), a copy.

    Raises:
      ValueError: nothing in the state counts updates.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adamw(1e-3, gradient_accumulation_steps=2)
      >>> params = jnp.ones(3)
      >>> state = tx.init(params)
      >>> for _ in range(5):
      ...     params, state = tx.apply(params, state, grads=params)
      >>> int(optchain.steps_taken(state))
      2
    """
    slots = SlotPaths.of(state)
    gates = {
        names
        for names, entries in slots.entries.items()
        if any(entries >= gate for gate in GATES) and slots.is_entry(names)
    }
    counts = {
        names: leaf
        for names, leaf in slots.leaves.items()
        if _counts_updates(names, leaf, gates) and slots.is_entry(names)
    }
    for gate in gates:
        within = (*gate, "inner")
        if not any(names[: len(within)] == within or names == (*gate, "updates") for names in counts):
            raise ValueError(
                f"nothing in the state counts the updates of the gate at {'/'.join(gate) or 'its root'}: no link within it keeps a "
                f"count. {WHICH}"
            )
    if not counts:
        raise ValueError(f"nothing in the state counts updates: no link keeps a count. {WHICH}")

    def nesting(names: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
        return frozenset(gate for gate in gates if names[: len(gate) + 1] == (*gate, "inner"))

    added = {names for names in counts if slots.entries[names[:-1]] - {"count", "hyperparams", "scheduled"} in ADDED}
    known = {nesting(names) for names in counts.keys() - added}
    trusted = [leaf for names, leaf in counts.items() if names not in added or nesting(names) not in known]
    return functools.reduce(jnp.minimum, map(jnp.array, trusted))


def _counts_updates(names: Names, leaf: Any, gates: set[Names]) -> bool:
    if not jnp.issubdtype(getattr(leaf, "dtype", float), jnp.integer):
        return False
    if names[:-1] in gates:  # the `count` of a gate is its place in a window
        return names[-1] == "updates"
    return names[-1] == "count"
