"""What is shown while a run trains: a bar on a terminal, plain lines anywhere else."""

from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from optchain.cli.screen import say

PLAIN_LINES = 10
ECHO = 8
"""Columns at the end of the bar that stay free: the terminal writes ^C there, which must not reach the next line."""


class Shown(Protocol):
    """Shows a line of the record."""

    def show(self, line: dict[str, Any]) -> None: ...

    def __enter__(self) -> "Shown": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress(console: Console, first: int, total: int) -> Shown:
    """The bar from step `first` to step `total`, or lines where there is no terminal to draw it on."""
    drawable = console.is_terminal and not console.is_dumb_terminal
    return Bar(console, first, total) if drawable else Lines(console, total)


def _described(line: dict[str, Any]) -> str:
    names = {"loss": "loss", "learning_rate": "rate", "gradient_norm": "gradient", "global_norm": "gradient"}
    return "  ".join(f"{name} {line[key]:<9.3g}" for key, name in names.items() if key in line).rstrip()


class RoomForEcho(Progress):
    """A bar that leaves room for what the terminal echoes."""

    def __init__(self, *columns: ProgressColumn, console: Console):
        self._screen = console
        super().__init__(*columns, console=console, expand=True)

    def get_renderable(self) -> RenderableType:
        return Constrain(super().get_renderable(), max(self._screen.width - ECHO, 1))


class Bar:
    def __init__(self, console: Console, first: int, total: int):
        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = RoomForEcho(*columns, TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task("compiling", completed=first, total=total)
        self._last: dict[str, Any] = {}

    def show(self, line: dict[str, Any]) -> None:
        self._last = self._last | line
        self._progress.update(self._task, completed=line["step"], description=_described(self._last))

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Lines:
    def __init__(self, console: Console, total: int):
        self._console, self._total = console, total
        self._interval = max(1, total // PLAIN_LINES)
        self._last: dict[str, Any] = {}

    def show(self, line: dict[str, Any]) -> None:
        self._last = self._last | line
        if line["step"] % self._interval == 0 or line["step"] == self._total:
            say(self._console, f"step {line['step']:>{len(str(self._total))}}/{self._total}  {_described(self._last)}")

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
