"""What holds for every transformation under every transform of JAX."""

import contextlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc
from optchain.core.lookup import find_fields

from .steps import STEPS, apply_step, assert_close, assert_same, avals, run, update_step
from .table import every_row, rows_where
from .trees import PLAIN, grads_of, params_of

EAGER_ROUNDINGS = 32  # XLA fuses and contracts under jit: a few roundings a step, over several steps


def stacked_grads(number: int = STEPS) -> object:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(grads_of(step=step) for step in range(number)))


@every_row
def test_jit_gives_the_numbers_of_the_eager_run(row):
    tx = row.make()
    expected = run(tx)
    params = params_of()
    state = tx.init(params)
    for number in range(STEPS):
        params, state = tx.apply(params, state, grads=grads_of(step=number))
    assert avals((params, state)) == avals(expected)
    assert_close((params, state), expected, roundings=EAGER_ROUNDINGS)


@every_row
def test_scan_gives_the_numbers_of_the_loop(row):
    tx, params = row.make(), params_of()

    @jax.jit
    def scanned(params, state, grads):
        return jax.lax.scan(lambda carry, g: (tx.apply(*carry, grads=g), None), (params, state), grads)[0]

    assert_close(scanned(params, tx.init(params), stacked_grads(5)), run(tx, steps=5), roundings=EAGER_ROUNDINGS)


@every_row
def test_vmap_over_parameters_gives_each_member_its_own_run(row):
    tx = row.make()
    members = [(params_of(), grads_of()), (grads_of(step=1), grads_of(step=2)), (grads_of(step=3), params_of())]
    params, grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    @jax.jit
    @jax.vmap
    def both(params, grads):
        carry = tx.apply(params, tx.init(params), grads=grads)
        return tx.apply(*carry, grads=params)

    batched = both(params, grads)
    for index, (member_params, member_grads) in enumerate(members):
        carry = apply_step(tx, member_params, tx.init(member_params), member_grads)
        expected = apply_step(tx, *carry, member_params)
        assert_close(jax.tree.map(lambda x, i=index: x[i], batched), expected, roundings=EAGER_ROUNDINGS)


@every_row
def test_vmap_over_a_state_runs_ten_learning_rates_at_once(row):
    tx, params = row.make(), params_of()
    state = tx.init(params)
    rates = np.linspace(0.1, 0.2, 10)
    scheduled = {field.key for field in find_fields(state, "scheduled")}
    settable = [
        key for key in oc.get_hyperparams(state) if key.rpartition("/")[2] == "learning_rate" and key not in scheduled
    ]
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (10, *jnp.shape(x))), state)
    states = oc.set_hyperparams(states, dict.fromkeys(settable, rates))
    assert avals(jax.tree.map(lambda x: x[0], states)) == avals(state)

    @jax.jit
    def steps(state):
        return tx.apply(*tx.apply(params, state, grads=grads_of(step=0)), grads=grads_of(step=1))

    batched = jax.jit(jax.vmap(steps, axis_size=10))(states)
    for index in (0, 9):
        expected = steps(oc.set_hyperparams(state, dict.fromkeys(settable, rates[index])))
        assert_close(jax.tree.map(lambda x, i=index: x[i], batched), expected, roundings=EAGER_ROUNDINGS)


@rows_where(lambda row: row.owns_all_state)
def test_the_gradient_through_two_steps_is_finite_at_zero(row):
    """Norms and roots have no derivative at zero; ours have the derivative 0 there, Optax's Adam has NaN."""
    tx = row.make()
    zeros = jax.tree.map(jnp.zeros_like, params_of())
    state = tx.init(zeros)

    @jax.jit
    @jax.grad
    def gradient(inputs):
        params, grads = inputs
        params, new_state = tx.apply(params, state, grads=grads)
        params, _ = tx.apply(params, new_state, grads=jax.tree.map(jnp.add, grads, params))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient((zeros, zeros))))


@every_row
def test_zero_gradients_and_parameters_stay_finite(row):
    tx = row.make()
    params = jax.tree.map(jnp.zeros_like, params_of())
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = apply_step(tx, params, state, jax.tree.map(jnp.zeros_like, params))
    if row.is_still:
        assert_same(params, jax.tree.map(jnp.zeros_like, params))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
@rows_where(lambda row: row.owns_all_state)
def test_strict_promotion_holds_in_both_forms(row, dtype, x64):
    """Promotion is decided when a step is traced, so tracing is the test. Optax's own Adam does not trace under it."""
    if dtype == "complex64" and row.refuses_complex:
        dtype = "float32"
    strict = [jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.enable_x64(x64)]
    with contextlib.ExitStack() as stack:
        for context in strict:
            stack.enter_context(context)
        tx, params, grads = row.make(), params_of(PLAIN, dtype), grads_of(PLAIN, dtype)
        state = tx.init(params)
        new = jax.eval_shape(apply_step.__wrapped__, tx, params, state, grads)
        assert avals(new) == avals((params, state))
        updates, new_state = jax.eval_shape(tx.update, grads, state, params)
        assert (avals(updates), avals(new_state)) == (avals(grads), avals(state))


@every_row
def test_debug_nans_finds_none(row):
    with jax.debug_nans(True):
        zeros = jax.tree.map(jnp.zeros_like, params_of())
        tx = row.make()
        for params, grads in ((params_of(), grads_of()), (zeros, zeros)):
            state = tx.init(params)
            for step in (apply_step, update_step):
                new_params, _ = step(tx, params, state, grads)
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new_params))


@every_row
def test_a_transformation_is_a_static_jit_argument_that_does_not_retrace(row):
    """Building the same configuration again, as a function of a training script does, compiles nothing."""
    traces = 0

    @jax.jit
    def step(tx, params, state, grads):
        nonlocal traces
        traces += 1
        return tx.apply(params, state, grads=grads)

    params = params_of()
    for number in range(3):
        tx = row.make()
        state = tx.init(params)
        params, state = step(tx, params, state, grads_of(step=number))
    assert traces == 1
    params, state = step(tx, params, state, grads_of())
    assert traces == 1, "the state that a step returns is another type than init's"


@rows_where(lambda row: not row.exports)
def test_export_refuses_a_callable_that_is_read_on_the_host(row):
    tx, params = row.make(), params_of()
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
    with pytest.raises((ValueError, NotImplementedError), match=r"(?i)callback|callable"):
        jax.export.export(step)(params, tx.init(params), grads_of()).serialize()


@rows_where(lambda row: row.exports and row.owns_all_state)
def test_an_exported_step_gives_the_same_numbers(row):
    tx, params = row.make(), params_of()
    state = tx.init(params)

    def step(params, state, grads):
        return tx.apply(params, state, grads=grads)

    exported = jax.export.export(jax.jit(step))(params, state, grads_of())
    if importlib.util.find_spec("flatbuffers"):  # what JAX needs to write it down
        exported = jax.export.deserialize(exported.serialize())
    carry = exported.call(params, state, grads_of())
    assert_same(exported.call(*carry, grads_of(step=1)), run(tx, steps=2))
