"""The report as a picture: how many times as long as optchain each contender takes."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from optchain.cli.bench.names import ContenderName, RecipeName, TreeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.results import Report, Row
from optchain.cli.bench.table import described
from optchain.cli.bench.trees import TREES

COLORS = {
    ContenderName.APPLY: "#0b6e4f",
    ContenderName.UPDATE: "#73b89a",
    ContenderName.OPTAX: "#1f5fa8",
    ContenderName.KERAS: "#c0392b",
    ContenderName.TORCH_FUSED: "#e08e0b",
    ContenderName.TORCH_FOREACH: "#f3c677",
}
BAR = 0.8
"""What the bars of a recipe take of its line."""


def draw(path: Path, report: Report) -> None:
    """A panel a tree, a group of bars a recipe, their lengths the times over optchain's `apply`."""
    trees = list(dict.fromkeys(row.tree for row in report.rows))
    groups = [len({row.recipe for row in report.rows if row.tree == tree}) for tree in trees]
    columns = min(len(trees), 2)
    lines = -(-len(trees) // columns)
    figure = Figure(figsize=(6.5 * columns + 1.5, (1.0 + 0.75 * max(groups)) * lines + 1.2), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, tree in zip(panels, trees, strict=False):
        _panel(panel, tree, [row for row in report.rows if row.tree == tree])
    for panel in list(panels)[len(trees) :]:
        panel.set_visible(False)
    shown = [name for name in ContenderName if any(row.contender == name for row in report.rows)]
    handles = [Patch(color=COLORS[name]) for name in shown]
    figure.legend(handles, shown, loc="outside upper center", ncols=3 * columns, frameon=False)
    caption = textwrap.fill(described(report.place), 110 * columns)
    figure.supxlabel(caption, fontsize=7, color="#555555")
    figure.savefig(path, dpi=110)


def _panel(panel: Axes, tree: str, rows: list[Row]) -> None:
    recipes = list(dict.fromkeys(row.recipe for row in rows))
    names = [name for name in ContenderName if any(row.contender == name for row in rows)]
    height = BAR / len(names)
    for row in rows:
        if row.over_apply is None:
            continue
        place = recipes.index(row.recipe) - BAR / 2 + (names.index(ContenderName(row.contender)) + 0.5) * height
        panel.barh(place, row.over_apply, height, color=COLORS[ContenderName(row.contender)])
        panel.text(row.over_apply * 1.03, place, f"{row.over_apply:.2g}", va="center", fontsize=6.5, color="#333333")
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.set_xlim(0.45, 2**0.6 * max((row.over_apply for row in rows if row.over_apply), default=1))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_yticks(range(len(recipes)), [RECIPES[RecipeName(recipe)].title for recipe in recipes], fontsize=8)
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(f"{TREES[TreeName(tree)][0]} ({rows[0].parameters / 1e6:.1f} M)", fontsize=10, loc="left")
    panel.set_xlabel("time of a call over that of optchain's apply (left of 1: faster)", fontsize=8)
