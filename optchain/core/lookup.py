"""Finding what links keep in their states, by its place in the tree and never by the type of a node.

A state may be wrapped in Optax's tuples, a Flax `TrainState` or an `nnx.Optimizer`; the keys on the way to a value stay.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.slot import lies_in_slot
from optchain.core.trees import Path, path_names


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A leaf that a link keeps in its state, as `…/owner/group/name`."""

    path: Path
    owner: tuple[str, ...]
    name: str
    value: Any

    @property
    def key(self) -> str:
        """The path without the group: `body/learning_rate`."""
        return "/".join([*self.owner, self.name])


def find_fields(state: Any, group: str) -> list[Field]:
    """The leaves at `…/group/name`: for `hyperparams`, `scheduled` and `metrics`."""
    fields = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = path_names(path)
        if len(names) >= 2 and names[-2] == group and not lies_in_slot(names[:-1]):
            fields.append(Field(path, names[:-2], names[-1], leaf))
    return fields


def find_siblings(state: Any, name: str, sibling: str) -> list[Any]:
    """The entries `name` that a link keeps next to an entry `sibling`."""
    return [node[name] for _, node in _find_states(state, name, sibling)]


def find_trees(state: Any, name: str) -> list[tuple[str, Any]]:
    """The subtrees `name` that a link keeps next to its `count`, each with the path of the link's state."""
    return [(path, node[name]) for path, node in _find_states(state, name, "count")]


def _find_states(state: Any, *names: str) -> list[tuple[str, Any]]:
    """The states of links that have these entries, the last of which is an integer, as no parameter is."""
    found: list[tuple[str, Any]] = []

    def is_state(path: Path, node: Any) -> bool:
        return (
            isinstance(node, Mapping)
            and all(name in node for name in names)
            and jnp.issubdtype(getattr(node[names[-1]], "dtype", jnp.float32), jnp.integer)
            and not lies_in_slot(path_names(path))
        )

    def visit(path: Path, node: Any) -> Any:
        if not is_state(path, node):
            return None
        found.append(("/".join(path_names(path)), node))
        # A gate's inner state lies below its own; what lies below a mirrored tree is no link's.
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
