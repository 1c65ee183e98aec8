"""Boundaries are integers: a schedule jumps at its own step, from 0 to the largest int32, in float32 too."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optchain import schedules

LARGEST = 2**31 - 1
# Each jumps at `at` and nowhere near it: the value before the step, and from it on.
JUMPS = {
    "StepLR": (lambda at: schedules.StepLR(1.0, at, 0.5), 1.0, 0.5),
    "MultiStepLR": (lambda at: schedules.MultiStepLR(1.0, [at], 0.5), 1.0, 0.5),
    "PiecewiseConstantDecay": (lambda at: schedules.PiecewiseConstantDecay([at - 1], [1.0, 0.5]), 1.0, 0.5),
    "ExponentialDecay": (lambda at: schedules.ExponentialDecay(1.0, at, 0.5, staircase=True), 1.0, 0.5),
    "InverseTimeDecay": (lambda at: schedules.InverseTimeDecay(1.0, at, 1.0, staircase=True), 1.0, 0.5),
    "PolynomialDecay": (
        lambda at: schedules.PolynomialDecay(1.0, at - 1, 0.0, cycle=True),
        pytest.approx(0, abs=1e-6),
        pytest.approx(0.5, abs=1e-6),
    ),
    "CosineDecayRestarts": (
        lambda at: schedules.CosineDecayRestarts(1.0, at, t_mul=1.0),
        pytest.approx(0, abs=1e-6),
        1.0,
    ),
    "CosineMultiplier": (lambda at: schedules.CosineMultiplier(at), pytest.approx(0, abs=1e-6), 1.0),
    "CosineAnnealingWarmRestarts": (
        lambda at: schedules.CosineAnnealingWarmRestarts(1.0, at),
        pytest.approx(0, abs=1e-6),
        1.0,
    ),
    "CosineAnnealingWarmRestarts growing": (
        lambda at: schedules.CosineAnnealingWarmRestarts(1.0, at, T_mult=2),
        pytest.approx(0, abs=1e-6),
        1.0,
    ),
    "join": (
        lambda at: schedules.join([schedules.StepLR(1.0, LARGEST), schedules.StepLR(0.5, LARGEST)], [at]),
        1.0,
        0.5,
    ),
    "join at a float": (
        lambda at: schedules.join([schedules.StepLR(1.0, LARGEST), schedules.StepLR(0.5, LARGEST)], [at - 0.5]),
        1.0,
        0.5,
    ),
    "PerEpoch": (lambda at: schedules.PerEpoch.from_table([1.0, 0.5], at), 1.0, 0.5),
    "WarmupStableDecay": (
        lambda at: schedules.WarmupStableDecay(1.0, 0, at, 0, end=0.5),
        1.0,
        0.5,
    ),
    "ConstantLR": (lambda at: schedules.ConstantLR(0.5, 0.0, at), 0.0, 0.5),
    "CyclicLR": (
        lambda at: schedules.CyclicLR(0.0, 1.0, at - 1, 1, scale_fn=lambda cycle: 2.0 - cycle),
        1.0,
        0.0,
    ),
    "SequentialLR": (
        lambda at: schedules.SequentialLR([schedules.StepLR(1.0, LARGEST), schedules.StepLR(0.5, LARGEST)], [at]),
        1.0,
        0.5,
    ),
    "warmup": (
        lambda at: schedules.CosineDecay(1.0, 1, alpha=0.5, warmup_target=1.0, warmup_steps=at - 1),
        1.0,
        0.5,
    ),
}
STEPS = st.integers(2**24, LARGEST) | st.sampled_from([2**24 + 1, 2**24 + 3, 2**25 + 3, LARGEST, LARGEST - 1])


@pytest.mark.parametrize("name", JUMPS)
@given(at=STEPS)
def test_a_schedule_jumps_at_its_own_step(name, at):
    build, before, after = JUMPS[name]
    schedule = build(at)
    values = [float(schedule(jnp.int32(step))) for step in (at - 1, at)]
    assert values == [before, after]


@pytest.mark.parametrize("kind", [int, np.int32, np.int64, np.uint32, jnp.int32])
def test_every_kind_of_integer_is_one(kind):
    at = 2**24 + 1
    schedule = schedules.MultiStepLR(1.0, [at], 0.5)
    assert [float(schedule(kind(step))) for step in (at - 1, at, at + 1)] == [1.0, 0.5, 0.5]
    assert float(jax.jit(schedule)(at)) == 0.5


def test_steps_beyond_every_integer_and_between_two_are_floats():
    schedule = schedules.LinearLR(1.0, start_factor=0.5, total_iters=4)
    assert [float(schedule(step)) for step in (2**40, 2.5)] == [1.0, 0.8125]
    assert float(schedules.StepLR(1.0, 10, 0.5)(9.5)) == 1.0


@pytest.mark.parametrize("name", ["LinearWarmupDecay", "OneCycleLR"])
def test_the_way_is_smooth_where_float32_has_no_integers_any_more(name):
    at = 2**27
    schedule = {
        "LinearWarmupDecay": schedules.LinearWarmupDecay(1.0, at, at + 64),
        "OneCycleLR": schedules.OneCycleLR(1.0, at + 64, pct_start=(at + 1) / (at + 64), anneal_strategy="linear"),
    }[name]
    values = np.asarray(schedule(jnp.arange(at, at + 63)))
    assert all(later < earlier for earlier, later in pairwise(values))
