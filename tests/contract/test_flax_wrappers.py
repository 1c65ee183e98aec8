"""Every transformation works in Flax's own training objects, and in ours in the `apply` form."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.training import train_state

import optchain as oc
import optchain.flax

from .steps import STEPS, apply_step, assert_close, avals, run, update_step
from .table import every_row
from .trees import grads_of, params_of

pytestmark = pytest.mark.each_value(of="the contract")


class Model(nnx.Module):
    """A module whose parameters are the plain tree of the table."""

    def __init__(self):
        params = params_of()
        self.dense = nnx.Dict(jax.tree.map(nnx.Param, params["dense"]))
        self.head = nnx.Dict(jax.tree.map(nnx.Param, params["head"]))


def run_train_state(factory, tx):
    state = factory.create(apply_fn=None, params=params_of(), tx=tx)

    @jax.jit
    def step(state, grads):
        return state.apply_gradients(grads=grads)

    for number in range(STEPS):
        new = step(state, grads_of(step=number))
        assert avals((new.params, new.opt_state)) == avals((state.params, state.opt_state))
        state = new
    assert int(state.step) == STEPS
    return state.params, state.opt_state


def run_nnx(factory, tx):
    model = Model()
    optimizer = factory(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    for number in range(STEPS):
        step(model, optimizer, nnx.State(jax.tree.map(nnx.Param, grads_of(step=number))))
    assert int(optimizer.step[...]) == STEPS
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), jax.tree.leaves(nnx.as_pure(optimizer.opt_state))


@every_row
def test_it_works_in_flaxs_train_state(row):
    tx = row.make()
    assert_close(run_train_state(train_state.TrainState, tx), run(tx, step=update_step))


@every_row
def test_it_works_in_our_train_state(row):
    tx = row.make()
    assert_close(run_train_state(optchain.flax.TrainState, tx), run(tx))


@pytest.mark.parametrize("factory", [nnx.Optimizer, optchain.flax.Optimizer], ids=["flax", "ours"])
@every_row
def test_it_works_in_an_nnx_optimizer(row, factory):
    tx = row.make()
    params, state = run_nnx(factory, tx)
    expected, expected_state = run(tx, step=update_step if factory is nnx.Optimizer else apply_step)
    assert_close(params, expected)
    assert_close(state, jax.tree.leaves(expected_state))


@pytest.mark.parametrize("factory", [nnx.Optimizer, optchain.flax.Optimizer], ids=["flax", "ours"])
def test_patterns_find_the_same_parameters_in_nnx_at_init_and_update(factory):
    """`nnx.Optimizer` calls init with variables, whose paths end in `value`, and update with bare arrays."""
    tx = oc.sgd(1.0, weight_decay=0.5, exclude_from_weight_decay=["bias$", "head"])
    model = Model()
    before = params_of()
    factory(model, tx, wrt=nnx.Param).update(model, nnx.State(jax.tree.map(lambda p: nnx.Param(0 * p), before)))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(after["dense"]["kernel"], 0.5 * before["dense"]["kernel"])
    assert_close((after["dense"]["bias"], after["head"]), (before["dense"]["bias"], before["head"]))
    assert not jnp.array_equal(after["dense"]["kernel"], before["dense"]["kernel"])
