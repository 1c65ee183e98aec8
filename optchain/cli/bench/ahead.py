"""Recipes compiled for GPUs and TPUs that are not there: what they would move, as the compiler lays it out."""

import dataclasses
import importlib.util
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optchain.cli.bench.contenders import optax_chain, ours
from optchain.cli.bench.contenders.steps import StepFunctions, UnavailableError
from optchain.cli.bench.gpus import GPUS
from optchain.cli.bench.names import ContenderName, RecipeName
from optchain.cli.bench.recipes import RECIPES, Recipe
from optchain.cli.bench.results import CompiledRow
from optchain.cli.bench.traffic import copied_arrays, kernels, traffic
from optchain.core.trees import Tree

CONTENDERS: dict[ContenderName, Callable[[Recipe], StepFunctions]] = {
    ContenderName.APPLY: ours.apply_form,
    ContenderName.UPDATE: ours.update_form,
    ContenderName.OPTAX: optax_chain.step_functions,
}
LAYOUTS = ("replicated", "sharded")
ONE_DEVICE = "one device"
CHIPS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
"""The smallest topology of a TPU, of which one chip is taken."""
CUDA_COMPILER = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-runtime-cu12")


def layouts_of(target: str) -> tuple[str, ...]:
    """A single device has one layout."""
    return LAYOUTS if ":" in target else (ONE_DEVICE,)


def devices(target: str, gpus: int = 1) -> list[Any]:
    """The devices of a target: a GPU such as `h100`, a TPU chip such as `v5e`, a TPU topology such as `v5e:2x2`, or `cpu`, this one.

    Args:
      target: its name.
      gpus: of a GPU, how many there are in the machine.

    Raises:
      UnavailableError: its compiler is not installed, or knows no such target.
    """
    if target == "cpu":
        return jax.devices("cpu")[:1]
    known = f"there are cpu, {', '.join([*GPUS, *CHIPS])}, and topologies such as v5e:2x2"
    if target in GPUS:
        _require("jax_cuda12_plugin", CUDA_COMPILER)
        topology = f"1x1x{gpus}"
        platform, name, options = "cuda", topology, {"topology": topology, "target_config": GPUS[target]}
    elif target in CHIPS or ":" in target:
        _require("libtpu", ["'jax[tpu]'"])
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask the cloud which machine this is
        platform, name, options = "tpu", CHIPS.get(target, target), {}
    else:
        raise UnavailableError(f"no target {target!r}: {known}")
    from jax.experimental import topologies

    try:
        found = list(topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UnavailableError(f"no target {target!r}: {known}: {error}") from error
    return found[:1] if target in CHIPS else found


def _require(module: str, packages: Sequence[str]) -> None:
    if importlib.util.find_spec(module) is None:
        raise UnavailableError(f"{module} is not installed, which compiles for it: pip install {' '.join(packages)}")


def compile_all(
    topology: str,
    shapes: Tree,
    recipes: Sequence[RecipeName],
    contenders: Sequence[ContenderName] = tuple(CONTENDERS),
    layouts: Sequence[str] | None = None,
    advance: Callable[[str], None] = lambda what: None,
    tree: str = "",
) -> list[CompiledRow]:
    """A row for each layout, recipe and contender."""
    mesh = Mesh(np.array(devices(topology)), ("data",))
    rows = []
    for layout in layouts or layouts_of(topology):
        for recipe in recipes:
            for contender in contenders:
                advance(f"{topology}, {layout}, {recipe}: {contender}")
                rows.append(_compile(topology, mesh, layout, tree, recipe, contender, shapes))
    return rows


def _compile(
    topology: str,
    mesh: Mesh,
    layout: str,
    tree: str,
    recipe_name: RecipeName,
    contender: ContenderName,
    shapes: Tree,
) -> CompiledRow:
    recipe = RECIPES[recipe_name]
    functions = CONTENDERS[contender](recipe)
    params = _placed(shapes, mesh, layout)
    state = _placed(jax.eval_shape(functions.init, shapes), mesh, layout)
    size = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    out = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    step = jax.jit(functions.step, donate_argnums=(0, 1), out_shardings=out)
    began = time.process_time()
    lowered = step.lower(params, state, params)
    traced = time.process_time()
    compiled = lowered.compile()
    done = time.process_time()
    count = counted(compiled, size)
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed")
    waiting, updating = count.waiting_bytes, count.updating_bytes
    return CompiledRow(
        topology,
        layout,
        tree,
        recipe_name,
        contender,
        mean_bytes=((recipe.accumulate - 1) * waiting + updating) / recipe.accumulate,
        bytes_accessed=None if accessed is None else float(accessed / size),
        trace_seconds=traced - began,
        compile_seconds=done - traced,
        **dataclasses.asdict(count),
    )


@dataclasses.dataclass(frozen=True)
class Counted:
    """Of one program: see the fields of `CompiledRow`."""

    waiting_bytes: float
    updating_bytes: float
    temporary_bytes: float
    waiting_kernels: int
    updating_kernels: int
    copied_arrays: int


def counted(compiled: jax.stages.Compiled, size: int) -> Counted:
    """What a compiled program moves and needs, over a number of parameters."""
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None, "the compilers of TPUs and GPUs have one"
    moved, launched = traffic(text), kernels(text)
    return Counted(
        waiting_bytes=float(moved.least / size),
        updating_bytes=float(moved.most / size),
        temporary_bytes=float(memory.temp_size_in_bytes / size),
        waiting_kernels=int(launched.least),
        updating_kernels=int(launched.most),
        copied_arrays=copied_arrays(text),
    )


def _placed(tree: Tree, mesh: Mesh, layout: str) -> Tree:
    """The shapes with their shardings: whole on every device, or each leaf split along its longest axis that divides."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [i for i, length in enumerate(leaf.shape) if length % mesh.size == 0 and length > 0]
        spec = PartitionSpec()
        if layout == "sharded" and axes:
            longest = max(axes, key=lambda i: leaf.shape[i])
            spec = PartitionSpec(*("data" if i == longest else None for i in range(len(leaf.shape))))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)
