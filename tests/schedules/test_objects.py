"""What every schedule is: a frozen callable that compares by value, prints as code, and checks its arguments."""

import dataclasses
import json
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain import schedules
from optchain.schedules import (
    ChainedScheduler,
    Constant,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineDecay,
    CosineDecayRestarts,
    CosineMultiplier,
    CyclicLR,
    CyclicMomentum,
    DebiasedEMA,
    ExponentialDecay,
    ExponentialLR,
    InverseSquareRoot,
    InverseTimeDecay,
    LambdaLR,
    LegacyDecay,
    LinearLR,
    LinearWarmupDecay,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    OneCycleMomentum,
    PerEpoch,
    PiecewiseConstantDecay,
    PolynomialDecay,
    PolynomialLR,
    PowerDecay,
    PowerEMA,
    SequentialLR,
    StepLR,
    TailAverage,
    WarmedUpEMA,
    WarmupStableDecay,
    join,
)


def make_all() -> list[schedules.Schedule]:
    """One of each, built afresh."""
    return [
        CosineDecay(0.1, 100, alpha=0.1, warmup_target=0.5, warmup_steps=10),
        CosineDecayRestarts(0.1, 10, t_mul=1.5, m_mul=0.9),
        ExponentialDecay(0.1, 10, 0.5, staircase=True),
        InverseTimeDecay(0.1, 10, 0.5),
        LegacyDecay(CosineDecay(0.1, 100), 0.5),
        LinearWarmupDecay(0.1, 10, 100),
        PerEpoch(lambda epoch, rate: rate * 0.5, 10, 1.0, 5),
        PiecewiseConstantDecay([10, 20], [0.1, 0.2, 0.3]),
        PolynomialDecay(0.1, 50, power=2.0, cycle=True),
        PolynomialDecay(0.1, 50) * 0.5,
        join([LinearWarmupDecay(0.1, 10, 100), CosineDecay(0.1, 100)], [10]),
        CosineAnnealingLR(0.1, 20, eta_min=0.01),
        CosineAnnealingWarmRestarts(0.1, 10, T_mult=2),
        CosineMultiplier(20, eta_min=0.1, autorestart=False),
        ExponentialLR(0.1, 0.99),
        LinearLR(0.1, total_iters=20),
        MultiStepLR(0.1, [20, 10], gamma=0.5),
        OneCycleLR(0.1, epochs=5, steps_per_epoch=10, anneal_strategy="linear", div_factor=10.0),
        OneCycleMomentum(OneCycleLR(0.1, 50, three_phase=True), base_momentum=0.5),
        PolynomialLR(0.1, 50, power=2.0),
        StepLR(0.1, 10, gamma=0.5),
        Constant(0.1),
        WarmupStableDecay(0.1, 10, 20, 30, end=0.01, shape="cosine"),
        InverseSquareRoot(0.1, 10, timescale=20),
        PowerDecay(0.1, 10, 20, power=0.51),
        DebiasedEMA(0.9),
        WarmedUpEMA(0.9),
        TailAverage(10, every=3),
        PowerEMA(0.1),
        ConstantLR(0.1, factor=0.5, total_iters=10),
        LambdaLR(0.1, StepLR(1.0, 10, gamma=0.5)),
        MultiplicativeLR(0.1, lambda step: 0.5 if step % 10 == 0 else 1.0, 50),
        CyclicLR(0.01, 0.1, 10, 20, mode="exp_range", gamma=0.99),
        CyclicMomentum(CyclicLR(0.01, 0.1, 10, scale_fn=StepLR(1.0, 2)), base_momentum=0.5),
        ChainedScheduler([LinearLR(0.1, total_iters=20), MultiplicativeLR(0.1, lambda step: 0.9, 9), StepLR(0.1, 10)]),
        SequentialLR([LinearLR(0.1, total_iters=10), CosineAnnealingLR(0.1, 90)], [10]),
    ]


every_schedule = pytest.mark.parametrize("index", range(len(make_all())), ids=[type(s).__name__ for s in make_all()])


