"""`cross_replica_mean`: under `vmap` with a named axis, under `shard_map` on two devices, and outside of both."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
GRADS = {"w": jnp.array([[3.0, 1.0], [-1.0, 4.0], [1.0, 1.0]]), "b": jnp.array([1.0, 2.0, 6.0])}
MEAN = jax.tree.map(lambda g: g.mean(0), GRADS)
BODIES = {
    "gradient": lambda: oc.adamw(0.1, global_clipnorm=1.0),
    "gate": lambda: oc.skip_nonfinite(oc.adamw(0.1, gradient_accumulation_steps=2)),
}


def replicas(tx, params, grads, steps=3):
    """Each replica has its own gradients, and so its own state."""

    def run(grads):
        carry = params, tx.init(params)
        for _ in range(steps):
            carry = tx.apply(*carry, grads=grads)
        return carry

    return jax.jit(jax.vmap(run, axis_name="batch"))(grads)


@pytest.mark.thorough
@pytest.mark.parametrize("body", BODIES)
def test_every_replica_takes_the_step_of_the_mean_gradient(body):
    tx = oc.chain(oc.cross_replica_mean("batch"), BODIES[body]())
    params, _ = replicas(tx, PARAMS, GRADS)
    alone = oc.chain(("alone", BODIES[body]()))
    carry = PARAMS, alone.init(PARAMS)
    for _ in range(3):
        carry = alone.apply(*carry, grads=MEAN)
    for leaf, expected in zip(jax.tree.leaves(params), jax.tree.leaves(carry[0]), strict=True):
        np.testing.assert_allclose(leaf, np.broadcast_to(expected, leaf.shape), rtol=1e-6)


def test_one_bad_replica_stops_them_all():
    tx = oc.chain(oc.cross_replica_mean("batch"), oc.skip_nonfinite(oc.sgd(0.1)))
    params, state = replicas(tx, PARAMS, {**GRADS, "b": jnp.array([1.0, jnp.nan, 1.0])}, steps=1)
    np.testing.assert_array_equal(params["b"], 0.5)
    np.testing.assert_array_equal(state["skip_nonfinite"]["skipped_steps"], 1)


def test_narrow_gradients_are_averaged_in_float32():
    grads = {"w": jnp.array([[1.0], [2.0**-8]], jnp.bfloat16)}
    tx = oc.cross_replica_mean("batch")
    updates, _ = jax.vmap(lambda g: tx.run_update(g, {}, None, {}), axis_name="batch")(grads)
    np.testing.assert_array_equal(updates["w"], (1 + 2.0**-8) / 2)


def test_several_axes_are_averaged_together():
    tx = oc.cross_replica_mean(("rows", "columns"))
    mean = jax.vmap(jax.vmap(lambda g: tx.update(g, {})[0], axis_name="rows"), axis_name="columns")(
        jnp.arange(6.0).reshape(2, 3)
    )
    np.testing.assert_array_equal(mean, 2.5)


@pytest.mark.parametrize("form", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap without a name"])
def test_outside_of_the_axis_the_error_says_where_it_belongs(form):
    tx = oc.chain(oc.cross_replica_mean("batch"), oc.sgd(0.1))
    with pytest.raises(
        NameError, match=r"cross_replica_mean: there is no axis 'batch' here\. It works inside shard_map or pmap"
    ):
        form(lambda grads: tx.update(grads, tx.init(grads))[0])(jnp.ones((2, 2)))


def test_it_comes_back_from_json():
    for tx in (oc.cross_replica_mean("batch"), oc.cross_replica_mean(("rows", "columns"))):
        assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx
        assert eval(repr(tx), {"cross_replica_mean": oc.cross_replica_mean}) == tx


TWO_DEVICES = """
    import jax, jax.numpy as jnp, numpy as np, optchain as oc
    from jax.sharding import PartitionSpec as P
    assert len(jax.devices()) == 2
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    tx = oc.chain(oc.cross_replica_mean("batch"), oc.adamw(0.1, global_clipnorm=1.0, use_ema=True))
    params, grads = jnp.array([1.0, -2.0]), jnp.array([[3.0, 1.0], [-1.0, 4.0]])

    def step(params, state, grads):
        return tx.apply(params, state, grads=grads[0])

    specs = (P(), P())
    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(*specs, P("batch")), out_specs=specs))
    new, state = sharded(params, tx.init(params), grads)
    alone = oc.adamw(0.1, global_clipnorm=1.0, use_ema=True)
    expected, _ = alone.apply(params, alone.init(params), grads=grads.mean(0))
    np.testing.assert_allclose(new, expected, rtol=1e-6)

    print("agreed")
"""


@pytest.mark.thorough
def test_two_devices_under_shard_map_take_the_step_of_the_mean_gradient():
    """The outputs are declared to be the same on both devices, and JAX checks that they are."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_DEVICES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "agreed", done.stderr
