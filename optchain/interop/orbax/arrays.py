"""Arrays on the disk, written and read by Orbax.

There they are nested dicts with string keys. The dots and slashes of keys, which Orbax would mix up with its own, stand
there as `%2E` and `%2F`.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib import parse

import jax
import numpy as np
import orbax.checkpoint as ocp

from optchain.core.trees import dtype_of, path_names
from optchain.interop.orbax import files
from optchain.interop.report import Names

BARE = "%"
"""The key of an array that is a tree by itself."""
SMALL, LARGEST_RATIO = 2**26, 100
"""Bytes that any checkpoint may declare, and how many more for each byte of its files: parameters hardly compress."""
QUOTED = {"%": "%25", ".": "%2E", "/": "%2F"}


def write(path: Path, arrays: Mapping[Names, Any]) -> None:
    """Writes arrays by their paths, into a folder of their own: if that fails, the folder is gone."""
    nested: dict[str, Any] = {}
    for names, leaf in arrays.items():
        node = nested
        for name in names[:-1]:
            node = node.setdefault(_quoted(name), {})
        node[_quoted(names[-1]) if names else BARE] = leaf
    # Orbax takes brackets in a path for a pattern, and then writes no arrays and no error: so it writes where there are none.
    with tempfile.TemporaryDirectory() as tame, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        strange = bool(set("[]*?") & set(str(path.absolute())))
        written = Path(tame) / "arrays" if strange else path.absolute()
        try:
            checkpointer.save(written, args=ocp.args.StandardSave(nested))
        except Exception:  # Orbax has no common class for what goes wrong
            files.remove(written.parent)
            raise
        if strange:
            shutil.copytree(written, path)


def read(path: Path, wanted: Mapping[Names, Any], *, quoted: bool) -> Any:
    """Reads a tree, to the devices of the arrays of the same paths in `wanted`, else to the host.

    Args:
      path: where it is.
      wanted: arrays by their paths.
      quoted: whether `write` wrote it.
    """

    def target(at: Any) -> Any:
        names = path_names(at)
        return wanted.get(tuple(map(_unquoted, names)) if quoted else names)

    def where(at: Any, saved: Any) -> ocp.RestoreArgs:
        return _placing(saved, target(at))

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(path.absolute()).item_metadata.tree
        _check_sizes(path, saved, target)
        args = ocp.args.PyTreeRestore(restore_args=jax.tree_util.tree_map_with_path(where, saved))
        tree = checkpointer.restore(path.absolute(), args=args)
    return _with_keys(tree) if quoted else tree


def _check_sizes(path: Path, saved: Any, target: Callable[[Any], Any]) -> None:
    """Refuses what declares far more than the files hold, unless it has the shape that was asked for.

    Files may be smaller than arrays: zeros, such as moments before the first step, are not written at all. Parameters are.
    """
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    declared = 0
    for at, about in jax.tree_util.tree_leaves_with_path(saved):
        like, shape = target(at), tuple(about.shape or ())
        chunk = getattr(getattr(about, "storage", None), "chunk_shape", None) or ()
        read = 0 if like is not None and np.shape(like) == shape else math.prod(shape)
        declared += max(read, math.prod(chunk) - math.prod(shape)) * np.dtype(about.dtype).itemsize
    if declared > SMALL + LARGEST_RATIO * held:
        raise ValueError(f"it declares {declared} bytes of arrays, and its files have {held}")


def _placing(saved: Any, like: Any) -> ocp.RestoreArgs:
    """Where an array is read to: straight to the devices of the target's, if that is what it will become, else to the host."""
    host = ocp.RestoreArgs(restore_type=np.ndarray)
    if like is None or tuple(saved.shape) != np.shape(like) or saved.dtype != dtype_of(like):
        return host
    committed = isinstance(like, jax.ShapeDtypeStruct) or getattr(like, "committed", False)
    return ocp.ArrayRestoreArgs(sharding=like.sharding) if committed else host


def _quoted(name: str) -> str:
    return "".join(QUOTED.get(letter, letter) for letter in name)


def _unquoted(name: str) -> str:
    return parse.unquote(name)


def _with_keys(tree: Any) -> Any:
    """What was read, with the keys that were saved."""
    if not isinstance(tree, dict):
        return tree
    return tree[BARE] if tree.keys() == {BARE} else {_unquoted(key): _with_keys(part) for key, part in tree.items()}
