"""Checkpoints of a run: those of `optchain.interop.orbax`, in `checkpoints/<step>`, with the run's settings."""

import dataclasses
from pathlib import Path
from typing import Any

from optchain.cli.errors import UserError
from optchain.cli.train.folder import CHECKPOINTS, holds_run
from optchain.cli.train.settings import Settings
from optchain.interop import orbax
from optchain.interop.merging import by_names

PROGRAM = "optchain train"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, whose arrays are not read yet."""

    written: orbax.Checkpoint
    settings: Settings

    @property
    def path(self) -> Path:
        return self.written.path

    @property
    def step(self) -> int:
        return self.written.step


def save(folder: Path, step: int, arrays: Any, settings: Settings) -> None:
    """Writes a checkpoint, and removes all but the last two."""
    orbax.save(
        folder / CHECKPOINTS, step, arrays, metadata={"program": PROGRAM, "settings": settings.to_json()}, keep=2
    )


def latest(folder: Path, option: str = "--resume") -> Checkpoint:
    """The last complete checkpoint of a run, checked for damage.

    Raises:
      UserError: there is none, it is not of this program, or it is damaged.
    """
    if not holds_run(folder):
        raise UserError(
            f"{option} {folder}: the folder holds no checkpoint of {PROGRAM}; --resume-or-start begins a run where there is none"
        )
    foreign = f"{option} {folder}: its last checkpoint was not written by this version of {PROGRAM}"
    try:
        written = orbax.latest(folder / CHECKPOINTS)
        if written.metadata.get("program") != PROGRAM:
            raise UserError(foreign)
        return Checkpoint(written, Settings.from_json(written.metadata["settings"]))
    except orbax.DamagedCheckpointError as error:
        raise UserError(f"{option} {folder}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{foreign}: {error}") from error


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """The arrays, on the default device.

    Args:
      checkpoint: where they are.
      like: a tree of arrays of the same structure, shapes and dtypes.

    Raises:
      UserError: they are others.
    """
    expected, saved = orbax.described(by_names(like)), checkpoint.written.arrays
    for name in sorted(expected.keys() | saved.keys()):
        found, wanted = saved.get(name, "missing"), expected.get(name, "unknown")
        if found != wanted:
            raise UserError(f"{checkpoint.path} does not fit this program: {name} is {found} there and {wanted} here")
    try:
        return orbax.restore(checkpoint.written, like, hyperparams="saved")[0]
    except ValueError as error:
        raise UserError(str(error)) from error
