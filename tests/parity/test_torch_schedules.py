"""Every schedule with PyTorch's name, and its plateau, against the live scheduler, which steps an SGD, over 300 steps in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optchain
from optchain import schedules

from .helpers import precision
from .recipes import log_uniform
from .torch_runs import torch

STEPS = 300
NAN, INF = float("nan"), float("inf")
few = settings(max_examples=settings.default.max_examples // 5)

RATES = log_uniform(-4, 0)
LENGTHS = st.integers(1, 400)


def small(most: float) -> st.SearchStrategy[float]:
    """From 0 on, without what float32 flushes to 0, which is refused."""
    return st.floats(0, most, width=32, allow_subnormal=False)


# Without a rate as the first argument, which is `max_lr` of OneCycleLR, and of the others the optimizer's.
ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "ConstantLR": st.fixed_dictionaries({}, optional={"factor": st.floats(0.01, 1), "total_iters": LENGTHS}),
    "StepLR": st.fixed_dictionaries({"step_size": st.integers(1, 60)}, optional={"gamma": st.floats(0.2, 1.05)}),
    "MultiStepLR": st.fixed_dictionaries(
        {"milestones": st.lists(st.integers(0, STEPS), max_size=6)}, optional={"gamma": st.floats(0.1, 1.5)}
    ),
    "ExponentialLR": st.fixed_dictionaries({"gamma": st.floats(0.9, 1.01)}),
    "LinearLR": st.fixed_dictionaries(
        {}, optional={"start_factor": st.floats(0.01, 1), "end_factor": small(1), "total_iters": LENGTHS}
    ),
    "PolynomialLR": st.fixed_dictionaries({}, optional={"total_iters": LENGTHS, "power": st.floats(0.5, 3)}),
    "CosineAnnealingLR": st.fixed_dictionaries({"T_max": LENGTHS}, optional={"eta_min": small(0.125)}),
    "CosineAnnealingWarmRestarts": st.fixed_dictionaries(
        {"T_0": st.integers(1, 100)}, optional={"T_mult": st.integers(1, 3), "eta_min": small(0.125)}
    ),
    "OneCycleLR": st.fixed_dictionaries(
        {"pct_start": st.floats(0.02, 0.45)},
        optional={
            "anneal_strategy": st.sampled_from(["cos", "linear"]),
            "div_factor": st.floats(1, 50),
            "final_div_factor": log_uniform(0, 5),
            "three_phase": st.booleans(),
        },
    ),
    "CyclicLR": st.fixed_dictionaries(
        {"max_lr": RATES, "step_size_up": st.integers(1, 100)},
        optional={
            "step_size_down": st.none() | st.integers(1, 100),
            "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
            "gamma": st.floats(0.9, 1.01),
        },
    ),
}
MULTIPLYING = ["ConstantLR", "StepLR", "MultiStepLR", "ExponentialLR", "LinearLR", "PolynomialLR"]
# PyTorch multiplies its way from step to step, and near its zero the cosine is a quotient of two small numbers.
TOLERANCES = {"CosineAnnealingLR": 1e-10, "LinearLR": 1e-11}


def torch_values(name: str, rate: float, arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    """The learning rate and the momentum of every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate, momentum=0.5)
    first = {"OneCycleLR": {"max_lr": rate, "total_steps": STEPS}, "CyclicLR": {"base_lr": rate}}.get(name, {})
    return stepped(optimizer, getattr(torch.optim.lr_scheduler, name)(optimizer, **first, **arguments))


def stepped(optimizer: Any, scheduler: Any) -> dict[str, np.ndarray]:
    values: dict[str, list[float]] = {"lr": [], "momentum": []}
    for step in range(STEPS):
        for key, history in values.items():
            history.append(optimizer.param_groups[0][key])
        optimizer.step()
        if step < STEPS - 1:
            scheduler.step()
    return {key: np.array(history) for key, history in values.items()}


