"""Every schedule with PyTorch's name against the live scheduler, which steps an SGD, over 300 steps in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optchain import schedules

from .helpers import precision
from .recipes import log_uniform
from .torch_runs import torch

STEPS = 300
few = settings(max_examples=settings.default.max_examples // 5)

RATES = log_uniform(-4, 0)
LENGTHS = st.integers(1, 400)

# Without a rate as the first argument, which is `max_lr` of OneCycleLR, and of the others the optimizer's.
ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "StepLR": st.fixed_dictionaries({"step_size": st.integers(1, 60)}, optional={"gamma": st.floats(0.2, 1.05)}),
    "MultiStepLR": st.fixed_dictionaries(
        {"milestones": st.lists(st.integers(0, STEPS), max_size=6)}, optional={"gamma": st.floats(0.1, 1.5)}
    ),
    "ExponentialLR": st.fixed_dictionaries({"gamma": st.floats(0.9, 1.01)}),
    "LinearLR": st.fixed_dictionaries(
        {}, optional={"start_factor": st.floats(0.01, 1), "end_factor": st.floats(0, 1), "total_iters": LENGTHS}
    ),
    "PolynomialLR": st.fixed_dictionaries({}, optional={"total_iters": LENGTHS, "power": st.floats(0.5, 3)}),
    "CosineAnnealingLR": st.fixed_dictionaries({"T_max": LENGTHS}, optional={"eta_min": st.floats(0, 0.1)}),
    "CosineAnnealingWarmRestarts": st.fixed_dictionaries(
        {"T_0": st.integers(1, 100)}, optional={"T_mult": st.integers(1, 3), "eta_min": st.floats(0, 0.1)}
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
}
# PyTorch multiplies its way from step to step, and near its zero the cosine is a quotient of two small numbers.
TOLERANCES = {"CosineAnnealingLR": 1e-10, "LinearLR": 1e-11}


def torch_values(name: str, rate: float, arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    """The learning rate and the momentum of every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate, momentum=0.5)
    first = {"max_lr": rate, "total_steps": STEPS} if name == "OneCycleLR" else {}
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **first, **arguments)
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


def check(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    assert ours.dtype == theirs.dtype == np.float64
    assert np.isfinite(theirs).all()
    worst = int(np.argmax(np.abs(ours - theirs)))
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), (worst, ours[worst], theirs[worst])
