"""Inside `shard_map` what a link decides must be the same on every device: if it is not, the error says which link to add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import optchain as oc

from .runs import mesh_of

DECIDING = {
    "skip_nonfinite": lambda **axis: oc.skip_nonfinite(oc.adam(0.1), **axis),
    "dynamic_loss_scale": lambda **axis: oc.dynamic_loss_scale(oc.sgd(0.1, 0.9), 2.0, **axis),
    "clip_by_global_norm": lambda **axis: oc.chain(oc.clip_by_global_norm(1.0, **axis), oc.sgd(0.1)),
}
every_link = pytest.mark.parametrize("name", DECIDING)
MESH = {"data": 2, "model": 4}


def trace(tx, params_spec, grads_spec, out_spec, form="apply"):
    """Traces a first step, state and all, with parameters and gradients that vary over the axes of their specs."""

    def step(params, grads):
        state = tx.init(params)
        if form == "apply":
            return tx.apply(params, state, grads=grads)[0]
        return tx.update(grads, state, params)[0]

    mapped = jax.shard_map(step, mesh=mesh_of(**MESH), in_specs=(params_spec, grads_spec), out_specs=out_spec)
    return jax.eval_shape(mapped, jnp.ones((8, 4)), jnp.ones((8, 4)))


@every_link
@pytest.mark.parametrize("form", ["apply", "update"])
def test_a_decision_that_differs_is_an_error_that_says_which_link_to_add(name, form):
    message = (
        rf"{name}: .* over the devices of the axis 'data'.*put cross_replica_mean\('data'\) first in the chain.*"
        rf"give {name} axis_name='data'.*axis_name=\(\)"
    )
    with pytest.raises(ValueError, match=message):
        trace(DECIDING[name](), P("data"), P("data"), P("data"), form)
    with pytest.raises(ValueError, match=r"axis_name=\('data', 'model'\)"):
        trace(DECIDING[name](), P(("data", "model")), P(("data", "model")), P(("data", "model")), form)


@every_link
@pytest.mark.parametrize("form", ["apply", "update"])
def test_what_the_message_says_helps(name, form):
    trace(DECIDING[name](axis_name="data"), P("data"), P("data"), P("data"), form)
    trace(DECIDING[name](axis_name=()), P("data"), P("data"), P("data"), form)
    # Gradients of a part of the batch each: the result is declared to be the same everywhere, and JAX checks that it is.
    mean_first = oc.chain(oc.cross_replica_mean(("data", "model")), ("rest", DECIDING[name]()))

    def step(params, grads):
        return mean_first.apply(params, mean_first.init(params), grads={"w": grads["w"][0]})[0]

    specs = ({"w": P()}, {"w": P(("data", "model"))})
    mapped = jax.shard_map(step, mesh=mesh_of(**MESH), in_specs=specs, out_specs={"w": P()})
    jax.eval_shape(mapped, {"w": jnp.ones(3)}, {"w": jnp.ones((8, 3))})


NESTED = {
    "a loss scale around a skip": lambda: oc.dynamic_loss_scale(
        oc.skip_nonfinite(oc.adam(0.1), axis_name=()), 2.0, axis_name=()
    ),
    "an accumulator around a skip": lambda: oc.accumulate(oc.skip_nonfinite(oc.adam(0.1), axis_name=()), 2),
    "a skip around both": lambda: oc.skip_nonfinite(
        oc.accumulate(oc.skip_nonfinite(oc.adam(0.1), axis_name=()), 2), axis_name=()
    ),
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("form", ["apply", "update"])
def test_where_each_device_decides_for_itself_nested_gates_do_what_they_do_alone(name, form):
    """What counts their decisions is the same on all devices before the call, and not after it."""
    tx, params, grads = NESTED[name](), jnp.ones((2, 4)), jnp.ones((2, 4)).at[1, 0].set(jnp.nan)

    def steps(params, grads):
        state = tx.init(params)
        for _ in range(4):
            if form == "apply":
                params, state = tx.apply(params, state, grads=grads)
            else:
                updates, state = tx.update(grads, state, params)
                params = params + updates
        return params

    mapped = jax.shard_map(steps, mesh=mesh_of(data=2), in_specs=P("data"), out_specs=P("data"))
    alone = jnp.concatenate([jax.jit(steps)(params[i : i + 1], grads[i : i + 1]) for i in range(2)])
    np.testing.assert_allclose(jax.jit(mapped)(params, grads), alone, rtol=1e-6)
    assert (alone[0] < 1).all()
    np.testing.assert_array_equal(alone[1], 1)


@every_link
def test_an_axis_that_was_left_out_is_named(name):
    with pytest.raises(ValueError, match="over the devices of the axis 'model', and they would diverge"):
        trace(DECIDING[name](axis_name="data"), P("data", "model"), P("data", "model"), P("data", "model"))


def test_parameters_that_are_whole_count_once_in_a_norm_over_devices():
    mesh, grads = mesh_of(data=8), {"split": jnp.full(8, 3.0), "whole": jnp.array([4.0])}

    def norm(grads):
        link = oc.clip_by_global_norm(1.0, axis_name="data")
        return link.update(grads, link.init(grads))[1]["metrics"]["global_norm"]

    specs = {"split": P("data"), "whole": P()}
    found = jax.jit(jax.shard_map(norm, mesh=mesh, in_specs=(specs,), out_specs=P()))(grads)
    np.testing.assert_allclose(found, np.sqrt(8 * 9 + 16), rtol=1e-6)


def test_under_pmap_jax_does_not_know_and_the_mean_of_the_replicas_keeps_them_together():
    """What cannot be checked there, as the docstrings say; with `cross_replica_mean` first, one bad replica stops them all."""
    grads = np.ones((8, 2), np.float32)
    grads[3] = np.nan
    params = np.zeros((8, 2), np.float32)

    def stepped(tx):
        def step(params, grads):
            return tx.apply(params, tx.init(params), grads=grads)[0]

        return np.asarray(jax.pmap(step, axis_name="data")(params, grads))

    apart = stepped(oc.skip_nonfinite(oc.sgd(0.1)))
    assert np.unique(apart, axis=0).shape[0] == 2
    together = stepped(oc.chain(oc.cross_replica_mean("data"), oc.skip_nonfinite(oc.sgd(0.1))))
    np.testing.assert_array_equal(together, params)