def our_values(schedule: schedules.Schedule) -> np.ndarray:
    """The schedule at each step, as a compiled training step sees it."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(STEPS)))


@pytest.mark.parametrize("name", ARGUMENTS)
@given(data=st.data(), rate=RATES)
@few
def test_a_schedule_equals_torch_for_300_steps(name: str, data: st.DataObject, rate: float) -> None:
    arguments = data.draw(ARGUMENTS[name])
    theirs = torch_values(name, rate, arguments)
    first = (rate, STEPS) if name == "OneCycleLR" else (rate,)
    schedule = getattr(schedules, name)(*first, **arguments)
    with precision("float64"):
        check(our_values(schedule), theirs["lr"], TOLERANCES.get(name, 1e-12))
        if isinstance(schedule, schedules.OneCycleLR):
            check(our_values(schedules.OneCycleMomentum(schedule)), theirs["momentum"], 1e-12)
        if isinstance(schedule, schedules.CyclicLR):
            check(our_values(schedules.CyclicMomentum(schedule)), theirs["momentum"], 1e-12)


# Functions ------------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "power": lambda step: 0.95**step,
    "staircase": lambda step: 0.5 ** (step // 30),
    "constant": lambda step: 0.9,
    "root": lambda step: (1 + step) ** -0.5,
    "integer": lambda step: 1 + step // 100,
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_factor_of_the_step_equals_torch(function: str) -> None:
    theirs = torch_values("LambdaLR", 0.1, {"lr_lambda": FUNCTIONS[function]})["lr"]
    with precision("float64"):
        check(our_values(schedules.LambdaLR(0.1, FUNCTIONS[function])), theirs, 1e-12)


def half_now_and_then(step: int) -> float:
    return 0.5 if step % 50 == 0 else 1.001


@pytest.mark.parametrize("function", [half_now_and_then, lambda step: 0.95, lambda step: step / (step + 1)])
def test_a_factor_from_step_to_step_equals_torch(function: Any) -> None:
    theirs = torch_values("MultiplicativeLR", 0.1, {"lr_lambda": function})["lr"]
    with precision("float64"):
        check(our_values(schedules.MultiplicativeLR(0.1, function, STEPS)), theirs, 1e-12)


@pytest.mark.parametrize("scale_mode", ["cycle", "iterations"])
def test_a_scale_of_ones_own_equals_torch(scale_mode: str) -> None:
    given = {"max_lr": 0.5, "step_size_up": 20, "step_size_down": 30, "scale_mode": scale_mode}
    given["scale_fn"] = lambda count: 1 / (1.0 + 0.1 * count)
    theirs = torch_values("CyclicLR", 0.1, given)
    cycle = schedules.CyclicLR(0.1, **given)
    with precision("float64"):
        check(our_values(cycle), theirs["lr"], 1e-12)
        check(our_values(schedules.CyclicMomentum(cycle)), theirs["momentum"], 1e-12)


def test_a_cyclic_momentum_of_other_bounds_equals_torch() -> None:
    bounds = {"base_momentum": 0.5, "max_momentum": 0.99}
    theirs = torch_values("CyclicLR", 0.1, {"max_lr": 0.5, "step_size_up": 20, "mode": "triangular2"} | bounds)
    cycle = schedules.CyclicLR(0.1, 0.5, 20, mode="triangular2")
    with precision("float64"):
        check(our_values(schedules.CyclicMomentum(cycle, **bounds)), theirs["momentum"], 1e-12)


# Several schedulers ---------------------------------------------------------------------------------------------------


def both(composition: str, rate: float, parts: list[tuple[str, dict[str, Any]]], *args: Any) -> tuple[Any, np.ndarray]:
    """Our schedule, and the rates of PyTorch's."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate, momentum=0.5)
    theirs = [getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments) for name, arguments in parts]
    if composition == "SequentialLR":
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, theirs, *args)
    else:
        scheduler = torch.optim.lr_scheduler.ChainedScheduler(theirs, *args)
    ours = [
        schedules.MultiplicativeLR(rate, total_iters=STEPS, **arguments)
        if name == "MultiplicativeLR"
        else getattr(schedules, name)(rate, **arguments)
        for name, arguments in parts
    ]
    return getattr(schedules, composition)(ours, *args), stepped(optimizer, scheduler)["lr"]


