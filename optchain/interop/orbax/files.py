"""Files: digests by which damage shows, that they are on the disk, and that they are gone."""

import hashlib
import os
import shutil
import time
from pathlib import Path

QUIET, AT_MOST = 1.0, 10.0
"""Seconds for which a removed folder must stay away, and until they are no longer waited for."""


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sync(path: Path) -> None:
    """Has a file, or the names in a folder, on the disk before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Removes what Orbax could not write to its end.

    It raises at the first error while its other threads go on, and these make the folder again when they come to write.
    """
    start = gone = time.monotonic()
    while time.monotonic() < min(gone + QUIET, start + AT_MOST):
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            gone = time.monotonic()
        time.sleep(QUIET / 100)