@pytest.mark.thorough
@every_schedule
def test_ints_arrays_jit_and_vmap_agree(index: int) -> None:
    schedule = make_all()[index]
    steps = [0, 1, 9, 10, 11, 57, 1000]
    one_by_one = [schedule(step) for step in steps]
    assert all(isinstance(value, jax.Array) and value.shape == () for value in one_by_one)
    assert {value.dtype for value in one_by_one} == {jnp.dtype("float32")}
    expected = np.array(one_by_one)
    array = jnp.array(steps, jnp.int32)
    several = {
        "array": schedule(array),
        "vmap": jax.vmap(schedule)(array),
        "jit": jax.jit(schedule)(array),
        "one by one under jit": jnp.stack([jax.jit(schedule)(step) for step in array]),
        "scan": jax.lax.scan(lambda carry, step: (carry, schedule(step)), None, array)[1],
        "numpy": schedule(np.array(steps)),
    }
    for name, got in several.items():
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-8, err_msg=name)


@every_schedule
def test_the_value_is_strongly_typed_in_the_default_float(index: int) -> None:
    value = make_all()[index](jnp.int32(3))
    assert (value.dtype, value.weak_type) == (jnp.float32, False)
    with jax.enable_x64(True):
        assert make_all()[index](3).dtype == jnp.float64


@every_schedule
def test_two_built_alike_are_equal_and_hash_alike_and_a_pickle_too(index: int) -> None:
    one, two = make_all()[index], make_all()[index]
    assert one is not two
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one


def test_schedules_of_different_arguments_differ() -> None:
    made = make_all()
    assert len({*made}) == len(made)
    assert CosineDecay(0.1, 100) != CosineDecay(0.1, 101)
    assert CosineDecay(0.1, 100) != ExponentialDecay(0.1, 100, 0.5)


@every_schedule
def test_repr_is_the_code_that_builds_it(index: int) -> None:
    schedule = make_all()[index]
    assert eval(repr(schedule), vars(schedules)) == schedule


@every_schedule
def test_it_comes_back_from_json(index: int) -> None:
    tx = oc.chain(oc.scale(make_all()[index]))
    assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx


@every_schedule
def test_it_is_frozen(index: int) -> None:
    schedule = make_all()[index]
    with pytest.raises(AttributeError):
        schedule.decay_steps = 3  # type: ignore[attr-defined]


@every_schedule
def test_building_a_preset_twice_compiles_once(index: int) -> None:
    step = jax.jit(lambda tx, p, s, g: tx.apply(p, s, grads=g), static_argnums=0)
    params = {"w": jnp.ones(2)}
    for _ in range(2):
        tx = oc.sgd(make_all()[index])
        step(tx, params, tx.init(params), params)
    assert step._cache_size() == 1


@every_schedule
def test_it_is_a_learning_rate_here_and_in_optax(index: int) -> None:
    schedule = make_all()[index]
    ours, theirs = oc.sgd(schedule), optax.sgd(schedule)
    params = {"w": jnp.zeros(3)}
    finals = []
    for tx in (ours, theirs):
        p, state = params, tx.init(params)
        for _ in range(30):
            updates, state = tx.update({"w": jnp.ones(3)}, state, p)
            p = optax.apply_updates(p, updates)
        finals.append(p["w"])
    np.testing.assert_allclose(*finals, rtol=1e-5)
    np.testing.assert_allclose(finals[0][0], -sum(float(schedule(step)) for step in range(30)), rtol=1e-5)


OPTAX_SCHEDULES = {
    "cosine": optax.cosine_decay_schedule(0.1, 20, alpha=0.1),
    "warmup_cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 25),
    "exponential": optax.exponential_decay(0.1, 5, 0.5, staircase=True),
    "piecewise": optax.piecewise_constant_schedule(0.1, {5: 0.5, 10: 0.1}),
    "linear": optax.linear_schedule(0.1, 0.0, 20),
    "polynomial": optax.polynomial_schedule(0.1, 0.01, 2, 20),
    "joined": optax.join_schedules([optax.linear_schedule(0.0, 0.1, 5), optax.constant_schedule(0.1)], [5]),
    "constant": optax.constant_schedule(0.1),
    "one_cycle": optax.cosine_onecycle_schedule(20, 0.1),
    "sgdr": optax.sgdr_schedule([{"init_value": 0.0, "peak_value": 0.1, "decay_steps": 9, "warmup_steps": 3}] * 2),
}


