"""The folder of a run: what is in it, and that one process at a time writes there."""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import typer

from optchain.cli.errors import UserError

CHECKPOINTS = "checkpoints"
LOCK = ".lock"


def holds_run(folder: Path) -> bool:
    """Whether there is a complete checkpoint. Asks no library: it is asked after Ctrl-C, in the middle of an import too."""
    return any(path.name.isdecimal() for path in (folder / CHECKPOINTS).glob("*"))


def check_folder(folder: Path, option: str) -> None:
    """Refuses what is a file, or lies below one.

    Raises:
      UserError: it is such a path.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            below = "" if path == folder else f": {path}"
            raise UserError(f"{option} {folder}{below} is not a folder")


def check_free(folder: Path, option: str) -> None:
    """Refuses a folder in which there is anything that a new run could spoil.

    The remains of a run that was killed before its first checkpoint was complete do not count.

    Raises:
      UserError: there is something.
    """
    check_folder(folder, option)
    if holds_run(folder):
        raise UserError(f"{option} {folder} holds a run: go on with it by --resume {folder}, or choose another folder")
    partial = re.compile(rf"{LOCK}|{CHECKPOINTS}(/\.\d+\.partial(/.*)?)?", re.DOTALL)
    if any(not partial.fullmatch(path.relative_to(folder).as_posix()) for path in folder.rglob("*")):
        raise UserError(f"{option} {folder} is not empty: choose another folder")


def made(folder: Path, option: str) -> None:
    """Makes a folder that is not there.

    Raises:
      UserError: the system does not let.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a folder that is there. However this one ends, the system lets go.

    Raises:
      UserError: another one is in it; the message says which.
    """
    path = folder / LOCK
    file = _taken(path)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        file.close()


def _taken(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise UserError(f"{path.parent} is in use: {holder} trains there") from None
        except OSError as error:
            typer.echo(
                f"optchain: {path.parent}: no lock here ({error.strerror}): let no two runs write to it", err=True
            )
            return file
        # A process that released the lock while this one opened the file has removed it: the locked file is then seen by nobody.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(2**30)  # far behind the text, which can be read all the same
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
