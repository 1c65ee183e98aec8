"""States and parameters can be donated: no two leaves share a buffer, with each other or with the caller."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

from .steps import STEPS, apply_step, assert_close, assert_same, run
from .table import every_row
from .trees import PLAIN, TREES, grads_of, params_of


@functools.partial(jax.jit, donate_argnums=(1, 2))
def donated_step(tx, params, state, grads):
    """Warnings are errors here: every donated buffer must be usable."""
    return tx.apply(params, state, grads=grads)


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) if leaf.size]


def assert_no_shared_buffers(*trees_):
    found = [pointer for tree in trees_ for pointer in pointers(tree)]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("tree", ["nested_dict", "bare_array", "scalars", "nnx_state"])
@every_row
def test_init_shares_no_buffer(row, tree):
    params = params_of(tree)
    assert_no_shared_buffers(params, row.make().init(params))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_row
def test_a_donated_step_works_right_after_init(row, dtype):
    tx, params = row.make(), params_of(PLAIN, dtype)
    state = tx.init(params)
    donated = jax.tree.leaves((params, state))
    expected = run(tx, PLAIN, dtype, steps=2)
    params, state = donated_step(tx, params, state, grads_of(PLAIN, dtype))
    assert all(leaf.is_deleted() for leaf in donated if leaf.ndim)  # JAX keeps a scalar that the step does not read
    assert_same(donated_step(tx, params, state, grads_of(PLAIN, dtype, 1)), expected)


@every_row
def test_a_donated_step_works_after_an_eager_step(row):
    tx, params = row.make(), params_of()
    params, state = tx.apply(params, tx.init(params), grads=grads_of())
    assert_no_shared_buffers(params, state)
    params, state = donated_step(tx, params, state, grads_of(step=1))
    assert_close((params, state), run(tx, steps=2), roundings=32)  # eager arithmetic is not fused


@every_row
def test_a_donated_step_works_after_an_eager_update(row):
    tx, params = row.make(), params_of()
    state = tx.init(params)
    updates, state = tx.update(grads_of(), state, params)
    params = optax.apply_updates(params, updates)
    assert_no_shared_buffers(params, state)
    params, state = donated_step(tx, params, state, grads_of(step=1))
    assert_close((params, state), run(tx, steps=2), roundings=32)


@every_row
def test_a_donated_step_works_after_set_hyperparams(row):
    """With a NumPy scalar and with a JAX array, which stays the caller's."""
    tx, params = row.make(), params_of()
    state = tx.init(params)
    scheduled = {key for key in oc.get_hyperparams(state) if _is_scheduled(state, key)}
    for make in (np.float32, jnp.float32):
        given = {key: make(0.25) for key in oc.get_hyperparams(state) if key not in scheduled}
        state = oc.set_hyperparams(state, given)
        assert_no_shared_buffers(params, state, [jnp.asarray(value) for value in given.values()])
        params, state = donated_step(tx, params, state, grads_of())
        for key, value in given.items():
            assert float(value) == 0.25
            assert float(oc.get_hyperparams(state)[key]) == 0.25


def _is_scheduled(state, key):
    with_key = {key: 0.25}
    try:
        oc.set_hyperparams(state, with_key)
    except ValueError as error:
        assert "scheduled" in str(error)  # noqa: PT017
        return True
    return False


def test_an_array_given_as_a_hyperparameter_outlives_donation():
    rate, decay, beta = jnp.array(0.1), jnp.array(0.01), jnp.array(0.9)
    tx = oc.adamw(rate, decay, beta)
    params = params_of()
    state = tx.init(params)
    assert_no_shared_buffers(params, state, [rate, decay, beta])
    for _ in range(2):
        params, state = donated_step(tx, params, state, grads_of())
    assert (float(rate), float(decay), float(beta)) == pytest.approx((0.1, 0.01, 0.9))
    other = tx.init(params)  # the configuration has kept its own copy
    assert float(oc.get_hyperparams(other)["learning_rate"]) == pytest.approx(0.1)


def test_an_array_given_as_a_hyperparameter_may_be_donated_by_its_owner():
    rate = jnp.array(0.1)
    tx = oc.sgd(rate)
    rate.delete()
    params, _ = donated_step(tx, jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_allclose(params, 0.9, rtol=1e-6)


@every_row
def test_what_readers_return_is_not_the_states(row):
    tx, params = row.make(), params_of()
    state = tx.init(params)
    assert_no_shared_buffers(params, state, oc.get_hyperparams(state), oc.metrics(state))


def test_the_readers_that_return_the_states_own_say_so():
    state = oc.average_params().init(jnp.ones(2))
    assert oc.averaged_params(state) is state["average"]
    for reader in (oc.averaged_params, oc.finalize):
        assert "copy before donating" in reader.__doc__


def test_every_tree_donates():
    tx = oc.adamw(0.1, use_ema=True)
    for tree in TREES:
        params = params_of(tree)
        state = tx.init(params)
        for step in range(STEPS):
            params, state = donated_step(tx, params, state, grads_of(tree, step=step))
        assert_same((params, state), run(tx, tree))
        assert apply_step(tx, params, state, grads_of(tree)) is not None
