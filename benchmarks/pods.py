"""A whole training step compiled for pods that are not there: what a device holds, and what the devices tell each other.

python -m benchmarks.pods --topology v5e:4x4 --topology v4:4x4x4 --out benchmarks/results/tpu
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from benchmarks import pod_model
from benchmarks.collectives import Collective, collectives
from optchain.cli.bench import ahead
from optchain.cli.bench.contenders.steps import UnavailableError
from optchain.cli.bench.results import place, rounded
from optchain.cli.bench.table import described
from optchain.core.trees import Tree
from optchain.recipes.description import describe
from optchain.training.sharding import state_shardings
from optchain.training.step import make_step

LAYOUTS: dict[str, str | None] = {"data-parallel": None, "data-parallel, ZeRO-1": "data"}
"""The axis over which each splits the state besides."""


@dataclasses.dataclass(frozen=True)
class PodRow:
    """One layout on one topology. Bytes are a device's."""

    topology: str
    devices: int
    layout: str
    parameters: int
    gradients: int
    """The number of arrays that the parameters are, and so of gradients."""
    parameter_bytes: int
    state_bytes: int
    argument_bytes: int
    """By the compiler's count: parameters, state and batch, rounded up to tiles."""
    temporary_bytes: int
    reduced_arrays: int
    """The arrays that a call reduces over the devices, by an all-reduce or a reduce-scatter; scalars left out."""
    state_arrays: int
    """The arrays of the state's dtype and of a parameter's shape in any collective of a call that updates: should be 0."""
    waiting: dict[str, tuple[int, float]]
    """The arrays, and their bytes, of each kind of collective in a call that only accumulates; scalars left out."""
    updating: dict[str, tuple[int, float]]
    """Likewise in a call that updates."""
    compile_seconds: float


def compile_step(topology: str, layout: str, layers: int, width: int, vocabulary: int, length: int) -> PodRow:
    """The step of `pod_model`, a sequence on each device.

    Raises:
      UnavailableError: there is no `libtpu`, or it knows no such topology.
    """
    devices = ahead.devices(topology)
    mesh, axis = Mesh(np.array(devices), ("data",)), LAYOUTS[layout]
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    shapes, tx = pod_model.shapes(layers, width, vocabulary), pod_model.recipe()
    params = jax.tree.map(lambda leaf: _struct(leaf, whole), shapes)
    state = jax.tree.map(_struct, jax.eval_shape(tx.init, shapes), state_shardings(tx, params, mesh, axis=axis))
    tokens = jax.ShapeDtypeStruct((len(devices), length + 1), jnp.int32, sharding=rows)
    began = time.process_time()
    step: Any = make_step(pod_model.loss_fn, tx, mesh=mesh, axis=axis)
    compiled = step.lower(params, state, tokens).compile()
    seconds = time.process_time() - began
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    assert memory is not None, "the TPU's compiler has one"
    waiting, updating = collectives(text, updates=False), collectives(text)
    on_paper = describe(tx, params, axis=axis)
    shapes_of_state = {("f32", leaf.shape) for leaf in jax.tree.leaves(params)}
    return PodRow(
        topology,
        len(devices),
        layout,
        on_paper.parameters,
        len(jax.tree.leaves(params)),
        on_paper.device_parameter_bytes,
        on_paper.device_state_bytes,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        reduced_arrays=sum(c.count for c in waiting if "reduce" in c.kind and not c.is_scalar),
        state_arrays=sum(c.count for c in updating if (c.dtype, c.shape) in shapes_of_state),
        waiting=_by_kind(waiting),
        updating=_by_kind(updating),
        compile_seconds=seconds,
    )


