"""`ReduceLROnPlateau` and `EarlyStopping` against the live Keras callbacks, driven by hand on random metrics."""

import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import optchain as oc

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras and NumPy 2

NAN, INF = float("nan"), float("inf")

# Eighths and their sums are exact in float32, in which optchain compares, and in Python's floats, in which Keras does.
EIGHTHS = st.integers(-40, 40).map(lambda n: n / 8)
METRICS = st.lists(EIGHTHS | EIGHTHS | EIGHTHS | st.sampled_from([NAN, INF, -INF]), min_size=1, max_size=30)
# A first metric that is NaN has tests of its own.
SEEN = METRICS.filter(lambda metrics: not math.isnan(metrics[0]))
MODES = st.sampled_from(["min", "max"])
DELTAS = st.sampled_from([0.0, 0.125, 1.0])

TX = oc.sgd(1.0)


class DummyModel:
    """What a Keras callback needs of a model."""

    def __init__(self, learning_rate: float = 1.0):
        self.optimizer = types.SimpleNamespace(learning_rate=np.float32(learning_rate))
        self.stop_training = False


def keras_rates(metrics: list[float], **arguments: Any) -> list[float]:
    """The rate after each evaluation."""
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", **arguments)
    model = DummyModel()
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, metric in enumerate(metrics):
        callback.on_epoch_end(epoch, {"val_loss": metric})
        rates.append(float(model.optimizer.learning_rate))
    return rates


def our_rates(metrics: list[float], **arguments: Any) -> list[float]:
    plateau = oc.ReduceLROnPlateau(**arguments)
    watched, state, rates = plateau.init(), TX.init(jnp.zeros(1)), []
    for metric in metrics:
        watched, state = plateau.update(metric, watched, state)
        rates.append(float(oc.get_hyperparams(state)["learning_rate"]))
    return rates


@given(
    metrics=SEEN,
    mode=MODES,
    min_delta=DELTAS,
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 3),
    factor=st.sampled_from([0.5, 0.25]),
    floor=st.sampled_from([0.0, 0.125, 0.3]),
)
def test_the_rate_falls_when_keras_lets_it_fall(
    metrics: list[float], mode: str, min_delta: float, patience: int, cooldown: int, factor: float, floor: float
) -> None:
    shared = {"mode": mode, "min_delta": min_delta, "patience": patience, "cooldown": cooldown, "factor": factor}
    theirs = keras_rates(metrics, min_lr=floor, **shared)
    ours = our_rates(metrics, min_learning_rate=floor, **shared)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("metrics", "arguments"),
    [
        ([1.0] * 12, {"patience": 3, "factor": 0.5}),
        ([1.0] * 12, {"patience": 0, "factor": 0.5}),
        ([1.0] * 12, {"patience": 1, "factor": 0.5, "cooldown": 3}),
        ([1.0, NAN, NAN, 0.5, NAN], {"patience": 2, "factor": 0.5}),
        ([INF, INF, 1.0, INF], {"patience": 1, "factor": 0.5}),
        ([3.0, 2.0, 1.0, 1.0, 1.0], {"patience": 1, "factor": 0.5, "mode": "max"}),
    ],
)
def test_the_rate_falls_when_keras_lets_it_fall_in_corner_cases(metrics: list[float], arguments: dict) -> None:
    arguments = {"mode": "min"} | arguments
    assert our_rates(metrics, **arguments) == keras_rates(metrics, **arguments)


# Keras takes the first metric for an improvement whatever it is, and nothing is better than NaN.
FIRST_NAN = [[NAN] * 6, [NAN, 1.0, 0.5, 0.5, 0.5, 0.25], [NAN, NAN, 3.0, 2.0, 1.0]]


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("metrics", FIRST_NAN)
def test_the_rate_falls_when_keras_lets_it_fall_after_a_first_nan(metrics: list[float], patience: int) -> None:
    arguments = {"mode": "min", "patience": patience, "factor": 0.5}
    assert our_rates(metrics, **arguments) == keras_rates(metrics, **arguments)


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("metrics", FIRST_NAN)
def test_it_stops_when_keras_stops_after_a_first_nan(metrics: list[float], patience: int) -> None:
    arguments = {"mode": "min", "patience": patience}
    assert our_stops(metrics, **arguments) == keras_stops(metrics, **arguments)


def keras_stops(metrics: list[float], **arguments: Any) -> list[bool]:
    callback = keras.callbacks.EarlyStopping(monitor="val_loss", **arguments)
    model = DummyModel()
    callback.set_model(model)
    callback.on_train_begin()
    stops = []
    for epoch, metric in enumerate(metrics):
        callback.on_epoch_end(epoch, {"val_loss": metric})
        stops.append(bool(model.stop_training))
    return stops


def our_stops(metrics: list[float], **arguments: Any) -> list[bool]:
    stopping = oc.EarlyStopping(**arguments)
    state, stops = stopping.init(), []
    for metric in metrics:
        state = stopping.update(metric, state)
        stops.append(bool(state["stop"]))
    return stops


@given(
    metrics=METRICS,
    mode=MODES,
    min_delta=DELTAS,
    patience=st.integers(0, 4),
    baseline=st.none() | EIGHTHS,
    start_from=st.integers(0, 4),
)
def test_it_stops_when_keras_stops(
    metrics: list[float], mode: str, min_delta: float, patience: int, baseline: float | None, start_from: int
) -> None:
    assume(not any(math.isnan(metric) for metric in metrics[start_from : start_from + 1]))
    shared = {"mode": mode, "min_delta": min_delta, "patience": patience, "baseline": baseline}
    theirs = keras_stops(metrics, start_from_epoch=start_from, **shared)
    assert our_stops(metrics, start_from=start_from, **shared) == theirs


