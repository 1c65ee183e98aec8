"""Matrices that are split over devices are made orthogonal whole, each by the device that owns it."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc

COLLECTIVE = re.compile(r"= .*? (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(")
LAYOUTS = {
    "FSDP": ((8,), ("data",), P(None, "data")),
    "tensor-parallel": ((8,), ("model",), P(None, None, "model")),
    "both": ((4, 2), ("data", "model"), P(None, "data", "model")),
}
TX = oc.muon_adamw(0.1, matrices={"layers": (-2, -1), "heads": (0, 1)}, ns_steps=2)


def weights(count):
    rng = np.random.default_rng(0)
    return {
        "layers": rng.normal(size=(count - 1, 16, 16)).astype(np.float32),
        "heads": rng.normal(size=(16, 16)).astype(np.float32),
    }


def loss(params, batch):
    return sum((params[name] * batch[name]).sum() for name in params)


def by_make_step(mesh, placed):
    step = oc.make_step(loss, TX, mesh=mesh)
    state = oc.init_sharded(TX, placed, mesh)
    batch = jax.tree.map(jnp.copy, placed)  # the parameters are donated
    compiled = step.lower(placed, state, batch).compile()
    return compiled(placed, state, batch)[0], compiled


def by_jit(mesh, placed):
    with jax.set_mesh(mesh):
        state = oc.init_sharded(TX, placed, mesh)
        out = jax.tree.map(lambda x: x.sharding, (placed, state))
        jitted = jax.jit(lambda p, s: TX.apply(p, s, grads=p), out_shardings=out)
        compiled = jitted.lower(placed, state).compile()
        return compiled(placed, state)[0], compiled


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
QUICK = (AUTO, by_make_step, "both", 8)
CASES = [(kind, run, "both", 8) for kind in (AUTO, EXPLICIT) for run in (by_make_step, by_jit)]
CASES += [(AUTO, by_jit, "FSDP", 8), (EXPLICIT, by_make_step, "tensor-parallel", 8), (AUTO, by_jit, "FSDP", 3)]


@functools.cache
def of_one_device(count):
    grads = jax.tree.map(jnp.asarray, weights(count))
    return jax.jit(TX.apply)(grads, TX.init(grads), grads=grads)[0]


@pytest.mark.parametrize(
    ("kind", "run", "layout", "count"),
    [pytest.param(*case, marks=[] if case == QUICK else pytest.mark.thorough) for case in CASES],
)
def test_split_matrices_are_exchanged_and_not_gathered_with_the_numbers_of_one_device(kind, run, layout, count):
    shape, names, spec = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    params = weights(count)
    specs = {"layers": spec, "heads": P(*spec[1:])}
    placed = {name: jax.device_put(p, NamedSharding(mesh, specs[name])) for name, p in params.items()}
    new, compiled = run(mesh, placed)
    for name in params:
        np.testing.assert_allclose(new[name], of_one_device(count)[name], rtol=1e-6, atol=1e-6)
    found = Counter(COLLECTIVE.findall(compiled.as_text()))
    found.pop("all-reduce", None)  # of the loss
    assert found == {"all-to-all": 2 * len(names)}


@pytest.mark.thorough
@pytest.mark.parametrize("spec", [P(("data", "model")), P(None, ("data", "model"))], ids=["rows", "columns"])
def test_matrices_that_are_split_over_both_axes_at_once_are_exchanged(spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AUTO,) * 2)
    params = {f"w{i}": jax.random.normal(jax.random.key(i), (16, 32)) for i in range(16)}
    tx = oc.chain(oc.scale_by_muon(), oc.scale_by_learning_rate(0.1))
    placed = jax.device_put(params, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        state = tx.init(placed)
        out = jax.tree.map(lambda x: x.sharding, (placed, state))
        step = jax.jit(lambda p, s: tx.apply(p, s, grads=p), out_shardings=out)
        compiled = step.lower(placed, state).compile()
        new, _ = compiled(placed, state)
    expected, _ = jax.jit(lambda p, s: tx.apply(p, s, grads=p))(params, tx.init(params))
    for name in params:
        np.testing.assert_allclose(new[name], expected[name], rtol=1e-6, atol=1e-6)
    assert Counter(COLLECTIVE.findall(compiled.as_text())) == {"all-to-all": 4}


def test_matrices_that_lie_whole_everywhere_are_dealt_out_without_a_word_and_gathered_at_once():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))
    placed = jax.device_put(weights(8), NamedSharding(mesh, P()))
    new, compiled = by_jit(mesh, placed)
    for name in placed:
        np.testing.assert_allclose(new[name], of_one_device(8)[name], rtol=1e-6, atol=1e-6)
    assert Counter(COLLECTIVE.findall(compiled.as_text())) == {"all-gather": 1}


@pytest.mark.parametrize(
    ("layout", "spec", "found"),
    [
        ("FSDP", P("data"), {}),
        ("both", P("data", None, "model"), {"all-to-all": 2}),
    ],
)
def test_layers_that_lie_on_devices_of_their_own_stay_there(layout, spec, found):
    shape, names, _ = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(AUTO,) * len(names))
    params = {"layers": np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32)}
    placed = jax.device_put(params, NamedSharding(mesh, spec))
    tx = oc.scale_by_muon(matrices={"layers": (-2, -1)}, ns_steps=2)
    with jax.set_mesh(mesh):
        state = oc.init_sharded(tx, placed, mesh)
        out = jax.tree.map(lambda x: x.sharding, (placed, state))
        compiled = jax.jit(lambda g, s: tx.update(g, s, g), out_shardings=out).lower(placed, state).compile()
        new, _ = compiled(placed, state)
    grads = jax.tree.map(jnp.asarray, params)
    np.testing.assert_allclose(new["layers"], tx.update(grads, tx.init(grads))[0]["layers"], rtol=1e-6, atol=1e-6)
    assert Counter(COLLECTIVE.findall(compiled.as_text())) == found
