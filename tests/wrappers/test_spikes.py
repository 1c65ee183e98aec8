"""`skip_spikes` and `zclip`: what stands out is left out, or shortened, and nothing else is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

WINDOW = 16
NORMS = np.random.default_rng(0).lognormal(0.0, 0.2, 400)


def judged(norms, window=WINDOW, deviations=6.0):
    """Which of these are spikes, in NumPy and float64."""
    history, skipped = [], []
    for norm in norms:
        last = np.array(history[-window:])
        bound = np.inf
        if len(last) >= window / 2:
            bound = last.mean() + deviations * max(last.std(), 0.02 * last.mean())
        skipped.append(not norm <= bound)
        if np.isfinite(norm):
            history.append(min(norm, bound))
    return np.array(skipped)


def skipped_by(tx, norms, values=None):
    """Which calls the gate left out, one number a parameter."""
    params = jnp.zeros(3)
    state = tx.init(params)

    def call(carry, x):
        params, state = carry
        norm, value = x
        grads = jnp.array([0.6, 0.0, 0.8]) * norm
        new, state = tx.apply(params, state, grads=grads, **({} if values is None else {"value": value}))
        return (new, state), (state["skipped_steps"], jnp.all(new == params))

    norms = jnp.asarray(norms, jnp.float32)
    zeros = jnp.zeros(len(norms)) if values is None else jnp.asarray(values, jnp.float32)
    (_, state), (counts, still) = jax.jit(lambda: jax.lax.scan(call, (params, state), (norms, zeros)))()
    skipped = np.diff(np.asarray(counts), prepend=0).astype(bool)
    np.testing.assert_array_equal(skipped, np.asarray(still))  # a skipped call moves nothing, any other does
    return skipped, state


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e15])
def test_what_is_skipped_is_what_stands_out_from_the_last_window(scale):
    norms = NORMS.copy()
    norms[[40, 41, 120, 230, 300]] *= [1000, 30, 8, 1e6, 3]
    norms[90] = np.nan
    expected = judged(norms)
    assert expected[[40, 41, 90, 120, 230]].all()
    assert expected.sum() < 9
    skipped, _ = skipped_by(oc.skip_spikes(oc.sgd(1.0), WINDOW), norms * scale)
    np.testing.assert_array_equal(skipped, expected)


def test_an_ordinary_run_has_no_spikes_and_a_planted_one_in_a_hundred_are_all_found():
    assert not skipped_by(oc.skip_spikes(oc.sgd(1.0)), NORMS)[0].any()
    norms, planted = NORMS.copy(), np.arange(70, 400, 97)
    norms[planted] *= 1000
    np.testing.assert_array_equal(np.flatnonzero(skipped_by(oc.skip_spikes(oc.sgd(1.0)), norms)[0]), planted)


def test_a_level_that_stays_is_followed():
    norms = np.concatenate([NORMS[:50], 20 * NORMS[50:150]])
    skipped, _ = skipped_by(oc.skip_spikes(oc.sgd(1.0), WINDOW), norms)
    assert 1 <= skipped.sum() < WINDOW
    assert not skipped[50 + WINDOW :].any()


def test_a_loss_that_stands_out_is_a_spike_too_and_one_that_falls_is_none():
    losses = np.linspace(5.0, 2.0, 100) + 0.01 * np.random.default_rng(1).normal(size=100)
    losses[60], losses[80] = 9.0, 0.1
    skipped, state = skipped_by(oc.skip_spikes(oc.sgd(1.0), WINDOW), NORMS[:100], losses)
    np.testing.assert_array_equal(np.flatnonzero(skipped), [60])
    losses[30] = np.inf
    assert skipped_by(oc.skip_spikes(oc.sgd(1.0), WINDOW), NORMS[:100], losses)[0][30]
    assert int(state["losses"]["seen"]) >= WINDOW


@pytest.mark.parametrize("inner", [lambda: oc.adamw(0.1, use_ema=True), lambda: oc.accumulate(oc.adam(0.1), 2)])
def test_a_spike_leaves_parameters_moments_and_counters_to_the_bit(inner):
    tx, params = oc.skip_spikes(inner(), 4), {"w": jnp.ones((3, 2))}
    state = tx.init(params)
    for norm in (1.0, 1.1, 0.9, 1.0):
        params, state = tx.apply(params, state, grads={"w": norm * jnp.ones((3, 2))})
    for form in ("apply", "update"):
        grads = {"w": 1e4 * jnp.ones((3, 2))}
        if form == "apply":
            after, new = tx.apply(params, state, grads=grads)
        else:
            updates, new = tx.update(grads, state, params)
            after = jax.tree.map(jnp.add, params, updates)
        assert (int(new["skipped_steps"]), int(new["consecutive"])) == (1, 1)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), (after, new["inner"]), (params, state["inner"])))


def test_gradients_whose_squares_a_moment_could_not_hold_are_spikes_from_the_first_call_on():
    tx, params = oc.skip_spikes(oc.adam(0.1)), jnp.ones(2)
    for size, skipped in ((1e19, 0), (2e19, 1), (jnp.inf, 1), (jnp.nan, 1), (3e38, 1)):
        _, state = tx.apply(params, tx.init(params), grads=jnp.array([size, 0.0]))
        assert int(state["skipped_steps"]) == skipped, size
        assert int(state["norms"]["seen"]) == 1 - skipped


@pytest.mark.parametrize(
    "tx",
    [
        oc.skip_nonfinite(oc.skip_spikes(oc.sgd(0.1), 4, max_consecutive=2)),
        oc.skip_nonfinite(oc.skip_spikes(oc.sgd(0.1), 4, max_consecutive=2), max_consecutive=2),
        oc.skip_nonfinite(oc.chain(oc.clip_by_value(1e9), oc.skip_spikes(oc.sgd(0.1), 4, max_consecutive=2))),
        oc.dynamic_loss_scale(oc.skip_spikes(oc.sgd(0.1), 4, max_consecutive=2), 1.0),
    ],
)
def test_the_limit_of_a_gate_is_held_against_its_own_counter(tx):
    params, state = jnp.ones(1), tx.init(jnp.ones(1))
    for norm in (1.0, 1.0, 1.0, 1.0, 1e4, 1e8):
        oc.raise_if_spiking(oc.metrics(state))
        oc.raise_if_nonfinite(oc.metrics(state))
        params, state = tx.apply(params, state, grads=jnp.array([norm]))
    oc.raise_if_nonfinite(oc.metrics(state))
    with pytest.raises(FloatingPointError, match=r"2 steps in a row were spikes \(max_consecutive=2\), and 2 in all"):
        oc.raise_if_spiking(oc.metrics(state))


@pytest.mark.parametrize("read", [oc.raise_if_spiking, oc.raise_if_nonfinite])
def test_what_is_no_metrics_is_refused(read):
    tx = oc.skip_nonfinite(oc.sgd(0.1), max_consecutive=1)
    state = tx.init(jnp.ones(1))
    for wrong in (state, None):
        with pytest.raises(TypeError, match=r"metrics must be what metrics\(state\) or a step of make_step gave"):
            read(wrong)
    with pytest.raises(TypeError, match="metrics are traced"):
        jax.jit(read)(oc.metrics(state))


def test_of_members_any_may_have_reached_the_limit():
    tx = oc.skip_nonfinite(oc.sgd(0.1), max_consecutive=1)
    grads = jnp.array([[1.0], [jnp.nan], [1.0]])
    _, state = jax.jit(jax.vmap(lambda g: tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=g)))(grads)
    with pytest.raises(FloatingPointError, match="in 1 steps in a row"):
        oc.raise_if_nonfinite(oc.metrics(state))


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (jnp.ones(2), ValueError, r"value must be a real scalar; got an array of shape \(2,\)"),
        (jnp.array(1j), ValueError, "value must be a real scalar"),
        ("1", TypeError, "value must be a number, or a scalar array; got '1'"),
    ],
)
def test_a_loss_that_is_no_number_is_named(value, error, words):
    tx = oc.skip_spikes(oc.sgd(0.1))
    with pytest.raises(error, match=words):
        tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.ones(1), value=value)


def test_the_norm_is_judged_without_the_loss_scale():
    tx = oc.skip_spikes(oc.sgd(1.0, loss_scale_factor=1024.0), 4)
    state = tx.init(jnp.ones(1))
    _, state = tx.apply(jnp.ones(1), state, grads=jnp.array([2048.0]))
    assert float(oc.metrics(state)["gradient_norm"]) == 2.0


def test_a_call_of_weight_0_is_neither_judged_nor_remembered():
    tx, params = oc.skip_spikes(oc.accumulate(oc.sgd(1.0), 2), 4), jnp.ones(1)
    state = tx.init(params)
    for norm, weight in ((1.0, 1.0), (1e9, 0.0), (jnp.nan, 0.0), (1.0, 1.0)):
        params, state = tx.apply(params, state, grads=jnp.array([norm]), weight=weight)
    assert (int(state["skipped_steps"]), int(state["norms"]["seen"])) == (0, 2)
    assert np.isfinite(params).all()


def test_too_many_spikes_in_a_row_are_told_on_the_host():
    tx, params = oc.skip_spikes(oc.sgd(1.0), max_consecutive=2), jnp.ones(1)
    state = tx.init(params)
    for _ in range(2):
        oc.raise_if_spiking(oc.metrics(state))
        params, state = tx.apply(params, state, grads=jnp.array([jnp.inf]))
    with pytest.raises(FloatingPointError, match=r"2 steps in a row were spikes \(max_consecutive=2\), and 2 in all"):
        oc.raise_if_spiking(oc.metrics(state))


def zclipped(norms, threshold=2.5, decay=0.97, warmup=25):
    """What the paper makes of these norms, in float64."""
    mean = variance = 0.0
    first, made = [], []
    for norm in norms:
        if len(first) < warmup:
            first.append(norm)
            mean, variance = np.mean(first), np.var(first)
        else:
            z = (norm - mean) / (np.sqrt(variance) + 1e-6)
            if z > threshold:
                norm = mean + threshold**2 / z * np.sqrt(variance)
            mean = decay * mean + (1 - decay) * norm
            variance = decay * variance + (1 - decay) * (norm - mean) ** 2
        made.append(norm)
    return np.array(made)


def test_zclip_is_the_papers_over_four_hundred_norms():
    norms = NORMS.copy()
    norms[[10, 40, 41, 120, 230]] *= [4, 1000, 30, 8, 1e6]
    tx = oc.zclip()

    def call(state, norm):
        updates, state = tx.update(jnp.array([0.6, 0.0, -0.8]) * norm, state)
        return state, jnp.sqrt(jnp.sum(updates**2))

    state, lengths = jax.jit(lambda s, n: jax.lax.scan(call, s, n))(
        tx.init(jnp.zeros(3)), jnp.asarray(norms, jnp.float32)
    )
    expected = zclipped(norms)
    np.testing.assert_allclose(lengths, expected, rtol=2e-4)
    assert int(state["clipped"]) == np.sum(expected < norms * (1 - 1e-6))
    assert float(lengths.max()) < 5


def test_zclip_does_not_learn_from_norms_of_zero_before_the_first_gradient():
    tx = oc.zclip(warmup_steps=4)
    state = tx.init(jnp.zeros(1))
    sizes = [0.0] * 10 + [1.0, 1.1, 0.0, 0.9, 1.0, 1000.0]
    update = jax.jit(tx.update)
    out = []
    for size in sizes:
        updates, state = update(jnp.array([size]), state)
        out.append(float(updates[0]))
    np.testing.assert_allclose(out[:-1], sizes[:-1])
    assert int(state["seen"]) == 6
    assert 0 < out[-1] < 10


def test_zclip_turns_what_is_not_finite_to_nan_and_does_not_learn_from_it():
    tx = oc.zclip(warmup_steps=2)
    state = tx.init(jnp.zeros(2))
    for size in (1.0, 1.2, 1.1):
        _, state = tx.update(jnp.array([size, 0.0]), state)
    updates, after = tx.update(jnp.array([jnp.inf, 1.0]), state)
    assert np.isnan(updates).all()
    assert [float(after[name]) for name in ("seen", "mean", "variance")] == [
        float(state[name]) for name in ("seen", "mean", "variance")
    ]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: oc.skip_spikes(oc.sgd(1.0), window=3), "window must be an integer >= 4; got 3"),
        (lambda: oc.skip_spikes(oc.sgd(1.0), deviations=0.0), "deviations must be a finite number > 0; got 0.0"),
        (lambda: oc.skip_spikes(oc.sgd(1.0), max_consecutive=0), "max_consecutive must be an integer >= 1; got 0"),
        (lambda: oc.zclip(0.0), "threshold must be a finite number > 0; got 0.0"),
        (lambda: oc.zclip(decay=1.0), r"decay must be a number in \[0, 1\); got 1.0"),
        (lambda: oc.zclip(warmup_steps=1), "warmup_steps must be an integer >= 2; got 1"),
    ],
)
def test_arguments_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_level_of_zero_is_left():
    tx = oc.skip_spikes(oc.sgd(0.001), window=8)
    params = jnp.ones(1)
    state, step = tx.init(params), jax.jit(lambda p, s, g: tx.apply(p, s, grads=jnp.full_like(p, g)))
    for size in [0.0] * 8 + [1.0, 1.1, 0.9] * 4:
        params, state = step(params, state, size)
    assert int(state["skipped_steps"]) == 0
    _, state = step(params, state, 1e4)
    assert int(state["skipped_steps"]) == 1
