"""Paths of leaves: as strings, as code."""

import json
from typing import Any, TypeAlias

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from optchain.core.row_gradient import is_rows

Tree: TypeAlias = Any
"""A pytree of arrays with the structure of the parameters; among gradients a `RowGradient` is a leaf too."""
Path: TypeAlias = tuple[Any, ...]


def path_names(path: Path) -> tuple[str, ...]:
    """The keys of a path as plain strings, without the `value` that a Flax `nnx.Variable` appends.

    `nnx.Optimizer` calls `init` with variables and `update` with bare arrays; dropping it makes both agree.
    """
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def path_string(path: Path) -> str:
    """A path as one string, `layers/0/bias`: what the patterns of `matching` are searched in."""
    return "/".join(path_names(path))


def path_code(root: str, path: Path) -> str:
    """A path as the code that reaches it, `grads["dense"]["bias"]`: what error messages show."""
    parts = [root]
    for key in path:
        match key:
            case DictKey(key=name) | FlattenedIndexKey(key=name):
                parts.append(f"[{json.dumps(name) if isinstance(name, str) else repr(name)}]")
            case SequenceKey(idx=index):
                parts.append(f"[{index}]")
            case GetAttrKey(name=name):
                parts.append(f".{name}")
            case _:
                parts.append(str(key))
    return "".join(parts)


def leaves_with_paths(tree: Tree) -> list[tuple[Path, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_rows)[0]
