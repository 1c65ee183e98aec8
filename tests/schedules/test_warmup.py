"""Schedules of large runs against their formulas in NumPy's float64, and against Optax where it has them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optchain import schedules

counts = st.integers(0, 300)
rates = st.just(0.0) | st.floats(2**-20, 10, width=32)  # float32 flushes none of their values to 0
TAILS = {"linear": lambda x: x, "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2, "sqrt": math.sqrt}


@pytest.mark.parametrize("shape", TAILS)
@given(peak=rates, warmup=counts, stable=counts, decay=counts, end=rates)
def test_warmup_stable_decay_is_its_formula(shape, peak, warmup, stable, decay, end):
    def expected(step):
        if step < warmup:
            return peak * step / warmup
        if step < warmup + stable:
            return peak
        if step >= warmup + stable + decay:
            return end
        return peak + (end - peak) * TAILS[shape]((step - warmup - stable) / decay)

    steps = np.arange(1000)
    found = schedules.WarmupStableDecay(peak, warmup, stable, decay, end, shape)(jnp.asarray(steps))
    np.testing.assert_allclose(found, [expected(int(step)) for step in steps], rtol=2e-6, atol=2e-6 * max(peak, end))


def test_a_linear_tail_is_optaxs_schedules_joined():
    ours = schedules.WarmupStableDecay(0.5, 10, 20, 30, end=0.1)
    parts = [
        optax.linear_schedule(0.0, 0.5, 10),
        optax.constant_schedule(0.5),
        optax.linear_schedule(0.5, 0.1, 30),
    ]
    theirs = optax.join_schedules(parts, [10, 30])
    np.testing.assert_allclose([ours(step) for step in range(70)], [theirs(step) for step in range(70)], rtol=1e-6)


@given(peak=rates, warmup=counts, timescale=st.none() | st.floats(0.5, 1e4, width=32))
def test_the_inverse_square_root_is_hugging_faces(peak, warmup, timescale):
    if timescale is None and warmup == 0:
        with pytest.raises(ValueError, match="timescale must be given where warmup_steps is 0; got None"):
            schedules.InverseSquareRoot(peak, 0)
        return
    scale = warmup if timescale is None else timescale
    steps = np.arange(1000)
    shift = scale - warmup
    late = peak / np.sqrt((np.maximum(steps, warmup) + shift) / scale)
    expected = np.where(steps < warmup, peak * steps / max(warmup, 1), late)
    found = schedules.InverseSquareRoot(peak, warmup, timescale)(jnp.asarray(steps))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@given(peak=rates, warmup=counts, stable=counts, power=st.floats(0.125, 2))
def test_a_power_of_the_step_is_its_formula(peak, warmup, stable, power):
    start = warmup + stable
    if start == 0:
        with pytest.raises(ValueError, match="stable_steps must be > 0 where warmup_steps is 0; got 0"):
            schedules.PowerDecay(peak, 0, 0)
        return
    steps = np.arange(1000)
    late = peak * np.minimum(1.0, (start / np.maximum(steps, 1)) ** power)
    expected = np.where(steps < warmup, peak * steps / max(warmup, 1), late)
    found = schedules.PowerDecay(peak, warmup, stable, power)(jnp.asarray(steps))
    np.testing.assert_allclose(found, expected, rtol=5e-6)


def test_the_power_scheduler_is_the_least_of_a_peak_and_a_power_of_the_step():
    peak, a, power = 0.02, 0.5, 0.51
    meeting = (a / peak) ** (1 / power)  # where a · step^−power comes down to the peak, at some 550 steps
    steps = np.arange(100, 2000)
    found = schedules.PowerDecay(peak, 100, meeting - 100, power)(jnp.asarray(steps))
    np.testing.assert_allclose(found, np.minimum(peak, a * steps**-power), rtol=5e-6)


def test_the_root_of_the_step_is_the_inverse_square_root():
    steps = jnp.arange(500)
    np.testing.assert_allclose(
        schedules.PowerDecay(0.3, 40)(steps), schedules.InverseSquareRoot(0.3, 40)(steps), rtol=2e-6
    )


def test_a_constant_is_one_for_every_kind_of_step():
    schedule = schedules.Constant(0.3)
    for step in (0, jnp.int32(7), 2.5, jnp.arange(3)):
        np.testing.assert_array_equal(schedule(step), np.full(np.shape(step), np.float32(0.3)))
    assert jax.jit(schedule)(3) == np.float32(0.3)


@pytest.mark.parametrize("shape", ["quadratic", None, 1])
def test_an_unknown_tail_is_refused(shape):
    with pytest.raises((TypeError, ValueError), match="shape must be 'linear', 'cosine' or 'sqrt'; got "):
        schedules.WarmupStableDecay(1.0, 1, 1, 1, shape=shape)
