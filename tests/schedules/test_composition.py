"""Schedules made of others, and of a function of the epoch."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from parity.helpers import precision

import optchain as oc
from optchain.schedules import CosineDecay, InverseTimeDecay, LegacyDecay, LinearWarmupDecay, PerEpoch, PolynomialDecay
from optchain.schedules import join as join_schedules

STEPS_PER_EPOCH = 4

# One rate an epoch ---------------------------------------------------------------------------------------------------


def documented_example(epoch: int, rate: float) -> float:
    """Keras's own: the rate of the first ten epochs is kept, then it falls by exp(-0.1) an epoch."""
    if epoch < 10:
        return rate
    return rate * math.exp(-0.1)


def halve_every_five_from_five_on(epoch: int, rate: float) -> float:
    if epoch >= 5 and epoch % 5 == 0:
        return rate / 2
    return rate


def of_the_epoch_alone(epoch: int) -> float:
    return 0.1 / (1 + epoch)


class Recorder(keras.callbacks.Callback):
    """The learning rate of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.rates.append(float(np.asarray(self.model.optimizer.learning_rate.value)))


def rates_of_a_fit(fn: Callable[..., float], epochs: int) -> list[float]:
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), loss="mse")
    recorder = Recorder()
    scheduler = keras.callbacks.LearningRateScheduler(fn)
    x, y = np.ones((2 * STEPS_PER_EPOCH, 2)), np.ones((2 * STEPS_PER_EPOCH, 1))
    model.fit(x, y, batch_size=2, epochs=epochs, callbacks=[scheduler, recorder], verbose=0)
    return recorder.rates


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's variables and NumPy 2
@pytest.mark.parametrize("fn", [documented_example, halve_every_five_from_five_on, of_the_epoch_alone])
def test_per_epoch_gives_every_batch_the_rate_of_keras_learning_rate_scheduler(fn: Callable[..., float]) -> None:
    epochs = 25
    with precision("float64"):
        theirs = rates_of_a_fit(fn, epochs)
        schedule = PerEpoch(fn, STEPS_PER_EPOCH, 0.01, epochs)
        ours = np.asarray(schedule(jnp.arange(epochs * STEPS_PER_EPOCH)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_the_documented_example_ends_where_keras_documents_it() -> None:
    assert round(float(PerEpoch(documented_example, 5, 0.01, 15)(14 * 5)), 5) == 0.00607


def test_from_epoch_five_on_the_rate_halves_every_five_epochs() -> None:
    schedule = PerEpoch(halve_every_five_from_five_on, 100, 0.8, 21)
    firsts = [float(schedule(100 * epoch)) for epoch in range(21)]
    np.testing.assert_allclose(firsts, [0.8] * 5 + [0.4] * 5 + [0.2] * 5 + [0.1] * 5 + [0.05], rtol=1e-6)
    assert float(schedule(499)) == pytest.approx(0.8)
    assert float(schedule(500)) == pytest.approx(0.4)


def test_the_last_epochs_value_holds() -> None:
    schedule = PerEpoch(lambda epoch, rate: rate / 2, 10, 1.0, 3)
    assert [float(schedule(step)) for step in (29, 30, 10**6)] == [0.125] * 3


def test_the_function_is_called_once_an_epoch_and_sees_its_last_result() -> None:
    seen = []

    def fn(epoch: int, rate: float) -> float:
        seen.append((epoch, rate))
        return rate - 0.25

    schedule = PerEpoch(fn, 10, 1.0, 3)
    jax.jit(schedule)(5)
    assert seen == [(0, 1.0), (1, 0.75), (2, 0.5)]
    assert schedule.values == (0.75, 0.5, 0.25)


def test_two_functions_with_the_same_table_are_one_schedule() -> None:
    assert PerEpoch(lambda epoch: 0.5, 10, 1.0, 2) == PerEpoch(lambda epoch, rate: 0.5, 10, 1.0, 2)
    assert PerEpoch(lambda epoch: 0.5, 10, 1.0, 2) == PerEpoch.from_table([0.5, 0.5], 10)


# join, a factor, the legacy decay ------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_join_is_optaxs_join_schedules() -> None:
    parts = [LinearWarmupDecay(0.1, 10, 20), CosineDecay(0.1, 50), PolynomialDecay(0.05, 30, 0.0)]
    ours, theirs = join_schedules(parts, [10, 60]), optax.join_schedules(parts, [10, 60])
    steps = jnp.arange(120)
    np.testing.assert_allclose(ours(steps), jax.vmap(theirs)(steps), rtol=1e-6, atol=1e-8)


def test_each_joined_schedule_starts_at_its_own_step_zero() -> None:
    schedule = join_schedules([lambda step: step, lambda step: 1000 + step, lambda step: 2000 + step], [5, 8])
    expected = [0, 1, 2, 3, 4, 1000, 1001, 1002, 2000, 2001]
    assert [float(schedule(step)) for step in range(10)] == expected
    assert jax.jit(schedule)(jnp.arange(10)).tolist() == expected


def test_a_joined_schedule_is_never_asked_for_a_negative_step() -> None:
    asked = []

    def second(step: jax.Array) -> jax.Array:
        asked.append(int(step))
        return jnp.sqrt(step)

    schedule = join_schedules([lambda step: 0.0, second], [5])
    assert [float(schedule(step)) for step in (0, 4, 5, 9)] == [0.0, 0.0, 0.0, 2.0]
    assert min(asked) == 0


def test_a_factor_multiplies_from_both_sides_and_again() -> None:
    schedule = CosineDecay(0.1, 100, alpha=0.1)
    steps = jnp.arange(150)
    np.testing.assert_allclose((schedule * 0.5)(steps), 0.5 * np.asarray(schedule(steps)), rtol=1e-6)
    np.testing.assert_allclose((2 * (schedule * 0.5))(steps), schedule(steps), rtol=1e-6)
    assert schedule * 0.5 == 0.5 * schedule
    assert (schedule * 0)(3) == 0


def test_the_legacy_decay_divides_any_schedule_by_one_plus_decay_times_step() -> None:
    schedule = CosineDecay(0.1, 100)
    steps = np.arange(150)
    with jax.enable_x64(True):
        ours = LegacyDecay(schedule, 0.25)(jnp.asarray(steps))
        expected = np.asarray(schedule(jnp.asarray(steps))) / (1 + 0.25 * steps)
        np.testing.assert_allclose(ours, expected, rtol=1e-14)


@pytest.mark.parametrize("rate", [0.1, CosineDecay(0.1, 20)], ids=["number", "schedule"])
def test_the_legacy_decay_of_a_preset_counts_batches(rate: Any) -> None:
    tx = oc.sgd(rate, decay=0.5, gradient_accumulation_steps=2)
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    seen = []
    for _ in range(6):
        params, state = tx.apply(params, state, grads=jnp.ones(()))
        seen.append(float(oc.metrics(state)["learning_rate"]))
    base = [float(rate(step)) if callable(rate) else rate for step in range(6)]
    np.testing.assert_allclose(seen, [b / (1 + 0.5 * step) for step, b in enumerate(base)], rtol=1e-6)


def test_the_legacy_decay_of_a_number_is_an_inverse_time_decay() -> None:
    assert oc.schedules.legacy_decay(0.1, 0.5) == InverseTimeDecay(0.1, 1, 0.5)
    with pytest.raises(TypeError, match="with decay, learning_rate must be a number or a schedule"):
        oc.sgd(jnp.array(0.1), decay=0.5)


# PyTorch's compositions -----------------------------------------------------------------------------------------------


def test_a_chain_without_a_rate_is_zero_and_no_nan() -> None:
    chained = oc.schedules.ChainedScheduler([oc.schedules.StepLR(0.0, 2), oc.schedules.ExponentialLR(0.0, 0.5)])
    np.testing.assert_array_equal(chained(jnp.arange(5)), np.zeros(5))


def test_a_chain_keeps_the_factors_of_the_others_after_a_cosine() -> None:
    cosine, decay = oc.schedules.CosineAnnealingLR(0.1, T_max=10), oc.schedules.ExponentialLR(0.1, gamma=0.9)
    steps = jnp.arange(30)
    expected = cosine(steps) * decay(steps) / 0.1
    np.testing.assert_allclose(oc.schedules.ChainedScheduler([cosine, decay])(steps), expected, rtol=1e-5, atol=1e-9)


def test_a_sequence_is_a_join_of_its_parts() -> None:
    parts, steps = [LinearWarmupDecay(0.5, 5, 20), CosineDecay(0.1, 10), PolynomialDecay(1.0, 3, 0.5)], jnp.arange(40)
    sequence = oc.schedules.SequentialLR(parts, milestones=[7, 21])
    np.testing.assert_array_equal(sequence(steps), join_schedules(parts, [7, 21])(steps))
