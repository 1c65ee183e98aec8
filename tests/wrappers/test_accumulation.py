"""`accumulate`: nothing happens between updates, and the update is that of the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}


def grads(number):
    rng = np.random.default_rng(number)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)


def inner():
    return oc.chain(oc.clip_by_global_norm(0.5), oc.scale_by_adam(), oc.scale_by_learning_rate(0.1))


@jax.jit
def step(tx, params, state, grads):
    return tx.apply(params, state, grads=grads)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_accumulate_touches_no_parameters_and_no_inner_state_between_updates():
    tx = oc.accumulate(inner(), 3)
    params, state = PARAMS, tx.init(PARAMS)
    for number in range(2):
        params, new_state = step(tx, params, state, grads(number))
        assert equal(params, PARAMS)
        assert equal(new_state["inner"], state["inner"])
        state = new_state
    params, state = step(tx, params, state, grads(2))
    assert not equal(params, PARAMS)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_update_is_that_of_the_mean(steps):
    tx = oc.accumulate(inner(), steps)
    params, state = PARAMS, tx.init(PARAMS)
    expected, expected_state = PARAMS, inner().init(PARAMS)
    for update in range(3):
        window = [grads(steps * update + number) for number in range(steps)]
        for g in window:
            params, state = step(tx, params, state, g)
        mean = jax.tree.map(lambda *g: sum(g) / steps, *window)
        expected, expected_state = step(inner(), expected, expected_state, mean)
        for name in PARAMS:
            np.testing.assert_allclose(params[name], expected[name], rtol=2e-6, atol=2e-7)
    assert int(state["count"]) == 0
    assert int(state["inner"]["scale_by_adam"]["count"]) == 3


def test_the_update_form_gives_zeros_in_between():
    tx = oc.accumulate(oc.scale_by_learning_rate(1.0), 2)
    updates, state = tx.update(grads(0), tx.init(PARAMS), PARAMS)
    assert equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    updates, _ = tx.update(grads(0), state, PARAMS)
    assert not equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))


@pytest.mark.parametrize("form", ["apply", "update"])
def test_a_nan_in_one_window_does_not_poison_the_next(form):
    tx = oc.accumulate(oc.scale_by_learning_rate(1.0), 2)
    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    state = tx.init(PARAMS)
    results = []
    for g in (nan, grads(0), grads(1), grads(2)):
        if form == "apply":
            new, state = step(tx, PARAMS, state, g)
        else:
            updates, state = tx.update(g, state, PARAMS)
            new = optax.apply_updates(PARAMS, updates)
        results.append(new)
    assert equal(results[0], PARAMS)
    assert np.isnan(results[1]["w"]).all(), "the window with the NaN says so"
    assert equal(results[2], PARAMS)
    np.testing.assert_allclose(results[3]["w"], PARAMS["w"] - (grads(1)["w"] + grads(2)["w"]) / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_apply_allocates_no_tree(dtype):
    tx = oc.accumulate(oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate(0.1)), 4)
    params = {"kernel": jax.ShapeDtypeStruct((1000, 1000), dtype), "bias": jax.ShapeDtypeStruct((1000,), dtype)}
    state = jax.eval_shape(tx.init, params)
    donated = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads), donate_argnums=(0, 1))
    analysis = donated.lower(params, state, params).compile().memory_analysis()
    assert analysis.temp_size_in_bytes / 1_001_000 < 0.1


def test_only_one_branch_runs():
    """A conditional in the compiled program, not a select over both."""
    tx = oc.accumulate(inner(), 2)
    text = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g)).lower(PARAMS, tx.init(PARAMS), PARAMS).compile().as_text()
    assert " conditional(" in text


def test_a_narrow_accumulator_is_only_storage():
    params = {"w": jnp.ones(1000)}
    tx = oc.accumulate(oc.scale_by_learning_rate(1.0), 2, accumulator_dtype="bfloat16")
    state = tx.init(params)
    assert state["grads"]["w"].dtype == jnp.bfloat16
    first, second = {"w": jnp.full(1000, 1.0)}, {"w": jnp.full(1000, 2.0**-12)}
    _, state = step(tx, params, state, first)
    new, _ = step(tx, params, state, second)
    np.testing.assert_allclose(new["w"], 1 - (1 + 2.0**-12) / 2, rtol=1e-7)  # the last sum is not rounded to bfloat16


def test_gates_nest_and_the_inner_one_counts_updates_of_the_outer():
    tx = oc.accumulate(oc.accumulate(oc.scale_by_learning_rate(1.0), 2), 3)
    params, state = PARAMS, tx.init(PARAMS)
    for number in range(5):
        params, state = step(tx, params, state, grads(number))
        assert equal(params, PARAMS)
    params, state = step(tx, params, state, grads(5))
    mean = sum(grads(number)["w"] for number in range(6)) / 6
    np.testing.assert_allclose(params["w"], PARAMS["w"] - mean, rtol=1e-5)


@pytest.mark.parametrize("gate", [lambda tx: oc.accumulate(tx, 2), oc.skip_nonfinite], ids=["accumulate", "skip"])
def test_a_gate_around_an_optax_link_takes_narrow_leaves_in_both_forms(gate):
    """Optax gives back the dtype that it gets, and the two branches of a gate must agree."""
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    tx = gate(optax.adamw(0.1))
    state = tx.init(params)
    for _ in range(2):
        updates, by_update = tx.update(params, state, params)
        new, state = tx.apply(params, state, grads=params)
        assert equal(new, optax.apply_updates(params, updates))
        assert equal(state, by_update)


# Lengths of windows by a schedule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 1j, True, "2", jnp.ones(2), jnp.array(1j), jnp.array(True)], ids=str)
def test_a_window_that_is_no_number_is_a_type_error_that_names_steps(wrong):
    with pytest.raises(TypeError, match=r"steps must be a real scalar at every step; its schedule .* gave"):
        oc.accumulate(oc.sgd(1.0), lambda updates: wrong).init(PARAMS)
    with pytest.raises(TypeError, match="steps must be a real scalar"):
        jax.eval_shape(oc.accumulate(oc.sgd(1.0), lambda updates: wrong).init, PARAMS)


@pytest.mark.parametrize(
    "wrong",
    [float("nan"), float("inf"), -1, 0, 0.4, 1e39, 2**31, 10**400, np.float32(-2), jnp.float32(jnp.nan)],
    ids=str,
)
def test_a_window_out_of_range_is_a_value_error_that_names_steps(wrong):
    with pytest.raises(ValueError, match=r"steps must be a number in \[1, 2147483647\]; its schedule .* gave"):
        oc.accumulate(oc.sgd(1.0), lambda updates: wrong).init(PARAMS)


def test_windows_are_checked_at_each_update_where_they_can_be_looked_at():
    tx = oc.accumulate(oc.sgd(1.0), lambda updates: 1 - updates)
    params, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    params, state = tx.apply(params, state, grads=jnp.ones(1))
    with pytest.raises(ValueError, match="steps must be"):
        tx.apply(params, state, grads=jnp.ones(1))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("length", "updates"),
    [(jnp.nan, 0), (jnp.inf, 0), (1e38, 0), (-3.0, 6), (-jnp.inf, 6), (0.4, 6), (1.6, 3), (3, 2), (2**31 - 1, 0)],
)
def test_traced_windows_mean_what_the_docstring_says(length, updates):
    @jax.jit
    def run(length):
        tx = oc.accumulate(oc.sgd(1.0), lambda updates: length)
        params, state = jnp.zeros(1), tx.init(jnp.zeros(1))
        for _ in range(6):
            params, state = tx.apply(params, state, grads=jnp.ones(1))
        return params, state["updates"]

    params, made = run(length)
    assert (float(params[0]), int(made)) == (-updates, updates)
