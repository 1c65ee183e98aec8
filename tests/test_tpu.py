"""Every recipe compiled for TPUs, with no TPU: what a step would move and need there, next to Optax's.

`libtpu`, which compiles, is no dependency of the tests: without it they are left out, and say so.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optchain
from benchmarks import pods, split_matrices
from optchain.cli.bench import ahead, trees
from optchain.cli.bench.names import ContenderName, RecipeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.results import CompiledRow
from tests import programs
from tests.sampling import others_for_release

pytest.importorskip("libtpu", reason="TPU programs were left out: pip install 'jax[tpu]'")

# As many parameters a device: what fits its vector memory whole is copied there before it is known that a call waits.
WIDTHS = {("v5e:2x2", "replicated"): 384, ("v5e:4x4", "sharded"): 4 * 384}
every_place = pytest.mark.parametrize(("topology", "layout"), WIDTHS, ids=lambda word: word)
ROUNDING = 1.005
"""Layouts round small leaves up to whole tiles."""
SCRATCH = 1.05
NORMS_OF_LEAVES = {RecipeName.CLIP_BY_NORM: 1.0, RecipeName.KERAS_ARGUMENTS: 1.0}
"""B/parameter of temporary memory that the norms of single leaves may cost besides: the factor of each has a power of two of its
own, and the compiler schedules these programs otherwise. Optax has 1.6 and 2.7 there."""


@functools.cache
def rows(topology: str, layout: str, recipe: RecipeName) -> dict[ContenderName, CompiledRow]:
    shapes = trees.transformer(layers=2, width=WIDTHS[topology, layout])
    both = [ContenderName.APPLY, ContenderName.OPTAX]
    compiled = ahead.compile_all(topology, shapes, [recipe], both, [layout])
    return {ContenderName(row.contender): row for row in compiled}


@every_place
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_step_moves_and_needs_no_more_than_that_of_optax(topology: str, layout: str, recipe: RecipeName) -> None:
    ours, theirs = (rows(topology, layout, recipe)[name] for name in (ContenderName.APPLY, ContenderName.OPTAX))
    assert ours.mean_bytes <= theirs.mean_bytes * ROUNDING
    assert ours.temporary_bytes <= theirs.temporary_bytes * SCRATCH + 0.01 + NORMS_OF_LEAVES.get(recipe, 0)


@every_place
def test_a_call_that_only_accumulates_moves_gradient_and_accumulator(topology: str, layout: str) -> None:
    row = rows(topology, layout, RecipeName.ACCUMULATE)[ContenderName.APPLY]
    assert 12 <= row.waiting_bytes <= 12.5


def test_a_call_that_waits_widens_no_narrow_parameter() -> None:
    """Where an average after the gate widens them, XLA would move that into the gate's branches: 12 bytes, and 3 temporary."""
    shapes = trees.transformer(layers=2, width=384, dtype=jnp.bfloat16)
    (row,) = ahead.compile_all("v5e:2x2", shapes, [RecipeName.EVERYTHING], [ContenderName.APPLY], ["replicated"])
    assert 20 <= row.waiting_bytes <= 21
    assert row.updating_bytes <= 44


@every_place
def test_adamw_moves_each_byte_once(topology: str, layout: str) -> None:
    row = rows(topology, layout, RecipeName.ADAMW)[ContenderName.APPLY]
    assert row.mean_bytes == pytest.approx(28, abs=0.1)


@functools.cache
def pod(layout: str) -> pods.PodRow:
    return pods.compile_step("v5e:2x2", layout, layers=1, width=256, vocabulary=1024, length=128)


def test_a_data_parallel_training_step_reduces_each_gradient_once_and_gathers_nothing() -> None:
    row = pod("data-parallel")
    assert row.reduced_arrays == row.gradients
    assert row.waiting.keys() == row.updating.keys() == {"all-reduce"}
    assert row.updating["all-reduce"] == (row.gradients, row.parameter_bytes)


def test_with_zero_one_a_chip_holds_its_part_of_the_state_and_none_of_it_travels() -> None:
    row, whole = pod("data-parallel, ZeRO-1"), pod("data-parallel")
    assert row.state_bytes <= whole.state_bytes * (1 / row.devices + 0.02)
    assert row.argument_bytes - whole.argument_bytes <= (row.state_bytes - whole.state_bytes) * 0.98
    assert row.state_arrays == 0
    # All but the embedding's, whose rows are gathered, and once; the new parameters only where there are some.
    assert row.reduced_arrays == row.gradients - 1
    assert row.waiting["reduce-scatter"] == row.updating["reduce-scatter"]
    assert row.waiting["all-gather"][0] <= 2 < row.updating["all-gather"][0] <= 2 + row.gradients


# State in the host's memory -------------------------------------------------------------------------------------------

WIDTH = 2048
LEAF = 4 * WIDTH**2
"""The bytes of a layer's matrix, and so of each of its moments."""
RECIPE = optchain.skip_nonfinite(optchain.adamw(0.1, global_clipnorm=1.0, use_ema=True))
"""A norm of all gradients, a gate, an average: nothing of a step can begin before the last gradient is there."""


