"""The averages that `average_params` keeps by its schedules, against what they say they are of the whole run, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optchain as oc
from optchain.schedules import DebiasedEMA, PowerEMA, TailAverage, WarmedUpEMA

UPDATES = 60
RUN = np.random.default_rng(0).normal(size=(UPDATES, 3)).cumsum(0)
"""The parameters after each update."""


def averages(momentum, run=RUN, **options):
    """The average after each update."""
    tx = oc.average_params(momentum, **options)
    first = jnp.full(3, 100.0)  # which no average has a share of

    def call(carry, p):
        params, state = carry
        new, state = tx.apply(params, state, grads=p - params)
        return (new, state), state["average"]

    return jax.jit(lambda run: jax.lax.scan(call, (first, tx.init(first)), run)[1])(jnp.asarray(run, jnp.float32))


def close(made, expected):
    np.testing.assert_allclose(made, np.array(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_the_debiased_average_is_the_one_from_zero_divided_by_its_weights(momentum):
    total, expected = np.zeros(3), []
    for t, p in enumerate(RUN, start=1):
        total = momentum * total + (1 - momentum) * p
        expected.append(total / (1 - momentum**t))
    close(averages(DebiasedEMA(momentum)), expected)


def test_the_debiased_average_is_that_of_optax():
    tx = optax.ema(0.95, debias=True)

    def call(state, p):
        made, state = tx.update(p, state)
        return state, made

    expected = jax.jit(lambda run: jax.lax.scan(call, tx.init(jnp.zeros(3)), run)[1])(jnp.asarray(RUN, jnp.float32))
    close(averages(DebiasedEMA(0.95)), expected)


def test_the_warmed_up_average_is_short_at_first():
    average, expected = None, []
    for t, p in enumerate(RUN):
        m = min(0.8, (1 + t) / (10 + t))
        average = p if average is None else m * average + (1 - m) * p
        expected.append(average)
    close(averages(WarmedUpEMA(0.8)), expected)
    assert float(WarmedUpEMA(0.8)(35)) == pytest.approx(0.8)


@given(start=st.integers(0, UPDATES - 1), every=st.integers(1, 12))
@settings(max_examples=8)
def test_a_tail_average_is_the_mean_of_every_so_many_parameters_from_its_start_on(start, every):
    momenta = np.asarray(TailAverage(start, every)(jnp.arange(UPDATES)), float)
    average, expected = None, []
    for t, (p, m) in enumerate(zip(RUN, momenta, strict=True)):
        average = p if t == 0 else m * average + (1 - m) * p
        expected.append(p if t < start else RUN[start : t + 1 : every].mean(0))
        np.testing.assert_allclose(average, expected[-1], rtol=1e-5, atol=1e-5)


def test_a_tail_average_is_kept_by_the_link_too():
    close(averages(TailAverage(20, 5))[-1], RUN[20::5].mean(0))
    close(averages(TailAverage(20, 5))[10], RUN[10])


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_a_power_ema_weighs_updates_by_a_power_of_their_number(width):
    gamma = PowerEMA(width).exponent
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(width, rel=1e-9)
    average, expected = np.zeros(3), []
    for t, p in enumerate(RUN, start=1):
        beta = (1 - 1 / t) ** (gamma + 1)
        average = beta * average + (1 - beta) * p
        expected.append(average)
    close(averages(PowerEMA(width)), expected)
    # Of a long run the deviation of the weights is the width: that of a number which grows by 1 tells their mean.
    shares = np.arange(1, 10_001.0) ** gamma
    shares /= shares.sum()
    places = np.arange(1, 10_001) / 10_000
    assert np.sqrt(shares @ (places - shares @ places) ** 2) == pytest.approx(width, rel=1e-3)


def test_the_exponents_are_those_that_the_authors_name():
    assert PowerEMA(0.05).exponent == pytest.approx(16.97, abs=0.005)
    assert PowerEMA(0.10).exponent == pytest.approx(6.94, abs=0.005)


# Of another width, afterwards ----------------------------------------------------------------------------------------

LONG = np.stack([np.linspace(0, 3, 400) ** 2, np.sin(np.linspace(0, 9, 400)), np.ones(400)], axis=1)


@pytest.fixture(scope="module")
def snapshots():
    kept = []
    for width in (0.05, 0.10):
        made = averages(PowerEMA(width), LONG)
        kept += [(width, t, {"w": made[t - 1]}) for t in range(40, 401, 40)]
    return kept


@pytest.mark.parametrize("width", [0.04, 0.07, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("at", [None, 320])
def test_an_average_of_any_width_is_made_of_two_that_were_kept(snapshots, width, at):
    exact = averages(PowerEMA(width), LONG)[(at or 400) - 1]
    made = oc.posthoc_average(snapshots, width, at)["w"]
    if width <= 0.15:  # further from all that was kept, weights whose sum is 1 cost some of the profile
        np.testing.assert_allclose(made, exact, atol=0.02)
    nearest = min((s for s in snapshots if s[1] == (at or 400)), key=lambda s: abs(s[0] - width))
    if nearest[0] != width:
        assert np.abs(made - exact).max() < 0.3 * np.abs(nearest[2]["w"] - exact).max()


def test_the_combination_is_the_one_whose_profile_is_nearest(snapshots):
    """Equations 8 to 13 of the paper's appendix C, the integrals by the midpoint rule."""
    grid = np.arange(0.5, 400 * 40) / 40

    def profile(width, t):
        gamma = PowerEMA(width).exponent
        return np.where(grid < t, (gamma + 1) * (grid / t) ** gamma / t, 0.0)

    among = np.array([profile(width, t) for width, t, _ in snapshots])
    # With weights whose sum is 1: the last is what the others leave.
    first, last = among[:-1].T, among[-1]
    shares = np.linalg.lstsq(first - last[:, None], profile(0.07, 320) - last, rcond=None)[0]
    shares = np.append(shares, 1 - shares.sum())
    expected = shares @ np.array([average["w"] for _, _, average in snapshots], float)
    np.testing.assert_allclose(oc.posthoc_average(snapshots, 0.07, 320)["w"], expected, rtol=1e-3, atol=1e-3)


