"""`accumulate`: weights that make the mean the whole batch's, and the tail of an epoch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import optchain as oc
from optchain.flax import TrainState

from .bad_gradients import apply_step, assert_same_bits

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}


def grads_of(number):
    rng = np.random.default_rng(number)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), PARAMS)


def mean(trees, weights=None):
    weights = [1.0] * len(trees) if weights is None else weights
    return jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)) / sum(weights), *trees)


def run(tx, params, state, numbers, **extra):
    for number in numbers:
        params, state = apply_step(tx, params, state, grads_of(number), **extra)
    return params, state


flush = jax.jit(oc.flush)

# The tail --------------------------------------------------------------------------------------------------------------

MAKERS = {
    "gate": lambda steps: oc.accumulate(oc.adamw(0.1), steps),
    "preset": lambda steps: oc.adamw(0.1, gradient_accumulation_steps=steps),
    "in a chain": lambda steps: oc.chain(oc.accumulate(oc.adamw(0.1), steps)),
    "in a gate": lambda steps: oc.skip_nonfinite(oc.accumulate(oc.adamw(0.1), steps)),
    "around a gate": lambda steps: oc.accumulate(oc.skip_nonfinite(oc.adamw(0.1)), steps),
    "clipped": lambda steps: oc.adamw(0.1, global_clipnorm=0.1, gradient_accumulation_steps=steps),
}


def plain(name):
    return oc.adamw(0.1, global_clipnorm=0.1) if name == "clipped" else oc.adamw(0.1)


@pytest.mark.parametrize("held", [1, 2, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_flush_is_one_update_of_the_mean_of_what_is_held(name, held):
    tx, alone = MAKERS[name](4), plain(name)
    params, state = run(tx, PARAMS, tx.init(PARAMS), range(4 + held))
    params, state = flush(tx, params, state)
    expected, expected_state = PARAMS, alone.init(PARAMS)
    for numbers in (range(4), range(4, 4 + held)):
        grads = mean([grads_of(n) for n in numbers])
        expected, expected_state = apply_step(alone, expected, expected_state, grads)
    for key in PARAMS:
        np.testing.assert_allclose(params[key], expected[key], rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MAKERS)
def test_after_a_flush_the_next_window_starts_afresh(name):
    tx = MAKERS[name](3)
    params, state = run(tx, PARAMS, tx.init(PARAMS), range(2))
    flushed, state = flush(tx, params, state)
    params, state = run(tx, flushed, state, (10, 11))
    assert_same_bits(params, flushed)  # two of three
    params, state = run(tx, params, state, (12,))
    alone = plain(name)
    expected, expected_state = PARAMS, alone.init(PARAMS)
    for numbers in ((0, 1), (10, 11, 12)):
        grads = mean([grads_of(n) for n in numbers])
        expected, expected_state = apply_step(alone, expected, expected_state, grads)
    for key in PARAMS:
        np.testing.assert_allclose(params[key], expected[key], rtol=1e-5)


@pytest.mark.parametrize("calls", [0, 4, 8])
@pytest.mark.parametrize("name", MAKERS)
def test_flush_of_an_empty_accumulator_changes_no_bit(name, calls):
    tx = MAKERS[name](4)
    params, state = run(tx, PARAMS, tx.init(PARAMS), range(calls))
    after, new_state = flush(tx, params, state)
    assert_same_bits(after, params)
    assert_same_bits(new_state, state)


def test_a_flush_twice_is_a_flush_once():
    tx = MAKERS["preset"](3)
    params, state = run(tx, PARAMS, tx.init(PARAMS), range(2))
    once = flush(tx, params, state)
    assert_same_bits(flush(tx, *once), once)


def test_a_flush_is_no_call_nothing_around_the_gate_counts_or_averages_it():
    schedule = oc.schedules.PiecewiseConstantDecay([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4, 0.5])
    tx = oc.sgd(schedule, gradient_accumulation_steps=4, use_ema=True)
    params, state = run(tx, PARAMS, tx.init(PARAMS), range(2))
    flushed, new_state = flush(tx, params, state)
    # The rate is that of the last call, the second: 0.1, whose boundary belongs to it.
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, mean([grads_of(0), grads_of(1)]))
    for key in PARAMS:
        np.testing.assert_allclose(flushed[key], expected[key], rtol=1e-6)
    changed = {key for key in state if not same(state[key], new_state[key])}
    assert changed == {"accumulate"}
    assert int(new_state["count"]) == int(state["count"]) == 2
    assert int(new_state["accumulate"]["count"]) == 0


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_flush_runs_under_jit_and_compiles_once_for_any_number_held():
    tx = oc.adamw(0.1, gradient_accumulation_steps=4)
    flush = jax.jit(lambda params, state: oc.flush(tx, params, state))
    for calls in (1, 2, 4, 7):
        params, state = run(tx, PARAMS, tx.init(PARAMS), range(calls))
        for a, b in zip(
            jax.tree.leaves(flush(params, state)), jax.tree.leaves(oc.flush(tx, params, state)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert flush._cache_size() == 1


def test_flush_uses_the_weights_that_were_given():
    tx = oc.accumulate(oc.sgd(1.0), 4)
    params, state = PARAMS, tx.init(PARAMS)
    for number, weight in ((0, 3.0), (1, 5.0)):
        params, state = apply_step(tx, params, state, grads_of(number), weight=weight)
    flushed, _ = flush(tx, params, state)
    expected = jax.tree.map(lambda p, g: p - g, PARAMS, mean([grads_of(0), grads_of(1)], [3.0, 5.0]))
    for key in PARAMS:
        np.testing.assert_allclose(flushed[key], expected[key], rtol=1e-5)


@pytest.mark.parametrize(
    "tx", [oc.sgd(0.1), oc.skip_nonfinite(oc.sgd(0.1)), optax.sgd(0.1)], ids=["sgd", "skip", "optax"]
)
def test_flush_without_an_accumulator_says_so(tx):
    with pytest.raises(ValueError, match=r"has no accumulate\(\), so there is nothing to flush"):
        oc.flush(tx, PARAMS, tx.init(PARAMS))


# Weights ---------------------------------------------------------------------------------------------------------------

SIZES = [1, 7, 3]


def regression(dtype="float64"):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(sum(SIZES), 3)), rng.normal(size=sum(SIZES))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)


gradient = jax.jit(jax.grad(loss))


@pytest.mark.thorough
@pytest.mark.parametrize("inner", [oc.sgd(0.5), oc.adamw(0.1, global_clipnorm=0.3)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("form", ["apply", "update"])
def test_with_sizes_as_weights_the_mean_is_the_gradient_of_the_whole_batch(inner, form):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        x, y = regression()
        expected, whole = params, inner.init(params)
        tx = oc.accumulate(inner, len(SIZES))
        state = tx.init(params)
        for _ in range(3):
            expected, whole = apply_step(inner, expected, whole, gradient(expected, x, y))
            at = params
            for rows in np.split(np.arange(len(y)), np.cumsum(SIZES)[:-1]):
                grads = gradient(at, x[rows], y[rows])
                if form == "apply":
                    params, state = apply_step(tx, params, state, grads, weight=len(rows))
                else:
                    updates, state = tx.update(grads, state, params, weight=jnp.array(len(rows)))
                    params = optax.apply_updates(params, updates)
        for key in params:
            error = np.abs(params[key] - expected[key]).max() / np.abs(expected[key]).max()
            assert error <= 1e-12


@pytest.mark.thorough
def test_without_weights_micro_batches_of_different_sizes_are_not_the_whole_batch():
    x, y = regression("float32")
    parts = [gradient(PARAMS, x[rows], y[rows]) for rows in np.split(np.arange(len(y)), np.cumsum(SIZES)[:-1])]
    whole = gradient(PARAMS, x, y)
    assert float(jnp.abs(mean(parts)["w"] - whole["w"]).max()) > 1e-3
    np.testing.assert_allclose(mean(parts, SIZES)["w"], whole["w"], rtol=1e-4)


def test_equal_weights_are_the_plain_mean_whatever_their_size():
    results = []
    for weight in (None, 1.0, 256, jnp.array(0.125)):
        tx = oc.accumulate(oc.sgd(1.0), 3)
        extra = {} if weight is None else {"weight": weight}
        results.append(run(tx, PARAMS, tx.init(PARAMS), range(3), **extra)[0])
    for other in results[1:]:
        for key in PARAMS:
            np.testing.assert_allclose(other[key], results[0][key], rtol=1e-6)


def test_a_call_of_weight_zero_counts_and_adds_nothing():
    tx = oc.accumulate(oc.sgd(1.0), 3)
    params, state = PARAMS, tx.init(PARAMS)
    for number, weight in ((0, 2.0), (1, 0.0), (2, 2.0)):
        params, state = apply_step(tx, params, state, grads_of(number), weight=weight)
    expected = jax.tree.map(lambda p, g: p - g, PARAMS, mean([grads_of(0), grads_of(2)]))
    for key in PARAMS:
        np.testing.assert_allclose(params[key], expected[key], rtol=1e-5)


def test_a_window_of_zero_weights_is_an_update_by_zero_and_no_nan():
    tx = oc.accumulate(oc.sgd(1.0), 2)
    params, _ = run(tx, PARAMS, tx.init(PARAMS), range(2), weight=0.0)
    assert_same_bits(params, PARAMS)


def test_the_state_says_how_much_weight_is_held():
    tx = oc.accumulate(oc.sgd(1.0), 3)
    params, state, held = PARAMS, tx.init(PARAMS), []
    for weight in (2.0, 3.0, 4.0, 5.0):
        params, state = tx.apply(params, state, grads=grads_of(0), weight=weight)
        held.append((int(state["count"]), float(state["weight"])))
    assert held == [(1, 2.0), (2, 5.0), (0, 9.0), (1, 5.0)]


def test_a_weight_reaches_the_accumulator_through_a_chain_and_gates():
    tx = oc.skip_nonfinite(oc.chain(oc.unscale_gradients(2.0), oc.accumulate(oc.sgd(1.0), 2), oc.average_params()))
    params, state = PARAMS, tx.init(PARAMS)
    for number, weight in ((0, 1.0), (1, 3.0)):
        grads = jax.tree.map(lambda g: 2 * g, grads_of(number))
        params, state = tx.apply(params, state, grads=grads, weight=weight)
    expected = jax.tree.map(lambda p, g: p - g, PARAMS, mean([grads_of(0), grads_of(1)], [1.0, 3.0]))
    for key in PARAMS:
        np.testing.assert_allclose(params[key], expected[key], rtol=1e-5)


@pytest.mark.parametrize(
    "tx", [oc.adamw(0.1), oc.chain(oc.sgd(0.1), name="plain"), oc.skip_nonfinite(oc.sgd(0.1))], ids=str
)
def test_a_weight_that_nothing_would_use_is_an_error_of_apply_and_passes_through_update(tx):
    with pytest.raises(TypeError, match=f"the call gave a weight, and nothing in {tx.name} would use it"):
        tx.apply(PARAMS, tx.init(PARAMS), grads=grads_of(0), weight=3.0)
    updates, _ = tx.update(grads_of(0), tx.init(PARAMS), PARAMS, weight=3.0)
    expected, _ = tx.update(grads_of(0), tx.init(PARAMS), PARAMS)
    assert_same_bits(updates, expected)


INSIDE_OPTAX = {
    "an Optax chain": lambda gate: optax.chain(oc.clip_by_value(9.0), gate),
    "an Optax chain in ours": lambda gate: oc.chain(oc.clip_by_value(9.0), optax.chain(optax.identity(), gate)),
    "an Optax mask": lambda gate: optax.masked(gate, {"w": True, "b": True}),
    "an Optax chain in a gate": lambda gate: oc.skip_nonfinite(optax.chain(oc.scale(1.0), gate)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("around", INSIDE_OPTAX)
def test_a_weight_reaches_the_accumulator_within_and_through_optax_in_every_form(around):
    tx = INSIDE_OPTAX[around](oc.accumulate(oc.sgd(1.0), 2))
    expected = jax.tree.map(lambda p, g: p - g, PARAMS, mean([grads_of(0), grads_of(1)], [1.0, 3.0]))
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    params, opt_state = PARAMS, tx.init(PARAMS)
    stepped, step_state = jax.tree.map(jnp.copy, (PARAMS, tx.init(PARAMS)))
    step = oc.make_step(lambda p, g: sum(jax.tree.leaves(jax.tree.map(lambda p, g: (p * g).sum(), p, g))), tx)
    for number, weight in ((0, 1.0), (1, 3.0)):
        grads = grads_of(number)
        updates, opt_state = tx.update(grads, opt_state, params, weight=weight)
        params = optax.apply_updates(params, updates)
        state = state.apply_gradients(grads=grads, weight=weight)
        stepped, step_state, _ = step(stepped, step_state, grads, weight=weight)
    for key in PARAMS:
        for got in (params, state.params, stepped):
            np.testing.assert_allclose(got[key], expected[key], rtol=1e-5)


def test_what_optax_holds_is_named_when_it_cannot_be_flushed():
    tx = optax.chain(oc.accumulate(oc.sgd(1.0), 2))
    with pytest.raises(ValueError, match="nothing to flush: what is inside an Optax transformation is out of reach"):
        oc.flush(tx, PARAMS, tx.init(PARAMS))


# What a weight may be ---------------------------------------------------------------------------------------------------

NO_SCALARS = [jnp.ones(2), np.ones((1, 1)), jnp.array(1 + 1j), jnp.array(True), np.bool_(True)]
NO_NUMBERS = [True, "3", 1 + 1j, [1.0]]
OUT_OF_RANGE = [-1.0, -1, float("nan"), float("inf"), np.float32(-2.0), np.array(np.nan), 10**400, 1e39]
WEIGHTED = oc.accumulate(oc.sgd(1.0), 2)


@functools.cache
def compiled_steps():
    meshes = None, jax.make_mesh((1,), ("data",))
    return [oc.make_step(lambda p: p["w"].sum() + p["b"], WEIGHTED, mesh=mesh) for mesh in meshes]


def every_form(weight):
    """The calls that take a weight, none of them traced but by themselves."""
    state = WEIGHTED.init(PARAMS)
    yield lambda: WEIGHTED.apply(PARAMS, state, grads=PARAMS, weight=weight)
    yield lambda: WEIGHTED.update(PARAMS, state, PARAMS, weight=weight)
    yield lambda: TrainState.create(apply_fn=None, params=PARAMS, tx=WEIGHTED).apply_gradients(
        grads=PARAMS, weight=weight
    )
    for step in compiled_steps():
        yield lambda step=step: step(*jax.tree.map(jnp.copy, (PARAMS, state)), weight=weight)


@pytest.mark.parametrize("weight", NO_SCALARS + NO_NUMBERS + OUT_OF_RANGE, ids=repr)
def test_what_is_no_finite_number_from_0_on_is_an_error_of_every_form(weight):
    for call in every_form(weight):
        with pytest.raises((ValueError, TypeError), match=r"^weight must be a (finite number >= 0|real scalar)"):
            call()


@pytest.mark.parametrize("weight", NO_SCALARS, ids=repr)
def test_a_traced_weight_that_is_no_scalar_is_an_error(weight):
    with pytest.raises(ValueError, match="weight must be a real scalar; got an array of shape"):
        jax.jit(lambda w: WEIGHTED.apply(PARAMS, WEIGHTED.init(PARAMS), grads=PARAMS, weight=w))(weight)


@pytest.mark.parametrize("place", [0, 1])
def test_a_traced_weight_that_is_negative_or_not_finite_makes_its_window_nan_and_no_other(place):
    step = jax.jit(lambda p, s, w: WEIGHTED.update(grads_of(0), s, p, weight=w))
    for bad in (-1.0, np.nan, np.inf, -np.inf):
        state = WEIGHTED.init(PARAMS)
        for window, weights in enumerate(([1.0, 2.0], [bad, 2.0] if place == 0 else [2.0, bad], [1.0, 2.0])):
            for weight in weights:
                updates, state = step(PARAMS, state, jnp.float32(weight))
            finite = [bool(jnp.isfinite(u).any()) for u in jax.tree.leaves(updates)]
            assert finite == [window != 1] * 2, (bad, window)
        assert_same_bits(state["grads"], step(PARAMS, step(PARAMS, WEIGHTED.init(PARAMS), 1.0)[1], 2.0)[1]["grads"])


@pytest.mark.parametrize("weight", [3, np.float64(3), jnp.bfloat16(3)], ids=repr)
def test_a_weight_of_any_real_dtype_counts_alike(weight):
    for call in every_form(weight):
        made = call()
        held = made.opt_state if isinstance(made, TrainState) else made[1]
        assert float(held["weight"]) == 3.0
        assert held["weight"].dtype == jnp.float32
        assert not held["weight"].weak_type


GATES_AROUND = {
    "skip_nonfinite": oc.skip_nonfinite,
    "dynamic_loss_scale": lambda inner: oc.dynamic_loss_scale(inner, initial_scale=1.0, growth_steps=2),
    "both": lambda inner: oc.dynamic_loss_scale(oc.skip_nonfinite(inner), initial_scale=1.0),
    "around a chain": lambda inner: oc.skip_nonfinite(
        oc.chain(oc.clip_by_global_norm(1e3), oc.apply_momentum(0.9), inner)
    ),
    "within and around": lambda inner: oc.skip_nonfinite(oc.accumulate(oc.skip_nonfinite(inner), 1)),
}


@pytest.mark.parametrize("form", ["apply", "update"])
@pytest.mark.parametrize("gate", GATES_AROUND.values(), ids=GATES_AROUND)
def test_a_call_of_weight_zero_is_never_bad_and_changes_no_gate(gate, form):
    tx = gate(oc.accumulate(oc.sgd(1.0), 2))

    @jax.jit
    def step(params, state, g, weight):
        if form == "apply":
            return tx.apply(params, state, grads=g, weight=weight)
        updates, state = tx.update(g, state, params, weight=weight)
        return optax.apply_updates(params, updates), state

    def gates_of(state):
        names = ("skipped_steps", "consecutive", "good_steps", "loss_scale")
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return [float(x) for path, x in leaves if getattr(path[-1], "key", None) in names]

    for calls in [[(bad, 0.0), (1.0, 1.0)] for bad in (np.nan, np.inf, 1e30)] + [[(1.0, 3.0), (np.nan, 0.0)]]:
        params = jnp.zeros(1)
        state = tx.init(params)
        for g, weight in calls:
            before = gates_of(state)
            params, state = step(params, state, jnp.array([g], jnp.float32), weight)
            if weight == 0 and gate is not GATES_AROUND["within and around"]:
                assert gates_of(state) == before
        assert float(params[0]) == -1.0
        assert all(np.isfinite(x).all() for x in map(np.asarray, jax.tree.leaves(oc.metrics(state))))


def test_a_bad_call_of_any_other_weight_is_still_bad():
    tx = oc.skip_nonfinite(oc.accumulate(oc.sgd(1.0), 2))
    params, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    params, state = tx.apply(params, state, grads=jnp.array([jnp.nan]), weight=1e-3)
    assert (int(state["skipped_steps"]), int(state["inner"]["count"])) == (1, 0)


NESTED = {(m, n): oc.accumulate(oc.accumulate(oc.sgd(1.0), n), m) for m, n in ((1, 6), (6, 1), (2, 3), (3, 2))}
NESTED_STEP = {key: jax.jit(lambda p, s, g, w, tx=tx: tx.apply(p, s, grads=g, weight=w)) for key, tx in NESTED.items()}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(-4, 4), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=6, max_size=6))
@example([(1.0, 1.0), (math.nan, 0.0)] * 3)
@example([(math.nan, 0.0), (1.0, 1.0)] * 3)
def test_nested_means_are_the_mean_over_all_calls(calls):
    for inner, outer in ((1, 6), (6, 1), (2, 3), (3, 2)):
        params, state = jnp.zeros(1), NESTED[inner, outer].init(jnp.zeros(1))
        for g, weight in calls:
            params, state = NESTED_STEP[inner, outer](params, state, jnp.array([g], jnp.float32), weight)
        total = math.fsum(weight for _, weight in calls)
        sums = math.fsum(g * weight for g, weight in calls if weight)
        np.testing.assert_allclose(params, [-sums / total if total else 0.0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [3e38, 2.0**65, 1e30, 1e-38, 1e-42, 1e-30, np.float32(1e25), jnp.float32(1e-25)])
@pytest.mark.parametrize(
    "tx", [oc.accumulate(oc.sgd(1.0), 2), oc.chain(oc.skip_nonfinite(oc.accumulate(oc.sgd(1.0), 2)))]
)
def test_a_weight_without_headroom_is_refused(tx, weight):
    params = jnp.zeros(1)
    with pytest.raises(ValueError, match=r"weight must be 0 or a number in \[5.42101e-20, 1.84467e\+19\]; got"):
        tx.apply(params, tx.init(params), grads=params, weight=weight)
    with pytest.raises(ValueError, match="weight must be 0 or"):
        jax.jit(lambda p, s: tx.update(p, s, weight=float(weight)))(params, tx.init(params))


@pytest.mark.parametrize("exponent", [-64, -40, 0, 40, 64])
def test_the_mean_is_right_over_the_whole_range_of_weights(exponent):
    tx = oc.accumulate(oc.accumulate(oc.sgd(1.0), 2), 2)
    params, state = jnp.zeros(2), tx.init(jnp.zeros(2))
    step = jax.jit(lambda p, s, g, w: tx.apply(p, s, grads=g, weight=w))
    for weight, g in ((1.0, 1.0), (0.5, 2.0), (0.0, 1e9), (1.0, 1.0)):
        params, state = step(params, state, g * jnp.array([1.0, 1e10]), weight * 2.0**exponent)
    np.testing.assert_allclose(params, [-1.2, -1.2e10], rtol=1e-6)
