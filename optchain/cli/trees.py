"""Trees of what a user or a file names by paths."""

from collections.abc import Mapping
from typing import Any


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts, of leaves by their paths, `dense/kernel`.

    Raises:
      ValueError: one path lies below another, so that it would be within an array, whichever of them is first.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = path.split("/")
        node = tree
        for depth, name in enumerate(above, 1):
            owner = "/".join(above[:depth])
            if owner in leaves:
                raise ValueError(f"{path} lies below {owner}, which is a parameter itself")
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
