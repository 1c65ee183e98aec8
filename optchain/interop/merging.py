"""A saved state, brought into a state that was just initialized: by names, and with a report.

It asks for no library: `saved` is what any of them restores, with named tuples turned into dicts, tuples into lists and
integer keys into strings.
"""

from collections.abc import Collection, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core.keys import typed_like, without_type
from optchain.core.slot import BY_ANY_NAME, OF_WINDOWS, slot_names, starts_as_params
from optchain.core.slot_paths import Names, SlotPaths, slots_of_tuples
from optchain.core.trees import Tree, dtype_of, leaves_with_paths, path_names
from optchain.interop import checks
from optchain.interop.moves import moved_links
from optchain.interop.packing import is_low_bits, is_scale, stored_as
from optchain.interop.report import Choice, Fate, Report, Row, join_paths


def merge(saved: Any, target: Tree, *, hyperparams: Choice) -> tuple[Tree, Report]:
    """A saved state in the structure of another one: links matched by name, what is new initialized, all of it reported.

    An array goes where it was. A link whose place changed, say into a gate, is found by its name, if it is the only one
    of that name on both sides. Nothing is matched by position or by shape.

    Args:
      saved: any pytree of arrays: a state, or what a serializer made of it, with dicts for named tuples, lists for
        tuples and strings for integer keys. Entries without arrays, such as None, are nothing.
      target: a tree of the wanted structure: `tx.init(params)`, or `{"params": params, "state": tx.init(params)}`. Entries
        that were not saved are taken from it; a `jax.ShapeDtypeStruct` may stand for an entry that surely was saved. It is
        not changed.
      hyperparams: the hyperparameters in the state with which the run goes on: the `"saved"` ones, or those that the
        transformation is `"configured"` with now. A schedule is always the transformation's own, and goes on at the saved
        count.

    Returns:
      `(tree, report)`: copies, in the structure, dtypes and shardings of `target`; and what became of each array.
      `print` shows it, `report.new` and `report.gone` are lists of paths.

    Raises:
      ValueError: a shape that differs, parameters of another model, nothing that matches at all; the message names both
        sides. A value that no such entry can have: a count or a second moment below zero, a rate that is not finite.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from optchain.interop.merging import merge
      >>> params = {"w": jnp.ones(2)}
      >>> saved = optchain.adam(0.1).init(params)
      >>> tx = optchain.adam(0.3, use_ema=True)
      >>> state, report = merge(saved, tx.init(params), hyperparams="configured")
      >>> print(report)
      entry                      arrays              note
      -------------------------  ------  ----------  ---------
      average_params/average          1  new
      average_params/count            1  new
      hyperparams/learning_rate       1  configured  saved 0.1
      scale_by_adam/count             1  restored
      scale_by_adam/mu                1  restored
      scale_by_adam/nu                1  restored
      <BLANKLINE>
      hyperparameters: configured
    """
    return merge_entries(by_names(saved), target, hyperparams=hyperparams)


