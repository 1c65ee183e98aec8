"""The results as a picture: for each task the curves of its recipes, and how far each is from the reference."""

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from optchain.cli.files import written
from optchain.cli.race import table
from optchain.cli.race.results import Result
from optchain.race.group import bounded
from optchain.race.statistics import BETTER, WORSE

COLORS = ("#12916a", "#d0453a", "#3b82d0", "#e08e0b", "#9a6cc4", "#159aa5", "#d1659b", "#98863f", "#7d8c9b", "#b3592f")
"""On white and on black."""
LINES = ("-", "--", ":")
VERDICTS = {BETTER: "#0b8a5f", WORSE: "#d0453a"}
INK, GRID = "#6f7985", "#8e98a4"
WIDTH, HEIGHT = 12.0, 4.2
FEW, FAR = 30.0, 30.0


def draw(path: Path, results: Sequence[Result], level: float) -> None:
    """The picture as PNG on white. It replaces an older one only when it is complete."""
    with written(path) as partial:
        _figure(results, level).savefig(partial, dpi=110, facecolor="white")


def svg(results: Sequence[Result], level: float) -> str:
    """The picture as SVG for a page: transparent, its text in the page's own colour."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "race"}):
        _figure(results, level).savefig(out, format="svg", transparent=True, metadata={"Date": None})
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :].replace(INK, "currentColor")


def _figure(results: Sequence[Result], level: float) -> Figure:
    tasks = table.by_task(results)
    recipes = list(dict.fromkeys(result.recipe for result in results))
    styles = {name: (COLORS[i % len(COLORS)], LINES[i // len(COLORS) % len(LINES)]) for i, name in enumerate(recipes)}
    height = max(HEIGHT, 0.26 * len(recipes) + 1.4)
    figure = Figure((WIDTH, height * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, width_ratios=(1.25, 1))
    for (curves, distances), (task, rows) in zip(panels, tasks.items(), strict=True):
        _curves(curves, task, rows, styles)
        _distances(distances, rows, level)
    return figure


def _curves(panel: Axes, task: str, rows: Sequence[Result], styles: dict[str, tuple[str, str]]) -> None:
    """The mean held-out loss over the steps, and a band from the lowest seed to the highest."""
    lowest, highest = np.inf, 0.0
    for result in rows:
        color, line = styles[result.recipe]
        held_out, steps = bounded(np.array(result.group.held_out, float)), result.group.steps
        panel.fill_between(steps, held_out.min(0), held_out.max(0), color=color, alpha=0.13, linewidth=0)
        panel.plot(steps, held_out.mean(0), line, color=color, linewidth=1.7, label=_plain(result.recipe))
        lowest, highest = min(lowest, held_out.min()), max(highest, held_out[:, 0].max())
    target = rows[0].target
    if target is not None:
        panel.axhline(target, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        panel.text(
            0.015,
            target,
            f"target {target:.3g}",
            transform=panel.get_yaxis_transform(),
            va="bottom",
            fontsize=8,
            color=INK,
        )
    if lowest > 0:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < FEW * lowest else (1,)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlim(0, rows[0].group.steps[-1])
    _finish(panel, f"{task}: held-out loss", "step")
    panel.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=1 + len(rows) // 9)


def _distances(panel: Axes, rows: Sequence[Result], level: float) -> None:
    """A line a recipe: the mean difference from the reference, and its interval."""
    reference = next(result for result in rows if result.comparison is None)
    others = [result for result in rows if result.comparison is not None]
    panel.axvline(0, color=INK, linewidth=1)
    for place, result in enumerate(others):
        compared = result.comparison
        assert compared is not None
        color = VERDICTS.get(compared.verdict, INK)
        panel.plot([compared.low, compared.high], [place, place], color=color, linewidth=2)
        panel.plot(compared.difference, place, "o", color=color, markersize=5)
    panel.set_yticks(range(len(others)), [_plain(result.recipe) for result in others])
    panel.set_ylim(len(others) - 0.4, -0.6)
    panel.margins(x=0.08)
    ends = [max(abs(end) for end in (c.low, c.high)) for r in others if (c := r.comparison)]
    ends = [end for end in ends if math.isfinite(end)]
    usual = statistics.median(ends) if ends else 0.0
    if usual and max(ends) > FAR * usual:  # one that is far off must not make all others a point
        linear = 10.0 ** math.ceil(math.log10(usual))  # up to here the axis is linear
        decades = [linear * 10**n for n in range(math.ceil(math.log10(max(ends) / linear)) + 1)]
        panel.set_xscale("symlog", linthresh=linear)
        panel.xaxis.set_major_locator(FixedLocator([-x for x in decades] + [0.0, *decades]))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    _finish(
        panel,
        f"difference from {_plain(reference.recipe)}",
        f"held-out loss, mean and {table.confidence(level)} interval; left is better",
    )


def _plain(name: str) -> str:
    """A name as Matplotlib draws it as it is: no formula between dollars, and no label that a legend leaves out."""
    return ("\u200b" if name.startswith("_") else "") + table.short(name).replace("$", r"\$")


def _finish(panel: Axes, title: str, label: str) -> None:
    panel.set_title(title, fontsize=11, loc="left", color=INK, fontweight="bold")
    panel.set_xlabel(label, fontsize=9, color=INK)
    panel.grid(color=GRID, alpha=0.3, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.patch.set_alpha(0)
    panel.tick_params(which="both", labelsize=9, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(INK)
