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
    with pytest.raises(ValueError, match="the state must have a schedule_free in it; it has none"):
        oc.schedule_free_params(PARAMS, oc.adam().init(PARAMS))


RULE = oc.schedule_free(oc.scale_by_learning_rate(0.3), 0.9)
OTHER = oc.schedule_free(oc.scale_by_learning_rate(0.1), 0.5)
IN_PARTS = {
    "freeze": (lambda: oc.freeze(RULE, oc.matching("bias")), {"kernel": RULE}),
    "masked": (lambda: oc.chain(oc.masked(RULE, oc.matching("kernel"))), {"kernel": RULE}),
    "two groups": (lambda: oc.multi_optimizer(("b", "bias", OTHER), default=RULE), {"kernel": RULE, "bias": OTHER}),
    "one group of two": (lambda: oc.multi_optimizer(("b", "bias", oc.sgd(0.1)), default=RULE), {"kernel": RULE}),
    "groups in a gate": (
        lambda: oc.skip_nonfinite(oc.multi_optimizer(("b", "bias", OTHER), ("k", "kernel", RULE))),
        {"kernel": RULE, "bias": OTHER},
    ),
    "Optax's groups": (
        lambda: optax.multi_transform({"a": RULE, "b": OTHER}, {"kernel": "a", "bias": "b"}),
        {"kernel": RULE, "bias": OTHER},
    ),
}


@pytest.mark.parametrize("case", IN_PARTS)
def test_the_parameters_to_evaluate_are_each_groups_own(case):
    make, rules = IN_PARTS[case]
    tx = make() if isinstance(make(), oc.Transformation) else oc.chain(("theirs", make()))
    params, state, _ = run(tx)
    found = oc.schedule_free_params(params, state)
    for name in PARAMS:
        if name not in rules:
            np.testing.assert_array_equal(found[name], params[name])
            continue
        alone, alone_state = PARAMS[name], rules[name].init(PARAMS[name])
        for number in range(6):
            alone, alone_state = rules[name].apply(alone, alone_state, grads=grads_of(number)[name])
        np.testing.assert_allclose(found[name], oc.schedule_free_params(alone, alone_state), rtol=1e-5)
        assert float(jnp.abs(found[name] - params[name]).max()) > 1e-3


def test_two_of_the_same_parameter_are_an_error_that_names_both():
    state = {"one": RULE.init(PARAMS), "two": OTHER.init(PARAMS)}
    with pytest.raises(ValueError, match="2 schedule_free of the same parameters, at 'one', 'two'"):
        oc.schedule_free_params(PARAMS, state)


def test_iterates_of_other_parameters_are_an_error_that_names_the_leaf():
    with pytest.raises(ValueError, match=r'iterates\["bias"\] has no counterpart: params have no leaf there'):
        oc.schedule_free_params({"kernel": PARAMS["kernel"]}, RULE.init(PARAMS))
    with pytest.raises(ValueError, match=r'iterates\["kernel"\]: shape \(2, 2\), params have \(2,\)'):
        oc.schedule_free_params({**PARAMS, "kernel": jnp.ones(2)}, RULE.init(PARAMS))
