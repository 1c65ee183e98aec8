"""The report as tables, one a tree: ratios first."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from optchain.cli.bench.names import ContenderName, RecipeName, TreeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.results import CompiledRow, Report, Row
from optchain.cli.bench.trees import TREES
from optchain.cli.screen import FRAME, say_left_out

COLUMNS: dict[str, tuple[str, str]] = {
    "over_apply": ("× apply", ".2f"),
    "over_update": ("× update", ".2f"),
    "milliseconds": ("ms", ".2f"),
    "waiting_milliseconds": ("waiting", ".2f"),
    "gigabytes_per_second": ("GB/s", ".1f"),
    "bytes_accessed": ("B moved", ".1f"),
    "temporary_bytes": ("B temp", ".2f"),
    "state_bytes": ("B state", ".1f"),
    "trace_seconds": ("s trace", ".2f"),
    "compile_seconds": ("s compile", ".2f"),
}

COMPILED_COLUMNS: dict[str, tuple[str, str]] = {
    "mean_bytes": ("B a call", ".1f"),
    "waiting_bytes": ("waiting", ".1f"),
    "updating_bytes": ("updating", ".1f"),
    "temporary_bytes": ("B temp", ".2f"),
    "waiting_kernels": ("kernels", "d"),
    "updating_kernels": ("updating", "d"),
    "bytes_accessed": ("B (XLA)", ".1f"),
    "compile_seconds": ("s compile", ".1f"),
}

NUMBER = 9
"""The width of a column of numbers."""
CAPTION = """\
× apply, × update: the time over that of optchain in this form, the median over the turns: above 1 is slower than optchain.
ms: of a call; with accumulation, of the mean call of a window. waiting: of a call that only accumulates.
GB/s: what the recipe must move at the least, over the time. B: bytes per parameter, as the compiler counts them (moved: both
branches of a condition; temp: memory besides parameters, gradients and state). s: of processor time."""


COMPILED_CAPTION = """\
Compiled for devices that are not there. B: bytes per parameter of a device. B a call: through its main memory, the mean of a
window's calls; waiting, updating: of the call that takes the cheapest, the dearest branch of every condition. B temp: memory
besides parameters, gradients and state. kernels: of the first call, then of the second; none is run here. B (XLA): XLA's count of all branches and of what it keeps in vector memory."""


def show(console: Console, report: Report) -> None:
    _print(console, described(report.place))
    for tree in dict.fromkeys(row.tree for row in report.rows):
        rows = [row for row in report.rows if row.tree == tree]
        title = f"{TREES[TreeName(tree)][0]} ({rows[0].parameters / 1e6:.1f} M)"
        _show(console, title, rows, COLUMNS)
    for place in dict.fromkeys((row.topology, row.layout, row.tree) for row in report.compiled):
        rows = [row for row in report.compiled if (row.topology, row.layout, row.tree) == place]
        _show(console, ", ".join(place), rows, COMPILED_COLUMNS)
    _print(console, CAPTION if report.rows else COMPILED_CAPTION)
    for reason in dict.fromkeys((entry.contender, entry.reason) for entry in report.left_out):
        recipes = [entry.recipe for entry in report.left_out if (entry.contender, entry.reason) == reason]
        _print(console, f"left out: {reason[0]} at {', '.join(dict.fromkeys(recipes))}: {reason[1]}")


def described(place: dict[str, Any]) -> str:
    """Where and when, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    speed = (
        f", {place['in_place_gigabytes_per_second']:.1f} GB/s in place"
        if place.get("in_place_gigabytes_per_second")
        else ""
    )
    load = "" if place["load"] is None else f" (load {place['load']:.1f})"
    cores = f", {place['cores']} cores{load}" if place["backend"] == "cpu" else ""
    return f"{place['date']}, {place['device']}{cores}{speed}; {versions}"


def _show(
    console: Console, title: str, rows: Sequence[Row | CompiledRow], columns: Mapping[str, tuple[str, str]]
) -> None:
    """A table with as many of the columns as fit, the first ones; below it which do not."""
    titles = [f"  {name}" for name in ContenderName] + [RECIPES[RecipeName(row.recipe)].title for row in rows]
    first = max(map(len, titles)) + FRAME
    fitting = max(1, (console.width - first) // (NUMBER + FRAME))
    left_out = [header for header, _ in list(columns.values())[fitting:]]
    columns = dict(list(columns.items())[:fitting])
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for header, _ in columns.values():
        table.add_column(header, justify="right", width=NUMBER)
    previous = ""
    for row in rows:
        if row.recipe != previous:
            table.add_section()
            table.add_row(RECIPES[RecipeName(row.recipe)].title, style="bold")
        values = ((getattr(row, field), form) for field, (_, form) in columns.items())
        cells = ("" if value is None else format(value, form) for value, form in values)
        table.add_row(f"  {row.contender}", *cells)
        previous = row.recipe
    console.print(table)
    say_left_out(console, left_out)


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
