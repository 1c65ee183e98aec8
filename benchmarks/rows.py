"""A training step of an embedding table, by the height of the table.

    python benchmarks/rows.py --out benchmarks/results/cpu                   # tables of 10⁴ to 10⁶ rows
    python benchmarks/rows.py --out benchmarks/results/cpu --longest 7       # and 10⁷: lazy alone, 8 GB

Before it, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 gives long tables huge pages, where Linux leaves that to the program: a row of a long
table is then found without a walk through page tables, and the lazy step takes 0.7 of its time.

A step looks up 1,024 rows of 64 numbers, of which some come twice, takes the gradient of a loss of them, and updates by AdamW:
lazily, exactly, and with a dense gradient in Optax. The contenders take turns.
"""

import argparse
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import optchain
from optchain.cli.bench.results import place, rounded
from optchain.cli.bench.timing import take_turns

WIDTH, NAMED = 64, 1024
BATCHES = 16
WINDOW = 16
"""The steps of a turn: a contender pays once a turn for the caches that the one before it emptied."""
LONGEST_WHOLE = 10**6
"""Up to here tables are updated whole too: a longer one takes minutes and tens of gigabytes."""
COLORS = {"lazy": "#0b6e4f", "exact": "#73b89a", "optax": "#1f5fa8"}


class JaxProgram:
    """A compiled step, in place, and the arrays that it goes on with."""

    def __init__(self, step: Callable, init: Callable, table: jax.Array, batches: list[jax.Array]):
        self._params = {"head": jnp.full(WIDTH, 0.1), "table": table}
        self._state, self._batches = init(self._params), cycle(batches)
        compiled = step.lower(self._params, self._state, batches[0]).compile()
        self.temporary_bytes = compiled.memory_analysis().temp_size_in_bytes
        self._step = compiled

    def call(self) -> None:
        self._params, self._state, *_ = self._step(self._params, self._state, next(self._batches))
        jax.block_until_ready((self._params, self._state))


def cycle(batches: list) -> Iterator:
    while True:
        yield from batches


def loss_fn(params: dict, ids: jax.Array) -> jax.Array:
    return jnp.mean((optchain.rows_of(params["table"], ids) @ params["head"]) ** 2)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def optax_step(params: dict, state: optax.OptState, ids: jax.Array) -> tuple:
    loss, grads = jax.value_and_grad(loss_fn)(params, ids)
    updates, state = optax.adamw(1e-3).update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


def table(height: int) -> jax.Array:
    return 0.01 * jax.random.normal(jax.random.key(0), (height, WIDTH))


def batches(height: int) -> list[jax.Array]:
    return [jnp.asarray(ids) for ids in np.random.default_rng(0).integers(0, height, (BATCHES, NAMED), np.int32)]


def ours(height: int, **options: bool) -> JaxProgram:
    tx = optchain.adamw(1e-3, **options)
    return JaxProgram(optchain.make_step(loss_fn, tx), tx.init, table(height), batches(height))


def contenders(height: int) -> dict:
    return {
        "lazy": ours(height, lazy=True),
        "exact": ours(height),
        "optax": JaxProgram(optax_step, optax.adamw(1e-3).init, table(height), batches(height)),
    }


def measure(heights: list[int], turns: int) -> list[dict]:
    """At each height the others against lazy; then the lazy steps of all heights in turn, against the shortest.

    In this order: what the longest table leaves of the memory is in pieces too small for huge pages.
    """
    rows = []
    for height in (height for height in heights if height <= LONGEST_WHOLE):
        rivals = contenders(height)
        times = take_turns(rivals, WINDOW, turns)
        rows += [
            {
                "rows": height,
                "contender": name,
                "milliseconds": 1e3 * times.typical(name),
                "over_lazy": times.ratio(name, "lazy"),
                "temporary_bytes": program.temporary_bytes,
            }
            for name, program in rivals.items()
            if name != "lazy"
        ]
        rivals.clear()
    programs = {height: ours(height, lazy=True) for height in heights}
    times = take_turns(programs, WINDOW, turns)
    return rows + [
        {
            "rows": height,
            "contender": "lazy",
            "milliseconds": 1e3 * times.typical(height),
            "over_shortest": times.ratio(height, heights[0]),
            "temporary_bytes": program.temporary_bytes,
        }
        for height, program in programs.items()
    ]


def measured_at(turns: int) -> dict:
    return place(named=NAMED, width=WIDTH, turns=turns, tunables=os.environ.get("GLIBC_TUNABLES"))


def draw(path: Path, report: dict) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, color in COLORS.items():
        points = [(row["rows"], row["milliseconds"]) for row in report["rows"] if row["contender"] == name]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=name)
    axes.set(xscale="log", yscale="log", xlabel="rows of the table", ylabel="milliseconds of a step")
    axes.set_title(f"AdamW, {NAMED} of the table's rows named, {WIDTH} numbers each", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    versions = report["place"]["versions"]
    caption = f"{report['place']['device']}, {report['place']['cores']} cores, jax {versions['jax']}, optax {versions['optax']}"
    figure.supxlabel(caption, fontsize=7, color="#555555")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write rows.json and rows.png to this folder")
    parser.add_argument("--longest", type=int, default=6, help="the longest table, as a power of ten")
    parser.add_argument("--turns", type=int, default=10, help="how often each contender has its turn of 16 steps")
    given = parser.parse_args()
    rows = measure([10**power for power in range(4, given.longest + 1)], given.turns)
    for row in rows:
        ratio = (
            f"{row['over_lazy']:6.1f} × lazy"
            if "over_lazy" in row
            else f"{row['over_shortest']:6.2f} × the shortest table's"
        )
        print(f"{row['rows']:>10,} rows  {row['contender']:<16} {row['milliseconds']:9.3f} ms  {ratio}")
    report = rounded({"place": measured_at(given.turns), "rows": rows})
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "rows.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        draw(given.out / "rows.png", report)


if __name__ == "__main__":
    main()