def merge_entries(saved: Mapping[Names, Any], target: Tree, *, hyperparams: Choice) -> tuple[Tree, Report]:
    """The same of arrays by their paths."""
    check_choice(hyperparams)
    wanted, of_tuples = by_names(target), slots_of_tuples(target)
    before, now = (SlotPaths(side, lambda: of_tuples) for side in (saved, wanted))
    moved = moved_links(before, now)
    saved = stored_as(before, now, moved)
    before = SlotPaths(saved, lambda: of_tuples)
    sources = {names: moved.get(names, names) for names in wanted if moved.get(names, names) in saved}
    _check_model(before, now, moved, sources)
    _check_shapes(saved, wanted, sources)
    _check_values(before, now, sources, hyperparams)
    _check_units(before, now, sources)
    rows, leaves = [], []
    for names, like in wanted.items():
        if names not in sources:
            parameter = _parameter_of(now.split(names), like, saved, sources)
            made = _initialized(names, like) if parameter is None else _placed(parameter, like)
            # The low bits of other parameters than those that were saved, which have none.
            leaves.append(jnp.zeros_like(made) if is_low_bits(names, wanted) else made)
            rows.append(_row(now, names, "new", "" if parameter is None else "of the restored parameters"))
            continue
        value, source = saved[sources[names]], sources[names]
        note = [] if source == names else [f"from {'/'.join(before.entry(source))}"]
        if hyperparams == "configured" and _is_hyperparam(names, now):
            if not np.array_equal(np.asarray(value, dtype_of(like)), np.asarray(like)):
                note.append(f"saved {_number(value, like)}")
            leaves.append(_initialized(names, like))
            rows.append(_row(now, names, "configured", ", ".join(note)))
            continue
        if not isinstance(value, int | float) and raw_dtype(value) != dtype_of(like):
            note.append(f"{raw_dtype(value)} to {dtype_of(like)}")
        leaves.append(_placed(value, like))
        rows.append(_row(now, names, "restored", ", ".join(note)))
    used = set(sources.values())
    rows += [_row(before, names, "gone") for names in saved if names not in used]
    order = sorted(rows, key=lambda row: (row.fate == "gone", row.path))
    likes, treedef = jax.tree.flatten(target)
    return treedef.unflatten(map(typed_like, leaves, likes)), Report(tuple(order), hyperparams)


def by_names(tree: Tree) -> dict[Names, Any]:
    """The arrays of a tree by their paths, in which the kind of a container does not show, nor that keys are typed."""
    found: dict[Names, Any] = {}
    for path, leaf in leaves_with_paths(tree):
        names = path_names(path)
        if names in found:
            raise ValueError(
                f"two entries have the path {'/'.join(names)}: an integer and a string are the same key here"
            )
        found[names] = without_type(leaf)
    return found


def raw_dtype(value: Any) -> np.dtype:
    """The dtype of an array as it was saved, float64 too where JAX has none."""
    return value.dtype if hasattr(value, "dtype") else np.result_type(value)


def check_choice(hyperparams: Any) -> None:
    if hyperparams not in get_args(Choice):
        raise ValueError(f"hyperparams must be one of {', '.join(map(repr, get_args(Choice)))}; got {hyperparams!r}")


def _row(slots: SlotPaths, names: Names, fate: Fate, note: str = "") -> Row:
    entry = slots.entry(names)
    return Row(names, fate, note, names if entry[-1] in BY_ANY_NAME else entry)


def _check_model(
    saved: SlotPaths, wanted: SlotPaths, moved: Mapping[Names, Names], sources: Mapping[Names, Names]
) -> None:
    """Refuses the state of another model: trees of parameters of which each side has some that the other lacks."""
    if wanted.leaves and saved.leaves and not sources:
        entries = (sorted({"/".join(side.entry(names)) for names in side.leaves}) for side in (saved, wanted))
        theirs, ours = map(join_paths, entries)
        raise ValueError(f"no saved entry has a counterpart: saved are {theirs}; expected are {ours}")
    used = set(sources.values())
    trees = {wanted.entry(names): saved.entry(moved.get(names, names)) for names in wanted.leaves}
    left, unused = _by_entry(wanted, sources), _by_entry(saved, used)
    # Where the parameters were all saved it is the same model, whose groups may have other parameters now.
    restored = any(entry[-1] == "params" and entry not in left for entry in trees)
    for entry, source in trees.items():
        lacking, surplus = left.get(entry, []), unused.get(source, [])
        if entry[-1] in slot_names() and lacking and ((surplus and not restored) or entry[-1] == "params"):
            raise ValueError(
                f"{'/'.join(entry)} is that of another model: expected and not saved are {join_paths(lacking)}; "
                f"saved and not expected are {join_paths(surplus)}"
            )


def _by_entry(slots: SlotPaths, known: Collection[Names]) -> dict[Names, list[str]]:
    """The paths within each entry of a state, but for those that are known."""
    found: dict[Names, list[str]] = {}
    for names in slots.leaves:
        if names not in known:
            entry = slots.entry(names)
            found.setdefault(entry, []).append("/".join(names[len(entry) :]))
    return found


