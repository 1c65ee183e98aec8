"""Every schedule step for step against the live Keras one, in float64, over 2,000 steps."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.helpers import precision
from parity.recipes import RATES, floats32, log_uniform

from optchain import schedules

STEPS = 2000
few = settings(max_examples=settings.default.max_examples // 5)


def values(schedule: Any, steps: int = STEPS) -> np.ndarray:
    """The schedule at each step, as a compiled training step sees it."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)))


def assert_equals_keras(name: str, arguments: dict[str, Any], dtype: str = "float64", tolerance: float = 1e-12) -> None:
    with precision(dtype):
        ours = values(getattr(schedules, name)(**arguments))
        theirs = values(getattr(keras.optimizers.schedules, name)(**arguments))
    assert ours.dtype == theirs.dtype == dtype
    assert np.isfinite(theirs).all()
    worst = int(np.argmax(np.abs(ours - theirs)))
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), (worst, ours[worst], theirs[worst])


def case(name: str, **arguments: Any) -> Any:
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return pytest.param(name, {"initial_learning_rate": 0.1} | arguments, id=f"{name}({shown})")


# Where a schedule jumps one rounding decides on which side of the jump a step falls, and Keras's rounding is its own:
# these lengths have exact quotients in float64, so that both fall where the formula says.
CASES = [
    case("ExponentialDecay", decay_steps=100, decay_rate=0.96),
    case("ExponentialDecay", decay_steps=100, decay_rate=0.96, staircase=True),
    case("ExponentialDecay", decay_steps=7, decay_rate=1.01, staircase=True),
    case("InverseTimeDecay", decay_steps=1, decay_rate=0.5),
    case("InverseTimeDecay", decay_steps=30, decay_rate=0.5, staircase=True),
    case("PolynomialDecay", decay_steps=1000),
    case("PolynomialDecay", decay_steps=1000, end_learning_rate=0.01, power=2.0),
    case("PolynomialDecay", decay_steps=5000, end_learning_rate=0.0, power=0.5),
    case("PolynomialDecay", decay_steps=300, end_learning_rate=0.01, power=2.0, cycle=True),
    case("PolynomialDecay", decay_steps=100, end_learning_rate=0.2, cycle=True),
    case("CosineDecay", decay_steps=1000),
    case("CosineDecay", decay_steps=1000, alpha=0.1),
    case("CosineDecay", decay_steps=1000, alpha=0.1, warmup_target=0.5, warmup_steps=100),
    case("CosineDecay", decay_steps=1000, warmup_target=0.01, warmup_steps=37),
    case("CosineDecay", decay_steps=5000, warmup_target=0.5, warmup_steps=3000),
    case("CosineDecay", decay_steps=10, warmup_steps=100),
    case("CosineDecayRestarts", first_decay_steps=100),
    case("CosineDecayRestarts", first_decay_steps=100, t_mul=1.0),
    case("CosineDecayRestarts", first_decay_steps=100, t_mul=1.0, m_mul=0.8, alpha=0.01),
    case("CosineDecayRestarts", first_decay_steps=7, t_mul=2.0, m_mul=0.9, alpha=0.1),
    case("CosineDecayRestarts", first_decay_steps=10, t_mul=1.5, m_mul=1.2),
    case("CosineDecayRestarts", first_decay_steps=333, t_mul=1.3, alpha=0.5),
    pytest.param("PiecewiseConstantDecay", {"boundaries": [100, 500], "values": [1.0, 0.5, 0.1]}, id="Piecewise-3"),
    pytest.param("PiecewiseConstantDecay", {"boundaries": [1999], "values": [1.0, 0.5]}, id="Piecewise-2"),
    pytest.param("PiecewiseConstantDecay", {"boundaries": [3, 4, 5], "values": [0.0, 1.0, 0.5, 2.0]}, id="Piecewise-4"),
]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_schedule_equals_keras_for_2000_steps(name: str, arguments: dict[str, Any]) -> None:
    assert_equals_keras(name, arguments)


