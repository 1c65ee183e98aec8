"""The results as a table: on the screen, as Markdown, and for the page."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optchain.cli.race.results import Result
from optchain.cli.screen import FRAME, say_left_out
from optchain.race.statistics import BETTER, WORSE

HEADINGS = (
    "recipe",
    "held-out loss",
    "verdict",
    "difference",
    "p",
    "could see",
    "steps to target",
    "rate",
    "ms a step",
    "B/param",
)
LEFT = ("recipe", "verdict")
MOST_DECIMALS = 6
SHOWN = 40
"""The letters of a name on the screen and in the picture."""
BAR = r"\|"
"""What ends no cell of a Markdown table."""
STYLES = {BETTER: "green", WORSE: "red"}


def caption(seeds: int, level: float, reference: str) -> str:
    return (
        f"Mean and standard error over {seeds} seeds, at the best learning rate of a search on other seeds. "
        f"Difference: from {reference}, seed by seed, with the {confidence(level)} interval of its mean. "
        f"p: of the paired t-test, after Holm's correction for every comparison here; below {level:g} the difference is real. "
        "Could see: the smallest true difference that so many seeds show in four cases of five. "
        "Steps to target: the median seed's, taken at the evaluations, and how many seeds got there. "
        "ms: of one step of one seed, the seeds side by side in one program. B/param: bytes of optimizer state."
    )


def short(name: str) -> str:
    """A name where there is little room."""
    return name if len(name) <= SHOWN else f"{name[: SHOWN - 1]}…"


def confidence(level: float) -> str:
    return f"{100 * (1 - level):.12g}%"


def cells(result: Result) -> list[str]:
    """What stands in a row, in the order of the headings."""
    compared = result.comparison
    lost = f" ({result.lost} lost)" if result.lost else ""
    error = result.standard_error
    row = [result.recipe, f"{_shown(result.mean, error)} ± {_shown(error, error)}{lost}"]
    if compared is None:
        row += ["reference", "", "", ""]
    else:
        error = compared.standard_error
        mean, low, high = (_shown(x, error, "+") for x in (compared.difference, compared.low, compared.high))
        row += [compared.verdict, f"{mean} [{low}, {high}]", _p(compared.adjusted_p), _shown(compared.smallest, error)]
    cost = [f"{result.group.milliseconds:.2f}", f"{result.state_bytes:.2f}"]
    return [*row, _steps(result.steps_to_target), _rate(result), *cost]


def by_task(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.task, []).append(result)
    return found


def title(results: Sequence[Result], about: str) -> str:
    """The heading of a task's table."""
    first = results[0]
    target = "" if first.target is None else f", target {first.target:.3g}"
    return f"{first.task}: {about}, {first.parameters:,} parameters{target}"


def show(console: Console, results: Sequence[Result], about: dict[str, str]) -> None:
    """A table a task, with as many of the columns as fit, the first ones, and below it which do not."""
    for task, rows in by_task(results).items():
        lines = [[short(name), *others] for name, *others in map(cells, rows)]
        widths = [
            max(len(heading), *map(len, column)) + FRAME for heading, *column in zip(HEADINGS, *lines, strict=True)
        ]
        fitting = max(1, sum(width < console.width for width in itertools.accumulate(widths)))
        table = Table(title=Text(title(rows, about[task])), title_justify="left")
        for heading in HEADINGS[:fitting]:
            table.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
        for result, line in zip(rows, lines, strict=True):
            verdict = "" if result.comparison is None else result.comparison.verdict
            table.add_row(*map(Text, line[:fitting]), style=STYLES.get(verdict, ""))
        console.print(table)
        say_left_out(console, HEADINGS[fitting:])


def markdown(results: Sequence[Result], about: dict[str, str]) -> str:
    parts = []
    for task, rows in by_task(results).items():
        lines = [f"**{title(rows, about[task])}**", "", _line(HEADINGS), _line(["---"] * len(HEADINGS))]
        lines += [_line(f"**{cell}**" if cell in STYLES else cell for cell in cells(result)) for result in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def _shown(value: float, error: float, sign: str = "") -> str:
    """A number to two digits of its error."""
    if not (math.isfinite(value) and math.isfinite(error) and error):
        return f"{value:{sign}.4g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:{sign}.{decimals}f}" if decimals <= MOST_DECIMALS else f"{value:{sign}.2e}"


def _rate(result: Result) -> str:
    rates = set(result.rates.values())
    if not rates:
        return "its own"
    return f"{rates.pop():.3g}" if len(rates) == 1 else f"× {result.factor:.3g}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _steps(steps: Sequence[int | None]) -> str:
    if not steps:
        return ""
    reached = [step for step in steps if step is not None]
    if not reached:
        return f"– (0/{len(steps)})"
    far = [float("inf") if step is None else step for step in steps]
    median = statistics.median_low(far)
    return f"{'–' if median == float('inf') else median} ({len(reached)}/{len(steps)})"
