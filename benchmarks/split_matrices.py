"""What devices tell each other where Muon makes split matrices orthogonal: one by one, dealt out to their owners, by Optax.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.split_matrices
python -m benchmarks.split_matrices --target v5e:4x4      # needs libtpu, and no TPU
"""

import collections
import contextlib
import re
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import typer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks import collectives as programs
from optchain.cli.bench import ahead
from optchain.cli.bench.traffic import arrays, parse
from optchain.core.trees import Tree
from optchain.rules.muon import scale_by_muon
from optchain.training.sharding import state_shardings

LAYOUTS = {
    "rows (FSDP)": (("data",), PartitionSpec("data")),
    "columns (tensor-parallel)": (("model",), PartitionSpec(None, "model")),
    "both": (("data", "model"), PartitionSpec("data", "model")),
}
CONTENDERS = ("one by one", "dealt out", "optax.contrib.muon")


def compiled_text(devices: list[Any], layout: str, contender: str, matrices: int, width: int) -> str:
    """The program of one update of that many square matrices."""
    names, spec = LAYOUTS[layout]
    first = len(devices) if len(names) == 1 else 4
    shape = (first, len(devices) // first)[: len(names)]
    mesh = Mesh(np.array(devices).reshape(shape), names, axis_types=(AxisType.Auto,) * len(names))
    split = NamedSharding(mesh, spec)
    params = {f"w{i}": jax.ShapeDtypeStruct((width, width), jnp.float32, sharding=split) for i in range(matrices)}
    tx: Any = optax.contrib.muon(1.0) if contender == "optax.contrib.muon" else scale_by_muon()
    placed = state_shardings(tx, params, mesh)
    state = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        placed,
    )
    out: Tree = (jax.tree.map(lambda _: split, params), placed)
    in_context = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with in_context if contender == "dealt out" else contextlib.nullcontext():
        lowered = jax.jit(tx.update, out_shardings=out).lower(params, state, params)
    return lowered.compile().as_text() or ""


def counted(text: str) -> tuple[dict[str, int], float]:
    """How many collectives of each kind there are, scalars' left out, and the bytes that they leave on a device."""
    kinds = {  # a TPU spreads the pieces of one, which share a channel, over the fusions that it runs beside
        channel[1]: instruction.opcode.removesuffix("-start")
        for computation in parse(text)[0].values()
        for instruction in computation.values()
        if (channel := re.search(r"channel_id=(\d+)", instruction.line))
        and any(shape for _, shape, _ in arrays(instruction.type))
    }
    found = collections.Counter(kinds.values())
    total = sum(one.bytes for one in programs.collectives(text) if not one.is_scalar)
    return {kind: found[kind] for kind in programs.KINDS if found[kind]}, total


def main(
    target: Annotated[str, typer.Option(help="the devices of this machine, or a TPU topology")] = "",
    matrices: int = 16,
    width: int = 256,
) -> None:
    """Prints a row for each layout and contender."""
    devices = ahead.devices(target) if target else jax.devices()
    print(f"{len(devices)} devices, {matrices} matrices of {width}²")
    for layout in LAYOUTS:
        for contender in CONTENDERS:
            if target and contender == "optax.contrib.muon":
                continue  # rounds of its loop share channels there, and would count once
            kinds, total = counted(compiled_text(devices, layout, contender, matrices, width))
            words = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
            print(f"| {layout} | {contender} | {words} | {total / 1e6:.1f} MB |", flush=True)


if __name__ == "__main__":
    typer.run(main)