@pytest.mark.parametrize("name", OPTAX_SCHEDULES)
def test_any_schedule_of_optax_is_a_learning_rate(name: str) -> None:
    schedule = OPTAX_SCHEDULES[name]
    tx = oc.chain(oc.scale_by_learning_rate(), learning_rate=schedule)
    step = jax.jit(lambda p, s: tx.apply(p, s, grads=jnp.ones(())))
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    for count in range(12):
        params, state = step(params, state)
        assert float(oc.metrics(state)["learning_rate"]) == pytest.approx(float(schedule(count)), rel=1e-6, abs=1e-9)
    assert float(params) == pytest.approx(-sum(float(schedule(count)) for count in range(12)), rel=1e-5)


# What is refused -----------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
REFUSED: list[tuple[Any, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (CosineDecay, (-0.1, 100), {}, ValueError, r"initial_learning_rate must be a finite number >= 0; got -0\.1"),
    (CosineDecay, (NAN, 100), {}, ValueError, "initial_learning_rate must be"),
    (CosineDecay, (0.1, 0), {}, ValueError, "decay_steps must be a finite number > 0; got 0"),
    (CosineDecay, (0.1, -900), {}, ValueError, "decay_steps must be a finite number > 0; got -900"),
    (CosineDecay, (0.1, "100"), {}, TypeError, r"decay_steps must be .*got '100' \(str\)"),
    (CosineDecay, (0.1, True), {}, TypeError, r"decay_steps must be .*got True \(bool\)"),
    (CosineDecay, (0.1, 100, -1.0), {}, ValueError, "alpha must be"),
    (CosineDecay, (0.1, 100), {"warmup_target": -1.0}, ValueError, "warmup_target must be"),
    (CosineDecay, (0.1, 100), {"warmup_target": 1.0, "warmup_steps": -1}, ValueError, "warmup_steps must be"),
    (CosineDecayRestarts, (0.1, 0), {}, ValueError, "first_decay_steps must be a finite number > 0; got 0"),
    (CosineDecayRestarts, (0.1, 10), {"t_mul": 0}, ValueError, "t_mul must be"),
    (CosineDecayRestarts, (0.1, 10), {"m_mul": INF}, ValueError, "m_mul must be"),
    (ExponentialDecay, (0.1, 10, 0.0), {}, ValueError, "decay_rate must be"),
    (ExponentialDecay, (0.1, 10, 0.5, 1), {}, TypeError, "staircase must be True or False; got 1"),
    (InverseTimeDecay, (0.1, 10, -0.5), {}, ValueError, "decay_rate must be"),
    (PolynomialDecay, (0.1, 10), {"power": -1.0}, ValueError, "power must be"),
    (PolynomialDecay, (0.1, 10), {"cycle": "yes"}, TypeError, "cycle must be True or False; got 'yes'"),
    (LinearWarmupDecay, (0.1, 100, 100), {}, ValueError, "warmup_steps must be below total_steps; got 100 and 100"),
    (LinearWarmupDecay, (0.1, -1, 100), {}, ValueError, "warmup_steps must be"),
    (PiecewiseConstantDecay, ([1, 2], [0.1]), {}, ValueError, "values must have one more entry than boundaries; got 1"),
    (PiecewiseConstantDecay, ([2, 1], [0.1, 0.2, 0.3]), {}, ValueError, "boundaries must increase"),
    (PiecewiseConstantDecay, ([1, 1], [0.1, 0.2, 0.3]), {}, ValueError, "boundaries must increase"),
    (PiecewiseConstantDecay, ("12", [0.1, 0.2, 0.3]), {}, TypeError, "boundaries must be a sequence of numbers"),
    (PiecewiseConstantDecay, ([1], [0.1, None]), {}, TypeError, "values must be a sequence of numbers"),
    (PiecewiseConstantDecay, ([1], [0.1, -0.2]), {}, ValueError, r"values must be finite numbers >= 0; got -0\.2"),
    (join, ([CosineDecay(0.1, 10)], [5]), {}, ValueError, "schedules must be one more than boundaries; got 1"),
    (join, ([CosineDecay(0.1, 10), 0.1], [5]), {}, TypeError, "schedules must be callables of the step; got 0.1"),
    (join, ([CosineDecay(0.1, 10)] * 3, [5, 5]), {}, ValueError, "boundaries must increase"),
    (LegacyDecay, (CosineDecay(0.1, 10), -1.0), {}, ValueError, "decay must be"),
    (PerEpoch, (0.5, 10, 1.0, 5), {}, TypeError, "fn must be a function"),
    (PerEpoch, (lambda e, lr: lr, 0, 1.0, 5), {}, ValueError, "steps_per_epoch must be an integer >= 1; got 0"),
    (PerEpoch, (lambda e, lr: lr, 10, -1.0, 5), {}, ValueError, "learning_rate must be"),
    (PerEpoch, (lambda e, lr: lr, 10, 1.0, 0), {}, ValueError, "epochs must be an integer >= 1; got 0"),
    (
        PerEpoch,
        (lambda e, lr: None, 10, 1.0, 5),
        {},
        TypeError,
        "fn must return a number; for epoch 0 it returned None",
    ),
    (PerEpoch, (lambda e, lr: NAN, 10, 1.0, 5), {}, ValueError, "learning_rate must be"),
    (StepLR, (-0.1, 10), {}, ValueError, r"lr must be a finite number >= 0; got -0\.1"),
    (StepLR, (0.1, 0), {}, ValueError, "step_size must be an integer >= 1; got 0"),
    (StepLR, (0.1, 2.5), {}, TypeError, r"step_size must be an integer >= 1; got 2\.5"),
    (StepLR, (0.1, 10), {"gamma": -1.0}, ValueError, "gamma must be a finite number >= 0"),
    (MultiStepLR, (0.1, [-1]), {}, ValueError, "a milestone must be an integer >= 0; got -1"),
    (MultiStepLR, (0.1, [1.5]), {}, TypeError, "a milestone must be an integer >= 0"),
    (MultiStepLR, (0.1, 10), {}, TypeError, "milestones must be integers >= 0; got 10"),
    (MultiStepLR, (0.1, "10"), {}, TypeError, "milestones must be integers >= 0; got '10'"),
    (ExponentialLR, (0.1, NAN), {}, ValueError, "gamma must be"),
    (LinearLR, (0.1, 0.0), {}, ValueError, r"start_factor must be a number in \(0, 1\]; got 0\.0"),
    (LinearLR, (0.1, 0.5, 1.5), {}, ValueError, r"end_factor must be a number in \[0, 1\]; got 1\.5"),
    (LinearLR, (0.1,), {"total_iters": 0}, ValueError, "total_iters must be an integer >= 1; got 0"),
    (PolynomialLR, (0.1,), {"power": 0.0}, ValueError, "power must be"),
    (CosineAnnealingLR, (0.1, 0), {}, ValueError, "T_max must be an integer >= 1; got 0"),
    (CosineAnnealingLR, (0.1, 10, -0.1), {}, ValueError, "eta_min must be"),
    (CosineAnnealingWarmRestarts, (0.1, 10, 1.5), {}, TypeError, "T_mult must be an integer >= 1; got 1.5"),
    (CosineAnnealingWarmRestarts, (0.1, 0), {}, ValueError, "T_0 must be an integer >= 1; got 0"),
    (OneCycleLR, (0.1,), {}, ValueError, "either total_steps, or epochs and steps_per_epoch, must be set"),
    (OneCycleLR, (0.1, 10, 2, 5), {}, ValueError, "got total_steps=10, epochs=2, steps_per_epoch=5"),
    (OneCycleLR, (0.1, None, 2), {}, ValueError, "got total_steps=None, epochs=2, steps_per_epoch=None"),
    (OneCycleLR, (0.1, 0), {}, ValueError, "total_steps must be an integer >= 1; got 0"),
    (OneCycleLR, (0.1, 10), {"pct_start": 1.5}, ValueError, "pct_start must be"),
    (OneCycleLR, (0.1, 10), {"anneal_strategy": "cosine"}, ValueError, "must be 'cos' or 'linear'; got 'cosine'"),
    (OneCycleLR, (0.1, 10), {"div_factor": 0.0}, ValueError, "div_factor must be"),
    (CosineMultiplier, (1,), {}, ValueError, "total_iterations must be an integer >= 2; got 1"),
    (CosineMultiplier, (5, -0.1), {}, ValueError, "eta_min must be"),
    (CosineMultiplier, (5,), {"t_cur": 5}, ValueError, "t_cur must be below total_iterations where there are restarts"),
    (OneCycleMomentum, (0.1,), {}, TypeError, "cycle must be a OneCycleLR; got 0.1"),
    (OneCycleMomentum, (OneCycleLR(0.1, 10), 1.5), {}, ValueError, "base_momentum must be"),
    (PerEpoch.from_table, ([], 10), {}, ValueError, "values must have at least one entry"),
    (PowerDecay, (0.1, 0), {}, ValueError, "stable_steps must be > 0 where warmup_steps is 0; got 0"),
    (PowerDecay, (0.1, 10), {"power": 0.0}, ValueError, "power must be a finite number > 0"),
    (ConstantLR, (0.1, 1.5), {}, ValueError, r"factor must be a number in \[0, 1\]; got 1\.5"),
    (LambdaLR, (0.1, 0.5), {}, TypeError, r"lr_lambda must be a callable of the step; got 0\.5"),
    (MultiplicativeLR, (0.1, 0.5, 10), {}, TypeError, r"lr_lambda must be a callable of the step; got 0\.5"),
    (MultiplicativeLR, (0.1, lambda step: "a", 10), {}, TypeError, "lr_lambda must return a number; for step 1 it ret"),
    (MultiplicativeLR, (0.1, lambda step: -1.0, 10), {}, ValueError, r"factors must be finite numbers >= 0; got -1\.0"),
    (MultiplicativeLR, (0.1, lambda step: 1e9, 10), {}, ValueError, "learning_rate must be"),
    (MultiplicativeLR, (0.1, lambda step: 1.0, 0), {}, ValueError, "total_iters must be an integer >= 1; got 0"),
    (MultiplicativeLR.from_table, (0.1, []), {}, ValueError, "factors must have at least one entry"),
    (CyclicLR, (0.1, 0.2, 0), {}, ValueError, "step_size_up must be an integer >= 1; got 0"),
    (CyclicLR, (0.1, 0.2, 1, 0), {}, ValueError, "step_size_down must be an integer >= 1; got 0"),
    (CyclicLR, (0.1, 0.2), {"mode": "square"}, ValueError, "mode must be 'triangular', 'triangular2' or 'exp_range'"),
    (
        CyclicLR,
        (0.1, 0.2),
        {"scale_mode": "step"},
        ValueError,
        "scale_mode must be 'cycle' or 'iterations'; got 'step'",
    ),
    (CyclicLR, (0.1, 0.2), {"scale_fn": 0.5}, TypeError, r"scale_fn must be a callable of the step; got 0\.5"),
    (CyclicMomentum, (OneCycleLR(0.1, 10),), {}, TypeError, "cycle must be a CyclicLR; got OneCycleLR"),
    (CyclicMomentum, (CyclicLR(0.1, 0.2), 1.5), {}, ValueError, "base_momentum must be"),
    (ChainedScheduler, ([],), {}, ValueError, "schedulers must have at least one entry"),
    (ChainedScheduler, (StepLR(0.1, 10),), {}, TypeError, "schedulers must be a sequence of schedules; got StepLR"),
    (ChainedScheduler, ([OneCycleLR(0.1, 10)],), {}, TypeError, "schedulers must be schedules that multiply the rate"),
    (ChainedScheduler, ([CosineAnnealingLR(0.1, 9, 0.01)],), {}, ValueError, "schedulers must have no eta_min"),
    (
        ChainedScheduler,
        ([StepLR(0.1, 10), StepLR(0.2, 10)],),
        {},
        ValueError,
        r"schedulers must have the same lr; got 0\.1 and 0\.2",
    ),
    (SequentialLR, ([0.1], []), {}, TypeError, r"schedulers must be callables of the step; got 0\.1"),
    (
        SequentialLR,
        ([StepLR(0.1, 10)], [1]),
        {},
        ValueError,
        "schedulers must be one more than milestones; got 1 sched",
    ),
    (SequentialLR, ([StepLR(0.1, 10)] * 3, [5, 5]), {}, ValueError, r"milestones must increase; got \(5, 5\)"),
    (SequentialLR, ([StepLR(0.1, 10)] * 2, [-1]), {}, ValueError, "a milestone must be an integer >= 0; got -1"),
    (
        SequentialLR,
        ([StepLR(0.1, 10), MultiplicativeLR(0.1, lambda step: 0.9, 5)], [5]),
        {},
        ValueError,
        "schedulers must have a MultiplicativeLR as the first or not at all",
    ),
]


@pytest.mark.parametrize(("make", "args", "kwargs", "error", "message"), REFUSED)
def test_a_wrong_argument_is_refused_in_words(
    make: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(*args, **kwargs)


@pytest.mark.parametrize(
    "function", [lambda step: 1.0 if step < 10 else 0.5, lambda step: max(0.0, 1 - step / 10), math.cos]
)
def test_a_function_that_jax_cannot_trace_says_what_takes_it(function: Any) -> None:
    with pytest.raises(
        TypeError, match=r"lr_lambda must be a function that JAX can trace.*PerEpoch\(fn, 1, …\) takes any"
    ):
        jax.jit(LambdaLR(0.1, function))(3)
    table = PerEpoch(lambda step: 0.1 * abs(function(step)), 1, 0.1, 20)
    assert float(jax.jit(table)(3)) == pytest.approx(0.1 * abs(function(3)))


@pytest.mark.parametrize(
    "make",
    [lambda fn: LambdaLR(0.1, fn), lambda fn: CyclicLR(0.1, 0.2, scale_fn=fn), lambda fn: LegacyDecay(fn, 0.5)],
)
def test_a_schedule_of_a_function_has_no_config_and_one_of_a_schedule_has(make: Any) -> None:
    with pytest.raises(
        TypeError, match=r"config\.learning_rate\.\w+ is <function .*which a config cannot hold.*PerEpoch"
    ):
        oc.to_config(oc.sgd(make(lambda step: 0.5)))
    tx = oc.sgd(make(StepLR(1.0, 10)))
    assert oc.from_config(oc.to_config(tx)) == tx


@pytest.mark.parametrize("factor", [-1.0, NAN, "2", None])
def test_a_factor_that_is_no_number_is_refused(factor: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="factor must be"):
        CosineDecay(0.1, 10) * factor


def test_numpy_numbers_are_kept_as_pythons() -> None:
    schedule = CosineDecay(np.float64(0.5), np.int64(10))
    assert schedule == CosineDecay(0.5, 10)
    assert repr(schedule) == "CosineDecay(0.5, 10)"


def warm_of(base: type[schedules.Schedule], decorate) -> type[schedules.Schedule]:
    """A schedule of one's own, whose argument is a field only if the class is decorated."""

    @decorate
    class Warm(base):
        peak: float = 1.0

        def __init__(self, peak=1.0):
            for name, value in {"peak": peak, "lr": 1.0, "step_size": 10, "gamma": 0.5}.items():
                object.__setattr__(self, name, value)

        def value(self, step):
            return self.peak + 0.0 * step

    return Warm


@pytest.mark.parametrize("base", [schedules.Schedule, StepLR])
@pytest.mark.parametrize("decorate", [lambda kind: kind, dataclasses.dataclass(frozen=True, repr=False)])
def test_schedules_of_different_values_are_never_equal_decorated_or_not(base, decorate) -> None:
    kind = warm_of(base, decorate)
    one, other = kind(0.5), kind(0.25)
    assert one == one
    assert hash(one) == hash(one)
    assert one != other
    assert oc.sgd(one) != oc.sgd(other)
    assert repr(one) != repr(other)


@pytest.mark.parametrize("base", [schedules.Schedule, StepLR])
def test_only_a_class_that_is_itself_a_frozen_dataclass_is_registered(base) -> None:
    with pytest.raises(TypeError, match=r"itself a frozen dataclass.*@dataclasses\.dataclass\(frozen=True"):
        schedules.register(warm_of(base, lambda kind: kind))


def test_an_argument_that_is_no_field_is_not_registered() -> None:
    @dataclasses.dataclass(frozen=True, repr=False)
    class Warm(schedules.Schedule):
        def __init__(self, peak=1.0):
            object.__setattr__(self, "peak", peak)

    with pytest.raises(TypeError, match=r"Warm takes peak, which is no field of it"):
        schedules.register(Warm)


def test_every_schedule_of_the_package_is_registered_under_its_name() -> None:
    public = {name: kind for name, kind in vars(schedules).items() if isinstance(kind, type) and name != "Schedule"}
    assert public.items() <= schedules.base.REGISTERED.items()
