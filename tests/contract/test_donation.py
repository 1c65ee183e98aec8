"""States and parameters can be donated: no two leaves share a buffer, with each other or with the caller."""

import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc
from optchain.testing.donation import assert_no_shared_buffers, donated_step

from .steps import STEPS, apply_step, assert_same, run
from .table import every_row
from .trees import TREES, grads_of, params_of

pytestmark = [pytest.mark.each_value(of="the contract"), pytest.mark.programs]


@pytest.mark.parametrize("tree", ["bare_array", "scalars", "nnx_state"])
@every_row
def test_init_shares_no_buffer(row, tree):
    params = params_of(tree)
    assert_no_shared_buffers(params, row.make().init(params))


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


def test_the_readers_that_return_the_states_own_say_so():
    state = oc.average_params().init(jnp.ones(2))
    assert oc.averaged_params(state) is state["average"]
    for reader in (oc.averaged_params, oc.finalize):
        assert "copy before donating" in reader.__doc__


@pytest.mark.thorough
def test_every_tree_donates():
    tx = oc.adamw(0.1, use_ema=True)
    for tree in TREES:
        params = params_of(tree)
        state = tx.init(params)
        for step in range(STEPS):
            params, state = donated_step(tx, params, state, grads_of(tree, step=step))
        assert_same((params, state), run(tx, tree))
        assert apply_step(tx, params, state, grads_of(tree)) is not None
