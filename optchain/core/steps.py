"""How many updates a run has made, by what its state counts."""

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from optchain.core.slot import CONTAINERS, OF_WINDOWS, OWN_ENTRIES, is_link_name, starts_as_params
from optchain.core.slot_paths import Names, SlotPaths

GATES = (
    (OF_WINDOWS, "inner"),
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
    one's own that of the state that has, of those that count. It is read from the `count` that links keep within the state. Of those that
    count the same calls a rule's is read, and the largest: others, of a clip or a schedule for instance, may have been added in mid-run.

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
    gates = {(*names, inner) for marks, inner in GATES for names in slots.with_entries(marks)}
    counts = {names: leaf for names, leaf in slots.leaves.items() if _counts_updates(names, leaf, gates, slots)}
    for gate in gates:
        if not any(gate in _nesting(names, gates) for names in counts):
            raise ValueError(
                f"nothing in the state counts the updates of the gate at {'/'.join(gate[:-1]) or 'its root'}: no link within it "
                f"keeps a count. {WHICH}"
            )
    if not counts:
        raise ValueError(f"nothing in the state counts updates: no link keeps a count. {WHICH}")
    of_states: dict[Names, dict[frozenset[Names], list[Names]]] = {}
    for names in counts:
        of_states.setdefault(_state_of(names), {}).setdefault(_nesting(names, gates), []).append(names)
    found = []
    for same in itertools.chain.from_iterable(map(_innermost, of_states.values())):
        of_rules = [names for names in same if _is_of_rule(names, slots)]
        found.append(functools.reduce(jnp.maximum, [jnp.array(counts[names]) for names in of_rules or same]))
    return functools.reduce(jnp.minimum, found)


def _innermost(counts: Mapping[frozenset[Names], list[Names]]) -> Iterable[list[Names]]:
    """The counts within gates that have no other gate within which there are counts: what is around a gate counts calls."""
    return [same for nesting, same in counts.items() if not any(nesting < other for other in counts)]


def _is_of_rule(names: Names, slots: SlotPaths) -> bool:
    """Whether it is the count of what keeps moments, and not of a clip, an average or the schedules of a chain."""
    owner = names[:-1]
    kept = slots.entries[owner] - OWN_ENTRIES
    moments = {name for name in kept if slots.is_field((*owner, name)) and not starts_as_params(name)}
    return bool(moments) and "metrics" not in slots.entries[owner]


def _nesting(names: Names, gates: Iterable[Names]) -> frozenset[Names]:
    """The gates that let an entry run, or of which it counts the updates."""
    of_gate = names[-1] in ("updates", "gradient_step")
    return frozenset(gate for gate in gates if names[: len(gate)] == gate or (of_gate and names[:-1] == gate[:-1]))


def _state_of(names: Names) -> Names:
    """The place of the state that an entry is of, in containers of one's own: all before the first link, gate or number in a tuple."""
    inner = CONTAINERS - {"state", "opt_state", "default"}
    within = (i for i, name in enumerate(names) if is_link_name(name) or name.isdecimal() or name in inner)
    return names[: next(within, len(names) - 1)]


def _counts_updates(names: Names, leaf: Any, gates: set[Names], slots: SlotPaths) -> bool:
    if not jnp.issubdtype(getattr(leaf, "dtype", float), jnp.integer) or not names:
        return False
    owner = names[:-1]
    if any(gate[:-1] == owner for gate in gates):  # the `count` of a gate is its place in a window
        return names[-1] in ("updates", "gradient_step")
    kept = slots.entries[owner] - OWN_ENTRIES
    if "inner" in kept and not any(slots.is_field((*owner, name)) for name in kept):  # a gate of one's own counts calls
        return False
    return names[-1] == "count" and slots.is_entry(names) and _is_link(names, slots)


def _is_link(names: Names, slots: SlotPaths) -> bool:
    """Whether an entry is one of a link, or of one of Optax's tuples, and not of statistics in a container of one's own."""
    owner = names[:-1]
    beside = slots.entries[owner] - {"count"}
    named = bool(owner) and (owner[-1] in CONTAINERS or owner[-1].isdecimal() or is_link_name(owner[-1]))
    known = any(slots.is_field((*owner, name)) for name in beside)
    alone = not owner and all((name,) in slots.leaves or name in CONTAINERS or is_link_name(name) for name in beside)
    return named or known or alone or isinstance(slots.paths[names][-1], GetAttrKey)