def _check_shapes(saved: Mapping[Names, Any], wanted: Mapping[Names, Any], sources: Mapping[Names, Names]) -> None:
    for names, source in sources.items():
        value, like = saved[source], wanted[names]
        if np.shape(value) != np.shape(like):
            raise ValueError(f"{'/'.join(names)}: saved with shape {np.shape(value)}, expected {np.shape(like)}")
        if not isinstance(value, int | float):
            checks.kind("/".join(names), raw_dtype(value), dtype_of(like))


def _check_values(saved: SlotPaths, wanted: SlotPaths, sources: Mapping[Names, Names], hyperparams: Choice) -> None:
    for names, source in sources.items():
        if hyperparams == "configured" and _is_hyperparam(names, wanted):
            continue  # it is not taken over
        value, dtype = saved.leaves[source], dtype_of(wanted.leaves[names])
        checks.entry(names, value, wanted)
        if is_scale(names, wanted):
            checks.real("/".join(names), value)
            checks.nonnegative("/".join(names), value)
        limits = np.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else None
        if limits and np.size(value):
            value = np.asarray(value)
            low, high = value.min(), value.max()
            if low < limits.min or high > limits.max:
                raise ValueError(
                    f"{'/'.join(names)}: saved are integers from {low} to {high}, which {limits.dtype} does not hold"
                )


def _check_units(saved: SlotPaths, wanted: SlotPaths, sources: Mapping[Names, Names]) -> None:
    """Refuses the count of a schedule that stood outside of accumulation and stands within it now, or the other way round."""
    before, now = ([(*names, "inner") for names in side.with_entries(OF_WINDOWS)] for side in (saved, wanted))
    for names, source in sources.items():
        owner, old = names[:-1], source[:-1]
        if names[-1:] != ("count",) or not all("scheduled" in s.entries[o] for s, o in ((saved, old), (wanted, owner))):
            continue
        inside = [sum(o[: len(gate)] == gate for gate in gates) for o, gates in ((old, before), (owner, now))]
        if before and now and inside[0] != inside[1] and np.any(np.asarray(saved.leaves[source])):
            units = ["calls", "updates"] if inside[0] < inside[1] else ["updates", "calls"]
            raise ValueError(
                f"{'/'.join(names)}: saved is a number of {units[0]}, expected one of {units[1]}, since the schedule stands "
                f"{'within' if units[1] == 'updates' else 'around'} accumulate now; set {'/'.join(source)} in the saved state to that"
            )


def _parameter_of(
    place: tuple[Names, str, Names], like: Any, saved: Mapping[Names, Any], sources: Mapping[Names, Names]
) -> Any | None:
    """The restored parameter that a new entry is a copy of at the start, such as an average; None for other entries."""
    _, field, below = place
    source = sources.get(("params", *below))
    if source is None or not starts_as_params(field) or np.shape(saved[source]) != np.shape(like):
        return None
    return saved[source]


def _is_hyperparam(names: Names, slots: SlotPaths) -> bool:
    return names[-2:-1] == ("hyperparams",) and not slots.lies_in_slot(names)


def _initialized(names: Names, like: Any) -> jax.Array:
    if isinstance(like, jax.ShapeDtypeStruct):
        raise ValueError(f"{'/'.join(names)} was not saved, and the target has no value for it: give tx.init(params)")
    return jnp.array(like, dtype_of(like), copy=True)


def _placed(value: Any, like: Any) -> jax.Array:
    """A copy of the value, in the dtype and on the devices of another array."""
    sharding = getattr(like, "sharding", None)
    copied = isinstance(value, jax.Array) and sharding is not None and value.sharding == sharding
    if not copied:
        value = np.asarray(value)  # from wherever it is, so that it may go anywhere
    made = jnp.array(value, dtype_of(like), copy=True)
    committed = isinstance(like, jax.ShapeDtypeStruct) or getattr(like, "committed", False)
    return jax.device_put(made, sharding) if sharding is not None and committed else made


def _number(value: Any, like: Any) -> str:
    # Through its text a float32 becomes the shortest number that is read back as it.
    return str(np.asarray(value, dtype_of(like))[()]) if np.ndim(value) == 0 else "others"
