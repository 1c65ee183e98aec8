"""Checkpoints by Orbax: `<folder>/<step>` with the arrays, and a description by which damage shows.

A checkpoint is written under another name and renamed when it is complete, so that a kill at any moment, or a disk that is
full, leaves the last complete one alone. The description has the digest of every file and the shape and dtype of every
array: Orbax reads a flipped byte back as another number without a word.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib import parse

import jax
import numpy as np
import orbax.checkpoint as ocp

from optchain.core import arguments
from optchain.core.trees import Tree, dtype_of, path_names
from optchain.interop.merging import by_names, check_choice, merge, raw_dtype
from optchain.interop.report import Choice, Names, Report

FORMAT = "optchain checkpoint"
VERSION = 1
ABOUT = "checkpoint.json"
ARRAYS = "arrays"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, whose arrays are not read yet."""

    path: Path
    step: int
    metadata: dict[str, Any]
    """What was saved with it."""
    arrays: dict[str, str]
    """Shapes and dtypes by path."""


def save(
    folder: str | os.PathLike, step: int, tree: Tree, *, metadata: Mapping[str, Any] | None = None, keep: int = 2
) -> Path:
    """Writes a checkpoint, and removes all but the last few.

    On the disk it is nested dicts with string keys, whatever the containers of `tree` are; the dots and slashes of keys, which Orbax
    would mix up with its own, stand there as `%2E` and `%2F`.

    Args:
      folder: where the checkpoints are; it is made if need be.
      step: the number of the checkpoint, >= 0; none that is there already.
      tree: any pytree of arrays and numbers, such as `{"params": params, "state": state}`.
      metadata: what to save with it, as JSON.
      keep: how many checkpoints are kept, >= 1.

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
    arrays = by_names(tree)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "metadata": dict(metadata or {}),
        "arrays": described(arrays),
    }
    json.dumps(about)
    if (folder / str(step)).exists():
        raise FileExistsError(f"cannot save checkpoint {step} in {folder}: there is one already")
    partial = folder / f".{step}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_arrays(partial / ARRAYS, arrays)
        about["files"] = {path.relative_to(partial).as_posix(): _digest(path) for path in _files(partial / ARRAYS)}
        (partial / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
        for path in _files(partial):
            _sync(path)
        partial.rename(folder / str(step))
        _sync(folder)
    except Exception as error:  # Orbax has no common class for what goes wrong
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"cannot save checkpoint {step} in {folder}: {_reason(error)}") from error
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / str(old))
    for leftover in folder.glob(".*.partial"):  # of a run that was killed while it wrote
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

    Args:
      source: a folder in which `save` has written, one of the checkpoints in it, or what `orbax.checkpoint` itself has written:
        a checkpoint, or the folder of a `CheckpointManager`, whose last one is read.

    Raises:
      FileNotFoundError, ValueError: as `latest`; or a folder that is no checkpoint.
    """
    return _read(source, {})


def restore(source: str | os.PathLike | Checkpoint, target: Tree, *, hyperparams: Choice) -> tuple[Tree, Report]:
    """A checkpoint, brought into the structure of `target`, although the transformation may have changed since.

    See `optchain.interop.merging.merge` for what is matched with what.

    Args:
      source: as for `read`.
      target: a tree of the wanted structure, shapes, dtypes and shardings: `{"params": params, "state": tx.init(params)}`. It may
        be on other devices than the saved one was. It is not changed.
      hyperparams: `"saved"` or `"configured"`: which learning rate, and other hyperparameters that are values in the state, the run
        goes on with. There is no default: a run that is resumed with another rate in the code means one of the two.

    Returns:
      `(tree, report)`: fresh arrays, and what became of each entry.

    Raises:
      FileNotFoundError, ValueError: as `read`; a shape that differs, another model; the message names both sides.
    """
    check_choice(hyperparams)
    wanted = {names: leaf for names, leaf in by_names(target).items() if getattr(leaf, "sharding", None) is not None}
    return merge(_read(source, wanted), target, hyperparams=hyperparams)


