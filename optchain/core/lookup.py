"""Finding what links keep in their states, by its place in the tree and never by the type of a node.

A state may be wrapped in Optax's tuples, a Flax `TrainState` or an `nnx.Optimizer`; the keys on the way to a value stay. What is
a slot is asked of `SlotPaths`: entries within belong to a parameter.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import storage
from optchain.core.slot import is_link_name
from optchain.core.slot_paths import Names, SlotPaths
from optchain.core.trees import Path, path_code, path_names


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A leaf that a link keeps in its state, as `…/owner/group/name`."""

    path: Path
    owner: Names
    group: str
    name: str
    value: Any

    @property
    def key(self) -> str:
        """The path without the group: `body/learning_rate`."""
        return "/".join([*self.owner, self.name])


def find_fields(state: Any, *groups: str) -> list[Field]:
    """The leaves at `…/group/name`, those of one group after those of another: `hyperparams`, `scheduled` and `metrics`."""
    slots = SlotPaths.of(state)
    found: dict[str, list[Field]] = {group: [] for group in groups}
    for names, leaf in slots.leaves.items():
        if names[-2:-1] and names[-2] in found and not slots.lies_in_slot(names):
            found[names[-2]].append(Field(slots.paths[names], names[:-2], names[-2], names[-1], leaf))
    return [field for fields in found.values() for field in fields if not _is_injected(field, slots)]


def _is_injected(field: Field, slots: SlotPaths) -> bool:
    """Whether `optax.inject_hyperparams` sets it at each call, to the hyperparameter of the same name that it has itself."""
    around = (field.owner[:depth] for depth, name in enumerate(field.owner) if name == "inner_state")
    return any((*owner, "hyperparams", field.name) in slots.leaves for owner in around)


def find_siblings(state: Any, name: str, sibling: str) -> list[Any]:
    """The entries `name` that a link keeps next to an entry `sibling`."""
    return [node[name] for _, node in find_states(state, name, sibling)]


def leaves_by_path(what: str, parts: list[tuple[str, Any]]) -> dict[tuple[str, ...], tuple[int, Path, Any]]:
    """The leaves of trees that a state has for different parameters, by path: which tree it is of, the path, the leaf.

    Raises:
      ValueError: two of the trees have a leaf for the same parameter (the message names the places of all).
    """
    found: dict[tuple[str, ...], tuple[int, Path, Any]] = {}
    for index, (_, tree) in enumerate(parts):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if path_names(path) in found:
                places = ", ".join(repr(place) for place, _ in parts)
                raise ValueError(
                    f"the state has {len(parts)} {what}, at {places}: take the one you mean out of the state yourself"
                )
            found[path_names(path)] = index, path, leaf
    return found


def replace_leaves_by_path(
    root: str, found: Mapping[tuple[str, ...], tuple[int, Path, Any]], params: Any, new: Callable[[Any, int, Any], Any]
) -> Any:
    """The parameters with `new(parameter, tree, leaf)` for those of which :func:`leaves_by_path` found a leaf, the others as
    they are.

    Paths are compared by their names, so that the parameters may come in any container: as a module, as the state or the pure
    dict of one, with leaves besides that are no parameters. A parameter that a module of Flax's `nnx` has twice is tied in
    the new one too.

    Raises:
      ValueError: a leaf that belongs to no parameter, or to one of another shape (the message names it).
    """
    nnx = sys.modules.get("flax.nnx")  # without it there is no module of it
    if nnx is not None and _has_modules(params, nnx.Module):  # of which parameters may be tied: a tree has them twice
        graph, state = nnx.split(params)
        return nnx.merge(graph, replace_leaves_by_path(root, found, state, new))
    left = dict(found)

    def place(path: Path, p: Any) -> Any:
        if (entry := left.pop(path_names(path), None)) is None:
            return p
        index, _, leaf = entry
        if jnp.shape(leaf) != jnp.shape(p):
            raise ValueError(f"{path_code(root, path)}: shape {jnp.shape(leaf)}, params have {jnp.shape(p)}")
        return new(p, index, leaf)

    placed = jax.tree_util.tree_map_with_path(place, params)
    for _, path, leaf in left.values():
        raise ValueError(
            f"{path_code(root, path)} has no counterpart: params have no leaf there ({root} has an array of shape {jnp.shape(leaf)})"
        )
    return placed


def _has_modules(tree: Any, kind: type) -> bool:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return any(isinstance(leaf, kind) for leaf in leaves)


def find_trees(state: Any, name: str) -> list[tuple[str, Any]]:
    """The slots `name` that a link keeps, next to its `count` or under a link's name, each with the path of the link's state."""

    def keeps(names: Names, node: Mapping[str, Any]) -> bool:
        return _has_integer(node, "count") or (bool(names) and (names[-1] == "inner" or is_link_name(names[-1])))

    return [(path, storage.load(node[name])) for path, node in _find_states(state, (name,), keeps)]


def find_states(state: Any, *names: str) -> list[tuple[str, Any]]:
    """The states of links that have these entries, the last of which is an integer, as no parameter is."""
    return _find_states(state, names, lambda _, node: _has_integer(node, names[-1]))


def _has_integer(node: Mapping[str, Any], name: str) -> bool:
    return jnp.issubdtype(getattr(node.get(name), "dtype", jnp.float32), jnp.integer)


def _find_states(
    state: Any, names: tuple[str, ...], is_of_link: Callable[[Names, Mapping[str, Any]], bool]
) -> list[tuple[str, Any]]:
    """The nodes that have these entries, and are states of links."""
    found: list[tuple[str, Any]] = []
    slots = functools.cache(lambda: SlotPaths.of(state))  # few nodes ask

    def is_state(path: Path, node: Any) -> bool:
        return (
            isinstance(node, Mapping)
            and all(name in node for name in names)
            and is_of_link(path_names(path), node)
            and not slots().lies_in_slot(path_names(path))
        )

    def visit(path: Path, node: Any) -> Any:
        if not is_state(path, node):
            return None
        found.append(("/".join(path_names(path)), node))
        # A gate's inner state lies below its own; entries below a mirrored tree belong to no link.
        below = {key: entry for key, entry in node.items() if key not in names}
        jax.tree_util.tree_map_with_path(lambda p, n: visit((*path, *p), n), below, **_leaves(path))
        return None

    def _leaves(prefix: Path) -> dict[str, Any]:
        return {"is_leaf": lambda p, n: is_state((*prefix, *p), n), "is_leaf_takes_path": True}

    jax.tree_util.tree_map_with_path(visit, state, **_leaves(()))
    return found


def replace_fields(state: Any, replacements: dict[Path, Any]) -> Any:
    """The state with other leaves at the given paths."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: replacements.get(path, leaf), state)
