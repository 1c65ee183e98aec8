"""Where results are printed: as wide as the terminal, or wide enough where there is none; without colour if NO_COLOR is set."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WHOLE = 160
FRAME = 3
"""What a column's frame takes."""


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    whole = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(width=WHOLE if whole else None, stderr=stderr)


def say(screen: Console, text: str) -> None:
    """Prints a line as it is: not wrapped, no brackets read as markup, no numbers coloured."""
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


def show(
    screen: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    styles: Sequence[str] | None = None,
    sections: Sequence[int] = (),
    title: str | None = None,
) -> None:
    """Prints a table with as many of its columns as fit with every word whole, the first ones, and says which do not.

    Args:
      screen: where to.
      header: the columns.
      rows: the cells.
      right: the columns that are aligned to the right: numbers.
      styles: one for each row.
      sections: the rows before which there is a line.
      title: what stands above.
    """
    columns = list(zip(header, *rows, strict=True))
    wanted = [FRAME + max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    least = [
        width if name in right else FRAME + max(map(_longest_word, column))
        for name, column, width in zip(header, columns, wanted, strict=True)
    ]
    count = max(1, sum(width < screen.width for width in itertools.accumulate(least)))
    least[0] = min(least[0], screen.width - 1)  # a word that is longer than the screen is folded
    spare = screen.width - 1 - sum(least[:count])
    table = Table(title=None if title is None else Text(title), title_justify="left")
    for name, narrow, wide in zip(header[:count], least, wanted, strict=False):
        more = min(spare, wide - narrow)
        spare -= more
        justify = "right" if name in right else "left"
        # Widths that are given: left to itself the table may be wider than the screen, and is cut.
        table.add_column(
            Text(name), justify=justify, no_wrap=name in right, overflow="fold", width=narrow + more - FRAME
        )
    for number, row in enumerate(rows):
        if number in sections:
            table.add_section()
        table.add_row(*map(Text, row[:count]), style=styles[number] if styles else "")
    screen.print(table)
    say_left_out(screen, header[count:])


def _longest_word(cell: str) -> int:
    """What a cell takes at the least: its longest word, after the spaces that it begins with."""
    return max((len(word) for word in cell.split()), default=0) + len(cell) - len(cell.lstrip())


def say_left_out(screen: Console, columns: Sequence[str]) -> None:
    """Says which columns a table has no room for."""
    if columns:
        say(screen, f"no room at {screen.width} columns for: {', '.join(columns)}")


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
