"""State and parameters in the host's memory: the numbers of a step, where everything lies, and what is refused.

`tests/test_tpu.py` counts what a TPU then holds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from optchain.training.memory_kind import _cpu_programs_use_it

from .runs import IN, OUT, batches, loss_fn, mesh_of, params_of

needs_host_memory = pytest.mark.skipif(
    not _cpu_programs_use_it(), reason="this version of JAX uses no host memory on a CPU"
)

RECIPES = {
    "adamw, clip, average": oc.adamw(0.1, global_clipnorm=1.0, use_ema=True, amsgrad=True),
    "accumulate, skip": oc.skip_nonfinite(oc.adamw(0.1, clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2)),
    "loss scale": oc.dynamic_loss_scale(oc.sgd(0.1, 0.9, nesterov=True), 8.0, 2),
    "narrow slots": oc.chain(
        oc.scale_by_adam(moment_dtype="bfloat16"),
        oc.scale_by_learning_rate(0.1),
        oc.average_params(0.5, overwrite_every=3, average_dtype="bfloat16"),
    ),
    "adafactor": oc.adafactor(0.1),
    "muon": oc.muon(0.1),
    "schedule-free": oc.schedule_free_adamw(0.1),
    "groups": oc.multi_optimizer(
        ("kernels", oc.matching("kernel$"), oc.lamb(0.1)), default=oc.rmsprop(0.1, momentum=0.9)
    ),
    "Optax": optax.adamw(0.1),
}
SECONDS = ("adamw, clip, average", "adafactor", "muon", "schedule-free")
"""Those that compile for seconds, and lie no other way than one that does not."""
HOST, WHOLE = "pinned_host", P()


def narrow(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16 if np.shape(x) == (OUT,) else jnp.float32), tree)


def placed(tree, mesh, spec=WHOLE, kind="device"):
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim else P(), memory_kind=kind)), tree
    )


def train(tx, mesh, *, kind="device", **options):
    """Four steps from `init_sharded`; a gate has a NaN to stop."""
    params = placed(narrow(params_of()), mesh, kind=kind)
    state = oc.init_sharded(tx, params, mesh, **options)
    step = oc.make_step(loss_fn, tx, mesh=mesh, **options)
    for batch in batches(one_is_bad=tx in (RECIPES["accumulate, skip"], RECIPES["loss scale"])):
        params, state, metrics = step(
            params, state, *placed([jnp.asarray(b, jnp.float32) for b in batch], mesh, P("data"))
        )
    return params, state, metrics


@functools.cache
def ordinary(name, axis=None):
    """The same run with everything on the devices, which several tests compare with."""
    return train(RECIPES[name], mesh_of(data=2), axis=axis)


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


def assert_equal_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@needs_host_memory
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.thorough if name in SECONDS else ()) for name in RECIPES],
)
def test_an_offloaded_step_is_the_ordinary_one_to_the_bit(name):
    mesh = mesh_of(data=2)
    params, state, metrics = found = train(RECIPES[name], mesh, axis="data", memory_kind=HOST)
    assert_equal_bits(found, ordinary(name, "data"))
    assert kinds(state) == {HOST}
    assert kinds((params, metrics)) <= {"device"}
    plan = oc.state_shardings(RECIPES[name], params, mesh, axis="data", memory_kind=HOST)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == plan


@needs_host_memory
@pytest.mark.parametrize(
    ("name", "axis"),
    [("loss scale", "data"), pytest.param("adamw, clip, average", None, marks=pytest.mark.thorough)],
)
def test_parameters_keep_their_memory_and_their_state_follows(name, axis):
    mesh, tx = mesh_of(data=2), RECIPES[name]
    params, state, _ = found = train(tx, mesh, kind=HOST, axis=axis)
    assert_equal_bits(found, ordinary(name, axis))
    assert kinds(params) == kinds(state) == {HOST}
    assert kinds(train(tx, mesh, kind=HOST, axis=axis, memory_kind="device")[1]) == {"device"}


@needs_host_memory
def test_slots_are_chosen_by_name():
    mesh, tx = mesh_of(data=2), RECIPES["accumulate, skip"]
    chosen = {"mu": HOST, "average": HOST}
    _, state, _ = found = train(tx, mesh, memory_kind=chosen)
    assert_equal_bits(found, ordinary("accumulate, skip"))
    on_host = {
        path[-2 if path[-1].key == "scale" else -3].key
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.sharding.memory_kind == HOST
    }
    assert on_host == set(chosen)
    optax_state = oc.state_shardings(optax.adam(0.1), params_of(), mesh, memory_kind={"nu": HOST})[0]
    assert kinds_of(optax_state.nu) == {HOST}
    assert kinds_of(optax_state.mu) == {"device"}


def kinds_of(shardings):
    return {sharding.memory_kind for path, sharding in jax.tree_util.tree_leaves_with_path(shardings) if len(path) > 1}


@needs_host_memory
def test_scalars_stay_on_the_device():
    state = oc.init_sharded(RECIPES["adamw, clip, average"], params_of(), mesh_of(data=2), memory_kind=HOST)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state) if not leaf.ndim} == {"device"}


@needs_host_memory
def test_a_state_from_another_memory_goes_to_its_own_and_stays():
    mesh, tx = mesh_of(data=2), oc.adam(0.1)
    expected = train(tx, mesh)
    for start, memory_kind in (("device", HOST), (HOST, None)):
        params = placed(narrow(params_of()), mesh)
        state = placed(tx.init(params), mesh, kind=start)  # its scalars too
        step = oc.make_step(loss_fn, tx, mesh=mesh, memory_kind=memory_kind)
        for batch in batches(one_is_bad=False):
            batch = placed([jnp.asarray(b, jnp.float32) for b in batch], mesh, P("data"))
            params, state, _ = step(params, state, *batch)
            assert kinds(state) == {memory_kind or "device"}
        assert_equal_bits((params, state), expected[:2])


@pytest.mark.thorough
@needs_host_memory
def test_without_a_mesh_a_state_stays_in_the_memory_in_which_it_comes():
    tx, batch = oc.adamw(0.1, use_ema=True), jnp.ones((2, 3))
    found = []
    for move in (lambda x: x, lambda x: jax.device_put(x, jax.memory.Space.Host)):
        params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2, jnp.bfloat16)}
        step, state = (
            oc.make_step(lambda params, x: jnp.sum((x @ params["kernel"] + params["bias"]) ** 2), tx),
            jax.tree.map(lambda x, move=move: move(x) if x.ndim else x, tx.init(params)),
        )
        for _ in range(2):
            params, state, _ = step(params, state, batch)
        found.append((params, state))
    assert_equal_bits(*found)
    assert [kinds(state) for _, state in found] == [{"device"}, {HOST}]
    assert_equal_bits(*(tx.apply(params, state, grads=params) for params, state in found))  # without jit
    for finalized in (oc.finalize(params, state) for params, state in found):
        assert kinds(finalized) == {"device"}


@needs_host_memory
@pytest.mark.parametrize(
    ("tx", "read"),
    [
        (oc.adamw(0.1, use_ema=True), oc.finalize),
        (oc.schedule_free_adamw(0.1), oc.schedule_free_params),
        (oc.compact(oc.sgd(0.1), weights=24), oc.wide_params),
    ],
    ids=["finalize", "schedule_free_params", "wide_params"],
)
def test_weights_to_evaluate_come_to_the_device(tx, read):
    params = {"kernel": jnp.full((64, 64), 0.1)}
    params, state = (oc.narrow(params) if read is oc.wide_params else params), tx.init(params)
    of_host = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host) if x.ndim else x, (params, state))
    found = read(*of_host)
    assert kinds(found) == {"device"}
    assert_equal_bits(found, read(params, state))


@needs_host_memory
@pytest.mark.parametrize("name", ["loss scale", pytest.param("accumulate, skip", marks=pytest.mark.thorough)])
def test_on_a_mesh_of_explicit_axes(name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    tx = RECIPES[name]
    found = train(tx, mesh, axis="data", memory_kind=HOST)
    assert_equal_bits(found, train(tx, mesh, axis="data"))
    assert kinds(found[1]) == {HOST}


@needs_host_memory
def test_under_scan_a_state_of_the_host_is_a_carry():
    tx, mesh = oc.adamw(0.1, global_clipnorm=1.0), mesh_of(data=1)
    params = placed(narrow(params_of()), mesh)

    def run(params, state):
        return jax.lax.scan(lambda carry, _: (tx.apply(*carry, grads=carry[0]), None), (params, state), length=3)[0]

    ends = []
    for kind in ("device", HOST):
        state = oc.init_sharded(tx, params, mesh, memory_kind=kind)
        out = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
        ends.append(jax.jit(run, out_shardings=out)(params, state))
    assert_equal_bits(*ends)
    assert kinds(ends[1][1]) == {HOST}


def test_without_a_mesh_a_scalar_of_the_host_is_named():
    params, tx = narrow(params_of()), oc.sgd(0.1)
    state = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host), tx.init(params))
    with pytest.raises(
        ValueError, match=r'state\["hyperparams"\]\["learning_rate"\] lies in the host\'s memory, and is a scalar'
    ):
        oc.make_step(loss_fn, tx)(params, state, *batches(one_is_bad=False)[0])


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_a_memory_that_there_is_not_is_an_error_that_says_which_there_are():
    paper, params = AbstractMesh((8,), ("data",)), params_of()
    with pytest.raises(ValueError, match=r"memory_kind must be 'device' or 'pinned_host'; got 'host'"):
        oc.state_shardings(oc.adam(0.1), params, paper, memory_kind="host")
    with pytest.raises(ValueError, match=r"memory_kind\['mu'\] must be 'device' or 'pinned_host'; got None"):
        oc.state_shardings(oc.adam(0.1), params, paper, memory_kind={"mu": None})  # pyright: ignore
    with pytest.raises(
        TypeError, match=r"memory_kind must be 'device' or 'pinned_host', a mapping .* got True \(bool\)"
    ):
        oc.make_step(loss_fn, oc.adam(0.1), mesh=mesh_of(data=1), memory_kind=True)  # pyright: ignore
    with pytest.raises(ValueError, match="memory_kind must be given with the mesh"):
        oc.make_step(loss_fn, oc.adam(0.1), memory_kind=HOST)


def test_devices_without_host_memory_are_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr("optchain.training.memory_kind._cpu_programs_use_it", lambda: False)
    for call in (oc.init_sharded, oc.state_shardings):
        with pytest.raises(
            ValueError, match=r"memory_kind must be 'device' here: JAX .* can use no memory of the host"
        ):
            call(oc.adam(0.1), params_of(), mesh_of(data=1), memory_kind=HOST)


def test_a_slot_that_there_is_not_is_an_error_with_the_nearest():
    with pytest.raises(ValueError, match=r"slot 'mus', .* \(did you mean mu\?\); there are: 'average', 'mu', 'nu'"):
        oc.state_shardings(
            oc.adamw(0.1, use_ema=True), params_of(), AbstractMesh((8,), ("data",)), memory_kind={"mus": HOST}
        )


@needs_host_memory
def test_lazy_rows_refuse_a_state_of_the_host():
    tx, mesh = oc.lazy_rows(oc.adam(0.1)), mesh_of(data=1)
    params = placed({"table": jnp.ones((IN, 2))}, mesh)
    state = oc.init_sharded(tx, params, mesh, memory_kind=HOST)
    grads = {"table": oc.RowGradient(jnp.arange(2), jnp.ones((2, 2)), shape=(IN, 2))}
    with pytest.raises(ValueError, match=r"lazy_rows reads and writes single rows of its state, .* memory_kind"):
        tx.apply(params, state, grads=grads)


@needs_host_memory
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["step by step", "jit"])
def test_gradients_of_the_host_are_clipped_by_their_norms(jit):
    there = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    grads = jax.device_put({"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}, there)
    updates, _ = jit(oc.clip_by_norm(1.0).update)(grads, {})
    np.testing.assert_allclose(updates["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], [0.5])
