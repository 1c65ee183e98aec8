"""What is shown while a group trains: a bar where there is a terminal, nothing elsewhere."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console


@contextlib.contextmanager
def progress(console: Console, steps: int, about: str) -> Iterator[Callable[[int, float], None]]:
    """A bar of the steps, gone when it is done; what it gives is called with the step and the mean held-out loss."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda step, loss: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{about}: compiling", total=steps)
        yield lambda step, loss: bar.update(task, completed=step, description=f"{about}: {loss:.3g}")
