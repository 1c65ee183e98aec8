"""Pictures: what a transformation does to an update, a schedule, the curves of a program.

Their colours can be read on white and on black, and their background is transparent.
"""

import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import optchain

IN, OUT, INK = "#9aa3ad", "#0b7fab", "#7b8591"  # on white and on black
CALLS = 40
SHAPE = (5, 4)


@functools.cache
def gradients() -> list[dict[str, jax.Array]]:
    """A steady direction that fades, and noise."""
    rng = np.random.default_rng(4)
    first = rng.normal(size=SHAPE) * 1.2
    return [
        {
            "kernel": jnp.asarray(first * 0.95**call + 0.3 * rng.normal(size=SHAPE), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=SHAPE[1:]), jnp.float32),
        }
        for call in range(CALLS)
    ]


def draw(tx: optchain.Transformation, code: str) -> str:
    """The picture as SVG with a transparent background."""
    projects = tx.kind == "parameter" and tx.projects
    before, after = _projected(tx) if projects else _updates(tx)
    figure = Figure((7.6, 3.0))
    figure.subplots_adjust(left=0.05, right=0.93, top=0.92, bottom=0.17, wspace=0.28)
    values, calls = figure.subplots(1, 2, width_ratios=(1, 1.35))
    names = ("parameter before", "after") if projects else ("gradient in", "update out")
    order = np.argsort(before[0])
    entry = int(order[-2])
    values.bar(np.arange(order.size), before[0][order], color=IN, width=0.75)
    _own_scale(values, before, after).plot(after[0][order], "o", color=OUT, markersize=4.5)
    _finish(values, "the first call: each value of a kernel, sorted")
    values.set_xticks([])
    (incoming,) = calls.plot(before[:, entry], color=IN, linewidth=2.2)
    (outgoing,) = _own_scale(calls, before, after).plot(
        after[:, entry], color=OUT, linewidth=1.8, marker=".", markersize=4
    )
    _finish(calls, "one value, forty calls")
    figure.legend([incoming, outgoing], names, loc="lower center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure, code)


COLORS = (OUT, "#e0730b", "#12916a")


@dataclasses.dataclass(frozen=True)
class Panel:
    """Some curves over one axis."""

    title: str
    label: str
    """Of the horizontal axis."""
    lines: Mapping[str, tuple[Any, Any]]
    """Horizontal and vertical values, by names for the legend; one without a name needs none."""
    x: str = "linear"
    y: str = "linear"
    marker: str = ""
    widths: tuple[float, ...] = (1.7, 1.7, 1.7)
    """Of the lines: one that lies under another has to be wider to be seen."""


def panels(title: str, drawn: list[Panel]) -> str:
    """Panels side by side, as SVG."""
    figure = Figure((7.6, 2.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for (name, (x, y)), color, width in zip(panel.lines.items(), COLORS, panel.widths, strict=False):
            axes.plot(x, y, color=color, linewidth=width, label=name, marker=panel.marker, markersize=3.5)
        axes.set_xscale(panel.x)
        axes.set_yscale(panel.y)
        for axis, scale, limits in ((axes.xaxis, panel.x, axes.get_xlim), (axes.yaxis, panel.y, axes.get_ylim)):
            if scale == "log":
                low, high = limits()
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
        _finish(axes, panel.title, zero=False)
        axes.tick_params(which="minor", color=INK)
        axes.set_xlabel(panel.label, fontsize=8, color=INK)
        if any(panel.lines):
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure, title)


def schedule(made: Any, steps: int) -> str:
    """A schedule over its steps, as a small picture."""
    figure = Figure((3.4, 1.7), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(steps), jax.vmap(made)(jnp.arange(steps)), color=OUT, linewidth=1.8)
    axes.set_ylim(0, 1.05)
    _finish(axes, "")
    return _svg(figure, repr(made))


def coordinates() -> str:
    """The coordinate check of muP: how far activations move in four Adam steps, over the widths, without its factors and with them."""
    widths, inputs = [2**n for n in range(5, 10)], np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)

    def network(width: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        shapes = {"embed": (8, width), "hidden": (width, width), "head": (width, 1)}
        made = {name: rng.normal(size=shape) / shape[0] ** 0.5 for name, shape in shapes.items()}
        return {name: value.astype(np.float32) for name, value in made.items()}

    def moved(width: int, mup: bool) -> dict[str, float]:
        params, factors, head = network(width), {"hidden": 1.0}, 1.0
        if mup:  # the head's numbers are as large as at the base width
            factors, head = optchain.width_factors(params, network(32)), 32 / width
            params["head"] *= head**-0.5

        def activations(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
            embed = jnp.tanh(inputs @ params["embed"])
            hidden = jnp.tanh(embed @ params["hidden"])
            return {"embed": embed, "hidden": hidden, "out": hidden @ params["head"] * head}

        tx = optchain.chain(optchain.adam(2e-3), optchain.scale_by_path(factors))
        loss = lambda params: jnp.mean((activations(params)["out"] - 1.0) ** 2)  # noqa: E731
        return {name: size[-1] for name, size in optchain.coordinate_sizes(tx, params, loss, activations).items()}

    figure = Figure((7.6, 3.0), layout="constrained")
    for axes, mup in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        sizes = [moved(width, mup) for width in widths]
        for name, color in zip(sizes[0], (IN, OUT, "#e08e0b"), strict=True):
            axes.loglog(widths, [size[name] for size in sizes], color=color, marker=".", label=name)
        _finish(axes, "with width_factors" if mup else "one rate for all")
        axes.set_xticks(widths, map(str, widths), minor=False)
        axes.minorticks_off()
        axes.set_xlabel("width", fontsize=8, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure, "coordinate check")


def _svg(figure: Figure, title: str) -> str:
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": title}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": title})
    return out.getvalue()


def _own_scale(axes: Any, before: np.ndarray, after: np.ndarray) -> Any:
    """The same axes, or, for an update that is far smaller or larger, others with the zero at the same height."""
    large, small = np.abs(before).max() * 1.1, np.abs(after).max() * 1.1
    if 0.2 < small / large < 5 or small == 0:
        return axes
    other = axes.twinx()
    axes.set_ylim(-large, large)
    other.set_ylim(-small, small)
    _finish(other, "")
    other.spines["right"].set_visible(True)
    other.spines["right"].set_color(OUT)
    other.tick_params(labelsize=7, colors=OUT)
    return other


def _finish(axes: Any, title: str, *, zero: bool = True) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    if zero:
        axes.axhline(0, color=INK, linewidth=0.7)
    axes.patch.set_alpha(0)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _updates(tx: optchain.Transformation) -> tuple[np.ndarray, np.ndarray]:
    params: Any = {"kernel": jnp.linspace(-2, 2, 20).reshape(SHAPE), "bias": jnp.ones(SHAPE[1:])}
    state = tx.init(params)

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return updates, state, jax.tree.map(jnp.add, params, updates)

    seen, made = [], []
    for grads in gradients():
        updates, state, params = step(grads, state, params)
        seen.append(np.ravel(grads["kernel"]))
        made.append(np.ravel(updates["kernel"]))
    return np.stack(seen), np.stack(made)


def _projected(tx: optchain.Transformation) -> tuple[np.ndarray, np.ndarray]:
    """A projection of parameters that go their own way."""
    state = tx.init(gradients()[0])
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
    seen, made = [], []
    for params in gradients():
        new, state = step(params, state, jax.tree.map(jnp.zeros_like, params))
        seen.append(np.ravel(params["kernel"]))
        made.append(np.ravel(new["kernel"]))
    return np.stack(seen), np.stack(made)
