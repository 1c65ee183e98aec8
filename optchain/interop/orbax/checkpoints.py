"""Checkpoints by Orbax: `<folder>/<step>` with the arrays, and a description by which damage shows.

A checkpoint is written under another name and renamed when it is complete, so that a kill at any moment, or a disk that is
full, leaves the last complete one alone. The description has the digest of every file, the shape and dtype of every array,
and a digest of its own: Orbax reads a flipped byte back as another number, without an error. Checkpoints that Orbax wrote
by itself have no digests, and that risk.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optchain.core import arguments
from optchain.core.trees import Tree, path_names
from optchain.interop.merging import by_names, check_choice, merge, raw_dtype
from optchain.interop.orbax import arrays, files
from optchain.interop.report import Choice, Names, Report
from optchain.interop.system import reason

FORMAT = "optchain checkpoint"
VERSION = 1
ABOUT = "checkpoint.json"
ARRAYS = "arrays"
DIGEST = "sha256"
ENTRIES = frozenset({"format", "version", "step", "metadata", "arrays", "files"})
EMPTY = "empty"
"""The paths where there is None, which Orbax does not write; no entry where there is none."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, whose arrays are not read yet."""

    path: Path
    step: int
    metadata: dict[str, Any]
    """What was saved with it."""
    arrays: dict[str, str]
    """Shapes and dtypes by path."""
    empty: list[Names]
    """Where there is None in the place of an array."""


