"""States of Optax's that a checkpoint gave back in other containers.

A checkpoint that is read without a template has dicts where named tuples were, lists or dicts of numbers where tuples were, and
None or an empty dict where a state had no leaves. The names of the entries are the same: by them each entry is found.
"""

from collections.abc import Mapping
from typing import Any

import jax

from optchain.core import trees
from optchain.core.trees import Path, Tree


class ConvertedState:
    """A state in the containers of a template, and the way back to those in which it came.

    A link gives its state back as it came, so that a step keeps the structure of the state, as `scan` and `cond` ask.

    Args:
      owner: the link, for error messages.
      template: a tree of the structure that `init` makes.
      state: the same entries in other containers.

    Raises:
      ValueError: an entry that is missing or has no counterpart (the message names it).
    """

    def __init__(self, owner: str, template: Tree, state: Tree):
        leaves, self._original_structure = jax.tree.flatten(state)
        numbers = self._original_structure.unflatten(range(len(leaves)))
        self._order = _numbers_in_order(owner, (), template, numbers)
        self.state = jax.tree.unflatten(jax.tree.structure(template), [leaves[number] for number in self._order])

    def in_original_containers(self, new_state: Tree) -> Tree:
        """The leaves of the new state, which has the template's structure, in the containers of the old one."""
        leaves = dict(zip(self._order, jax.tree.leaves(new_state), strict=True))
        return self._original_structure.unflatten([leaves[number] for number in range(len(leaves))])


def may_be_restored(state: Tree) -> bool:
    """Whether a state's outer containers may be a checkpoint's in place of Optax's, whose states are tuples of named tuples."""
    if type(state) is tuple:
        return any(map(may_be_restored, state))
    return state is None or isinstance(state, Mapping | list)


def _numbers_in_order(owner: str, path: Path, template: Tree, numbers: Tree) -> list[int]:
    """The numbers that lie where the leaves of the template do, in the template's order."""
    if jax.tree_util.all_leaves([template]):
        if not isinstance(numbers, int):
            raise ValueError(
                f"{_place(owner, path)} must be an array; the state has {sorted(_children(numbers))} there"
            )
        return [numbers]
    wanted, found = _children(template), _children(numbers)
    if not wanted.keys() & found.keys() and isinstance(numbers, list | tuple) and len(found) == len(wanted):
        found = dict(zip(wanted, found.values(), strict=True))  # a named tuple that became a list
    for name, (key, child) in found.items():
        if name not in wanted and jax.tree.leaves(child):
            raise ValueError(f"{_place(owner, (*path, key))} has no counterpart: {owner} keeps {sorted(wanted)} there")
    order = list[int]()
    for name, (key, child) in wanted.items():
        if name in found:
            order += _numbers_in_order(owner, (*path, key), child, found[name][1])
        elif jax.tree.leaves(child):
            raise ValueError(f"{_place(owner, (*path, key))} is missing; the state has {sorted(found)} there")
    return order


def _children(node: Tree) -> dict[str, tuple[Any, Tree]]:
    """The entries of a node by their names, whatever the container: a number and its string are the same name."""
    if isinstance(node, int):
        return {}
    below = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    return {jax.tree_util.keystr(path, simple=True): (path[0], child) for path, child in below}


def _place(owner: str, path: Path) -> str:
    return trees.path_code(f"{owner} state", path)
