"""A run that is steered while it goes on: one compiled step through every change, with the numbers of constants."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

pytestmark = pytest.mark.each_value

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.25, -0.5])}
FLOAT32 = 2e-5
"""Tolerance of a run-time beta: 1 − β is then computed in float32."""


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"]) ** 2)


def batch(number: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(number).normal(size=(4, 2)), jnp.float32)


def fresh(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


# One compiled step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [None, 2])
def test_one_program_goes_through_rates_set_by_hand_and_a_plateau(accumulation: int | None) -> None:
    tx = oc.adamw(0.1, global_clipnorm=1.0, gradient_accumulation_steps=accumulation, use_ema=True)
    step = oc.make_step(loss, tx)
    params = fresh(PARAMS)
    state, seen = tx.init(params), []
    for rate in (0.1, 0.05, 0.2, 1e-3, 1):
        state = oc.set_hyperparams(state, learning_rate=rate)
        for number in range(3):
            params, state, metrics = step(params, state, batch(number))
        seen.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(seen, [0.1, 0.05, 0.2, 1e-3, 1], rtol=1e-6)

    plateau = oc.ReduceLROnPlateau(factor=0.5, patience=2)
    watched, rates = plateau.init(), []
    for validation in (1.0, 0.9, 0.95, 0.92, 0.5, 0.6, 0.6):
        params, state, metrics = step(params, state, batch(0))
        rates.append(float(metrics["learning_rate"]))
        watched, state = plateau.update(validation, watched, state)
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert float(oc.get_hyperparams(state)["learning_rate"]) == 0.25
    assert step._cache_size() == 1


def test_a_plateau_inside_the_compiled_step_works_too() -> None:
    tx, plateau = oc.sgd(1.0), oc.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.0)

    @jax.jit
    def step(params: Any, state: Any, watched: Any, metric: jax.Array) -> Any:
        params, state = tx.apply(params, state, grads=jax.tree.map(jnp.ones_like, params))
        return params, *plateau.update(metric, watched, state)

    params, state, watched = PARAMS, tx.init(PARAMS), plateau.init()
    rates = []
    for metric in (1.0, 2.0, 0.5, 0.6, 0.4):
        params, watched, state = step(params, state, watched, jnp.float32(metric))
        rates.append(float(oc.get_hyperparams(state)["learning_rate"]))
    assert rates == [1.0, 0.5, 0.5, 0.25, 0.25]
    assert step._cache_size() == 1


def test_one_program_goes_through_what_a_callable_returns() -> None:
    knob = {"rate": 1.0}
    tx = oc.sgd(lambda: knob["rate"])
    step = oc.make_step(lambda params: jnp.sum(params), tx)
    params = jnp.zeros(())
    state = tx.init(params)
    for rate in (1.0, 0.5, 0.25, 0.5, 2.0):
        knob["rate"] = rate
        before = float(params)
        params, state, metrics = step(params, state)
        assert float(params) == before - rate
        assert float(metrics["learning_rate"]) == float(oc.get_hyperparams(state)["learning_rate"]) == rate
    assert step._cache_size() == 1


def test_one_program_goes_through_a_schedule() -> None:
    schedule = oc.schedules.CosineDecay(0.0, 10, warmup_target=1.0, warmup_steps=4)
    tx = oc.sgd(schedule)
    step = oc.make_step(lambda params: jnp.sum(params), tx)
    params = jnp.zeros(())
    state = tx.init(params)
    for count in range(16):
        params, state, metrics = step(params, state)
        assert float(metrics["learning_rate"]) == pytest.approx(float(schedule(count)), abs=1e-6)
    assert step._cache_size() == 1


def test_restarting_from_a_saved_state_compiles_nothing_and_keeps_the_rate_that_was_set() -> None:
    tx = oc.adamw(0.1)
    step = oc.make_step(loss, tx)
    params = fresh(PARAMS)
    state = oc.set_hyperparams(tx.init(params), learning_rate=0.02)
    params, state, _ = step(params, state, batch(0))
    saved = jax.device_get((params, state))
    params, state = jax.device_put(saved)
    _, state, metrics = step(params, state, batch(1))
    assert float(metrics["learning_rate"]) == np.float32(0.02)
    assert step._cache_size() == 1


# Every hyperparameter, three ways --------------------------------------------------------------------------------------

BUILDERS: dict[str, tuple[Callable[[Any], oc.Transformation], str, float, float]] = {
    # argument: (what is built with it, its name in the state, a value, another value)
    "learning_rate": (lambda v: oc.adamw(v, 0.1), "learning_rate", 0.1, 0.02),
    "weight_decay": (lambda v: oc.adamw(0.1, v), "weight_decay", 0.3, 0.0),
    "beta_1": (lambda v: oc.adamw(0.1, beta_1=v), "beta_1", 0.9, 0.5),
    "beta_2": (lambda v: oc.adamw(0.1, beta_2=v), "beta_2", 0.999, 0.9),
    "epsilon": (lambda v: oc.adamw(0.1, epsilon=v), "epsilon", 1e-7, 0.1),
    "amsgrad's beta_2": (lambda v: oc.adam(0.1, beta_2=v, amsgrad=True), "beta_2", 0.99, 0.9),
    "the paper's beta_1": (
        lambda v: oc.chain(oc.scale_by_adam(v, epsilon_hat=False), oc.scale_by_learning_rate(0.1)),
        "beta_1",
        0.9,
        0.5,
    ),
    "clipvalue": (lambda v: oc.sgd(0.1, clipvalue=v), "max_value", 0.05, 10.0),
    "clipnorm": (lambda v: oc.sgd(0.1, clipnorm=v), "max_norm", 0.05, 10.0),
    "global_clipnorm": (lambda v: oc.sgd(0.1, global_clipnorm=v), "max_norm", 0.05, 10.0),
    "momentum": (lambda v: oc.sgd(0.1, v), "momentum", 0.9, 0.0),
    "nesterov's momentum": (lambda v: oc.sgd(0.1, v, nesterov=True), "momentum", 0.9, 0.5),
    "ema_momentum": (
        lambda v: oc.sgd(0.1, use_ema=True, ema_momentum=v, ema_overwrite_frequency=2),
        "momentum",
        0.9,
        0.5,
    ),
    "loss_scale_factor": (lambda v: oc.sgd(0.1, loss_scale_factor=v), "loss_scale", 4.0, 0.5),
    "accumulated weight_decay": (
        lambda v: oc.adamw(0.1, v, gradient_accumulation_steps=2),
        "weight_decay",
        0.3,
        0.0,
    ),
}
KINDS: dict[str, Callable[[float], Any]] = {
    "array": jnp.array,
    "numpy": np.float32,
    "schedule": lambda value: lambda step: jnp.where(step >= 0, value, 0.0),
    "callable": lambda value: lambda: value,
}


def grads_of(number: int) -> Any:
    return jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(number).normal(size=p.shape), p.dtype), PARAMS)


def run(tx: oc.Transformation, steps: int = 8, state: Any = None) -> tuple[Any, Any]:
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
    params, state = PARAMS, tx.init(PARAMS) if state is None else state
    for number in range(steps):
        params, state = step(params, state, grads_of(number))
    assert step._cache_size() == 1
    return params, state


def assert_close(actual: Any, expected: Any) -> None:
    for key in PARAMS:
        error = np.abs(actual[key] - expected[key]).max() / (np.abs(expected[key]).max() + 1e-3)
        assert error <= FLOAT32, key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argument", BUILDERS)
def test_a_run_time_value_gives_the_constants_numbers_and_is_read(argument: str, kind: str) -> None:
    build, name, value, _ = BUILDERS[argument]
    expected, _ = run(build(value))
    params, state = run(build(KINDS[kind](value)))
    assert_close(params, expected)
    always = name in ("learning_rate", "loss_scale")
    if kind == "numpy" and not always:  # a NumPy number is a number: a constant of the program
        assert name not in oc.get_hyperparams(state)
    else:
        assert float(oc.get_hyperparams(state)[name]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("argument", BUILDERS)
def test_an_array_can_be_set_and_is_then_as_if_built_with_it(argument: str) -> None:
    build, name, value, other = BUILDERS[argument]
    tx = build(jnp.array(value))
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
    expected, _ = run(build(other))
    for set_to, wanted in ((value, run(build(value))[0]), (other, expected)):
        params, state = PARAMS, oc.set_hyperparams(tx.init(PARAMS), {name: set_to})
        for number in range(8):
            params, state = step(params, state, grads_of(number))
        assert_close(params, wanted)
    assert step._cache_size() == 1
    assert not all(np.allclose(run(build(value))[0][key], expected[key], rtol=1e-3) for key in PARAMS)


@pytest.mark.parametrize("kind", ["schedule", "callable"])
@pytest.mark.parametrize("argument", BUILDERS)
def test_a_scheduled_one_is_shown_and_refused_to_be_set(argument: str, kind: str) -> None:
    build, name, value, other = BUILDERS[argument]
    state = build(KINDS[kind](value)).init(PARAMS)
    assert float(oc.get_hyperparams(state)[name]) == pytest.approx(value, rel=1e-6)
    with pytest.raises(ValueError, match=f"{name} is scheduled"):
        oc.set_hyperparams(state, {name: other})


# Inside a gate a schedule counts updates, and the loop below counts calls.
@pytest.mark.parametrize("argument", [argument for argument in BUILDERS if "accumulated" not in argument])
def test_a_schedule_that_changes_gives_each_steps_value(argument: str) -> None:
    build, name, value, other = BUILDERS[argument]
    tx = build(lambda step: jnp.where(step % 2 == 0, value, other))
    by_hand = build(jnp.array(value))
    params, state = PARAMS, tx.init(PARAMS)
    expected, set_state = PARAMS, by_hand.init(PARAMS)
    values = itertools.cycle([value, other])
    step = jax.jit(lambda tx, params, state, grads: tx.apply(params, state, grads=grads), static_argnums=0)
    for number in range(6):
        now = next(values)
        params, state = step(tx, params, state, grads_of(number))
        set_state = oc.set_hyperparams(set_state, {name: now})
        expected, set_state = step(by_hand, expected, set_state, grads_of(number))
        assert float(oc.get_hyperparams(state)[name]) == pytest.approx(now, rel=1e-6)
    assert_close(params, expected)
    assert step._cache_size() == 2
