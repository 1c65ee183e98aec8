"""Matrices that are split over devices are made orthogonal whole, each by the device that owns it."""

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
LAYOUTS = {"FSDP": ((8,), ("data",), P("data")), "both": ((4, 2), ("data", "model"), P("data", "model"))}
TENSOR = {"tensor-parallel": ((8,), ("model",), P(None, "model"))}
TX = oc.chain(oc.scale_by_muon(), oc.scale_by_learning_rate(0.1))


def matrices(count):
    rng = np.random.default_rng(0)
    return {f"w{i}": rng.normal(size=(32, 32)).astype(np.float32) for i in range(count)}


def loss(params, batch):
    return sum((params[name] * batch[name]).sum() for name in params)


def by_make_step(mesh, placed):
    step = oc.make_step(loss, TX, mesh=mesh)
    state = oc.init_sharded(TX, placed, mesh)
    batch = jax.tree.map(jnp.copy, placed)  # the parameters are donated
    compiled = step.lower(placed, state, batch).compile()
    return step(placed, state, batch)[0], compiled


def by_jit(mesh, placed):
    with jax.set_mesh(mesh):
        state = oc.init_sharded(TX, placed, mesh)
        out = jax.tree.map(lambda x: x.sharding, (placed, state))
        jitted = jax.jit(lambda p, s: TX.apply(p, s, grads=p), out_shardings=out)
        return jitted(placed, state)[0], jitted.lower(placed, state).compile()


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
QUICK = (AUTO, by_make_step, "both", 8)
CASES = [
    (kind, run, layout, count)
    for kind in (AUTO, EXPLICIT)
    for run in (by_make_step, by_jit)
    for layout in LAYOUTS | TENSOR
    for count in (8, 3)
]


@pytest.mark.parametrize(
    ("kind", "run", "layout", "count"),
    [pytest.param(*case, marks=[] if case == QUICK else pytest.mark.thorough) for case in CASES],
)
def test_split_matrices_are_exchanged_and_not_gathered_with_the_numbers_of_one_device(kind, run, layout, count):
    shape, names, spec = (LAYOUTS | TENSOR)[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
    params = matrices(count)
    placed = {name: jax.device_put(p, NamedSharding(mesh, spec)) for name, p in params.items()}
    grads = {name: jnp.asarray(p) for name, p in params.items()}
    one, _ = jax.jit(TX.apply)(grads, TX.init(grads), grads=grads)
    new, compiled = run(mesh, placed)
    for name in params:
        np.testing.assert_allclose(new[name], one[name], rtol=1e-6, atol=1e-6)
    found = Counter(COLLECTIVE.findall(compiled.as_text()))
    assert found["all-to-all"] == 2 * len(names) or count % 8
    assert found["all-gather"] == 0 or count % 8