def _read(source: str | os.PathLike | Checkpoint, wanted: Mapping[Names, Any]) -> Any:
    if isinstance(source, Checkpoint):
        path = source.path / ARRAYS
    elif (Path(source) / ABOUT).is_file():
        path = _checked(Path(source)).path / ARRAYS
    else:
        path = _foreign(Path(source)) or latest(source).path / ARRAYS
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            saved = checkpointer.metadata(path.absolute()).item_metadata.tree
            how = jax.tree_util.tree_map_with_path(lambda at, leaf: _placing(leaf, wanted.get(_names(at))), saved)
            arrays = checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=how))
    except Exception as error:  # Orbax has no common class for what it finds wrong
        raise ValueError(f"{path}: expected a checkpoint of Orbax, and it cannot be read: {_reason(error)}") from error
    return _unquoted(arrays)


def _placing(saved: Any, like: Any) -> ocp.RestoreArgs:
    """Where an array is read to: straight to the devices of the target's, if that is what it will become, else to the host."""
    fits = like is not None and tuple(saved.shape) == np.shape(like) and saved.dtype == dtype_of(like)
    committed = isinstance(like, jax.ShapeDtypeStruct) or getattr(like, "committed", False)
    return (
        ocp.ArrayRestoreArgs(sharding=like.sharding) if fits and committed else ocp.RestoreArgs(restore_type=np.ndarray)
    )


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
        if (about["format"], about["version"], about["step"]) != (FORMAT, VERSION, int(path.name)):
            raise ValueError(
                f"{foreign}; it says {about['format']!r}, version {about['version']!r}, step {about['step']!r}"
            )
        files, arrays, metadata = dict(about["files"]), dict(about["arrays"]), dict(about["metadata"])
    except OSError as error:
        raise ValueError(f"{foreign}, and {ABOUT} is not there") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{foreign}, and {ABOUT} is none: {type(error).__name__}, {error}") from error
    for name, digest in files.items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise DamagedCheckpointError(f"{path}: the checkpoint is damaged, {name} is not as written")
    return Checkpoint(path, about["step"], metadata, arrays)


def _write_arrays(path: Path, arrays: Mapping[Names, Any]) -> None:
    nested: dict[str, Any] = {}
    for names, leaf in arrays.items():
        node = nested
        for name in names[:-1]:
            node = node.setdefault(_quoted(name), {})
        node[_quoted(names[-1]) if names else BARE] = leaf
    # Orbax takes brackets in a path for a pattern, and then writes no arrays and no error: so it writes where there are none.
    with tempfile.TemporaryDirectory() as tame, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        strange = bool(set("[]*?") & set(str(path.absolute())))
        written = Path(tame) / ARRAYS if strange else path.absolute()
        checkpointer.save(written, args=ocp.args.StandardSave(nested))
        if strange:
            shutil.copytree(written, path)


BARE = "%"
"""The key of an array that is a tree by itself."""
QUOTED = {"%": "%25", ".": "%2E", "/": "%2F"}


def _quoted(name: str) -> str:
    return "".join(QUOTED.get(letter, letter) for letter in name)


def _unquoted(tree: Any) -> Any:
    """What was read, with the keys that were saved."""
    if isinstance(tree, dict):
        if tree.keys() == {BARE}:
            return tree[BARE]
        return {parse.unquote(key): _unquoted(part) for key, part in tree.items()}
    return [_unquoted(part) for part in tree] if isinstance(tree, list) else tree


def _names(path: Any) -> Names:
    return tuple(parse.unquote(name) for name in path_names(path) if name != BARE)


def described(arrays: Mapping[Names, Any]) -> dict[str, str]:
    """The dtype and shape of each array, by its path: `float32[3, 2]`."""
    return {"/".join(names): f"{raw_dtype(array)}{list(np.shape(array))}" for names, array in arrays.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Has a file, or the names in a folder, on the disk before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: the system's words for it, where the system refused something."""
    causes = [error]
    while (earlier := causes[-1].__cause__ or causes[-1].__context__) is not None and earlier not in causes:
        causes.append(earlier)
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if system is not None:
        return str(system.strerror)
    number = re.search(
        r"os_error_code='(\d+)'", str(error)
    )  # in the text of an error of TensorStore, which writes the arrays
    if number is not None:
        return os.strerror(int(number[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__
