"""Runs in which the gradient of one step in a hundred is a thousand times as large.

    python benchmarks/spikes.py --out benchmarks/results/spikes

An autoencoder of handwritten digits, trained by AdamW and by SGD with momentum: without spikes, with them, and with what is to help
against them. All see the same batches and the same spikes, seed by seed. The spikes begin after a hundred steps, since `skip_spikes`,
`zclip` and `adagc` watch a run before they judge it.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

import optchain
from optchain.cli.bench.results import place, rounded
from optchain.cli.race.tasks.digits import autoencoder
from optchain.race import compare, cosine
from optchain.race.group import bounded

STEPS, EVERY = 1000, 10
WATCHED = 100
"""The steps before the first spike."""
SHARE, FACTOR = 0.01, 1000.0
LEVEL = 0.01
WITHOUT = "no spikes"
PLAIN = (WITHOUT, "nothing")

Recipe = Callable[[Any], optchain.Transformation]


def adamw(rate: Any, *clips: optchain.Transformation) -> optchain.Transformation:
    rule = [optchain.scale_by_adam(), optchain.scale_by_learning_rate(), optchain.decay_weights(0.01)]
    return optchain.chain(*clips, *rule, learning_rate=rate)


def sgd(rate: Any, *clips: optchain.Transformation) -> optchain.Transformation:
    rule = [optchain.scale_by_learning_rate(), optchain.apply_momentum(0.9)]
    return optchain.chain(*clips, *rule, learning_rate=rate)


RULES = {"AdamW": (adamw, 0.01), "SGD with momentum": (sgd, 0.05)}
GUARDS: dict[str, Callable[..., optchain.Transformation]] = {
    WITHOUT: lambda rule, rate: rule(rate),
    "nothing": lambda rule, rate: rule(rate),
    "clip_by_global_norm(1.0)": lambda rule, rate: rule(rate, optchain.clip_by_global_norm(1.0)),
    "zclip()": lambda rule, rate: rule(rate, optchain.zclip()),
    "adagc()": lambda rule, rate: rule(rate, optchain.adagc()),
    "skip_spikes(…)": lambda rule, rate: optchain.skip_spikes(rule(rate)),
}
COLORS = {
    WITHOUT: "#8a94a0",
    "nothing": "#d0453a",
    "clip_by_global_norm(1.0)": "#e08e0b",
    "zclip()": "#3b82d0",
    "adagc()": "#9a6cc4",
    "skip_spikes(…)": "#12916a",
}
"""On white and on black."""
LINES = {WITHOUT: ("-", 6.0), "zclip()": ("-", 3.2), "skip_spikes(…)": ("--", 1.7)}
"""What lies over one another is narrower from below to above."""
INK = "#7b8591"


def trained(tx: optchain.Transformation, seeds: jax.Array, *, spikes: bool) -> np.ndarray:
    """The held-out loss of each seed at each evaluation."""
    task = autoencoder()

    def run(seed: jax.Array) -> jax.Array:
        start, batches, planted = jax.random.split(jax.random.key(seed), 3)
        params = task.init(start)

        def step(carry: Any, count: jax.Array) -> tuple[Any, None]:
            params, state = carry
            batch = task.batch(jax.random.fold_in(batches, count))
            loss, grads = jax.value_and_grad(task.loss)(params, batch)
            spike = spikes & (count >= WATCHED) & jax.random.bernoulli(jax.random.fold_in(planted, count), SHARE)
            grads = jax.tree.map(lambda g: g * jnp.where(spike, FACTOR, 1.0), grads)
            return tx.apply(params, state, grads=grads, value=loss), None

        def evaluated(carry: Any, first: jax.Array) -> tuple[Any, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, first + jnp.arange(EVERY))
            return carry, task.held_out_loss(carry[0])

        _, losses = jax.lax.scan(evaluated, (params, tx.init(params)), jnp.arange(0, STEPS, EVERY))
        return jnp.concatenate([task.held_out_loss(params)[None], losses])

    return np.asarray(jax.jit(jax.vmap(run))(seeds))


def measure(number: int) -> dict[str, dict[str, np.ndarray]]:
    """By rule and guard the held-out losses, a row for each seed."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, (rule, rate) in RULES.items():
        share = cosine(STEPS)

        def schedule(step: Any, rate: float = rate, share: Any = share) -> Any:
            return rate * share(step)

        for guard, build in GUARDS.items():
            losses = trained(build(rule, schedule), jnp.arange(number), spikes=guard != WITHOUT)
            found.setdefault(name, {})[guard] = losses
            print(f"{name:<18} {guard:<26} {np.mean(losses[:, -1]):9.4g}", flush=True)
    return found


