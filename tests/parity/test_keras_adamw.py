"""keras-adamw's presets against the recorded runs of `golden/keras_adamw/`: twelve steps, with restarts, in float32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

from .helpers import FORMS

GOLDEN = Path(__file__).parent.parent / "golden" / "keras_adamw"
RECORDINGS = sorted(path.stem for path in GOLDEN.glob("*.json"))
PRESETS: dict[str, Callable[..., oc.Transformation]] = {
    "AdamW": oc.presets.keras_adamw.adamw,
    "NadamW": oc.presets.keras_adamw.nadamw,
    "SGDW": oc.presets.keras_adamw.sgdw,
}
TOLERANCE = 2e-5
"""As |a − b| / (|b| + 0.01). keras-adamw computes its cosine in float32."""


def load(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tree(values: dict[str, Any]) -> dict[str, jax.Array]:
    return {name: jnp.array(value, jnp.float32) for name, value in values.items()}


def error(recorded: dict[str, Any], form: str, **changed: Any) -> float:
    tx = PRESETS[recorded["class"]](**recorded["kwargs"] | changed)
    step = jax.jit(lambda params, state, grads: FORMS[form](tx, params, state, grads))
    params = tree(recorded["params"])
    state, worst = tx.init(params), 0.0
    for grads, expected in zip(recorded["grads"], recorded["expected"], strict=True):
        params, state = step(params, state, tree(grads))
        for key, value in expected.items():
            b = np.array(value)
            worst = max(worst, float(np.max(np.abs(np.asarray(params[key]) - b) / (np.abs(b) + 0.01))))
    return worst


def test_every_class_is_recorded() -> None:
    assert {load(name)["class"] for name in RECORDINGS} == set(PRESETS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", RECORDINGS)
def test_a_preset_reproduces_the_recorded_run(name: str, form: str, record_error: Callable) -> None:
    recorded = load(name)
    worst = error(recorded, form)
    record_error(("keras-adamw", recorded["class"], "float32", form), worst)
    assert worst <= TOLERANCE


@pytest.mark.parametrize(
    "changed",
    [
        {"use_cosine_annealing": False, "eta_min": 0},
        {"autorestart": False},
        {"t_cur": 1},
        {"eta_min": 0.5},
        {"total_iterations_wd": 20},
        {"lr_multipliers": None},
        {"weight_decays": None},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_argument_is_what_makes_the_numbers(changed: dict[str, Any]) -> None:
    assert error(load("keras_adamw_sgdw_1"), "apply", **changed) > 1e-3


@pytest.mark.parametrize(("autorestart", "t_cur"), [(True, 0), (True, 4), (False, 0), (False, 7)])
def test_the_multiplier_is_that_of_a_counter_which_is_read_before_it_is_moved(autorestart: bool, t_cur: int) -> None:
    total, low, high = 5, 0.1, 2.0
    schedule = oc.schedules.CosineMultiplier(total, low, high, t_cur, autorestart)
    eta, t = 1.0, t_cur
    for step in range(30):
        assert float(schedule(step)) == pytest.approx(eta, rel=1e-6, abs=1e-6)
        t = 0 if autorestart and t == total - 1 else t + 1
        eta = low + 0.5 * (high - low) * (1 + np.cos(np.pi * t / (total - 1)))