def _struct(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _by_kind(found: list[Collective]) -> dict[str, tuple[int, float]]:
    by_kind: dict[str, tuple[int, float]] = {}
    for one in found:
        if not one.is_scalar:
            count, size = by_kind.get(one.kind, (0, 0.0))
            by_kind[one.kind] = count + one.count, size + one.bytes
    return by_kind


CAPTION = """\
parameters, state, temporary: MB a device. reduced: how many arrays are reduced over the devices, of how many gradients; what a
compiler makes a ring of beside the product (collective-permute) or of gathered rows (an embedding) is not among them.
of state: arrays of the state that devices tell each other. The last two columns: all that they do, in MB, scalars left out, and
what is in a loop counted once."""

# Shown ----------------------------------------------------------------------------------------------------------------


def show(console: Console, rows: list[PodRow], where: Tree) -> None:
    console.print(described(where), markup=False, highlight=False)
    table = Table(
        "", "parameters", "state", "temporary", "reduced", "of state", "a call that accumulates", "that updates"
    )
    for row in rows:
        sizes = (f"{size / 1e6:,.1f}" for size in (row.parameter_bytes, row.state_bytes, row.temporary_bytes))
        counts = (f"{row.reduced_arrays} of {row.gradients}", str(row.state_arrays))
        table.add_row(f"{row.topology}, {row.layout}", *sizes, *counts, *map(_words, (row.waiting, row.updating)))
    console.print(table)
    console.print(CAPTION, markup=False, highlight=False)


def _words(by_kind: dict[str, tuple[int, float]]) -> str:
    return "; ".join(f"{kind} {count}, {size / 1e6:,.1f} MB" for kind, (count, size) in by_kind.items())


def draw(path: Path, rows: list[PodRow], where: Tree) -> None:
    """What a device holds, a bar a layout."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.6 * len(rows)), layout="constrained")
    panel = figure.subplots()
    parts = {"parameters": "#1f5fa8", "state": "#0b6e4f", "temporary": "#e08e0b"}
    for line, row in enumerate(rows):
        left = 0.0
        for part, color in parts.items():
            size = {"parameters": row.parameter_bytes, "state": row.state_bytes}.get(part, row.temporary_bytes) / 1e6
            panel.barh(line, size, 0.7, left, color=color, label=part if line == 0 else None)
            left += size
        panel.text(left, line, f" {left:,.0f} MB", va="center", fontsize=8)
    panel.set_yticks(
        range(len(rows)), [f"{row.topology} ({row.devices} devices)\n{row.layout}" for row in rows], fontsize=8
    )
    panel.invert_yaxis()
    panel.set_xlabel(
        f"MB a device; {rows[0].parameters / 1e6:.0f} M parameters in bfloat16, state in float32", fontsize=8
    )
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.15)
    panel.legend(frameon=False, fontsize=8)
    figure.supxlabel(described(where), fontsize=6, color="#555555")
    figure.savefig(path, dpi=110)


def main(
    topology: Annotated[list[str], typer.Option(help="Such as v5e:4x4; may be repeated. Needs libtpu.")],
    layers: int = 4,
    width: int = 1024,
    vocabulary: int = 16384,
    length: Annotated[int, typer.Option(help="Of a sequence; each device has one.")] = 512,
    out: Annotated[Path | None, typer.Option(help="Write pods.json and pods.png to this folder.")] = None,
) -> None:
    """Compiles a transformer's training step for TPUs that are not there, with ZeRO-1 and without."""
    jax.config.update("jax_platforms", "cpu")  # with libtpu here, JAX would look for TPUs
    rows = []
    for name in topology:
        for layout in LAYOUTS:
            try:
                rows.append(compile_step(name, layout, layers, width, vocabulary, length))
            except UnavailableError as error:
                raise typer.BadParameter(str(error), param_hint="--topology") from error
            typer.echo(f"{name}, {layout}: compiled in {rows[-1].compile_seconds:.0f} s", err=True)
    where = place(model={"layers": layers, "width": width, "vocabulary": vocabulary, "length": length})
    show(Console(width=int(os.environ.get("COLUMNS", "200"))), rows, where)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report = {"place": where, "rows": [dataclasses.asdict(row) for row in rows]}
        (out / "pods.json").write_text(json.dumps(rounded(report, 6), indent=1) + "\n", encoding="utf-8")
        draw(out / "pods.png", rows, where)


if __name__ == "__main__":
    typer.run(main)
