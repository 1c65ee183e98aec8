"""The picture of a run: loss, learning rate, gradient norm and test accuracy over the steps."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from optchain.cli.files import written
from optchain.cli.train.digits import CLASSES
from optchain.cli.train.record import Line
from optchain.cli.train.settings import Settings

INCHES = (12, 8)
DOTS_PER_INCH = 150
BLUE, ORANGE, GREY = "#0b62a4", "#d95f02", "#6b7280"  # told apart by colour-blind readers, and in print
WIDEST_WINDOW = 25
FEW = 10**3.5


def draw(path: Path, lines: Sequence[Line], settings: Settings) -> None:
    """Draws four panels into a PNG. It replaces an older one only when it is complete."""
    figure = Figure(INCHES, DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which keeps figures and looks for a display
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.05)  # pyright: ignore
    figure.suptitle(
        f"Handwritten digits with optchain.{settings.transformation}  ·  steps: {settings.steps}  ·  seed: {settings.seed}",
        fontsize=16,
        fontweight="bold",
    )
    (loss, rate), (norm, accuracy) = figure.subplots(2, 2)
    for axes in (loss, rate, norm, accuracy):
        axes.set_xlim(0, settings.steps)
    _draw_loss(loss, lines, settings.label_smoothing)
    _draw_rate(rate, lines)
    _draw_norm(norm, lines, settings.clip_norm if settings.recipe is None else None)
    _draw_accuracy(accuracy, lines)
    with written(path) as partial:
        figure.savefig(partial)


def _draw_loss(axes: Axes, lines: Sequence[Line], label_smoothing: float) -> None:
    steps, losses = _column(lines, "loss")
    axes.plot(steps, losses, color=BLUE, alpha=0.35, linewidth=0.8, label="each batch")
    window = min(WIDEST_WINDOW, len(losses) // 40 * 2 + 1)
    axes.plot(steps, _smoothed(losses, window), color=BLUE, linewidth=2, label=f"mean of {window} batches")
    least = _least_loss(label_smoothing)
    axes.axhline(least, color=GREY, linestyle="--", linewidth=1.2, label=f"least with smoothed labels: {least:.2f}")
    _finish(axes, "Training loss", "cross-entropy (nats)")
    axes.legend(loc="upper right")


def _draw_rate(axes: Axes, lines: Sequence[Line]) -> None:
    steps, rates = _column(lines, "learning_rate")
    axes.plot(steps, rates, color=BLUE, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")
    _finish(axes, "Learning rate", "learning rate")
    if not rates:
        _note(axes, "the recipe has none, or more than one")


def _draw_norm(axes: Axes, lines: Sequence[Line], clip_norm: float | None) -> None:
    """The norms before clipping. Of a recipe it is not known at which norm it clips, or whether at one."""
    name = "global_norm" if any("global_norm" in line for line in lines) else "gradient_norm"
    steps, norms = _column(lines, name)
    label = "each batch" if clip_norm is None else "each update, before clipping"
    axes.plot(steps, norms, color=BLUE, linewidth=1, label=label)
    if clip_norm is not None:
        clipped = [(step, norm) for step, norm in zip(steps, norms, strict=True) if norm > clip_norm]
        share = f"{len(clipped)} of {len(norms)} updates clipped ({len(clipped) / max(len(norms), 1):.1%})"
        axes.plot(*zip(*clipped, strict=True) if clipped else ([], []), "o", color=ORANGE, markersize=3.5, label=share)
        axes.axhline(clip_norm, color=GREY, linestyle="--", linewidth=1.2, label=f"clipped above {clip_norm:g}")
    positive = [norm for norm in norms if norm > 0]
    if positive:
        axes.set_yscale("log")
        few_decades = max(positive) < FEW * min(positive)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    _finish(axes, "Gradient norm", "global norm of the gradient")
    axes.legend(loc="upper right")


def _draw_accuracy(axes: Axes, lines: Sequence[Line]) -> None:
    series = {"raw": ("test_accuracy", BLUE), "averaged": ("test_accuracy_averaged", ORANGE)}
    final: list[float] = []
    for name, (key, color) in series.items():
        steps, shares = _column(lines, key)
        if not shares:  # the recipe keeps no average
            continue
        percents = [100 * share for share in shares]
        final += percents[-1:]
        label = f"{name} weights, {percents[-1]:.1f} % at the end"
        axes.plot(steps, percents, marker="o", markersize=3, color=color, linewidth=1.5, alpha=0.85, label=label)
    # The first evaluations of a good run are far below all others, and would take the room of what is to be compared.
    bottom = 80 if final and min(final) > 90 else 0
    axes.set_ylim(bottom, 100.4)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _finish(axes, "Test accuracy" + (f" (above {bottom} %)" if bottom else ""), "accuracy (%)")
    axes.legend(loc="lower right")


def _note(axes: Axes, text: str) -> None:
    """Says in a panel why there is nothing in it."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=11, color=GREY)
    axes.set_yticks([])


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=13, loc="left", fontweight="bold")
    axes.set_xlabel("step (batches)", fontsize=11)
    axes.set_ylabel(label, fontsize=11)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)


def _column(lines: Sequence[Line], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a value was recorded, and the values; NaN where it was not finite."""
    found = [(line["step"], math.nan if line[key] is None else line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def _smoothed(values: Sequence[float], window: int) -> list[float]:
    """The means of the values around each, of fewer at the ends."""
    around = [values[max(0, at - window // 2) : at + window // 2 + 1] for at in range(len(values))]
    return [sum(part) / len(part) for part in around]


def _least_loss(label_smoothing: float) -> float:
    """The entropy of a smoothed label, below which no cross-entropy with it goes."""
    others = label_smoothing / CLASSES
    shares = [1 - label_smoothing + others, *[others] * (CLASSES - 1)]
    return -sum(share * math.log(share) for share in shares if share > 0)