def judged(losses: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What stands in the report of one rule. A run that ends above its beginning counts as one that stayed there."""
    final = {guard: bounded(curves)[:, -1] for guard, curves in losses.items()}
    others = [guard for guard in losses if guard != WITHOUT]
    compared = dict(zip(others, compare(final[WITHOUT], [final[guard] for guard in others], LEVEL), strict=True))
    return {
        guard: {
            "curves": [[value if np.isfinite(value) else None for value in curve] for curve in curves.tolist()],
            "mean": float(np.mean(final[guard])),
            "lost": int(np.sum(~(curves[:, -1] <= curves[:, 0]))),
            **({"comparison": dataclasses.asdict(compared[guard])} if guard in compared else {}),
        }
        for guard, curves in losses.items()
    }


def draw(path: Path, report: dict) -> None:
    """The mean of the seeds, and a band from the lowest to the highest; on a transparent ground, for pages light and dark."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, len(report["rules"]), sharey=True, squeeze=False)[0]
    steps = np.arange(0, STEPS + 1, EVERY)
    for panel, (name, guards) in zip(panels, report["rules"].items(), strict=True):
        for guard, made in guards.items():
            curves = bounded(np.array(made["curves"], float))
            line, width = LINES.get(guard, ("-", 1.7))
            panel.fill_between(steps, curves.min(0), curves.max(0), color=COLORS[guard], alpha=0.14, linewidth=0)
            panel.plot(steps, curves.mean(0), line, color=COLORS[guard], linewidth=width, label=guard)
        panel.axvline(WATCHED, color=INK, linewidth=0.8, linestyle=":")
        panel.set_title(f"{name}, rate {RULES[name][1]:g}", loc="left", fontsize=10, color=INK)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10]))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("step; the dotted line is where spikes begin", fontsize=9, color=INK)
        panel.set_xlim(0, STEPS)
        panel.grid(color=INK, alpha=0.25, linewidth=0.7)
        panel.patch.set_alpha(0)
        panel.tick_params(which="both", labelsize=9, colors=INK)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(INK)
    panels[0].set_ylabel("held-out loss", fontsize=9, color=INK)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.savefig(path, dpi=110, transparent=True)


def table(report: dict) -> str:
    lines = ["| | against spikes | held-out loss | difference from a run without spikes | |", "|---|---|---|---|---|"]
    for name, guards in report["rules"].items():
        for guard, made in guards.items():
            shown, compared = f"{made['mean']:.3f}", made.get("comparison")
            if made["lost"]:
                shown += f", {made['lost']} of {len(made['curves'])} lost"
            beside = ["", "the reference"]
            if compared:
                beside = [
                    f"{compared['difference']:+.3f} [{compared['low']:+.3f}, {compared['high']:+.3f}]",
                    compared["verdict"],
                ]
            lines.append(
                f"| {name} | {guard if guard in PLAIN else f'`{guard}`'} | {shown} | {beside[0]} | {beside[1]} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write spikes.json, spikes.png and table.md to this folder")
    parser.add_argument("--seeds", type=int, default=16)
    given = parser.parse_args()
    rules = {name: judged(losses) for name, losses in measure(given.seeds).items()}
    report = rounded({"place": place(seeds=given.seeds, level=LEVEL), "rules": rules})
    print(table(report))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "spikes.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
        (given.out / "table.md").write_text(table(report), encoding="utf-8")
        draw(given.out / "spikes.png", report)


if __name__ == "__main__":
    main()
