"""`compact` over eight devices: the bits of one device, and no collective that the wide state does not need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from benchmarks.collectives import collectives
from tests.sampling import others_thorough

from .runs import mesh_of

pytestmark = pytest.mark.programs


def normal(seed, *shape):
    """NumPy's: JAX's would be compiled wherever tests are collected."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {"up": normal(0, 512, 1024), "down": normal(1, 1024, 512), "bias": jnp.asarray(np.zeros(1024, np.float32))}
GRADS = {key: normal(seed, *leaf.shape) for seed, (key, leaf) in enumerate(PARAMS.items(), 2)}
BATCH = normal(5, 64, 512)
ROWS, COLUMNS = P("data"), P(None, "data")
LAYOUTS = {
    "data parallel": ({"data": 8}, {"up": P(), "down": P(), "bias": P()}, None),
    "ZeRO-1": ({"data": 8}, {"up": P(), "down": P(), "bias": P()}, "data"),
    "rows": ({"data": 8}, {"up": ROWS, "down": ROWS, "bias": ROWS}, None),
    "columns": ({"data": 8}, {"up": COLUMNS, "down": ROWS, "bias": ROWS}, None),
    "both": ({"data": 4, "model": 2}, {"up": P("data", "model"), "down": P("model", "data"), "bias": P("model")}, None),
}
every_layout = pytest.mark.parametrize("name", LAYOUTS)
narrow_params = functools.cache(lambda: oc.narrow(PARAMS))
OPTIONS = {"24": {"weights": 24}, "bfloat16": {"moments": "bfloat16"}}


@jax.jit
def apply_step(tx, params, state, grads):
    return tx.apply(params, state, grads=grads)


@functools.cache
def on_one_device(options):
    """Three steps; the layouts are compared with the same ones."""
    tx, params = oc.compact(oc.adamw(1e-2), **OPTIONS[options]), narrow_params() if options == "24" else PARAMS
    state = tx.init(params)
    for _ in range(3):
        params, state = apply_step(tx, params, state, GRADS)
    return params, state


def loss_fn(params, x):
    hidden = jnp.tanh(x @ params["up"].astype(jnp.float32) + params["bias"])
    return jnp.mean((hidden @ params["down"].astype(jnp.float32) - x) ** 2)


def laid_out(tree, mesh, specs):
    return {key: jax.device_put(jnp.copy(leaf), NamedSharding(mesh, specs[key])) for key, leaf in tree.items()}


@pytest.mark.parametrize("name", others_thorough(LAYOUTS, "ZeRO-1", "both"))
@pytest.mark.parametrize("options", OPTIONS)
def test_eight_devices_have_the_bits_of_one(name, options):
    axes, specs, axis = LAYOUTS[name]
    mesh = mesh_of(**axes)
    tx = oc.compact(oc.adamw(1e-2), **OPTIONS[options])
    split = laid_out(narrow_params() if options == "24" else PARAMS, mesh, specs)
    shardings = oc.state_shardings(tx, split, mesh, axis=axis)
    split_state = oc.init_sharded(tx, split, mesh, axis=axis)
    grads = laid_out(GRADS, mesh, specs)
    placed = jax.tree.map(lambda p: p.sharding, split)
    split_step = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g), out_shardings=(placed, shardings))
    for _ in range(3):
        split, split_state = split_step(split, split_state, grads)
    alone = jax.tree.leaves(on_one_device(options))
    for one, eight in zip(alone, jax.tree.leaves((split, split_state)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(eight))
    if name != "data parallel":
        codes = split_state["inner"]["scale_by_adam"]["mu"]["codes"]["up"]
        assert codes.addressable_shards[0].data.size == codes.size // 8
        for scale in jax.tree.leaves(split_state["inner"]["scale_by_adam"]["mu"]["scales"]):
            assert scale.addressable_shards[0].data.size == scale.size // 8 or scale.ndim == 1


@every_layout
def test_no_collective_is_added(name):
    axes, specs, axis = LAYOUTS[name]
    mesh = mesh_of(**axes)

    def counted(tx, params):
        params = laid_out(params, mesh, specs)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(tx.init, params),
            oc.state_shardings(tx, params, mesh, axis=axis),
        )
        step = oc.make_step(loss_fn, tx, mesh=mesh, axis=axis)
        # The collectives stand before machine code is made, which need not be fast: nothing runs.
        compiled = step.lower(params, state, BATCH).compile({"xla_backend_optimization_level": 0})
        return sorted(found.kind for found in collectives(compiled.as_text()))

    wide, compact = (
        counted(oc.adamw(1e-2), narrow_params()),
        counted(oc.compact(oc.adamw(1e-2), weights=24), narrow_params()),
    )
    assert compact == wide


@pytest.mark.long
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("inner", "chosen"),
    [
        pytest.param(oc.adam(1e-2), ("mu", "low"), marks=pytest.mark.for_release),
        (oc.adamw(1e-2, use_ema=True, gradient_accumulation_steps=2), ("mu", "grads", "low")),
    ],
    ids=["adam", "accumulate, average"],
)
def test_the_state_may_lie_in_the_hosts_memory_too(inner, chosen):
    mesh = mesh_of(data=8)
    tx = oc.compact(inner, weights=24, average="int8", accumulator="int8")
    _, specs, _ = LAYOUTS["rows"]
    results = []
    for kind in (None, "pinned_host", dict.fromkeys(chosen, "pinned_host")):
        params = laid_out(narrow_params(), mesh, specs)
        state = oc.init_sharded(tx, params, mesh, memory_kind=kind)
        step = oc.make_step(loss_fn, tx, mesh=mesh, memory_kind=kind)
        for _ in range(4):
            params, state, _ = step(params, state, BATCH)
        results.append((params, state))
    first, *others = ([np.asarray(leaf) for leaf in jax.tree.leaves(result)] for result in results)
    for other in others:
        for one, same in zip(first, other, strict=True):
            np.testing.assert_array_equal(one, same)
    state = results[1][1]["inner"]
    state = state["accumulate"]["inner"] if "accumulate" in state else state
    codes = state["scale_by_adam"]["nu"]["codes"]["up"]
    assert codes.sharding.memory_kind == "pinned_host"
    wide = [oc.wide_params(*result) for result in results]
    jax.tree.map(np.testing.assert_array_equal, *wide[:2])


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        pytest.param((64, 64), P("data", None), marks=pytest.mark.thorough),
        pytest.param((64, 32), P("data", "model"), marks=pytest.mark.thorough),
        ((64,), P("data")),
        ((3, 64, 32), P(None, "data", "model")),
    ],
)
def test_axes_may_be_explicit_and_devices_without_a_whole_block(shape, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    tx = oc.compact(oc.adam(1e-2), min_size=1)
    params = {"k": normal(0, *shape)}
    split = {"k": jax.device_put(params["k"], NamedSharding(mesh, spec))}
    step = oc.make_step(lambda p: jnp.sum(p["k"] ** 2), tx, mesh=mesh)
    alone = oc.make_step(lambda p: jnp.sum(p["k"] ** 2), tx)(params, tx.init(params))
    several = step(split, oc.init_sharded(tx, split, mesh))
    for one, eight in zip(jax.tree.leaves(alone[:2]), jax.tree.leaves(several[:2]), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(eight))