def test_what_was_kept_is_made_of_itself(snapshots):
    for width, updates, average in snapshots[::5]:
        np.testing.assert_allclose(
            oc.posthoc_average(snapshots, width, updates)["w"], average["w"], rtol=1e-4, atol=1e-5
        )


def test_of_parameters_that_did_not_move_any_average_is_they_themselves():
    still = {"w": jnp.array([1.0, -1e3])}
    snapshots = [(0.05, 10, still), (0.1, 10, still), (0.05, 400, still)]
    for width in (0.01, 0.07, 0.2, 0.28):
        np.testing.assert_allclose(oc.posthoc_average(iter(snapshots), width)["w"], still["w"], rtol=1e-6)


def test_dtypes_and_containers_are_those_of_the_first_snapshot():
    tree = {"a": jnp.ones(2, jnp.bfloat16), "c": jnp.array([1 + 1j]), "none": None, "nested": [jnp.ones(())]}
    made = oc.posthoc_average([(0.1, 10, tree), (0.05, 10, tree)], 0.1)
    assert jax.tree.structure(made) == jax.tree.structure(tree)
    jax.tree.map(lambda m, t: np.testing.assert_allclose(np.asarray(m, m.dtype), t, rtol=1e-2), made, tree)
    assert made["a"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0.1), r"snapshots must have at least one \(width, updates, average\)"),
        (([{"w": np.ones(2)}], 0.1), r"snapshots\[0\] must be \(width, updates, average\); got dict"),
        (([(0.1, 0, {})], 0.1), "updates must be an integer >= 1; got 0"),
        (([(0.5, 1, {})], 0.1), r"width must be a number in \(0, 0.2886\]; got 0.5"),
        (([(0.1, 5, {})], 0.0), r"width must be a number in \(0, 0.2886\]; got 0.0"),
        (([(0.1, 5, {"w": jax.random.key(0)})], 0.1), r'snapshots\[0\]\["w"\] has dtype key'),
        (([(0.1, 5, {})], 0.1, 6), "updates must be those of a snapshot, 5; got 6"),
        (
            ([(0.1, 5, {"w": np.ones(2)}), (0.1, 6, {"w": np.ones(3)})], 0.1),
            r'snapshots\[1\]\["w"\]: shape \(3,\), snapshots\[0\] have \(2,\)',
        ),
    ],
)
def test_what_cannot_be_combined_is_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        oc.posthoc_average(*arguments)


# What an update is ----------------------------------------------------------------------------------------------------


def test_within_the_gate_an_average_and_its_schedule_count_updates_a_flush_too_and_around_it_calls():
    within = oc.accumulate(oc.chain(oc.sgd(1.0), oc.average_params(TailAverage(1))), 2)
    around = oc.chain(oc.accumulate(oc.sgd(1.0), 2), oc.average_params(TailAverage(1)))
    preset = oc.sgd(1.0, gradient_accumulation_steps=2, use_ema=True, ema_momentum=TailAverage(1))
    found = {}
    for name, tx in {"within": within, "around": around, "preset": preset}.items():

        def run(params, tx=tx):
            calls = (params, tx.init(params))
            calls, _ = jax.lax.scan(lambda c, g: (tx.apply(*c, grads=g), None), calls, -jnp.ones((5, 1)))
            return oc.flush(tx, *calls)  # after two updates and half a window

        params, state = jax.jit(run)(jnp.zeros(1))
        assert float(params[0]) == 3.0
        found[name] = float(oc.averaged_params(state)[0])
    assert found["within"] == pytest.approx(2.5)  # the mean of 2 and 3, the parameters of all updates but the first
    assert found["around"] == pytest.approx(1.5)  # of 1, 1, 2, 2, those of all calls but the first
    assert found["preset"] == pytest.approx(1.5)  # which counts as Keras does