def save(
    folder: str | os.PathLike, step: int, tree: Tree, *, metadata: Mapping[str, Any] | None = None, keep: int = 2
) -> Path:
    """Writes a checkpoint, and removes all but the last few.

    On the disk it is nested dicts with string keys, whatever the containers of `tree` are.

    Args:
      folder: where the checkpoints are; it is made if need be.
      step: the number of the checkpoint, >= 0; none that is there already.
      tree: any pytree of arrays and numbers, such as `{"params": params, "state": state}`.
      metadata: what to save with it, as JSON.
      keep: the number of checkpoints to keep, >= 1.

    Returns:
      The folder of the checkpoint.

    Raises:
      FileExistsError: there is a checkpoint of this number.
      OSError: it cannot be written, say because the disk is full. The checkpoints before it are as they were.
      ValueError: two entries of one path, or metadata that is not JSON.

    Example:
      >>> import tempfile, jax.numpy as jnp, optchain
      >>> from optchain.interop.orbax import restore, save
      >>> folder = tempfile.mkdtemp()
      >>> params = {"w": jnp.ones(2)}
      >>> path = save(folder, 100, {"params": params, "state": optchain.adam(0.1).init(params)})
      >>> target = {"params": params, "state": optchain.adam(0.3).init(params)}
      >>> restored, report = restore(folder, target, hyperparams="configured")
      >>> float(restored["state"]["hyperparams"]["learning_rate"])  # doctest: +ELLIPSIS
      0.3...
      >>> report.new, report.gone
      ([], [])
    """
    folder = Path(folder)
    step = arguments.check_integer("step", step, minimum=0)
    keep = arguments.check_integer("keep", keep, minimum=1)
    leaves, empty = by_names(tree), _empty_places(tree)
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "metadata": dict(metadata or {}),
        "arrays": described(leaves),
        **({EMPTY: empty} if empty else {}),
    }
    json.dumps(about)
    if (folder / str(step)).exists():
        raise FileExistsError(f"cannot save checkpoint {step} in {folder}: there is one already")
    partial, new = folder / f".{step}.partial", not folder.exists()
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        arrays.write(partial / ARRAYS, leaves)
        about["files"] = {
            path.relative_to(partial).as_posix(): files.digest(path) for path in files.files(partial / ARRAYS)
        }
        signed = about | {DIGEST: _digest(about)}
        (partial / ABOUT).write_text(json.dumps(signed, indent=2), encoding="utf-8")
        for path in [*files.files(partial), partial]:
            files.sync(path)
        partial.rename(folder / str(step))
        files.sync(folder)
    except Exception as error:  # Orbax has no common class for what goes wrong
        shutil.rmtree(partial, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise OSError(f"cannot save checkpoint {step} in {folder}: {reason(error)}") from error
    for old in steps(folder)[:-keep]:  # by a name first that is no checkpoint's: a kill here leaves no half of one
        (folder / str(old)).rename(folder / f".{old}.partial")
    for leftover in folder.glob(".*.partial"):  # of a run that was killed while it wrote, too
        shutil.rmtree(leftover)
    return folder / str(step)


def steps(folder: str | os.PathLike) -> list[int]:
    """The numbers of the complete checkpoints in a folder, in order."""
    names = [path.name for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def latest(folder: str | os.PathLike) -> Checkpoint:
    """The last complete checkpoint of a folder, checked for damage.

    Raises:
      FileNotFoundError: there is no such folder, or no checkpoint in it.
      ValueError: it was not written by this version of `save`, or it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    found = steps(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: the folder holds no checkpoint, {folder / '<step>'}")
    try:
        return _checked(folder / str(found[-1]))
    except DamagedCheckpointError as error:
        instead = f"; remove {folder / str(found[-1])} to go on from step {found[-2]}" if len(found) > 1 else ""
        raise DamagedCheckpointError(f"{error}{instead}") from error


class DamagedCheckpointError(ValueError):
    """Files that are not as they were written."""


def read(source: str | os.PathLike | Checkpoint) -> Any:
    """The arrays of a checkpoint on the host, without a target: nested dicts, and lists where another program wrote them.

    Where `save` was given None, as beside what `compact` keeps wide or in a group of parameters, there is None.

    Args:
      source: a folder in which `save` has written, one of the checkpoints in it, or what `orbax.checkpoint` itself has
        written: a checkpoint, or the folder of a `CheckpointManager`, whose last one is read.

    Raises:
      FileNotFoundError, ValueError: as `latest`; or a folder that is no checkpoint.
    """
    return _read(source, {}, with_empty=True)


def restore(source: str | os.PathLike | Checkpoint, target: Tree, *, hyperparams: Choice) -> tuple[Tree, Report]:
    """A checkpoint, brought into the structure of `target`, although the transformation may have changed since.

    See `optchain.interop.merging.merge` for what is matched with what.

    Args:
      source: as for `read`.
      target: a tree of the wanted structure, shapes, dtypes and shardings: `{"params": params, "state":
        tx.init(params)}`. It may be on other devices than the saved one was. It is not changed.
      hyperparams: `"saved"` or `"configured"`: which learning rate, and other hyperparameters that are values in the
        state, the run goes on with. There is no default: a run that is resumed with another rate in the code means one
        of the two.

    Returns:
      `(tree, report)`: fresh arrays, and what became of each entry.

    Raises:
      FileNotFoundError, ValueError: as `read`; a shape that differs, another model; the message names both sides.
    """
    check_choice(hyperparams)
    wanted = {names: leaf for names, leaf in by_names(target).items() if getattr(leaf, "sharding", None) is not None}
    return merge(_read(source, wanted), target, hyperparams=hyperparams)


def _read(source: str | os.PathLike | Checkpoint, wanted: Mapping[Names, Any], *, with_empty: bool = False) -> Any:
    path = None if isinstance(source, Checkpoint) or (Path(source) / ABOUT).is_file() else _foreign(Path(source))
    quoted, empty = path is None, list[Names]()
    if path is None:
        found = source if isinstance(source, Checkpoint) else _found(Path(source))
        path, empty = found.path / ARRAYS, found.empty
    try:
        tree = arrays.read(path, wanted, quoted=quoted)
        return _with_none(tree, empty) if with_empty else tree
    except Exception as error:  # Orbax has no common class for what it finds wrong
        raise ValueError(f"{path}: expected a checkpoint of Orbax, and it cannot be read: {reason(error)}") from error


def _found(folder: Path) -> Checkpoint:
    """A checkpoint of ours, or the last one of a folder."""
    return _checked(folder) if (folder / ABOUT).is_file() else latest(folder)


def _empty_places(tree: Tree) -> list[Names]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is None)
    return [path_names(path) for path, leaf in leaves if leaf is None and path]


def _with_none(tree: Any, places: Iterable[Names]) -> Any:
    """Nested dicts with None at these places too."""
    for place in places:
        node = tree
        for name in place[:-1]:
            node = node.setdefault(name, {})
        node[place[-1]] = None
    return tree


def _foreign(folder: Path) -> Path | None:
    """The arrays in a folder that Orbax itself has written: as one checkpoint, an item of one, or by a manager."""
    numbered = sorted((int(path.name), path) for path in folder.glob("*") if path.name.isdecimal())
    places = [folder, folder / "default", *[path / "default" for _, path in numbered[-1:]]]
    return next((place for place in places if (place / "_METADATA").is_file()), None)


def _checked(path: Path) -> Checkpoint:
    """A checkpoint of ours, whose files are as they were written."""
    foreign = f"{path}: expected a checkpoint of optchain.interop.orbax, version {VERSION}"
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        said = about["format"], about["version"]
        digests, shapes, metadata = dict(about["files"]), dict(about["arrays"]), dict(about["metadata"])
        empty = [tuple(map(str, place)) for place in about.get(EMPTY, [])]
    except OSError as error:
        raise ValueError(f"{foreign}, and {ABOUT} is not there") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{foreign}, and {ABOUT} is none: {type(error).__name__}, {error}") from error
    if said != (FORMAT, VERSION):
        raise ValueError(f"{foreign}; it says {said[0]!r}, version {said[1]!r}")
    # Those of before there was a digest have no entry of it, and no other that is not known.
    found = about.pop(DIGEST, None)
    if about.keys() - {EMPTY} != ENTRIES or (found is not None and found != _digest(about)):
        raise DamagedCheckpointError(f"{path}: the checkpoint is damaged, {ABOUT} is not as written")
    for name, digest in digests.items():
        if not (path / name).is_file() or files.digest(path / name) != digest:
            raise DamagedCheckpointError(f"{path}: the checkpoint is damaged, {name} is not as written")
    return Checkpoint(path, about["step"], metadata, shapes, empty)


def _digest(about: Mapping[str, Any]) -> str:
    """Of what a description says, however it is laid out."""
    as_read = json.loads(json.dumps(about))  # with keys that are strings, and lists for tuples
    return files.digest_of(json.dumps(as_read, sort_keys=True).encode())


def described(arrays: Mapping[Names, Any]) -> dict[str, str]:
    """The dtype and shape of each array, by its path: `float32[3, 2]`."""
    return {"/".join(names): f"{raw_dtype(array)}{list(np.shape(array))}" for names, array in arrays.items()}
