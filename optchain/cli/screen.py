"""Where results are printed: as wide as the terminal, or wide enough where there is none; without colour if NO_COLOR is set."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console

WHOLE = 160


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    whole = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(width=WHOLE if whole else None, stderr=stderr)


def say(screen: Console, text: str) -> None:
    """Prints a line as it is: not wrapped, no brackets read as markup, no numbers coloured."""
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr, which is gone when it is done; what it gives is called with what was done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda what: progress.update(task, advance=1, description=what)
