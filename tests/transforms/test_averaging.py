"""`average_params`, `averaged_params`, `finalize`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

P0 = jnp.array([0.0, 8.0])
DOWN = jnp.array([1.0, 1.0])


def run(tx, steps, params=P0, grads=DOWN):
    state, history = tx.init(params), []
    for _ in range(steps):
        params, state = tx.apply(params, state, grads=grads)
        history.append((params, state))
    return history


def with_average(*args, **kwargs):
    return oc.chain(oc.scale_by_learning_rate(1.0), oc.average_params(*args, **kwargs))


def test_the_first_average_is_the_first_new_parameters():
    params, state = run(with_average(0.9), 1)[-1]
    np.testing.assert_array_equal(oc.averaged_params(state), params)


def test_the_average_follows_the_parameters_after_the_update():
    expected = None
    for number, (params, state) in enumerate(run(with_average(0.75), 5)):
        assert np.allclose(params, P0 - (number + 1) * DOWN)
        expected = params if expected is None else 0.75 * expected + 0.25 * params
        np.testing.assert_allclose(oc.averaged_params(state), expected, rtol=1e-6)


def test_before_the_first_call_the_average_is_the_initial_parameters():
    np.testing.assert_array_equal(oc.averaged_params(with_average().init(P0)), P0)


def test_the_parameters_are_overwritten_at_every_multiple():
    tx = with_average(0.5, overwrite_every=3)
    params, average = np.asarray(P0), None
    for number, (actual, state) in enumerate(run(tx, 7), start=1):
        params = params - np.asarray(DOWN)
        average = params if average is None else 0.5 * average + 0.5 * params
        if number % 3 == 0:
            params = average
        np.testing.assert_allclose(actual, params, rtol=1e-6)
        np.testing.assert_allclose(oc.averaged_params(state), average, rtol=1e-6)


def test_outside_a_gate_the_average_counts_calls_and_inside_updates():
    steps = 2
    outside = oc.chain(oc.accumulate(oc.scale_by_learning_rate(1.0), steps), oc.average_params(0.5))
    inside = oc.accumulate(oc.chain(oc.scale_by_learning_rate(1.0), oc.average_params(0.5)), steps)
    (_, out_state), (_, in_state) = run(outside, 4)[-1], run(inside, 4)[-1]
    assert int(out_state["average_params"]["count"]) == 4
    assert int(in_state["inner"]["average_params"]["count"]) == 2
    np.testing.assert_allclose(oc.averaged_params(in_state), 0.5 * (P0 - DOWN) + 0.5 * (P0 - 2 * DOWN))
    # Calls: p0 | (p0 + p1)/2 | ... with the first call's momentum 0.
    p0, p1, p2 = P0, P0 - DOWN, P0 - 2 * DOWN
    expected = 0.5 * (0.5 * (0.5 * p0 + 0.5 * p1) + 0.5 * p1) + 0.5 * p2
    np.testing.assert_allclose(oc.averaged_params(out_state), expected)


def test_a_momentum_that_is_set_is_used():
    tx = with_average(jnp.array(0.5))
    params, state = run(tx, 1)[-1]
    state = oc.set_hyperparams(state, momentum=0.0)
    params, state = tx.apply(params, state, grads=DOWN)
    np.testing.assert_array_equal(oc.averaged_params(state), params)


def test_the_average_of_narrow_parameters_moves_where_a_narrow_one_would_stand_still():
    params = jnp.ones(1, jnp.bfloat16)
    tx = with_average(0.999)
    state = tx.init(params)
    params, state = tx.apply(params, state, grads=jnp.zeros(1, jnp.bfloat16))
    params, state = tx.apply(params, state, grads=jnp.full(1, -1.0, jnp.bfloat16))
    assert oc.averaged_params(state).dtype == jnp.float32
    np.testing.assert_allclose(oc.averaged_params(state), 1.001, rtol=1e-6)
    assert oc.finalize(params, state).dtype == jnp.bfloat16


def test_the_update_form_sees_the_whole_update_as_the_last_link_of_an_optax_chain():
    tx = optax.chain(optax.sgd(1.0), oc.average_params(0.5, overwrite_every=2))
    params, state = P0, tx.init(P0)
    for _ in range(2):
        updates, state = tx.update(DOWN, state, params)
        params = optax.apply_updates(params, updates)
    expected, expected_state = run(with_average(0.5, overwrite_every=2), 2)[-1]
    np.testing.assert_allclose(params, expected)
    np.testing.assert_allclose(oc.averaged_params(state), oc.averaged_params(expected_state))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.identity(), tx),
        lambda tx: oc.chain(("inside", tx)),
        lambda tx: optax.multi_transform({"all": tx}, "all"),
    ],
    ids=["alone", "optax_chain", "chain", "multi_transform"],
)
def test_the_average_is_found_in(wrap):
    state = wrap(with_average(0.5)).init({"w": P0})
    np.testing.assert_array_equal(oc.averaged_params(state)["w"], P0)


def test_finalize_returns_the_parameters_themselves_without_an_average():
    assert oc.finalize(P0, oc.sgd(0.1).init(P0)) is P0
    assert oc.finalize(P0, {}) is P0


def test_no_average_and_two_averages_are_errors_that_say_so():
    with pytest.raises(ValueError, match=r"no average of the parameters: add average_params\(\).*use_ema=True"):
        oc.averaged_params(oc.sgd(0.1).init(P0))
    two = oc.chain(oc.average_params(0.9), ("slow", oc.average_params(0.99))).init(P0)
    for read in (oc.averaged_params, lambda state: oc.finalize(P0, state)):
        with pytest.raises(ValueError, match="2 averages of the parameters, at 'average_params', 'slow'"):
            read(two)


def test_two_averages_one_inside_a_gate_are_both_found():
    gated = oc.accumulate(oc.chain(oc.sgd(0.1), oc.average_params()), 2)
    state = oc.chain(gated, ("calls", oc.average_params())).init(P0)
    with pytest.raises(ValueError, match=r"2 averages of the parameters, at .*accumulate/inner/average_params"):
        oc.averaged_params(state)


def test_an_average_of_other_parameters_does_not_finalize():
    with pytest.raises(ValueError, match=r"average\[\"b\"\] has no counterpart|average\[\"a\"\] is missing"):
        oc.finalize({"a": P0}, oc.average_params().init({"b": P0}))


def test_parameters_called_average_and_count_are_not_taken_for_one():
    params = {"average": P0, "count": jnp.zeros(2)}
    state = oc.apply_momentum(0.9).init(params)
    assert oc.finalize(params, state) is params
    state = oc.chain(oc.sgd(0.1, 0.9), oc.average_params()).init(params)
    assert oc.averaged_params(state).keys() == params.keys()


def test_the_numbers_do_not_depend_on_the_parameters_being_numpy():
    state = with_average().init(np.ones(2, np.float32))
    assert isinstance(oc.averaged_params(state), jax.Array)
