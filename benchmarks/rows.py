"""A training step of an embedding table, by the height of the table.

    python benchmarks/rows.py --out benchmarks/results/cpu                   # tables of 10⁴ to 10⁶ rows
    python benchmarks/rows.py --out benchmarks/results/cpu --longest 7       # and 10⁷: lazy alone, 8 GB

A step looks up 1,024 rows of 64 numbers, of which some come twice, takes the gradient of a loss of them, and updates by AdamW:
lazily, exactly, with a dense gradient in Optax; and PyTorch's `SparseAdam`, where it is installed. The contenders take turns.
"""

import argparse
import functools
import json
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
LONGEST_WHOLE = 10**6
"""Up to here tables are updated whole too: a longer one takes minutes and tens of gigabytes."""
COLORS = {"lazy": "#0b6e4f", "exact": "#73b89a", "optax": "#1f5fa8", "torch SparseAdam": "#e08e0b"}


class JaxProgram:
    """A compiled step, in place, and the arrays that it goes on with."""

    def __init__(self, step: Callable, init: Callable, table: jax.Array, batches: list[jax.Array]):
        self._params = {"head": jnp.full(WIDTH, 0.1), "table": table}
        self._state, self._batches = init(self._params), cycle(batches)
        compiled = step.lower(self._params, self._state, batches[0]).compile()
        self.temporary_bytes: int | None = compiled.memory_analysis().temp_size_in_bytes
        self._step = compiled

    def call(self) -> None:
        self._params, self._state, *_ = self._step(self._params, self._state, next(self._batches))
        jax.block_until_ready((self._params, self._state))


class TorchProgram:
    temporary_bytes: int | None = None

    def __init__(self, height: int, batches: list[jax.Array]):
        import torch

        self._table = torch.nn.Embedding(height, WIDTH, sparse=True)
        self._head = torch.full((WIDTH,), 0.1)
        self._optimizer = torch.optim.SparseAdam(self._table.parameters(), lr=1e-3)
        self._batches = cycle([torch.tensor(np.asarray(batch)) for batch in batches])

    def call(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        ((self._table(next(self._batches)) @ self._head) ** 2).mean().backward()
        self._optimizer.step()


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


def prepare(height: int) -> dict:
    batches = [jnp.asarray(ids) for ids in np.random.default_rng(0).integers(0, height, (BATCHES, NAMED), np.int32)]

    def table() -> jax.Array:
        return 0.01 * jax.random.normal(jax.random.key(0), (height, WIDTH))

    def ours(**options: bool) -> JaxProgram:
        tx = optchain.adamw(1e-3, **options)
        return JaxProgram(optchain.make_step(loss_fn, tx), tx.init, table(), batches)

    programs: dict = {"lazy": ours(lazy=True)}
    if height <= LONGEST_WHOLE:
        programs |= {"exact": ours(), "optax": JaxProgram(optax_step, optax.adamw(1e-3).init, table(), batches)}
        try:
            programs["torch SparseAdam"] = TorchProgram(height, batches)
        except ModuleNotFoundError:
            print("torch is not installed: SparseAdam is left out")
    return programs


def measure(height: int, turns: int) -> list[dict]:
    programs = prepare(height)
    times = take_turns(programs, 4, turns)
    return [
        {
            "rows": height,
            "contender": name,
            "milliseconds": 1e3 * times.typical(name),
            "over_lazy": times.ratio(name, "lazy"),
            "temporary_bytes": program.temporary_bytes,
        }
        for name, program in programs.items()
    ]


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
    parser.add_argument("--turns", type=int, default=20, help="how often each contender's turn of four steps comes")
    given = parser.parse_args()
    rows = []
    for power in range(4, given.longest + 1):
        rows += measure(10**power, given.turns)
        for row in rows:
            if row["rows"] == 10**power:
                print("{rows:>10,} rows  {contender:<16} {milliseconds:9.3f} ms  {over_lazy:7.1f} × lazy".format(**row))
    report = rounded({"place": place(named=NAMED, width=WIDTH, turns=given.turns), "rows": rows})
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "rows.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        draw(given.out / "rows.png", report)


if __name__ == "__main__":
    main()
