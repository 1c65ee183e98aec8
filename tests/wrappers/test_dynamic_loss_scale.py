"""`dynamic_loss_scale`: the scale finds its size, bad steps touch nothing, and it nests with `accumulate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

from .bad_gradients import apply_step, assert_same_bits, bad

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
GOOD = {"w": jnp.array([1.0, 3.0]), "b": jnp.array(2.0)}


def scaled(grads, state):
    """The gradients as they come from a loss that was multiplied by the scale."""
    factor = float(oc.scale_loss(jnp.float32(1.0), state))
    return jax.tree.map(lambda g: g * factor, grads)


def test_a_good_step_divides_by_the_scale_before_the_inner_transformation():
    tx = oc.dynamic_loss_scale(oc.adam(0.1), 256.0)
    params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=scaled(GOOD, tx.init(PARAMS)))
    alone = oc.adam(0.1)
    expected, _ = alone.apply(PARAMS, alone.init(PARAMS), grads=GOOD)
    assert_same_bits(params, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_step_touches_neither_parameters_nor_inner_state(value):
    tx = oc.dynamic_loss_scale(oc.adamw(0.1, use_ema=True), 256.0)
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GOOD)
    after, new_state = apply_step(tx, params, state, bad(GOOD, value))
    assert_same_bits(after, params)
    assert_same_bits(new_state["inner"], state["inner"])
    assert float(new_state["loss_scale"]) == 128.0


def test_the_scale_doubles_after_growth_steps_good_steps_in_a_row_and_a_bad_one_starts_the_count_again():
    tx = oc.dynamic_loss_scale(oc.sgd(0.0), 16.0, growth_steps=3)
    state, scales, counts = tx.init(PARAMS), [], []
    for letter in "gggggbggbgggg":
        _, state = apply_step(tx, PARAMS, state, GOOD if letter == "g" else bad(GOOD))
        scales.append(float(state["loss_scale"]))
        counts.append(int(state["good_steps"]))
    assert scales == [16, 16, 32, 32, 32, 16, 16, 16, 8, 8, 8, 16, 16]
    assert counts == [1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]


def test_the_skipped_steps_are_counted_and_are_a_metric():
    tx = oc.dynamic_loss_scale(oc.sgd(0.0), 16.0)
    state = tx.init(PARAMS)
    for letter in "gbbgb":
        _, state = apply_step(tx, PARAMS, state, GOOD if letter == "g" else bad(GOOD))
    assert int(oc.metrics(state)["skipped_steps"]) == int(state["skipped_steps"]) == 3


def test_the_scale_of_the_next_step_is_the_metric():
    tx = oc.dynamic_loss_scale(oc.sgd(0.1), 16.0, growth_steps=1)
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GOOD)
    assert float(oc.metrics(state)["loss_scale"]) == float(state["loss_scale"]) == 32.0


@pytest.mark.parametrize(("kind", "bound"), [("good", 2.0**127), ("bad", 2.0**-24)])
def test_the_scale_stays_in_its_bounds_after_300_steps_one_way(kind, bound):
    tx = oc.dynamic_loss_scale(oc.sgd(0.0), growth_steps=1)
    grads = GOOD if kind == "good" else bad(GOOD, np.inf)

    def step(carry, _):
        params, state = carry
        return tx.apply(params, state, grads=grads), state["loss_scale"]

    (params, state), _ = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=300)
    assert float(state["loss_scale"]) == bound
    assert_same_bits(params, PARAMS)
    # And it comes back.
    _, state = apply_step(tx, PARAMS, state, bad(GOOD) if kind == "good" else GOOD)
    assert float(state["loss_scale"]) == bound * (0.5 if kind == "good" else 2.0)


def test_scale_loss_multiplies_by_the_scale_of_now_in_float32_at_least():
    tx = oc.dynamic_loss_scale(oc.sgd(0.1), 2.0**15, growth_steps=1)
    state = tx.init(PARAMS)
    assert oc.scale_loss(jnp.float16(2.0), state).dtype == jnp.float32
    assert float(oc.scale_loss(jnp.float16(2.0), state)) == 2.0**16
    _, state = apply_step(tx, PARAMS, state, GOOD)
    assert float(oc.scale_loss(jnp.float16(2.0), state)) == 2.0**17


def test_make_step_scales_the_loss_and_reports_it_unscaled():
    tx = oc.dynamic_loss_scale(oc.sgd(0.5), 2.0**10)
    step = oc.make_step(lambda p, x: jnp.sum((p["w"] - x) ** 2), tx)
    params = {"w": jnp.array([1.0, 2.0])}
    params, _, metrics = step(params, tx.init(params), jnp.zeros(2))
    assert float(metrics["loss"]) == 5.0
    np.testing.assert_array_equal(params["w"], 0.0)


def test_a_loss_that_only_float16_overflows_is_found_and_trained_past():
    def loss(params, x):
        return jnp.sum((params["w"] * x).astype(jnp.float16)).astype(jnp.float32)

    # The gradient of w is x · scale in float16: 100 · 2**15 overflows, 100 · 2**9 does not.
    tx = oc.dynamic_loss_scale(oc.sgd(1.0), 2.0**15, growth_steps=1000)
    step = oc.make_step(loss, tx)
    params = {"w": jnp.zeros((), jnp.float16)}
    state = tx.init(params)
    for _ in range(8):
        params, state, metrics = step(params, state, jnp.float16(100.0))
    assert float(metrics["loss_scale"]) == 2.0**9
    assert float(params["w"]) == -200.0


# With accumulation ----------------------------------------------------------------------------------------------------

PATTERNS = ["gggggg", "gbgggbg", "bgggggg", "ggbbbgggg"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_around_accumulate_a_bad_call_does_not_count_and_the_window_goes_on(pattern):
    tx = oc.dynamic_loss_scale(oc.accumulate(oc.sgd(1.0), 3), 8.0, growth_steps=100)
    alone = oc.accumulate(oc.sgd(1.0), 3)
    params, state = PARAMS, tx.init(PARAMS)
    expected, expected_state = PARAMS, alone.init(PARAMS)
    for number, letter in enumerate(pattern):
        grads = jax.tree.map(lambda g, factor=1.0 + number: g * factor, GOOD)
        sent = scaled(grads, state)
        params, state = apply_step(tx, params, state, sent if letter == "g" else bad(sent))
        if letter == "g":
            expected, expected_state = apply_step(alone, expected, expected_state, grads)
        assert_same_bits(params, expected)
        assert int(state["inner"]["count"]) == int(expected_state["count"])
    assert float(state["loss_scale"]) == 8.0 / 2 ** pattern.count("b")


def test_inside_accumulate_one_bad_call_drops_the_window_and_halves_the_scale_once():
    tx = oc.accumulate(oc.dynamic_loss_scale(oc.sgd(1.0), 8.0, growth_steps=100), 3)
    params, state = PARAMS, tx.init(PARAMS)
    for letter in "gbb":
        params, state = apply_step(tx, params, state, scaled(GOOD, state) if letter == "g" else bad(GOOD))
    assert_same_bits(params, PARAMS)
    assert float(state["inner"]["loss_scale"]) == 4.0
    assert int(state["count"]) == 0
    for _ in range(3):  # nothing of the bad window is left
        params, state = apply_step(tx, params, state, scaled(GOOD, state))
    assert_same_bits(params, jax.tree.map(lambda p, g: p - g, PARAMS, GOOD))


def test_scale_loss_reads_the_scale_within_accumulate_and_the_product_of_two():
    inside = oc.accumulate(oc.dynamic_loss_scale(oc.sgd(1.0), 8.0), 3)
    assert float(oc.scale_loss(jnp.float32(1.0), inside.init(PARAMS))) == 8.0
    both = oc.dynamic_loss_scale(oc.sgd(1.0, loss_scale_factor=4.0), 8.0)
    params, state = PARAMS, both.init(PARAMS)
    assert float(oc.scale_loss(jnp.float32(1.0), state)) == 32.0
    params, _ = both.apply(params, state, grads=jax.tree.map(lambda g: g * 32, GOOD))
    assert_same_bits(params, jax.tree.map(lambda p, g: p - g, PARAMS, GOOD))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"initial_scale": 0.0}, ValueError, "initial_scale must be a number in"),
        ({"initial_scale": 2.0**128}, ValueError, "initial_scale must be a number in"),
        ({"growth_steps": 0}, ValueError, "growth_steps must be an integer >= 1; got 0"),
        ({"growth_steps": 2.0}, TypeError, "growth_steps must be an integer >= 1; got 2.0"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(arguments, error, message):
    with pytest.raises(error, match=message):
        oc.dynamic_loss_scale(oc.sgd(0.1), **arguments)


@pytest.mark.parametrize("scale", ["8", None, True])
def test_a_scale_that_is_no_number_is_a_type_error_that_names_it(scale):
    with pytest.raises(TypeError, match="initial_scale must be"):
        oc.dynamic_loss_scale(oc.sgd(0.1), scale)
