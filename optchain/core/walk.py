"""`walk`: every transformation within another, with its place, its state and the parameters that it acts on."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from optchain.core.masks import select
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A transformation, and where it stands."""

    link: Transformation
    path: tuple[str, ...]
    """The keys that lead to its state."""
    state: Any
    """Its state, if the walk was given one; `{}` for a link without state."""
    params: Tree
    """The parameters that it acts on, if the walk was given any."""
    partial: bool
    """Whether it acts on some leaves only."""
    follows_rate: bool
    """Whether what it is handed has been multiplied by the learning rate already."""

    @property
    def rule(self) -> str:
        """What built it: `scale_by_adam`. Its name may be any that the user gave."""
        return self.link.registered_name if self.link.is_registered else type(self.link).__name__


def walk(tx: Transformation, state: Any = None, params: Tree = None) -> Iterator[Node]:
    """All transformations of a recipe, each before its parts, in the order in which they run.

    Args:
      tx: the transformation, which comes first.
      state: its state, or the shapes of it; None where no state is asked for.
      params: the parameters, or their shapes; None where they are not asked for.
    """
    yield from _walk(Node(tx, (), state, params, partial=False, follows_rate=False))


def _walk(node: Node) -> Iterator[Node]:
    yield node
    link, params, follows_rate = node.link, node.params, node.follows_rate
    labels = None if link.labels is None or params is None else link.labels(params)
    for name, part in link.parts.items():
        seen = params
        if labels is not None:
            seen = select(jax.tree.map(lambda label, name=name: label == name, labels), params)
        state = node.state.get(name, {}) if isinstance(node.state, dict) else node.state
        partial = node.partial or link.labels is not None
        yield from _walk(Node(part, (*node.path, name), state, seen, partial, follows_rate))
        follows_rate = follows_rate or (link.sequential and any(n.link.stage == "learning_rate" for n in walk(part)))
