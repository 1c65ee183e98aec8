"""Recipes compiled for GPUs and TPUs that are not there: what they would move, as the compiler lays it out."""

import importlib.util
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
    return (ONE_DEVICE,) if target in GPUS or target in CHIPS else LAYOUTS


def devices(target: str) -> list[Any]:
    """The devices of a target: a GPU such as `h100`, a TPU chip such as `v5e`, or a TPU topology such as `v5e:2x2`.

    Raises:
      UnavailableError: its compiler is not installed, or knows no such target.
    """
    if target in GPUS:
        return _topology(
            target, "cuda", _has_cuda_compiler, CUDA_COMPILER, "1x1x1", topology="1x1x1", target_config=GPUS[target]
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask the cloud which machine this is
    found = _topology(target, "tpu", _has_libtpu, ("'jax[tpu]'",), CHIPS.get(target, target))
    return found[:1] if target in CHIPS else found


def _has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def _has_cuda_compiler() -> bool:
    return all(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "nvidia"))


def _topology(
    target: str, platform: str, installed: Callable[[], bool], packages: Sequence[str], name: str, **options: str
) -> list[Any]:
    if not installed():
        raise UnavailableError(f"the compiler for {target!r} is not installed: pip install {' '.join(packages)}")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        known = ", ".join([*GPUS, *CHIPS])
        raise UnavailableError(
            f"no target {target!r}: there are {known}, and topologies such as v5e:2x2: {error}"
        ) from error


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
    size = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    out = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    step = jax.jit(functions.step, donate_argnums=(0, 1), out_shardings=out)
    began = time.process_time()
    lowered = step.lower(params, state, params)
    traced = time.process_time()
    compiled = lowered.compile()
    done = time.process_time()
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None, "the compilers of TPUs and GPUs have one"
    moved, launched = traffic(text), kernels(text)
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed")
    mean = ((recipe.accumulate - 1) * moved.least + moved.most) / recipe.accumulate
    return CompiledRow(
        topology,
        layout,
        tree,
        recipe_name,
        contender,
        *(float(count / size) for count in (moved.least, moved.most, mean, memory.temp_size_in_bytes)),
        bytes_accessed=None if accessed is None else float(accessed / size),
        waiting_kernels=int(launched.least),
        updating_kernels=int(launched.most),
        copied_arrays=copied_arrays(text),
        trace_seconds=traced - began,
        compile_seconds=done - traced,
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
