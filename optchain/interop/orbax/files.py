"""Files: digests by which damage shows, and the system's words for what went wrong."""

import hashlib
import os
import re
from pathlib import Path


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


def reason(error: BaseException) -> str:
    """What went wrong, in one line: the system's words for it, where the system refused something."""
    causes = [error]
    while (earlier := causes[-1].__cause__ or causes[-1].__context__) is not None and earlier not in causes:
        causes.append(earlier)
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if system is not None:
        return str(system.strerror)
    number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore, which writes the arrays, has it in its text
    if number is not None:
        return os.strerror(int(number[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__