def parts_of(names: list[str]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.sampled_from(names).flatmap(lambda name: ARGUMENTS[name].map(lambda arguments: (name, arguments)))


@given(parts=st.lists(parts_of(MULTIPLYING), min_size=1, max_size=4), rate=RATES)
@few
def test_a_chain_of_schedulers_equals_torch(parts: list[tuple[str, dict[str, Any]]], rate: float) -> None:
    ours, theirs = both("ChainedScheduler", rate, parts)
    with precision("float64"):
        check(our_values(ours), theirs, 1e-11 if any(name == "LinearLR" for name, _ in parts) else 1e-12)


@pytest.mark.parametrize(
    "parts",
    [
        [("LinearLR", {"start_factor": 0.1, "total_iters": 20}), ("CosineAnnealingLR", {"T_max": STEPS})],
        [("CosineAnnealingLR", {"T_max": STEPS}), ("ExponentialLR", {"gamma": 0.99})],
        [("MultiplicativeLR", {"lr_lambda": half_now_and_then}), ("StepLR", {"step_size": 70})],
    ],
)
def test_a_chain_with_a_cosine_or_a_function_equals_torch(parts: list[tuple[str, dict[str, Any]]]) -> None:
    ours, theirs = both("ChainedScheduler", 0.1, parts)
    with precision("float64"):
        check(our_values(ours), theirs, 1e-10)


@given(
    parts=st.lists(
        parts_of([*MULTIPLYING, "CosineAnnealingLR", "CosineAnnealingWarmRestarts"]), min_size=3, max_size=3
    ),
    rate=RATES,
    milestones=st.lists(st.integers(1, STEPS), min_size=2, max_size=2, unique=True).map(sorted),
)
@few
def test_a_sequence_of_schedulers_equals_torch(
    parts: list[tuple[str, dict[str, Any]]], rate: float, milestones: list[int]
) -> None:
    ours, theirs = both("SequentialLR", rate, parts, milestones)
    with precision("float64"):
        check(our_values(ours), theirs, max(TOLERANCES.get(name, 1e-12) for name, _ in parts))


@pytest.mark.parametrize(
    "parts",
    [
        [("MultiplicativeLR", {"lr_lambda": half_now_and_then}), ("LambdaLR", {"lr_lambda": FUNCTIONS["power"]})],
        [("LambdaLR", {"lr_lambda": FUNCTIONS["root"]}), ("LinearLR", {})],
    ],
)
def test_a_sequence_with_functions_equals_torch(parts: list[tuple[str, dict[str, Any]]]) -> None:
    ours, theirs = both("SequentialLR", 0.1, parts, [100])
    with precision("float64"):
        check(our_values(ours), theirs, 1e-11)


# A plateau ------------------------------------------------------------------------------------------------------------

EIGHTHS = st.integers(-40, 40).map(lambda n: n / 8)


@given(
    metrics=st.lists(EIGHTHS | EIGHTHS | st.sampled_from([NAN, INF, -INF]), min_size=STEPS, max_size=STEPS),
    drift=st.floats(-0.1, 0.1),
    arguments=st.fixed_dictionaries(
        {"patience": st.integers(0, 6), "factor": small(0.96875)},
        optional={
            "mode": st.sampled_from(["min", "max"]),
            "threshold": st.sampled_from([0.0, 1e-4, 0.125, 1.0]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 4),
            "min_lr": st.sampled_from([0.0, 1e-3, 0.05]),
            "eps": st.sampled_from([0.0, 1e-8, 0.01]),
        },
    ),
)
@few
def test_the_rate_falls_when_torch_lets_it_fall(metrics: list[float], drift: float, arguments: dict[str, Any]) -> None:
    metrics = [metric + drift * step for step, metric in enumerate(metrics)]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)
    theirs = []
    for metric in metrics:
        scheduler.step(metric)
        theirs.append(optimizer.param_groups[0]["lr"])
    with precision("float64"):
        plateau = optchain.presets.torch.ReduceLROnPlateau(**arguments)
        state = optchain.presets.torch.sgd(jnp.float64(0.1)).init(jnp.zeros(1))

        def evaluate(carry: Any, metric: jax.Array) -> tuple[Any, jax.Array]:
            carry = plateau.update(metric, *carry)
            return carry, optchain.get_hyperparams(carry[1])["learning_rate"]

        _, ours = jax.lax.scan(evaluate, (plateau.init(), state), jnp.array(metrics))
        check(np.asarray(ours), np.array(theirs), 1e-12)


def check(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    assert ours.dtype == theirs.dtype == np.float64
    assert np.isfinite(theirs).all()
    worst = int(np.argmax(np.abs(ours - theirs)))
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), (worst, ours[worst], theirs[worst])
