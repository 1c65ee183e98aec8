"""The hyperparameters over a run as a PNG, a panel each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE = "#0b62a4"
WIDTH, HEIGHT = 8.0, 2.6
DOTS_PER_INCH = 140
FEW = 200


def draw(path: Path, title: str, values: Mapping[str, np.ndarray]) -> None:
    """Draws a panel for each hyperparameter, one below the other, over the same calls."""
    figure = Figure((WIDTH, HEIGHT * len(values) + 0.6), DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which keeps figures and looks for a display
    figure.suptitle(title, fontsize=12, fontweight="bold")
    panels = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, series) in zip(panels, values.items(), strict=True):
        panel.plot(series, color=BLUE, linewidth=1.8, marker="." if len(series) <= FEW else "")
        panel.set_title(name, fontsize=10, loc="left")
        panel.set_xlim(0, max(len(series) - 1, 1))
        if series.min() >= 0:
            panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("calls of the step function")
    figure.savefig(path, format="png")
