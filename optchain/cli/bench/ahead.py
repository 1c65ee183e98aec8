"""Recipes compiled for TPUs that are not there: what they would move, as the compiler lays it out."""

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
from optchain.cli.bench.names import ContenderName, RecipeName
from optchain.cli.bench.recipes import RECIPES, Recipe
from optchain.cli.bench.results import CompiledRow
from optchain.cli.bench.traffic import traffic
from optchain.core.trees import Tree

CONTENDERS: dict[ContenderName, Callable[[Recipe], StepFunctions]] = {
    ContenderName.APPLY: ours.apply_form,
    ContenderName.UPDATE: ours.update_form,
    ContenderName.OPTAX: optax_chain.step_functions,
}
LAYOUTS = ("replicated", "sharded")


def devices(topology: str) -> list[Any]:
    """The devices of a topology such as `v5e:2x2`.

    Raises:
      UnavailableError: there is no `libtpu`, or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UnavailableError("libtpu is not installed: pip install 'jax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask the cloud which machine this is
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UnavailableError(f"libtpu has no topology {topology!r}: {error}") from error


def compile_all(
    topology: str,
    shapes: Tree,
    recipes: Sequence[RecipeName],
    contenders: Sequence[ContenderName] = tuple(CONTENDERS),
    layouts: Sequence[str] = LAYOUTS,
    advance: Callable[[str], None] = lambda what: None,
) -> list[CompiledRow]:
    mesh = Mesh(np.array(devices(topology)), ("data",))
    rows = []
    for layout in layouts:
        for recipe in recipes:
            for contender in contenders:
                advance(f"{topology}, {layout}, {recipe}: {contender}")
                rows.append(_compile(topology, mesh, layout, recipe, contender, shapes))
    return rows


def _compile(
    topology: str, mesh: Mesh, layout: str, recipe_name: RecipeName, contender: ContenderName, shapes: Tree
) -> CompiledRow:
    recipe = RECIPES[recipe_name]
    functions = CONTENDERS[contender](recipe)
    params = _placed(shapes, mesh, layout)
    state = _placed(jax.eval_shape(functions.init, shapes), mesh, layout)
    size = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    out = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    began = time.process_time()
    step = jax.jit(functions.step, donate_argnums=(0, 1), out_shardings=out)
    compiled = step.lower(params, state, params).compile()
    seconds = time.process_time() - began
    moved, memory = traffic(compiled.as_text() or ""), compiled.memory_analysis()
    assert memory is not None, "the TPU's compiler has one"
    accessed = (compiled.cost_analysis() or {})["bytes accessed"]
    mean = ((recipe.accumulate - 1) * moved.least + moved.most) / recipe.accumulate
    return CompiledRow(
        topology,
        layout,
        recipe_name,
        contender,
        *(float(count / size) for count in (moved.least, moved.most, mean, accessed, memory.temp_size_in_bytes)),
        compile_seconds=seconds,
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
