"""`schedule_free`: the iterates, the average, and how to get at it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optchain as oc

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, 0.0])}


def grads_of(number):
    return jax.tree.map(lambda p: jnp.cos(p.size * number + jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), PARAMS)


def run(tx, params=PARAMS, steps=6):
    state, iterates = tx.init(params), []
    for number in range(steps):
        params, state = tx.apply(params, state, grads=grads_of(number))
        iterates.append(state.get("iterates"))
    return params, state, iterates


@pytest.mark.parametrize("beta_1", [0.1, 0.5, 0.95])
def test_the_parameters_to_evaluate_are_the_mean_of_the_iterates(beta_1):
    params, state, iterates = run(oc.schedule_free(oc.scale_by_learning_rate(0.3), beta_1))
    mean = jax.tree.map(lambda *z: sum(z) / len(z), *iterates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        oc.schedule_free_params(params, state),
        mean,
    )


def test_it_equals_optax_with_equal_weights():
    ours, state, _ = run(oc.schedule_free(oc.scale_by_learning_rate(0.3), 0.9))
    theirs = optax.contrib.schedule_free(optax.sgd(0.3), learning_rate=0.3, b1=0.9)
    params = PARAMS
    their_state = theirs.init(params)
    for number in range(6):
        updates, their_state = theirs.update(grads_of(number), their_state, params)
        params = optax.apply_updates(params, updates)
    evaluated = optax.contrib.schedule_free_eval_params(their_state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        oc.schedule_free_params(ours, state),
        evaluated,
    )


def test_the_average_of_a_preset_is_found_within_gates_and_averages():
    tx = oc.schedule_free_adamw(0.1, weight_decay=0.1, use_ema=True, gradient_accumulation_steps=2)
    params, state, _ = run(tx, steps=4)
    found = oc.schedule_free_params(params, state)
    assert float(jnp.abs(found["kernel"] - params["kernel"]).max()) > 1e-3
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(oc.schedule_free_params(narrow, state))} == {jnp.dtype("bfloat16")}


def test_a_beta_of_0_has_no_average():
    params, state, _ = run(oc.schedule_free(oc.scale_by_learning_rate(0.3), 0.0))
    jax.tree.map(np.testing.assert_array_equal, oc.schedule_free_params(params, state), params)


def test_a_state_without_it_is_an_error():
    with pytest.raises(ValueError, match="the state must have one schedule_free in it; it has 0"):
        oc.schedule_free_params(PARAMS, oc.adam().init(PARAMS))