EXACT = st.integers(1, 40)
STRATEGIES = {
    "CosineDecay": {
        "initial_learning_rate": RATES,
        "decay_steps": st.integers(1, 3000),
        "alpha": floats32(0, 1),
        "warmup_target": st.none() | RATES,
        "warmup_steps": st.integers(1, 500),
    },
    "CosineDecayRestarts": {
        "initial_learning_rate": RATES,
        "first_decay_steps": st.integers(1, 500).map(lambda steps: steps + 0.30103),  # so that no step is on a restart
        "t_mul": st.sampled_from([1.0, 2.0]) | floats32(1.1, 3).map(lambda factor: round(factor, 2)),
        "m_mul": floats32(0.5, 1.2),
        "alpha": floats32(0, 1),
    },
    "ExponentialDecay": {
        "initial_learning_rate": RATES,
        "decay_steps": EXACT,
        "decay_rate": floats32(0.5, 1.01),
        "staircase": st.booleans(),
    },
    "InverseTimeDecay": {
        "initial_learning_rate": RATES,
        "decay_steps": EXACT,
        "decay_rate": floats32(0, 2),
        "staircase": st.booleans(),
    },
    "PolynomialDecay": {
        "initial_learning_rate": RATES,
        "decay_steps": EXACT,
        "end_learning_rate": log_uniform(-5, -2),
        "power": st.sampled_from([1, 1.0, 2.0, 3]),
        "cycle": st.booleans(),
    },
    "PiecewiseConstantDecay": {
        "boundaries": st.lists(st.integers(1, 2000), min_size=3, max_size=3, unique=True).map(sorted),
        "values": st.lists(RATES, min_size=4, max_size=4),
    },
}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(data=st.data())
@few
def test_a_schedule_equals_keras_for_any_arguments(name: str, data: st.DataObject) -> None:
    assert_equals_keras(name, data.draw(st.fixed_dictionaries(STRATEGIES[name])))


@pytest.mark.parametrize("t_mul", [1.0, 1.1, 1.3, 1.7, 2.0])
@pytest.mark.parametrize("first_decay_steps", [1, 10, 49, 100])
def test_restarts_fall_on_the_same_steps_as_keras_in_float32(first_decay_steps: int, t_mul: float) -> None:
    arguments = {"initial_learning_rate": 0.1, "first_decay_steps": first_decay_steps, "t_mul": t_mul}
    # Within a period the two may differ by roundings of the logarithm; on the wrong side of a restart, by the whole rate.
    assert_equals_keras("CosineDecayRestarts", arguments, "float32", tolerance=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [0.5, 1.5])
def test_a_polynomial_of_any_power_ends_at_its_end_whatever_the_length(power: float, dtype: str) -> None:
    with precision(dtype):
        for decay_steps in range(1, 40):
            schedule = schedules.PolynomialDecay(0.1, decay_steps, end_learning_rate=0.01, power=power)
            after = jax.jit(jax.vmap(schedule))(jnp.arange(decay_steps, decay_steps + 3))
            # The last of it is a root of a rounding: sqrt(1e-16) of the span in float64, sqrt(1e-7) in float32.
            np.testing.assert_allclose(after, 0.01, rtol=0.01, err_msg=f"{decay_steps}")


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_value_of_step_zero_is_keras_at_float32_too(name: str, arguments: dict[str, Any]) -> None:
    ours = getattr(schedules, name)(**arguments)(0)
    theirs = getattr(keras.optimizers.schedules, name)(**arguments)(0)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


# Hugging Face's linear schedule --------------------------------------------------------------------------------------


def linear_schedule_with_warmup(peak: float, warmup: int, total: int, current: int) -> float:
    """`peak` times the factor of transformers' `get_linear_schedule_with_warmup`."""
    if current < warmup:
        return peak * (float(current) / float(max(1, warmup)))
    return peak * max(0.0, float(total - current) / float(max(1, total - warmup)))


def assert_equals_transformers(peak: float, warmup: int, total: int) -> None:
    with precision("float64"):
        ours = values(schedules.LinearWarmupDecay(peak, warmup, total))
    theirs = np.array([linear_schedule_with_warmup(peak, warmup, total, step) for step in range(STEPS)])
    assert np.abs(ours - theirs).max() <= 1e-12 * peak


@pytest.mark.parametrize(("warmup", "total"), [(0, 1000), (1, 1000), (100, 1000), (999, 1000), (500, 3000)])
def test_the_linear_schedule_equals_transformers(warmup: int, total: int) -> None:
    assert_equals_transformers(5e-5, warmup, total)


@given(peak=RATES, total=st.integers(1, 2500), data=st.data())
@few
def test_the_linear_schedule_equals_transformers_for_any_arguments(
    peak: float, total: int, data: st.DataObject
) -> None:
    assert_equals_transformers(peak, data.draw(st.integers(0, total - 1)), total)


def test_the_linear_schedule_with_an_end_stays_there() -> None:
    schedule = schedules.LinearWarmupDecay(1.0, 10, 30, end=0.25)
    assert [float(schedule(step)) for step in (0, 5, 10, 20, 30, 1000)] == [0.0, 0.5, 1.0, 0.625, 0.25, 0.25]
