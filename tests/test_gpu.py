"""Every recipe compiled for an H100, with no GPU: what a step would move and need there, next to Optax's.

CUDA's compiler is no dependency of the tests: without it they are left out, and say so.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import optchain.flax
from optchain.cli.bench import ahead, traffic, trees
from optchain.cli.bench.contenders import ours
from optchain.cli.bench.names import ContenderName, RecipeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.results import CompiledRow
from optchain.core.trees import Tree
from tests import programs

pytest.importorskip("jax_cuda12_plugin", reason=f"left out: pip install {' '.join(ahead.CUDA_COMPILER)}")

BUDGETS = {
    RecipeName.ADAMW: (28, 28),
    RecipeName.GLOBAL_CLIP: (32, 32),
    RecipeName.CLIP_BY_NORM: (32, 32),
    RecipeName.AVERAGE: (36, 36),
    RecipeName.ACCUMULATE: (12, 40),  # a call that updates adds to the accumulator first, as any other
    RecipeName.SKIP_NONFINITE: (4, 32),
    RecipeName.KERAS_ARGUMENTS: (24, 56),
    RecipeName.EVERYTHING: (24, 60),
    RecipeName.SGD: (20, 20),
}
"""Bytes a parameter in float32: a call that takes the cheapest branch of every condition, and the dearest."""
UPDATE_BUDGETS = BUDGETS | {
    # A call that waits writes zeros, which are read again with the parameters that they are added to.
    RecipeName.ACCUMULATE: (28, 56),
    RecipeName.SKIP_NONFINITE: (32, 32),  # no branch: selected in the kernels
    RecipeName.KERAS_ARGUMENTS: (36, 68),
    RecipeName.EVERYTHING: (36, 68),
}
"""In the `update` form, updates added to the parameters in the same program."""
NARROW_BUDGETS = {
    RecipeName.ACCUMULATE: (10, 34),
    RecipeName.SKIP_NONFINITE: (2, 24),
    RecipeName.EVERYTHING: (20, 52),
}
"""With parameters in bfloat16 and state in float32."""
SCALARS = 1.02
"""Norms, counts, the partial sums of reductions."""


@functools.cache
def row(recipe: RecipeName, contender: ContenderName, dtype: str = "float32") -> CompiledRow:
    shapes = trees.transformer(layers=1, width=512, dtype=jnp.dtype(dtype))
    (compiled,) = ahead.compile_all("h100", shapes, [recipe], [contender])
    return compiled


def assert_within(compiled: CompiledRow | ahead.Counted, waiting: float, updating: float, temporary: float = 0) -> None:
    assert waiting * 0.99 <= compiled.waiting_bytes <= waiting * SCALARS
    assert updating * 0.99 <= compiled.updating_bytes <= updating * SCALARS
    assert compiled.temporary_bytes <= temporary + 0.1
    assert compiled.copied_arrays == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_step_moves_what_it_must_and_copies_nothing(recipe: RecipeName) -> None:
    assert_within(row(recipe, ContenderName.APPLY), *BUDGETS[recipe])


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_step_of_the_update_form_moves_its_updates_besides(recipe: RecipeName) -> None:
    updates = 4 if RECIPES[recipe].accumulate > 1 else 0
    assert_within(row(recipe, ContenderName.UPDATE), *UPDATE_BUDGETS[recipe], updates)


@pytest.mark.parametrize("recipe", NARROW_BUDGETS, ids=str)
def test_a_step_of_narrow_parameters_does_so_too(recipe: RecipeName) -> None:
    assert_within(row(recipe, ContenderName.APPLY, "bfloat16"), *NARROW_BUDGETS[recipe])


@pytest.mark.parametrize("form", [ContenderName.APPLY, ContenderName.UPDATE], ids=str)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_window_moves_no_more_than_that_of_optax(recipe: RecipeName, form: ContenderName) -> None:
    ours, theirs = row(recipe, form), row(recipe, ContenderName.OPTAX)
    assert ours.mean_bytes <= theirs.mean_bytes * 1.005


# Where steps come from other hands -----------------------------------------------------------------------------------

TX = ours.transformation(RECIPES[RecipeName.KERAS_ARGUMENTS])
SHAPES = trees.transformer(layers=1, width=512)
LOSS = 4
"""The parameters, which the sum of `params * x` reads; its gradient `x` is read anyway."""


def loss_fn(params: Tree, x: Tree) -> jax.Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, params, x))


def compiled(jitted: Any, *arguments: Tree, shardings: Tree = None) -> ahead.Counted:
    """What is jitted, compiled for an H100, or for the devices of the shardings; bytes per parameter of all."""
    if shardings is None:
        here = SingleDeviceSharding(ahead.devices("h100")[0])
        shardings = jax.tree.map(lambda _: here, arguments)
    placed = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), arguments, shardings)
    return ahead.counted(jitted.lower(*placed).compile(), trees.size(SHAPES))


def test_make_step() -> None:
    step = optchain.make_step(loss_fn, TX)
    row = compiled(step, SHAPES, jax.eval_shape(TX.init, SHAPES), SHAPES)
    waiting, updating = BUDGETS[RecipeName.KERAS_ARGUMENTS]
    assert_within(row, waiting + LOSS, updating + LOSS)


@pytest.mark.parametrize(
    ("kind", "budgets", "temporary"),
    [(optchain.flax.TrainState, BUDGETS, 0), (train_state.TrainState, UPDATE_BUDGETS, 4)],
    ids=["ours", "flax"],
)
def test_a_train_state(kind: Any, budgets: Any, temporary: float) -> None:
    state = jax.eval_shape(lambda params: kind.create(apply_fn=loss_fn, params=params, tx=TX), SHAPES)
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads), donate_argnums=0)
    waiting, updating = budgets[RecipeName.KERAS_ARGUMENTS]
    assert_within(compiled(step, state, SHAPES), waiting, updating, temporary)


@pytest.mark.parametrize(
    ("kind", "budgets", "temporary"),
    [(optchain.flax.Optimizer, BUDGETS, 0), (nnx.Optimizer, UPDATE_BUDGETS, 4)],
    ids=["ours", "flax"],
)
def test_an_nnx_optimizer(kind: Any, budgets: Any, temporary: float) -> None:
    def made() -> tuple[nnx.Module, nnx.Optimizer]:
        model: Any = nnx.Module()
        model.layers = nnx.data(jax.tree.map(lambda leaf: nnx.Param(jnp.zeros(leaf.shape, leaf.dtype)), SHAPES))
        return model, kind(model, TX, wrt=nnx.Param)

    graph, state = nnx.split(nnx.eval_shape(made))
    grads = nnx.split(nnx.eval_shape(made)[0])[1]

    def step(state: Any, grads: Any) -> Any:
        model, optimizer = nnx.merge(graph, state)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer))

    row = compiled(jax.jit(step, donate_argnums=0), state, grads)
    waiting, updating = budgets[RecipeName.KERAS_ARGUMENTS]
    assert_within(row, waiting, updating, temporary)


def test_zero_one_pays_for_its_part_of_the_gate() -> None:
    """A device of two: what the loop of a call that updates moves is half of that of a device by itself."""
    mesh = Mesh(np.array(ahead.devices("h100", 2)), ("data",))
    whole, part = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), SHAPES)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype, sharding=part), SHAPES)
    state = jax.eval_shape(TX.init, SHAPES)
    placed = optchain.state_shardings(TX, params, mesh, axis="data")
    state = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), state, placed)

    def mean_loss(params: Tree, batch: Tree) -> jax.Array:
        return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, batch))

    step: Any = optchain.make_step(mean_loss, TX, mesh=mesh, axis="data")
    row = ahead.counted(step.lower(params, state, batch).compile(), trees.size(SHAPES))
    waiting, updating = BUDGETS[RecipeName.KERAS_ARGUMENTS]
    assert row.updating_bytes - row.waiting_bytes <= (updating - waiting) / 2 * SCALARS
    assert row.copied_arrays == 0


def test_between_two_refreshes_soap_copies_nothing() -> None:
    """What `mu`, `nu` and the bases pass through is a loop, and there they lie as outside of it."""
    tx, shapes = optchain.soap(), {"a": (256, 256), "b": (256, 256), "c": (256, 768)}
    here = SingleDeviceSharding(ahead.devices("h100")[0])
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    arguments = (params, jax.eval_shape(tx.init, params), params)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments)
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads), donate_argnums=(0, 1))
    computations, entry = traffic.parse(step.lower(*placed).compile().as_text())
    copies = [one for one in computations[entry].values() if one.opcode in ("copy", "copy-start", "transpose")]
    assert not [one.line for one in copies if any(shape for _, shape, _ in traffic.arrays(one.type))]


# One kernel a leaf ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "floor"), [(None, 16.25), (24, 12.25)])
def test_by_kernels_a_step_of_codes_moves_each_byte_once(weights: Any, floor: float) -> None:
    """Of a leaf whose blocks lie down its rows, and of one whose blocks lie along its columns."""
    row = programs.compact_step("h100", weights, kernel=True)
    assert_within(row, floor, floor)


def test_xla_alone_moves_the_moments_more_than_once() -> None:
    """When it no longer does, the kernels may go."""
    assert programs.compact_step("h100", 24, kernel=False).updating_bytes >= 20