@pytest.mark.parametrize(
    ("metrics", "arguments"),
    [
        ([1.0], {}),
        ([1.0, 1.0], {}),
        ([1.0, NAN, 0.5, NAN, NAN], {"patience": 2}),
        ([INF, 1.0], {"patience": 0}),
        ([3.0, 2.0, 1.0], {"patience": 2, "baseline": 0.5}),
        ([9.0, 9.0, 3.0, 4.0], {"patience": 1, "start_from": 2}),
    ],
)
def test_it_stops_when_keras_stops_in_corner_cases(metrics: list[float], arguments: dict) -> None:
    arguments = {"mode": "min"} | arguments
    theirs = {"start_from_epoch" if key == "start_from" else key: value for key, value in arguments.items()}
    assert our_stops(metrics, **arguments) == keras_stops(metrics, **theirs)


# Beyond Keras ----------------------------------------------------------------------------------------------------------


def test_both_keep_a_state_that_scan_can_carry() -> None:
    plateau, stopping = oc.ReduceLROnPlateau(patience=2, factor=0.5), oc.EarlyStopping(patience=3)

    def evaluate(carry: Any, metric: jax.Array) -> Any:
        watched, state, stop = carry
        watched, state = plateau.update(metric, watched, state)
        stop = stopping.update(metric, stop)
        return (watched, state, stop), (oc.get_hyperparams(state)["learning_rate"], stop["stop"])

    metrics = jnp.array([3.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    _, (rates, stops) = jax.lax.scan(evaluate, (plateau.init(), TX.init(jnp.zeros(1)), stopping.init()), metrics)
    assert rates.tolist() == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]
    assert stops.tolist() == [False, False, False, False, True, True]


def test_a_plateau_acts_on_the_hyperparameter_that_it_is_told() -> None:
    tx = oc.adamw(0.1, jnp.array(0.5))
    plateau = oc.ReduceLROnPlateau(patience=1, factor=0.5, name="weight_decay")
    watched, state = plateau.init(), tx.init(jnp.zeros(1))
    for _ in range(2):
        watched, state = plateau.update(1.0, watched, state)
    assert {key: float(value) for key, value in oc.get_hyperparams(state).items()} == {
        "learning_rate": float(np.float32(0.1)),
        "weight_decay": 0.25,
    }


def test_a_rate_that_is_scheduled_is_refused() -> None:
    state = oc.sgd(oc.schedules.CosineDecay(0.1, 10)).init(jnp.zeros(1))
    plateau = oc.ReduceLROnPlateau()
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        plateau.update(1.0, plateau.init(), state)


def test_a_name_that_is_unknown_lists_what_there_is() -> None:
    plateau = oc.ReduceLROnPlateau(name="rate")
    with pytest.raises(ValueError, match="hyperparameter 'rate' is unknown; there are: learning_rate"):
        plateau.update(1.0, plateau.init(), TX.init(jnp.zeros(1)))


def test_stop_stays_true_and_the_best_is_kept() -> None:
    stopping = oc.EarlyStopping(patience=1)
    state = stopping.init()
    for metric in (1.0, 2.0, 0.25, 0.5):
        state = stopping.update(metric, state)
    assert bool(state["stop"])
    assert float(state["best"]) == 0.25
    assert int(state["evaluations"]) == 4


@pytest.mark.parametrize("make", [oc.ReduceLROnPlateau, oc.EarlyStopping])
def test_they_are_frozen_and_compare_by_value(make: Any) -> None:
    assert make(patience=3) == make(patience=3)
    assert hash(make(patience=3)) == hash(make(patience=3))
    assert make(patience=3) != make(patience=4)
    with pytest.raises(AttributeError):
        make().patience = 3
    assert eval(repr(make(patience=3)), vars(oc)) == make(patience=3)


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (oc.ReduceLROnPlateau, {"factor": 1.0}, ValueError, r"factor must be a number in \(0, 1\); got 1.0"),
        (oc.ReduceLROnPlateau, {"factor": 0.0}, ValueError, r"factor must be a number in \(0, 1\); got 0.0"),
        (oc.ReduceLROnPlateau, {"factor": "half"}, TypeError, "factor must be .*got 'half'"),
        (oc.ReduceLROnPlateau, {"patience": -1}, ValueError, "patience must be an integer >= 0; got -1"),
        (oc.ReduceLROnPlateau, {"patience": 2.5}, TypeError, "patience must be an integer >= 0; got 2.5"),
        (oc.ReduceLROnPlateau, {"cooldown": -1}, ValueError, "cooldown must be an integer >= 0; got -1"),
        (oc.ReduceLROnPlateau, {"min_delta": -1.0}, ValueError, "min_delta must be"),
        (oc.ReduceLROnPlateau, {"min_learning_rate": NAN}, ValueError, "min_learning_rate must be"),
        (oc.ReduceLROnPlateau, {"mode": "auto"}, ValueError, "mode must be 'min' or 'max'; got 'auto'"),
        (oc.EarlyStopping, {"mode": "auto"}, ValueError, "mode must be 'min' or 'max'; got 'auto'"),
        (oc.EarlyStopping, {"patience": -1}, ValueError, "patience must be an integer >= 0; got -1"),
        (oc.EarlyStopping, {"start_from": -1}, ValueError, "start_from must be an integer >= 0; got -1"),
        (oc.EarlyStopping, {"baseline": NAN}, ValueError, "baseline must be a finite number; got nan"),
        (oc.EarlyStopping, {"baseline": "1"}, TypeError, "baseline must be a finite number; got '1'"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(make: Any, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**arguments)
