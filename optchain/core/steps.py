"""How many updates a run has made, by what its state counts."""

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from optchain.core.slot import CONTAINERS, is_link_name
from optchain.core.slot_paths import Names, SlotPaths

GATES = (
    ({"grads", "count", "weight"}, "inner"),
    ({"skipped_steps", "consecutive"}, "inner"),
    ({"skipped_steps", "good_steps"}, "inner"),
    ({"mini_step", "gradient_step"}, "inner_opt_state"),  # Optax's
    ({"notfinite_count", "total_notfinite"}, "inner_state"),
)
"""What the state of a gate has, and where it has the state that it lets run or not."""

WHICH = (
    "Adam's rules have one, and a schedule, average_params and clip_by_global_norm; sgd, rmsprop, adagrad, adadelta, ftrl and lion "
    "have none of their own. Count in the loop instead"
)


def steps_taken(state: Any) -> jax.Array:
    """The number of updates that the parameters have had.

    Calls at which a gate held back are not counted: with `accumulate(…, 4)` it is 2 after 8 calls, with `skip_nonfinite`
    a bad step does not count, and where gates nest what lies within all of them does. Where groups of parameters are
    updated at different calls, it is the number of the group that has had the fewest, and of several states in a container of
    one's own that of the state that has. It is read from the `count` that links keep within the state. Of those that count the
    same calls the largest is read: others, of a clip or a schedule for instance, may have been added in mid-run.

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
        (*names, inner)
        for names, entries in slots.entries.items()
        for marks, inner in GATES
        if entries >= marks and slots.is_entry(names)
    }
    counts = {names: leaf for names, leaf in slots.leaves.items() if _counts_updates(names, leaf, gates, slots)}
    for gate in gates:
        if not any(gate in _nesting(names, gates) for names in counts):
            raise ValueError(
                f"nothing in the state counts the updates of the gate at {'/'.join(gate[:-1]) or 'its root'}: no link within it "
                f"keeps a count. {WHICH}"
            )
    if not counts:
        raise ValueError(f"nothing in the state counts updates: no link keeps a count. {WHICH}")
    of_states: dict[Names, dict[frozenset[Names], list[jax.Array]]] = {}
    for names, leaf in counts.items():
        of_state = of_states.setdefault(_state_of(names), {})
        of_state.setdefault(_nesting(names, gates), []).append(jnp.array(leaf))
    innermost = itertools.chain.from_iterable(map(_innermost, of_states.values()))
    return functools.reduce(jnp.minimum, (functools.reduce(jnp.maximum, counts) for counts in innermost))


def _innermost(counts: Mapping[frozenset[Names], list[jax.Array]]) -> Iterable[list[jax.Array]]:
    """The counts within gates that have no other gate within which there are counts: what is around a gate counts calls."""
    return [found for nesting, found in counts.items() if not any(nesting < other for other in counts)]


def _nesting(names: Names, gates: Iterable[Names]) -> frozenset[Names]:
    """The gates that let an entry run, or of which it counts the updates."""
    of_gate = names[-1] in ("updates", "gradient_step")
    return frozenset(gate for gate in gates if names[: len(gate)] == gate or (of_gate and names[:-1] == gate[:-1]))


def _state_of(names: Names) -> Names:
    """The place of the state that an entry is of, in containers of one's own: all before the first link, or number in a tuple."""
    first = next((i for i, name in enumerate(names) if is_link_name(name) or name.isdecimal()), len(names) - 1)
    return names[:first]


def _counts_updates(names: Names, leaf: Any, gates: set[Names], slots: SlotPaths) -> bool:
    if not jnp.issubdtype(getattr(leaf, "dtype", float), jnp.integer) or not names:
        return False
    owner = names[:-1]
    if any(gate[:-1] == owner for gate in gates):  # the `count` of a gate is its place in a window
        return names[-1] in ("updates", "gradient_step")
    return names[-1] == "count" and slots.is_entry(names) and _is_link(names, slots)


def _is_link(names: Names, slots: SlotPaths) -> bool:
    """Whether an entry is one of a link, or of one of Optax's tuples, and not of statistics in a container of one's own."""
    owner = names[:-1]
    path = slots.paths[names]
    named = not owner or owner[-1] in CONTAINERS or owner[-1].isdecimal() or is_link_name(owner[-1])
    beside = (slots.is_field((*owner, name)) for name in slots.entries[owner] if name != "count")
    return named or isinstance(path[-1], GetAttrKey) or any(beside)
