"""Finding what links keep in their states, by its place in the tree and never by the type of a node.

A state may be wrapped in Optax's tuples, a Flax `TrainState` or an `nnx.Optimizer`; the keys on the way to a value stay.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.trees import Path, path_names

# Trees of the parameters' structure: whatever a parameter is called, nothing below them belongs to a link.
MIRRORS = frozenset({"params", "mu", "nu", "nu_max", "velocity", "average", "grads"})


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
        if len(names) >= 2 and names[-2] == group and MIRRORS.isdisjoint(names[:-1]):
            fields.append(Field(path, names[:-2], names[-1], leaf))
    return fields


def find_trees(state: Any, name: str) -> list[tuple[str, Any]]:
    """The subtrees at `…/owner/name` next to a link's integer `count`, with the path of their owner."""
    found: list[tuple[str, Any]] = []

    def is_owner(path: Path, node: Any) -> bool:
        names = path_names(path)
        return (
            isinstance(node, Mapping)
            and name in node
            and hasattr(node.get("count"), "dtype")
            and jnp.issubdtype(node["count"].dtype, jnp.integer)
            and MIRRORS.isdisjoint(names)
        )

    def visit(path: Path, node: Any) -> None:
        if is_owner(path, node):
            found.append(("/".join(path_names(path)), node[name]))

    jax.tree_util.tree_map_with_path(visit, state, is_leaf=is_owner, is_leaf_takes_path=True)
    return found


def replace_fields(state: Any, replacements: dict[Path, Any]) -> Any:
    """The state with other leaves at the given paths."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: replacements.get(path, leaf), state)
