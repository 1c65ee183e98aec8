"""Checkpoints of a run: `checkpoints/<step>` with Orbax's `arrays` and a `settings.json`.

A checkpoint is written under another name and renamed when it is complete, so that a kill at any moment leaves the last
complete one alone. `settings.json` has the digest of every file and the shape and dtype of every array: Orbax reads a
flipped byte back as another number, and casts to what it is asked for, without a word.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from optchain.cli.errors import UserError
from optchain.cli.train.settings import Settings

FORMAT = "optchain train"
VERSION = 1
KEPT = 2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, whose arrays are not read yet."""

    path: Path
    step: int
    settings: Settings
    arrays: dict[str, str]
    """Shapes and dtypes by path."""


def save(folder: Path, step: int, arrays: Any, settings: Settings) -> None:
    """Writes a checkpoint, and removes all but the last two."""
    checkpoints = folder / "checkpoints"
    partial = checkpoints / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Orbax takes brackets in a path for a pattern, and then writes no arrays and no error: so it writes where there are none.
    with tempfile.TemporaryDirectory() as tame, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(Path(tame) / "arrays", args=ocp.args.StandardSave(arrays))
        shutil.copytree(Path(tame) / "arrays", partial / "arrays")
    about = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "settings": settings.to_json(),
        "arrays": _described(arrays),
        "files": {path.relative_to(partial).as_posix(): _digest(path) for path in _files(partial / "arrays")},
    }
    with (partial / "settings.json").open("w", encoding="utf-8") as file:
        json.dump(about, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(checkpoints / str(step))
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(checkpoints / str(old))
    for leftover in checkpoints.glob(".*.partial"):  # of a run that was killed while it wrote
        shutil.rmtree(leftover)


def holds_run(folder: Path) -> bool:
    return bool(_steps(folder))


def latest(folder: Path) -> Checkpoint:
    """The last complete checkpoint of a run, checked for damage.

    Raises:
      UserError: there is none, it is not of this program, or it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"--resume {folder}: there is no such folder")
    steps = _steps(folder)
    if not steps:
        raise UserError(f"--resume {folder}: the folder holds no checkpoint of optchain train")
    path = folder / "checkpoints" / str(steps[-1])
    foreign = f"--resume {folder}: {path} was not written by this version of optchain train"
    try:
        about = json.loads((path / "settings.json").read_text(encoding="utf-8"))
        files, arrays = dict(about["files"]), dict(about["arrays"])
        if (about["format"], about["version"], about["step"]) != (FORMAT, VERSION, steps[-1]):
            raise UserError(foreign)
        settings = Settings.from_json(about["settings"])
    except FileNotFoundError as error:
        raise UserError(foreign) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{foreign}: {type(error).__name__} in settings.json, {error}") from error
    for name, digest in files.items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            instead = f"; remove {path} to go on from step {steps[-2]}" if len(steps) > 1 else ""
            raise UserError(f"--resume {folder}: the checkpoint is damaged, {path / name} is not as written{instead}")
    return Checkpoint(path, steps[-1], settings, arrays)


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """The arrays, on the default device.

    Args:
      checkpoint: where they are.
      like: a tree of arrays of the same structure, shapes and dtypes.

    Raises:
      UserError: they are others.
    """
    expected = _described(like)
    for name in sorted(expected.keys() | checkpoint.arrays.keys()):
        found, wanted = checkpoint.arrays.get(name, "missing"), expected.get(name, "unknown")
        if found != wanted:
            raise UserError(f"{checkpoint.path} does not fit this program: {name} is {found} there and {wanted} here")
    template = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), like)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            path = (checkpoint.path / "arrays").absolute()
            arrays = checkpointer.restore(path, args=ocp.args.StandardRestore(template))
    except Exception as error:  # Orbax has no common class for what it finds wrong
        raise UserError(f"{checkpoint.path} cannot be read: {str(error)[:200]}") from error
    return jax.tree.map(jnp.array, arrays)


def _described(arrays: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{array.dtype}{list(array.shape)}"
        for path, array in jax.tree.leaves_with_path(arrays)
    }


def _steps(folder: Path) -> list[int]:
    """The steps of which there is a checkpoint, in order."""
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
