"""The record of a run: `metrics.jsonl`, one line a step."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from optchain.cli.errors import UserError

Line = dict[str, Any]


class Record:
    """Appends lines to a file. A number that is not finite is written as null, for JSON has no other word for it."""

    def __init__(self, path: Path, keep: int = 0):
        """Opens the file and drops all after its first `keep` bytes."""
        self.path = path
        self._file = path.open("ab")
        self._file.truncate(keep)

    def append(self, lines: list[Line]) -> None:
        for line in lines:
            finite = {key: value if math.isfinite(value) else None for key, value in line.items()}
            self._file.write(json.dumps(finite).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Has the lines on the disk, before a checkpoint says that they are."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Record":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def bytes_up_to(path: Path, step: int) -> int:
    """The length of the record up to a step, included. The lines after it are of steps that will be run again.

    Raises:
      UserError: a line before the end of that is damaged.
    """
    length = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], start=1):
        try:
            at = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number > step:  # torn by a kill while it was written
                break
            raise UserError(f"line {number} of {path} is not a line of metrics") from error
        if at > step:
            break
        length += len(line)
    return length


def read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
