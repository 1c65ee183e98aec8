"""Which paths of a state lead into a slot, where an entry belongs to a parameter whatever its name.

A state is plain dicts, and a parameter may be called anything, `metrics` too: names tell what is a slot, and what stands beside
and beneath them tells a slot from a container of the user's own that is called like one, as in `{"policy": state, "v": state}`.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from optchain.core.slot import BY_ANY_NAME, OF_GATES, OWN_ENTRIES, is_link_name, slot_names
from optchain.core.trees import Path, path_names

Names: TypeAlias = tuple[str, ...]
"""A path in a state, `("scale_by_adam", "mu", "dense", "kernel")`."""


class SlotPaths:
    """Where the slots of a state are.

    Args:
      leaves: the leaves of the state by their paths.
      of_tuples: the paths of what named tuples, such as Optax's, have for the parameters: it has no declared names.
      paths: the paths as JAX has them, of a tree.
    """

    def __init__(
        self,
        leaves: Mapping[Names, Any],
        of_tuples: Callable[[], Collection[Names]] = frozenset,
        paths: Mapping[Names, Path] = MappingProxyType({}),
    ):
        self.leaves, self.paths = leaves, paths
        self._find_of_tuples = of_tuples
        self._declared = slot_names()
        self._known: dict[Names, bool] = {}

    @classmethod
    def of(cls, state: Any) -> Self:
        """Of any pytree with states in it."""
        flat = [(path_names(path), path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
        leaves, paths = {names: leaf for names, _, leaf in flat}, {names: path for names, path, _ in flat}
        return cls(leaves, lambda: slots_of_tuples(state), paths)

    @functools.cached_property
    def entries(self) -> Mapping[Names, set[str]]:
        """What each node has, by the path of the node."""
        found: dict[Names, set[str]] = {(): set()}
        for names in self.leaves:
            for depth, name in enumerate(names):
                found.setdefault(names[:depth], set()).add(name)
        return found

    @functools.cached_property
    def _of_tuples(self) -> Collection[Names]:
        has_none = self.paths and not any(_may_be_slot(key) for path in self.paths.values() for key in path[:-1])
        return () if has_none else self._find_of_tuples()

    def slot_of(self, names: Names) -> Names | None:
        """The path of the slot that a path leads to or into; None if it leads into none."""
        path = self.paths.get(names)
        theirs = self._of_tuples if path is None or any(map(_may_be_slot, path[:-1])) else ()
        for depth, name in enumerate(names, 1):
            if self._is_declared(names[:depth]) or names[:depth] in theirs:
                return names[:depth]
            if name in BY_ANY_NAME:
                return None
        return None

    def lies_in_slot(self, names: Names) -> bool:
        """Whether a path leads to a slot or into one."""
        return self.slot_of(names) is not None

    def is_entry(self, names: Names) -> bool:
        """Whether a path leads to an entry of a link whose name has one meaning: no parameter's, and none of the link's choice."""
        return not self.lies_in_slot(names) and BY_ANY_NAME.isdisjoint(names)

    def with_entries(self, marks: Collection[str]) -> list[Names]:
        """The states of links that have all of these entries."""
        return [names for names, entries in self.entries.items() if entries.issuperset(marks) and self.is_entry(names)]

    def split(self, names: Names) -> tuple[Names, str, Names]:
        """The link's place, its entry, and the place within the entry: `((…, scale_by_adam), mu, (dense, kernel))`."""
        ends = range(len(names))
        index = next((i for i in ends if self.is_field(names[: i + 1])), len(names) - 1)
        return names[:index], names[index] if names else "", names[index + 1 :]

    def entry(self, names: Names) -> Names:
        """The path of the entry of a link that a path leads to or into."""
        owner, field, _ = self.split(names)
        return (*owner, field)

    def is_field(self, names: Names) -> bool:
        """Whether a path leads to an entry of a link below which nothing is a link."""
        return names[-1] in OWN_ENTRIES or self._is_declared(names) or names in self._of_tuples

    def _is_declared(self, names: Names) -> bool:
        """Whether a path leads to a slot by its name, and to no container that is called like one."""
        if names not in self._known:
            self._known[names] = names[-1] in self._declared and (
                names[-1] == "params" or self._is_of_link(names[:-1]) or not self._holds_state(names)
            )
        return self._known[names]

    def _is_of_link(self, names: Names) -> bool:
        """Whether a node is the state of a link for certain: by its name, or by entries that nothing else has."""
        named = bool(names) and (names[-1] == "inner" or is_link_name(names[-1]))
        return named or not self.entries.get(names, set()).isdisjoint(OWN_ENTRIES | OF_GATES)

    def _holds_state(self, names: Names) -> bool:
        """Whether hyperparameters or counts of links lie beneath: numbers, or one for each member of a sweep."""
        return any(
            names == below[: len(names)] and _is_number_of_link(below[len(names) :], leaf)
            for below, leaf in self.leaves.items()
        )


def _is_number_of_link(below: Names, leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", jnp.result_type(leaf) if isinstance(leaf, int | float) else None)
    if dtype is None or jnp.ndim(leaf) > 1:
        return False
    if below[-2:-1] and below[-2] in BY_ANY_NAME:
        return below[-2] != "metrics" or jnp.ndim(leaf) == 0
    return below[-1:] == ("count",) and jnp.issubdtype(dtype, jnp.integer)


def slots_of_tuples(state: Any) -> Collection[Names]:
    """The paths of the trees in named tuples, Optax's and those of other transformations, that are no states but the parameters'."""
    found = set[Names]()

    def visit(path: Path, node: Any) -> bool:
        fields = getattr(node, "_fields", ()) if isinstance(node, tuple) else ()
        for key in map(GetAttrKey, fields):
            tree = getattr(node, key.name)
            if (
                _may_be_slot(key)
                and not jax.tree_util.all_leaves([tree])
                and not (_is_of_others(node) and _is_state(tree))
            ):
                found.add(path_names((*path, key)))
        return False

    jax.tree_util.tree_leaves_with_path(state, is_leaf=visit, is_leaf_takes_path=True)
    return found


def _is_of_others(node: Any) -> bool:
    return type(node).__module__.partition(".")[0] != "optax"


def _is_state(tree: Any) -> bool:
    return any(_is_number_of_link(path_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


def _may_be_slot(key: Any) -> bool:
    """Whether a key in a path may lead to a slot of a named tuple."""
    return isinstance(key, GetAttrKey) and not key.name.endswith(("state", "states")) and key.name not in BY_ANY_NAME