@functools.cache
def layers_compiled(layers: int, memory_kind: str | None) -> tuple[Any, int]:
    """What the program of a step needs, and the bytes of the state."""
    mesh = Mesh(np.array(ahead.devices("v5e")), ("data",))

    def struct(leaf: Any, sharding: NamedSharding = NamedSharding(mesh, PartitionSpec())) -> jax.ShapeDtypeStruct:  # noqa: B008
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def loss_fn(params: list[jax.Array], grads: list[jax.Array]) -> jax.Array:
        return sum((jnp.vdot(p, g) for p, g in zip(params, grads, strict=True)), jnp.zeros(()))

    params = [struct(jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32))] * layers
    plan = optchain.state_shardings(RECIPE, params, mesh, memory_kind=memory_kind)
    state = jax.tree.map(struct, jax.eval_shape(RECIPE.init, params), plan)
    step: Any = optchain.make_step(loss_fn, RECIPE, mesh=mesh, memory_kind=memory_kind)
    compiled = step.lower(params, state, params).compile()  # the batch is the gradients: they take no temporary memory
    return compiled.memory_analysis(), sum(leaf.size * 4 for leaf in jax.tree.leaves(state) if leaf.ndim)


def test_an_offloaded_state_is_on_the_host_and_updated_in_place_there() -> None:
    (usual, state_bytes), (offloaded, _) = (layers_compiled(12, kind) for kind in (None, "pinned_host"))
    assert usual.host_argument_size_in_bytes == 0
    assert usual.argument_size_in_bytes - offloaded.argument_size_in_bytes == state_bytes
    assert offloaded.host_argument_size_in_bytes == offloaded.host_alias_size_in_bytes == state_bytes
    assert offloaded.host_temp_size_in_bytes == 0


def test_an_offloaded_state_comes_to_the_device_a_few_leaves_at_a_time() -> None:
    usual, few, many = (layers_compiled(*key)[0] for key in ((12, None), (6, "pinned_host"), (12, "pinned_host")))
    # Two lanes, and in each the old and the new of `mu`, `nu` and the average.
    assert many.temp_size_in_bytes - usual.temp_size_in_bytes <= 2 * 2 * 3 * LEAF
    assert many.temp_size_in_bytes - few.temp_size_in_bytes <= 2 * LEAF  # of 18 more


# Matrices, each to its owner -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", split_matrices.LAYOUTS)
def test_muon_sends_each_split_matrix_to_its_owner_and_back(layout: str) -> None:
    text = split_matrices.compiled_text(ahead.devices("v5e:4x4"), layout, "dealt out", matrices=16, width=256)
    axes = len(split_matrices.LAYOUTS[layout][0])
    assert split_matrices.counted(text) == ({"all-to-all": 2 * axes}, 2 * axes * 256**2 * 4)


# Gradients of stacked layers, released ------------------------------------------------------------------------------------


@functools.cache
def temporaries_of_layers(tx: optchain.Transformation, release: str | None, topology: str = "v5e") -> int:
    """Of a step over 24 layers of two matrices."""
    whole = NamedSharding(Mesh(np.array(ahead.devices(topology)), ("data",)), PartitionSpec())

    def struct(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    def loss_fn(params: dict[str, Any], x: jax.Array) -> jax.Array:
        def body(x: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, None]:
            return x + jnp.tanh(x @ layer["up"] + layer["bias"]) @ layer["down"], None

        x, _ = jax.lax.scan(body, x @ params["in"], params["layers"])
        return jnp.mean((x @ params["head"]) ** 2)

    layers = {"bias": struct(24, WIDTH), "down": struct(24, WIDTH, WIDTH), "up": struct(24, WIDTH, WIDTH)}
    params = {"head": struct(WIDTH), "in": struct(WIDTH, WIDTH), "layers": layers}
    state = jax.tree.map(lambda leaf: struct(*leaf.shape, dtype=leaf.dtype), jax.eval_shape(tx.init, params))
    step: Any = optchain.make_step(loss_fn, tx, release=release)
    return step.lower(params, state, struct(64, WIDTH)).compile().memory_analysis().temp_size_in_bytes


ADAMW = optchain.adamw(1e-3)


@pytest.mark.parametrize("tx", others_for_release([ADAMW, optchain.compact(ADAMW)], ADAMW), ids=lambda tx: tx.name)
def test_released_gradients_of_layers_take_no_memory(tx: optchain.Transformation) -> None:
    usual, released = (temporaries_of_layers(tx, release) for release in (None, "layers"))
    assert usual - released >= 2 * 24 * LEAF
    assert released <= 25 * LEAF  # the matrices in bfloat16, for the products


# One kernel a leaf ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "floor"), [(None, 16.25), (24, 12.25)])
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "XLA alone"])
def test_a_step_of_codes_moves_each_byte_once(weights: Any, floor: float, kernel: bool) -> None:
    """Of a leaf whose blocks lie down its rows, and of one whose blocks lie along its columns."""
    row = programs.compact_step("v5e", weights, kernel=kernel)
    assert floor * 0.99 <= row.updating_bytes <= floor * 1.01
    assert row.temporary_bytes <= 0.1
