"""Runs of PyTorch's optimizers, to hold ours against."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import optchain

from .helpers import BOUNDS, precision, random_grads, random_params, run_forms, worst_error

torch = pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")

from optchain.verification.torch_peer import run_torch  # noqa: E402

STEPS = 50


def check(
    name: str,
    dtype: str,
    seed: int,
    ours: optchain.Transformation,
    build: Callable[[list[Any]], Any],
    record_error: Callable,
    rate: Callable[[int], float] | None = None,
) -> None:
    rng = np.random.default_rng(seed)
    params, grads = random_params(rng, dtype), random_grads(rng, dtype, STEPS)
    expected = run_torch(build, params, grads, rate)
    with precision(dtype):
        for form, (history, _) in run_forms(ours, params, grads).items():
            error = worst_error(history, expected)
            record_error(("PyTorch", name, dtype, form), error)
            assert error <= BOUNDS[dtype], form
