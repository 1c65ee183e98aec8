"""One program that trains several members, each with hyperparameters of its own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import find_settable
from optchain.core.keys import is_key, is_raw_key, key_data
from optchain.core.lookup import find_fields, replace_fields
from optchain.core.slot import OF_WINDOWS, OWN_ENTRIES
from optchain.core.slot_paths import Names, SlotPaths
from optchain.core.trees import Path, dtype_of, path_names

# Entries of accumulation, beside its `grads`, that depend on the number of calls alone as every `count` does, and so are the same
# for every member.
BESIDE_GRADS = frozenset({"weight", "updates"})
# Beside these lie states whose calls depend on the gradients: of a gate that leaves bad calls out, ours or Optax's, and of
# Optax's accumulation, whose own counter is no shared one.
DECIDES = frozenset({"skipped_steps", "good_steps", "notfinite_count", "mini_step"})
# What wrappers keep that run what is within at each call: `schedule_free`, `compact`, `lazy_rows`.
ALWAYS_RUN = frozenset({"beta_1", "iterates", "draws", "low", "last_call"})


def sweep(state: Any, values: Mapping[str, Any] | None = None, /, **named: Any) -> tuple[Any, Any]:
    """A state for several members at once, and its axes for `jax.vmap`.

    Hyperparameters, and everything that follows from them, get a leading axis of members. Counts of calls stay scalars,
    so that an `accumulate` within stays a branch: with a counter for each member `vmap` would have to run both branches
    and select. Inside a gate that looks at gradients, such as `skip_nonfinite`, each member counts for itself, and so it does in
    a gate of one's own that keeps more than a `count`.

    Args:
      state: a state of optchain, usually fresh from `init`.
      values: one value a member, keyed as `get_hyperparams` keys them: `{"body/learning_rate": rates}`.
      **named: one value a member, by name: `learning_rate=jnp.array([0.1, 0.01])`. All of one length. `seed` is what
        `add_noise` draws from: integers, `jnp.arange(4)`, or keys, `jax.random.split(key, 4)`; without it the noise is the
        same in each member.

    Returns:
      `(states, axes)`: `axes` has the structure of the state, 0 where a leaf has the axis of members and None elsewhere, for
      `in_axes` and `out_axes`. Parameters and metrics have the axis of members too.

    Raises:
      ValueError: no values, values of different lengths, or a hyperparameter that cannot be set (`set_hyperparams` says
        when); one that was given as a Python number and is not the learning rate is part of the program, give an array.
        A state that was swept before.
      TypeError: values that are no real numbers.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(0.1)
      >>> states, axes = optchain.sweep(tx.init(jnp.zeros(())), learning_rate=jnp.array([0.5, 0.25]))
      >>> def step(params, state, grads):
      ...     return tx.apply(params, state, grads=grads)
      >>> members = jax.vmap(step, in_axes=(0, axes, None), out_axes=(0, axes))
      >>> params, states = members(jnp.zeros(2), states, jnp.array(-1.0))
      >>> params
      Array([0.5 , 0.25], dtype=float32)
    """
    wanted = {**(values or {}), **named}
    if not wanted:
        raise ValueError("sweep needs the values of at least one hyperparameter")
    seeds = {"seed": jax.vmap(key_data)(_checked_seeds(wanted.pop("seed")))} if "seed" in wanted else {}
    arrays = {key: _numbers(key, value) for key, value in wanted.items()}
    shapes = {array.shape for array in arrays.values()} | {keys.shape[:1] for keys in seeds.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        given = ", ".join(f"{key}: {array.shape}" for key, array in (arrays | seeds).items())
        raise ValueError(f"sweep needs one-dimensional arrays of one length; got {given}")
    ((members,),) = shapes

    for field in find_fields(state, "hyperparams", "scheduled"):
        if jnp.shape(field.value):
            raise ValueError(
                f"sweep needs the state of one member, and {field.key} has shape {jnp.shape(field.value)}: give all that differs "
                "to one sweep"
            )
    axes = member_axes(state)

    def of_members(axis: int | None, leaf: Any) -> Any:
        if leaf is None:  # an empty place, such as the scales of what has no codes
            return None
        return jnp.array(leaf) if axis is None else jnp.repeat(jnp.asarray(leaf)[None], members, axis=axis)

    batched = jax.tree.map(of_members, axes, state, is_leaf=lambda node: node is None)
    fields = {key: find_settable(state, key) for key in arrays}
    for key, field in fields.items():
        arguments.check_values(field.name, wanted[key])  # before they were rounded
    # Copies, as the counters are: a step that donates its state would else delete the caller's own.
    values_by_path = {field.path: jnp.array(arrays[key], dtype_of(field.value)) for key, field in fields.items()}
    keys_by_path = {path: jnp.array(seeds["seed"]) for path in _find_keys(state)} if seeds else {}
    if seeds and not keys_by_path:
        raise ValueError("sweep was given seeds, and the state has no add_noise that would draw from them")
    return replace_fields(batched, values_by_path | keys_by_path), axes


def _numbers(key: str, values: Any) -> jax.Array:
    """One number a member."""
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"sweep needs one number a member for {key}; got {values!r}") from error
    arguments.check_real_dtype(key, array.dtype)
    return array


def _checked_seeds(seeds: Any) -> jax.Array:
    """One seed a member, integers or keys, along the first axis."""
    array = seeds if is_key(seeds) else jnp.asarray(seeds)
    if array.ndim == 0 or (array.ndim > 1 and not is_raw_key(array)) or array.ndim > 2:
        raise ValueError(f"sweep needs one seed a member, integers or keys; got an array of shape {array.shape}")
    if is_raw_key(array) and array.ndim == 1:  # two seeds, not one key
        array = array.astype(jnp.int32)
    if is_key(array) or is_raw_key(array):
        return array
    if not jnp.issubdtype(array.dtype, jnp.integer) or (not arguments.is_traced(array) and (array < 0).any()):
        raise ValueError(f"seeds must be integers >= 0 or keys; got {seeds!r}")
    return array


def _find_keys(state: Any) -> list[Path]:
    """Where links keep the keys that they draw from."""
    slots = SlotPaths.of(state)
    return [
        slots.paths[names]
        for names, leaf in slots.leaves.items()
        if names[-1:] == ("key",) and is_raw_key(leaf) and slots.is_entry(names)
    ]


def member_axes(state: Any) -> Any:
    """The axis of members of each leaf of a state: 0, or None for what counts the calls of all members alike."""
    slots = SlotPaths.of(state)
    own = {names[:-1] for names in slots.leaves if names[-1:] and names[-1] in DECIDES and slots.is_entry(names)}
    own |= {place for place in slots.with_entries({"inner"}) if _decides(place, slots)}

    def axis(path: Path, _: Any) -> int | None:
        names = path_names(path)
        return None if _is_counter(names, slots) and not any(names[: len(place)] == place for place in own) else 0

    return jax.tree_util.tree_map_with_path(axis, state)


def _decides(place: Names, slots: SlotPaths) -> bool:
    """Whether what lies around another link may be a gate of one's own: it has entries that are none of the package's."""
    known = OWN_ENTRIES | ALWAYS_RUN | (OF_WINDOWS | BESIDE_GRADS if "grads" in slots.entries[place] else frozenset())
    return bool(slots.entries[place] - {"inner"} - known)


def _is_counter(names: Names, slots: SlotPaths) -> bool:
    if not names or not slots.is_entry(names):
        return False
    return names[-1] == "count" or (names[-1] in BESIDE_GRADS and "grads" in slots.entries[names[:-1]])
