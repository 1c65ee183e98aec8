"""Entries that were saved wide and are stored in codes now, or the other way round."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import storage
from optchain.core.slot_paths import Names, SlotPaths
from optchain.core.trees import dtype_of


def stored_as(saved: SlotPaths, wanted: SlotPaths, moved: Mapping[Names, Names]) -> dict[Names, Any]:
    """The saved arrays by their paths, each entry stored as the wanted one of its name is.

    Args:
      saved: the saved arrays.
      wanted: those of the state that they are for, or their shapes.
      moved: the saved paths of wanted arrays, where they differ.
    """
    arrays = dict(saved.leaves)
    for names, like in wanted.leaves.items():
        source = moved.get(names, names)
        if source in arrays and is_low_bits(names, wanted.leaves):
            arrays[source] = _of_width(np.asarray(arrays[source]), dtype_of(like))
    sources = {wanted.entry(names): saved.entry(moved.get(names, names)) for names in wanted.leaves}
    of_saved, of_wanted = _by_entry(saved), _by_entry(wanted)
    for entry, source in sources.items():
        old, like = of_saved.get(source, {}), of_wanted[entry]
        if _kinds(old) == _kinds(like) or not old:
            continue
        wide = _loaded(old)
        for rest in old:
            del arrays[(*source, *rest)]
        arrays |= {
            (*source, *rest): x for rest, x in (_packed(wide, like, entry[-1]) if _is_packed(like) else wide).items()
        }
    return arrays


def _of_width(low: np.ndarray, dtype: Any) -> np.ndarray:
    """Low bits in another width: the upper ones of 16, or 8 that are these."""
    if low.dtype == np.int8 and dtype == jnp.int16:
        return low.astype(np.int16) * 256
    if low.dtype == np.int16 and dtype == jnp.int8:
        return np.clip((low.astype(np.int32) + 128) >> 8, -128, 127).astype(np.int8)
    return low


def is_scale(names: Names, slots: SlotPaths) -> bool:
    """Whether it is the path of the scale of blocks."""
    entry = slots.entry(names)
    draws = {("draws",): slots.leaves.get((*entry, "draws"))}
    return names[len(entry) : len(entry) + 1] == ("scales",) and _is_packed(draws)


def is_low_bits(names: Names, arrays: Mapping[Names, Any]) -> bool:
    """Whether it is the path of the low bits of a parameter."""
    return any(name == "low" and (*names[:i], "draws") in arrays for i, name in enumerate(names))


def _by_entry(slots: SlotPaths) -> dict[Names, dict[Names, Any]]:
    found: dict[Names, dict[Names, Any]] = {}
    for names, x in slots.leaves.items():
        entry = slots.entry(names)
        found.setdefault(entry, {})[names[len(entry) :]] = x
    return found


def _is_packed(entry: Mapping[Names, Any]) -> bool:
    draws = entry.get(("draws",))
    return draws is not None and jnp.issubdtype(dtype_of(draws), jnp.integer)


def _kinds(entry: Mapping[Names, Any]) -> Any:
    """How an entry is stored: nothing to convert between two that are alike."""
    codes = {rest: dtype_of(x) for rest, x in entry.items() if rest[:1] == ("codes",)}
    return codes if _is_packed(entry) else None


def _loaded(entry: Mapping[Names, Any]) -> dict[Names, Any]:
    """The numbers of an entry by the paths of their parameters."""
    if not _is_packed(entry):
        return dict(entry)
    codes = {rest[1:]: x for rest, x in entry.items() if rest[0] == "codes"}
    return {rest: storage.load_leaf(jnp.asarray(x), entry.get(("scales", *rest))) for rest, x in codes.items()}


def _packed(wide: Mapping[Names, Any], like: Mapping[Names, Any], name: str) -> dict[Names, Any]:
    """The numbers of an entry, stored as another is; those of another shape as they are, for an error to name."""
    made: dict[Names, Any] = {("draws",): np.int32(0)}

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return storage.random_bits(shape, jnp.int32(0), storage.salt_of(name))

    for rest, x in wide.items():
        code, scale = like.get(("codes", *rest)), like.get(("scales", *rest))
        if code is None or np.shape(x) != code.shape or dtype_of(code) == dtype_of(x):
            made[("codes", *rest)] = x
            continue
        codes, scales = storage.store_leaf(jnp.asarray(x, jnp.float32), code, scale, draw)
        made[("codes", *rest)] = codes
        if scales is not None:
            made[("scales", *rest)] = scales
    return made
