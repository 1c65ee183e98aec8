"""Files that are complete or not there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from optchain.cli.errors import UserError


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Another path to write to: what is there takes the place of the file when it is complete.

    Raises:
      UserError: the system does not let, say because the disk is full. Nothing is left of the try.
    """
    partial = path.with_name(f".partial.{path.name}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror}") from error
