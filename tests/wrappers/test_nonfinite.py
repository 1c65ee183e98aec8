"""`skip_nonfinite`: a bad step is skipped, counted, and never let through."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

from .bad_gradients import apply_step, assert_same_bits, bad

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
GOOD = {"w": jnp.array([0.1, -0.3]), "b": jnp.array(0.2)}
BAD_VALUES = [np.nan, np.inf, -np.inf]


def run(tx, pattern, params=PARAMS, state=None):
    """`g` a good call, `b` a bad one; the gradients of each are different."""
    state = tx.init(params) if state is None else state
    for number, letter in enumerate(pattern):
        grads = grads_of(number)
        params, state = apply_step(tx, params, state, grads if letter == "g" else bad(grads))
    return params, state


def grads_of(number):
    return jax.tree.map(lambda g: g * (1.0 + number), GOOD)


@pytest.mark.parametrize("value", BAD_VALUES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_bad_step_leaves_parameters_and_inner_state_to_the_bit(value, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    good = jax.tree.map(lambda g: g.astype(dtype), GOOD)
    inner = oc.adamw(oc.schedules.CosineDecay(0.1, 10), global_clipnorm=1.0, use_ema=True, ema_overwrite_frequency=2)
    tx = oc.skip_nonfinite(inner)
    params, state = tx.apply(params, tx.init(params), grads=good)
    after, new_state = tx.apply(params, state, grads=bad(good, value))
    assert_same_bits(after, params)
    assert_same_bits(new_state["inner"], state["inner"])


def test_skipping_is_as_if_the_bad_calls_had_not_been():
    pattern = "gbgbbgggbg"
    params, state = run(oc.skip_nonfinite(oc.adamw(0.1)), pattern)
    tx = oc.skip_nonfinite(oc.adamw(0.1))
    expected, expected_state = PARAMS, tx.init(PARAMS)
    for number, letter in enumerate(pattern):
        if letter == "g":
            expected, expected_state = apply_step(tx, expected, expected_state, grads_of(number))
    for a, b in zip(
        jax.tree.leaves((params, state["inner"])), jax.tree.leaves((expected, expected_state["inner"])), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_counters_are_exact_and_are_the_metrics():
    tx = oc.skip_nonfinite(oc.sgd(0.1))
    state, seen = tx.init(PARAMS), []
    for letter in "gbbgbbbg":
        _, state = apply_step(tx, PARAMS, state, GOOD if letter == "g" else bad(GOOD))
        metrics = oc.metrics(state)
        seen.append((int(metrics["skipped_steps"]), int(metrics["consecutive"])))
        assert seen[-1] == (int(state["skipped_steps"]), int(state["consecutive"]))
    assert seen == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1), (4, 2), (5, 3), (5, 0)]


# Trap: Optax's apply_if_finite gives in, and writes the NaN, after so many errors in a row ---------------------------


def test_a_bad_step_is_never_let_through_however_many_come_in_a_row():
    params, state = run(oc.skip_nonfinite(oc.adam(0.1), 2), "g" + 50 * "b")
    expected, expected_state = run(oc.skip_nonfinite(oc.adam(0.1), 2), "g")
    assert_same_bits(params, expected)
    assert_same_bits(state["inner"], expected_state["inner"])
    assert int(state["skipped_steps"]) == 50

    theirs = optax.apply_if_finite(optax.adam(0.1), 2)
    their_state = theirs.init(PARAMS)
    for _ in range(4):
        updates, their_state = theirs.update(bad(GOOD), their_state)
    assert not np.isfinite(updates["w"]).all()  # what the trap is


def test_check_raises_with_the_counts_and_training_can_go_on():
    tx = oc.skip_nonfinite(oc.adam(0.1), max_consecutive=3)
    params, state = run(tx, "gbgbb")
    oc.raise_if_nonfinite(oc.metrics(state))
    params, state = run(tx, "b", params, state)
    message = (
        "the gradients were not finite in 3 steps in a row (max_consecutive=3), and in 4 steps in all. Parameters and state "
        "are those of the last good step."
    )
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        oc.raise_if_nonfinite(oc.metrics(state))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    moved, state = run(tx, "g", params, state)
    assert int(state["consecutive"]) == 0
    oc.raise_if_nonfinite(oc.metrics(state))
    assert float(jnp.abs(moved["w"] - params["w"]).min()) > 0


def test_check_finds_the_counts_of_a_gate_deep_within_and_of_make_step():
    inner = oc.accumulate(oc.skip_nonfinite(oc.sgd(0.1), 1), 2)
    tx = oc.chain(oc.unscale_gradients(2.0), inner, oc.average_params())
    step = oc.make_step(lambda p, x: jnp.sum(p["w"] * x), tx)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    params, state, metrics = step(params, state, jnp.array([jnp.nan, 1.0]))
    oc.raise_if_nonfinite(metrics)  # the window is not over
    params, state, metrics = step(params, state, jnp.ones(2))
    with pytest.raises(FloatingPointError, match=re.escape("in 1 steps in a row (max_consecutive=1)")):
        oc.raise_if_nonfinite(metrics)
    np.testing.assert_array_equal(params["w"], 1.0)


def test_without_max_consecutive_there_is_nothing_to_check():
    _, state = run(oc.skip_nonfinite(oc.sgd(0.1)), 20 * "b")
    oc.raise_if_nonfinite(oc.metrics(state))
    oc.raise_if_nonfinite({"loss": jnp.nan})


def test_two_gates_are_checked_each_by_its_own_counts():
    tx = oc.skip_nonfinite(oc.accumulate(oc.skip_nonfinite(oc.sgd(0.1), 5), 2), 2)
    _, state = run(tx, "bb")
    with pytest.raises(FloatingPointError, match=r"in 2 steps in a row \(max_consecutive=2\)"):
        oc.raise_if_nonfinite(oc.metrics(state))


# Trap: one NaN micro-batch ruins Optax's MultiSteps for good ----------------------------------------------------------


def test_around_accumulate_a_bad_call_does_not_count_and_the_window_goes_on():
    pattern = "gbggbbggg"
    params, state = run(oc.skip_nonfinite(oc.accumulate(oc.adam(0.1), 3)), pattern)
    tx = oc.accumulate(oc.adam(0.1), 3)
    expected, expected_state = PARAMS, tx.init(PARAMS)
    for number, letter in enumerate(pattern):
        if letter == "g":
            expected, expected_state = apply_step(tx, expected, expected_state, grads_of(number))
    assert_same_bits(params, expected)
    assert_same_bits(state["inner"], expected_state)
    assert int(state["skipped_steps"]) == 3


def test_inside_accumulate_a_bad_call_drops_the_window_and_counts_as_one():
    tx = oc.accumulate(oc.skip_nonfinite(oc.sgd(1.0)), 3)
    params, state = run(tx, "gbb")
    assert_same_bits(params, PARAMS)
    assert (int(state["inner"]["skipped_steps"]), int(state["inner"]["consecutive"])) == (1, 1)
    params, state = run(tx, "ggg", params, state)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *map(grads_of, range(3)))
    for name in PARAMS:
        np.testing.assert_allclose(params[name], PARAMS[name] - mean[name], rtol=1e-6)
    assert (int(state["inner"]["skipped_steps"]), int(state["inner"]["consecutive"])) == (1, 0)


@pytest.mark.parametrize("form", ["apply", "update"])
def test_a_nan_poisons_its_own_window_and_no_later_one_even_without_a_gate(form):
    tx = oc.accumulate(oc.sgd(1.0), 2)
    params, state = PARAMS, tx.init(PARAMS)
    for number, grads in enumerate([bad(GOOD), GOOD, GOOD, GOOD]):
        if number == 2:
            params = PARAMS  # the first window is lost: the inner transformation has no gate
        if form == "apply":
            params, state = tx.apply(params, state, grads=grads)
        else:
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    for name in PARAMS:
        np.testing.assert_allclose(params[name], PARAMS[name] - GOOD[name], rtol=1e-6)

    theirs = optax.MultiSteps(optax.sgd(1.0), 2)
    their_state = theirs.init(PARAMS)
    for grads in [bad(GOOD), GOOD, GOOD, GOOD]:
        updates, their_state = theirs.update(grads, their_state, PARAMS)
    assert not np.isfinite(updates["w"]).all()  # what the trap is


# What counts as finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("value", "skipped"), [(1e19, 0), (1e30, 1)])
def test_a_gradient_is_good_up_to_where_its_square_overflows(dtype, value, skipped):
    # The sum of these squares overflows for both.
    params = {"w": jnp.zeros(8, dtype)}
    tx = oc.skip_nonfinite(oc.chain(oc.scale_by_learning_rate(), learning_rate=1e-19))
    params, state = tx.apply(params, tx.init(params), grads={"w": jnp.full(8, value, dtype)})
    assert int(state["skipped_steps"]) == skipped
    np.testing.assert_allclose(params["w"].astype(jnp.float32), skipped - 1.0, rtol=1e-2)


def test_the_largest_float16_is_finite_and_what_comes_after_is_not():
    params = {"w": jnp.zeros(2, jnp.float16)}
    tx = oc.skip_nonfinite(oc.sgd(1e-5))
    for value, skipped in ((65504.0, 0), (np.inf, 1)):
        _, state = tx.apply(params, tx.init(params), grads={"w": jnp.array([0.0, value], jnp.float16)})
        assert int(state["skipped_steps"]) == skipped


@pytest.mark.parametrize("value", [complex(np.nan, 0), complex(0, np.nan), complex(0, np.inf)])
def test_either_part_of_a_complex_value_counts(value):
    params = {"z": jnp.ones(3, jnp.complex64)}
    tx = oc.skip_nonfinite(oc.sgd(0.1))
    _, state = tx.apply(params, tx.init(params), grads=bad({"z": jnp.ones(3, jnp.complex64)}, value))
    assert int(state["skipped_steps"]) == 1


def test_an_empty_leaf_is_finite():
    params = {"empty": jnp.zeros((0, 3)), "w": jnp.ones(2)}
    tx = oc.skip_nonfinite(oc.sgd(0.1))
    _, state = tx.apply(params, tx.init(params), grads=params)
    assert int(state["skipped_steps"]) == 0


# The update form, and what is compiled --------------------------------------------------------------------------------


def test_the_update_form_gives_zeros_for_a_bad_step():
    tx = oc.skip_nonfinite(oc.adamw(0.1))
    state = tx.init(PARAMS)
    updates, new_state = tx.update(bad(GOOD), state, PARAMS)
    assert_same_bits(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_same_bits(new_state["inner"], state["inner"])


def compiled(tx, params):
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads), donate_argnums=(0, 1))
    traced = step.trace(params, tx.init(params), params)
    return str(traced.jaxpr), traced.lower().compile()


@pytest.mark.parametrize(
    "outer", [oc.skip_nonfinite, oc.dynamic_loss_scale], ids=["skip_nonfinite", "dynamic_loss_scale"]
)
def test_the_compiled_step_has_a_branch_and_no_temporary_tree(outer):
    params = {"w": jnp.ones((256, 256)), "v": jnp.ones((128, 512))}
    jaxpr, program = compiled(outer(oc.adamw(0.1, global_clipnorm=1.0)), params)
    assert "cond[" in jaxpr
    assert re.search(r"\bconditional\(", program.as_text())
    tree = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert program.memory_analysis().temp_size_in_bytes < tree // 32


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "max_consecutive must be an integer >= 1; got 0"),
        (2.5, TypeError, "max_consecutive must be an integer >= 1; got 2.5"),
        (True, TypeError, "max_consecutive must be an integer >= 1; got True"),
    ],
)
def test_a_wrong_max_consecutive_is_refused_in_words(value, error, message):
    with pytest.raises(error, match=message):
        oc.skip_nonfinite(oc.sgd(0.1), value)


@pytest.mark.parametrize("form", ["apply", "update"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("size", [4096, 100_003])
def test_one_bad_value_among_many_is_seen(size, dtype, bad, form):
    """XLA's CPU backend drops NaN from a maximum of 4,096 floats or more."""
    tx = oc.skip_nonfinite(oc.sgd(1.0))
    params = jnp.ones(size, dtype)
    grads = params.at[size // 3].set(bad)
    state = tx.init(params)
    if form == "apply":
        new, state = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g))(params, state, grads)
    else:
        updates, state = jax.jit(tx.update)(grads, state, params)
        new = optax.apply_updates(params, updates)
    assert int(state["skipped_steps"]) == 1
    np.testing.assert_array_equal(np.asarray(new, np.complex64), np.ones(size))


def test_a_loss_scale_falls_for_one_bad_value_among_many():
    tx = oc.dynamic_loss_scale(oc.sgd(1.0), 8.0)
    params = jnp.ones((64, 64))
    _, state = tx.apply(params, tx.init(params), grads=params.at[0, 1].set(jnp.nan))
    assert float(oc.metrics(state)["loss_scale"]) == 4.0


def test_large_values_of_both_signs_are_no_nan():
    """Their sum would be ∞ − ∞."""
    tx = oc.skip_nonfinite(oc.chain(oc.unscale_gradients(2.0**127), oc.sgd(1.0)))
    params = jnp.zeros(8192)
    signs = jnp.where(jnp.arange(8192) < 4096, 1.0, -1.0)
    new, state = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g))(params, tx.init(params), signs * 2.0**127)
    assert int(state["skipped_steps"]) == 0
    np.testing.assert_array_equal(new, -signs)
