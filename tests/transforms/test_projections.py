"""Projections as links: where they stand, what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

PARAMS = {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.2]]), "bias": jnp.array([-5.0, 1e-9])}
KERNEL = oc.matching("kernel")
PROJECTIONS = {
    "non-negative": lambda **mask: oc.project_non_negative(**mask),
    "unit norm": lambda **mask: oc.project_unit_norm(**mask),
    "max norm": lambda **mask: oc.project_max_norm(1.0, **mask),
    "min-max norm": lambda **mask: oc.project_min_max_norm(1.0, 2.0, 0.5, **mask),
}
every_projection = pytest.mark.parametrize("name", PROJECTIONS)


def norms(params):
    return np.linalg.norm(params["kernel"], axis=0)


@every_projection
def test_parameters_outside_of_the_mask_are_not_touched(name):
    tx = oc.chain(oc.sgd(0.1), PROJECTIONS[name](mask=KERNEL))
    alone = oc.sgd(0.1).apply(PARAMS, oc.sgd(0.1).init(PARAMS), grads=PARAMS)[0]
    params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    np.testing.assert_array_equal(params["bias"], alone["bias"])
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["bias"], -0.1 * PARAMS["bias"])
    assert not np.array_equal(updates["kernel"], -0.1 * PARAMS["kernel"]) or name == "non-negative"


@every_projection
def test_a_mask_is_masked(name):
    by_argument, by_wrapper = PROJECTIONS[name](mask=KERNEL), oc.masked(PROJECTIONS[name](), KERNEL)
    one, other = (tx.apply(PARAMS, {}, grads=PARAMS)[0] for tx in (by_argument, by_wrapper))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    acting = {row.path: row.links for row in oc.describe(by_argument, PARAMS).per_parameter}
    assert acting["bias"] == ()
    assert acting["kernel"]


def test_a_norm_goes_where_it_belongs():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for name, expected in {
        "unit norm": [1, 1],
        "max norm": [1, 0.05**0.5],
        "min-max norm": [3.5, (0.05**0.5 + 1) / 2],
    }.items():
        params, _ = PROJECTIONS[name]().apply(PARAMS, {}, grads=zeros)
        np.testing.assert_allclose(norms(params), expected, rtol=1e-5)


def test_a_projection_after_a_gate_acts_at_every_call_and_inside_it_at_every_update():
    body = oc.sgd(0.0)
    outside = oc.chain(oc.accumulate(body, 2), oc.project_unit_norm(mask=KERNEL))
    inside = oc.accumulate(oc.chain(body, oc.project_unit_norm(mask=KERNEL)), 2)
    for tx, expected in ((outside, [1, 1]), (inside, norms(PARAMS))):
        params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
        np.testing.assert_allclose(norms(params), expected, rtol=1e-6)


@pytest.mark.parametrize("mask", [None, KERNEL], ids=["all", "some"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_flush_ends_within_the_projection(mask, nested):
    projection = oc.project_max_norm(jnp.array(1.0), mask=mask)
    tx = oc.chain(oc.accumulate(oc.sgd(1.0), 4), oc.chain(projection, name="last") if nested else projection)
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=jax.tree.map(lambda p: -10 * p, PARAMS))
    flushed, new_state = oc.flush(tx, params, state)
    np.testing.assert_allclose(norms(flushed), 1.0, rtol=1e-6)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_a_bound_may_be_set_at_run_time():
    tx = oc.project_max_norm(jnp.array(1.0), mask=KERNEL)
    state = oc.set_hyperparams(tx.init(PARAMS), max_value=2.0)
    params, _ = tx.apply(PARAMS, state, grads=jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(norms(params)[0], 2.0, rtol=1e-6)


def test_a_list_and_a_tuple_of_axes_are_the_same():
    assert oc.project_unit_norm([0, 1]) == oc.project_unit_norm((0, 1))
    assert oc.project_unit_norm([0, 1]) != oc.project_unit_norm([1, 0])
    assert oc.from_config(oc.to_config(oc.project_unit_norm((0, 1), mask=KERNEL))) == oc.project_unit_norm(
        (0, 1), mask=KERNEL
    )
    assert oc.masked(oc.sgd(0.1), [True, False]) != oc.masked(oc.sgd(0.1), (True, False))
