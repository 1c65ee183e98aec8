"""What became of each entry of a state that was brought in."""

import dataclasses
from collections.abc import Iterable
from typing import Literal, TypeAlias

from optchain.core.slot_paths import Names
from optchain.recipes.description import aligned

Choice: TypeAlias = Literal["saved", "configured"]
"""Which hyperparameters a run goes on with."""
Fate: TypeAlias = Literal["restored", "configured", "new", "gone"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One array."""

    path: Names
    fate: Fate
    """`restored`: taken over; `configured`: saved, and not taken over, as was asked for; `new`: not saved, and as it is
    initialized; `gone`: saved, and without a place in the state."""
    note: str = ""
    entry: Names = ()
    """The entry of which it is an array, which a table shows in one line; itself if none is given."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each entry. Prints as a table, in which the arrays of one entry are one line."""

    rows: tuple[Row, ...]
    hyperparams: Choice

    @property
    def restored(self) -> list[str]:
        """The paths of what was taken over."""
        return self._paths("restored")

    @property
    def new(self) -> list[str]:
        """The paths of what was not saved, and is as it is initialized."""
        return self._paths("new")

    @property
    def gone(self) -> list[str]:
        """The paths of what was saved, and has no place any more."""
        return self._paths("gone")

    def _paths(self, fate: Fate) -> list[str]:
        return ["/".join(row.path) for row in self.rows if row.fate == fate]

    def lines(self) -> list[tuple[str, str, str, str]]:
        """Entry, number of arrays, what became of them, a note: what a table shows."""
        counts: dict[tuple[str, str, str], int] = {}
        for row in self.rows:
            key = ("/".join(row.entry or row.path), row.fate, row.note)
            counts[key] = counts.get(key, 0) + 1
        return [(entry, str(count), fate, note) for (entry, fate, note), count in counts.items()]

    def __str__(self) -> str:
        table = [("entry", "arrays", "", "note"), *self.lines()]
        return "\n".join([*aligned(table, "<><<"), "", f"hyperparameters: {self.hyperparams}"])


def join_paths(paths: Iterable[str], most: int = 8) -> str:
    """Paths for an error message: the first few, and how many more there are."""
    paths = list(paths)
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return (", ".join(paths[:most]) or "nothing") + more
