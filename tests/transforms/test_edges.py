"""Numbers at the edges of float32: scales, weights, gradients whose squares overflow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wrappers.bad_gradients import apply_step, assert_same_bits

import optchain as oc
from optchain.core.precision import enable_x64

pytestmark = pytest.mark.each_value

FORMS = ["apply", "update"]


@jax.jit
def update_step(tx, params, state, grads, **extra):
    updates, state = tx.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def step(form, tx, params, state, grads, **extra):
    return (apply_step if form == "apply" else update_step)(tx, params, state, grads, **extra)


# Scales and weights over the whole range ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_loss_scale_trains(form):
    tx = oc.dynamic_loss_scale(oc.sgd(1.0), initial_scale=2.0**127)
    params, state = step(form, tx, jnp.zeros(2), tx.init(jnp.zeros(2)), jnp.full(2, 2.0**127))
    np.testing.assert_array_equal(params, -1.0)
    assert int(state["good_steps"]) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clip", [{"global_clipnorm": 0.25}, {"clipnorm": 0.25}])
def test_an_active_clip_goes_with_a_scale_near_the_largest(form, clip):
    tx = oc.dynamic_loss_scale(oc.sgd(1.0, **clip), initial_scale=2.0**126)
    params, _ = step(form, tx, jnp.zeros(1), tx.init(jnp.zeros(1)), jnp.full(1, 2.0**126))
    np.testing.assert_array_equal(params, -0.25)


POWERS = st.floats(-126, 126.9)


@pytest.mark.parametrize("clip", [None, 0.25], ids=["plain", "clipped"])
@given(first=POWERS, second=POWERS, value=st.floats(0.5, 2, width=32))
def test_any_two_loss_scales_divide_as_float64_would(clip, first, second, value):
    first, second = (float(np.float32(2.0**power)) for power in (first, second))
    scaled = np.float64(value) * first * second
    if not 2.0**-125 < scaled < 2.0**127:
        return
    init, update = unscaled_twice(clip)
    scales = {"unscale_gradients/loss_scale": first, "unscale_gradients_2/loss_scale": second}
    state = oc.set_hyperparams(init, scales)
    exact = np.float64(np.float32(scaled)) / first / second
    updates, _ = update(jnp.float32(scaled)[None], state)
    np.testing.assert_allclose(updates, exact if clip is None else min(exact, clip), rtol=1e-6)


@functools.cache
def unscaled_twice(clip):
    links = [oc.unscale_gradients(1.0), oc.unscale_gradients(1.0)]
    tx = oc.chain(*links, *([] if clip is None else [oc.clip_by_global_norm(clip)]))
    return tx.init(jnp.zeros(1)), jax.jit(tx.update)


MEAN = oc.accumulate(oc.scale(1.0), 2)


@given(power=st.floats(-64, 126.9), share=st.floats(0, 1, width=32), values=st.tuples(*[st.floats(-0.25, 0.25)] * 2))
@example(power=126.0, share=1.0, values=(0.25, 0.125))
@example(power=126.5, share=0.0, values=(0.25, 0.125))
def test_a_mean_does_not_depend_on_the_unit_of_the_weights(power, share, values):
    """Up to a sum of weights whose reciprocal float32 does not have."""
    params, state = jnp.zeros(1), MEAN.init(jnp.zeros(1))
    unit, share = np.float32(2.0**power), np.float32(0 if share < 0.125 else share)
    for value, weight in zip(values, (unit, unit * share), strict=True):
        params, state = apply_step(MEAN, params, state, jnp.full(1, value, jnp.float32), weight=jnp.float32(weight))
    exact = (values[0] + share * values[1]) / (1 + share)
    np.testing.assert_allclose(params, exact, rtol=1e-5, atol=1e-6)


def test_weights_whose_sum_overflows_are_not_a_silent_zero():
    params, state = jnp.zeros(1), MEAN.init(jnp.zeros(1))
    for _ in range(2):
        params, state = apply_step(MEAN, params, state, jnp.full(1, 0.1), weight=jnp.float32(2.0**127))
    assert np.isnan(params).all()


# A weight of 0 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", [True, False])
def test_a_weight_of_zero_does_not_count_whatever_its_gradient_is(form, bad, first):
    tx = oc.accumulate(oc.sgd(1.0), 3)
    calls = [(2.0, 1.0), (5.0, 3.0)]
    calls.insert(0 if first else 1, (bad, 0.0))
    params, state = jnp.zeros(2), tx.init(jnp.zeros(2))
    for value, weight in calls:
        params, state = step(form, tx, params, state, jnp.array([value, 1.0]), weight=jnp.float32(weight))
    np.testing.assert_allclose(params, [-17 / 4, -1.0], rtol=1e-6)


@pytest.mark.thorough
def test_a_weight_of_zero_does_not_count_for_named_rows_either():
    tx = oc.accumulate(oc.sgd(1.0), 2)
    params, state = jnp.zeros((3, 1)), tx.init(jnp.zeros((3, 1)))
    for value, weight in ((jnp.nan, 0.0), (2.0, 1.0)):
        grads = oc.RowGradient(jnp.array([1]), jnp.full((1, 1), value), shape=(3, 1))
        params, state = tx.apply(params, state, grads=grads, weight=weight)
    np.testing.assert_array_equal(params[:, 0], [0, -2, 0])


# Squares that overflow ------------------------------------------------------------------------------------------------

SEQUENCE = [1.0, 1e20, 1.0, 1.0]
GATES = {
    "skip": oc.skip_nonfinite,
    "dynamic": lambda inner: oc.dynamic_loss_scale(inner, 1.0, growth_steps=1000),
    "skip(skip)": lambda inner: oc.skip_nonfinite(oc.skip_nonfinite(inner)),
    "dynamic(skip)": lambda inner: oc.dynamic_loss_scale(oc.skip_nonfinite(inner), 1.0, growth_steps=1000),
    "chain(skip)": lambda inner: oc.chain(oc.scale(2.0), oc.skip_nonfinite(inner)),
    "skip(masked)": lambda inner: oc.skip_nonfinite(oc.masked(inner, {"w": True})),
    "masked(skip)": lambda inner: oc.masked(oc.skip_nonfinite(inner), {"w": True}),
    "skip(groups)": lambda inner: oc.skip_nonfinite(oc.multi_optimizer(("all", "w", inner))),
    "accumulate(skip)": lambda inner: oc.accumulate(oc.skip_nonfinite(inner), 1),
    "skip(accumulate)": lambda inner: oc.skip_nonfinite(oc.accumulate(inner, 1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nesting", GATES)
def test_a_step_whose_squares_overflow_is_bad_and_changes_no_bit(form, nesting):
    tx = GATES[nesting](oc.adamw(1e-3, global_clipnorm=1.0))
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for number, value in enumerate(SEQUENCE):
        before, held = params, moments(state)
        params, state = step(form, tx, params, state, {"w": jnp.array([value, 0.5])})
        if number == 1:
            assert_same_bits((params, moments(state)), (before, held))
        else:
            assert float(jnp.abs(params["w"] - before["w"]).min()) > 0
    assert np.isfinite(params["w"]).all()


def moments(state):
    """Everything that the rule within keeps."""
    found = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if {"scale_by_adam", "clip_by_global_norm"} & {getattr(key, "key", None) for key in path}
    ]
    assert found
    return found


def test_the_skipped_step_is_counted():
    tx = oc.skip_nonfinite(oc.adamw(1e-3, global_clipnorm=1.0))
    params, state = jnp.ones(1), tx.init(jnp.ones(1))
    for value in SEQUENCE:
        params, state = apply_step(tx, params, state, jnp.full(1, value))
    assert int(state["skipped_steps"]) == 1
    assert np.isfinite(params).all()


@pytest.mark.parametrize(("value", "skipped"), [(1.84e19, 0), (1.8447e19, 1), (-1.9e19, 1)])
def test_the_bound_is_where_the_square_overflows(value, skipped):
    assert (float(np.float32(value)) ** 2 > float(np.finfo(np.float32).max)) == bool(skipped)
    tx = oc.skip_nonfinite(oc.sgd(1e-30))
    _, state = apply_step(tx, jnp.zeros(2), tx.init(jnp.zeros(2)), jnp.array([0.0, value], jnp.float32))
    assert int(state["skipped_steps"]) == skipped


STORED = {
    "adam": lambda dtype: oc.adam(0.1, moment_dtype=dtype),
    "nu": lambda dtype: oc.adam(0.1, moment_dtype={"nu": dtype}),
    "rmsprop": lambda dtype: oc.scale_by_rms(moment_dtype=dtype),
    "momentum": lambda dtype: oc.sgd(0.1, momentum=0.9, moment_dtype=dtype),
    "groups": lambda dtype: oc.multi_optimizer(("all", "w", oc.adam(0.1, moment_dtype=dtype))),
    "accumulate": lambda dtype: oc.accumulate(oc.sgd(0.1), 1, accumulator_dtype=dtype),
}


@pytest.mark.thorough
@pytest.mark.parametrize("gate", ["skip", "dynamic", "dynamic(skip)"])
@pytest.mark.parametrize("rule", STORED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_float64_gradient_is_judged_by_the_dtype_in_which_its_moments_are_stored(gate, rule, dtype):
    with enable_x64():
        for value, skipped in ((1e18, 0), (1e45, 1), (1e150, 1), (1e160, 1)):
            tx = GATES[gate](STORED[rule](dtype))
            params = {"w": jnp.ones(2)}
            state = tx.init(params)
            new, after = tx.apply(params, state, grads={"w": jnp.array([value, 1.0])})
            assert bool((new["w"] == 1).all()) == bool(skipped), value
            assert all(np.isfinite(np.asarray(x, "float64")).all() for x in jax.tree.leaves((new, after)))


def test_where_moments_are_float64_the_bound_is_that_of_float64():
    with enable_x64():
        tx, params = oc.skip_nonfinite(oc.adam(0.1)), jnp.ones(1)
        for value, skipped in ((1e150, 0), (1e160, 1)):
            assert int(tx.apply(params, tx.init(params), grads=jnp.full(1, value))[1]["skipped_steps"]) == skipped


def test_a_value_that_is_stored_and_not_squared_needs_to_fit_itself():
    tx = oc.rule(lambda: lambda g, m: (g, {"m": g}), slots={"m": oc.Slot(dtype="float16")})
    for value, skipped in ((6e4, 0), (7e4, 1)):
        gated = oc.skip_nonfinite(tx)
        _, state = gated.update(jnp.full(1, value), gated.init(jnp.ones(1)))
        assert int(state["skipped_steps"]) == skipped


def test_a_square_is_judged_after_the_scales_of_the_loss_are_divided_out():
    scaled = oc.adam(0.1, loss_scale_factor=2.0**10)
    for tx in (
        oc.dynamic_loss_scale(scaled, 2.0**90),
        oc.dynamic_loss_scale(oc.skip_nonfinite(scaled), 2.0**90),
        oc.skip_nonfinite(oc.adam(0.1, loss_scale_factor=2.0**100)),
    ):
        params, _ = apply_step(tx, jnp.zeros(1), tx.init(jnp.zeros(1)), jnp.full(1, 2.0**100))
        np.testing.assert_allclose(params, -0.1, rtol=1e-5)


@pytest.mark.parametrize("value", [1e20, 1e25])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("adamw", "AdamW"),
        ("adam", "Adam"),
        ("nadam", "NAdam"),
        ("radam", "RAdam"),
        ("rmsprop", "RMSprop"),
        ("adagrad", "Adagrad"),
        ("adamax", "Adamax"),
    ],
)
def test_a_rule_whose_second_moment_overflows_goes_on_as_pytorchs_does(ours, theirs, value):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = getattr(torch.optim, theirs)([weight], lr=1e-3)
    tx = getattr(oc.presets.torch, ours)(1e-3)
    params, state = jnp.ones(1), tx.init(jnp.ones(1))
    for g in [1.0, value, 1.0, 1.0]:
        weight.grad = torch.tensor([g])
        optimizer.step()
        params, state = apply_step(tx, params, state, jnp.full(1, g))
        np.testing.assert_allclose(params, weight.detach().numpy(), rtol=1e-6)


RULES = ["adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "adamax", "lamb", "lion", "schedule_free_adamw"]


@pytest.mark.parametrize("name", RULES)
def test_an_infinite_second_moment_stands_still_and_is_not_nan(name):
    tx = getattr(oc, name)(1e-3)
    params, state = jnp.ones(2), tx.init(jnp.ones(2))
    for value in (1.0, 1e25, 1.0, 1.0):
        params, state = apply_step(tx, params, state, jnp.array([value, 1.0]))
    assert np.isfinite(params).all()


STANDING = {
    "adam": oc.adam(1e-3),
    "adam without memory": oc.adam(1e-3, beta_1=0.0, beta_2=0.0),
    "adafactor": oc.adafactor(1e-3),
    "adafactor without memory": oc.adafactor(1e-3, beta_2_decay=0.0),
    "adadelta without memory": oc.adadelta(1e-3, rho=0.0),
    "adamax without memory": oc.adamax(1e-3, beta_2=0.0),
    "rmsprop without memory": oc.rmsprop(1e-3, rho=0.0),
    "rmsprop, centered": oc.rmsprop(1e-3, centered=True),
    "ftrl": oc.ftrl(1e-3),
    "ftrl, shrunk": oc.ftrl(1e-3, l1_regularization_strength=0.1, l2_shrinkage_regularization_strength=0.1),
    "ftrl, power -1": oc.ftrl(1e-3, learning_rate_power=-1.0, l1_regularization_strength=0.1),
    "ftrl, power -2": oc.ftrl(1e-3, learning_rate_power=-2.0, beta=1.0),
}
KINDS = {
    "vector": jnp.ones(2),
    "matrix": jnp.ones((2, 3)),
    "zeros": jnp.zeros((2, 3)),
    "stack": jnp.ones((2, 2, 3)),
    "complex": jnp.ones((2, 2), jnp.complex64),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.thorough if name.startswith("ftrl,") else ()) for name in STANDING],
)
def test_what_met_an_infinite_second_moment_moves_no_more(name):
    tx = STANDING[name]

    @jax.jit
    @jax.vmap
    def run(values):
        def call(carry, value):
            params, state = carry
            grads = jax.tree.map(lambda p: jnp.ones_like(p).at[(0,) * p.ndim].set(value.astype(p.dtype)), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), (params, updates)

        return jax.lax.scan(call, (KINDS, tx.init(KINDS)), values)[1]

    params, updates = run(jnp.array([[1.0, big, 1.0, -3.0, 1.0] for big in (1e20, 1e25)]))
    for kind, update in updates.items():
        assert np.isfinite(params[kind]).all(), kind
        # The magnitude of a real number has a finite maximum.
        if name == "adamax without memory" or (name == "rmsprop, centered" and kind != "complex"):
            continue
        first = update.reshape(*update.shape[:2], -1)[:, 2:, 0]
        # 1e20 is in range where its square is multiplied by 1 − β₂ first.
        np.testing.assert_array_equal(first[1:] if name == "adam" else first, 0, err_msg=kind)
    if "adafactor" in name:  # of a matrix the averages of all rows meet
        np.testing.assert_array_equal(updates["matrix"][:, 2:], 0)
        np.testing.assert_array_equal(updates["stack"][:, 2:, 0], 0)
        assert (np.abs(updates["stack"][:, 2:, 1]) > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", STANDING)
def test_a_gradient_that_is_not_finite_is_not_hidden(name, bad):
    tx, params = STANDING[name], {"matrix": jnp.ones((2, 2))}
    grads = {"matrix": jnp.ones((2, 2)).at[0, 0].set(bad)}
    params, _ = apply_step(tx, params, tx.init(params), grads)
    assert np.isnan(params["matrix"][0, 0])


def test_a_rate_at_which_ftrl_leaves_the_range_is_as_a_rate_of_zero():
    tx = oc.ftrl(jnp.array(2e-38))
    params = jnp.full(2, 3.0)
    state = tx.init(params)
    new, after = apply_step(tx, params, state, jnp.full(2, 1e3))
    assert_same_bits((new, moments_of_ftrl(after)), (params, moments_of_ftrl(state)))


def moments_of_ftrl(state):
    return [state["apply_ftrl"][name] for name in ("sum_of_squares", "linear_term")]


# Counters -------------------------------------------------------------------------------------------------------------


LARGEST = np.iinfo(np.int32).max
COUNTERS = {
    "schedule": lambda: oc.sgd(lambda step: 0.1),
    "skip": lambda: oc.skip_nonfinite(oc.adam(0.1, use_ema=True)),
    "dynamic": lambda: oc.dynamic_loss_scale(oc.adam(0.1, use_ema=True, ema_overwrite_frequency=4), growth_steps=4),
    "accumulate": lambda: oc.accumulate(oc.adam(0.1), 2),
    "accumulate by schedule": lambda: oc.accumulate(oc.adam(0.1), lambda updates: 2),
    "schedule_free": lambda: oc.schedule_free_adamw(0.1),
    "nadam": lambda: oc.nadam(0.1),
    "adafactor": lambda: oc.adafactor(0.1),
    "noise": lambda: oc.add_noise(0.1),
    "lazy_rows": lambda: oc.lazy_rows(oc.adam(0.1)),
}


@pytest.mark.parametrize("value", [1.0, np.nan], ids=["good", "bad"])
@pytest.mark.parametrize("name", COUNTERS)
def test_counters_stay_at_the_largest_integer_or_begin_again(name, value):
    tx, params = COUNTERS[name](), jnp.ones((2, 2))
    state = jax.tree.map(lambda leaf: jnp.full_like(leaf, LARGEST) if is_count(leaf) else leaf, tx.init(params))
    assert counts(state) == {LARGEST}
    for _ in range(2):
        params, state = apply_step(tx, params, state, jnp.full((2, 2), value))
        assert counts(state) <= {0, 1, LARGEST}


def is_count(leaf):
    return leaf.dtype == jnp.int32


def counts(state):
    return {int(count) for leaf in jax.tree.leaves(state) if is_count(leaf) for count in np.ravel(leaf)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("growth_steps", [4, LARGEST])
def test_good_steps_do_not_wrap_round(growth_steps, form):
    tx = oc.dynamic_loss_scale(oc.sgd(0.1), growth_steps=growth_steps)
    params, state = jnp.ones(1), tx.init(jnp.ones(1)) | {"good_steps": jnp.int32(LARGEST)}
    for _ in range(2):
        params, state = step(form, tx, params, state, jnp.ones(1))
        assert int(state["good_steps"]) >= 0
