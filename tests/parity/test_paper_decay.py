"""Decay that no learning rate multiplies: Algorithm 2 of the paper (AdamW), and Algorithm 1 (SGDW), in plain NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import optchain as oc

from .helpers import BOUNDS, DTYPES, Tree, precision, random_grads, random_params, run_forms, worst_error

STEPS = 30
ALPHA, LAMBDA, BETA_1, BETA_2, EPSILON = 0.01, 0.02, 0.9, 0.95, 1e-3
ETA = oc.schedules.CosineAnnealingLR(1.0, T_max=20, eta_min=0.1)


def eta(step: int) -> float:
    return 0.1 + 0.9 * (1 + np.cos(np.pi * step / 20)) / 2


def paper_adamw(params: np.ndarray, grads: list[np.ndarray]) -> list[np.ndarray]:
    m, v, history = np.zeros_like(params), np.zeros_like(params), []
    for t, g in enumerate(grads, 1):
        m = BETA_1 * m + (1 - BETA_1) * g
        v = BETA_2 * v + (1 - BETA_2) * g**2
        m_hat, v_hat = m / (1 - BETA_1**t), v / (1 - BETA_2**t)
        params = params - eta(t - 1) * (ALPHA * m_hat / (np.sqrt(v_hat) + EPSILON) + LAMBDA * params)
        history.append(params)
    return history


def paper_sgdw(params: np.ndarray, grads: list[np.ndarray]) -> list[np.ndarray]:
    m, history = np.zeros_like(params), []
    for t, g in enumerate(grads):
        m = BETA_1 * m + eta(t) * ALPHA * g
        params = params - m - eta(t) * LAMBDA * params
        history.append(params)
    return history


def adamw() -> oc.Transformation:
    return oc.chain(
        oc.scale_by_adam(BETA_1, BETA_2, EPSILON, epsilon_hat=False),
        oc.scale_by_learning_rate(),
        oc.decay_weights(LAMBDA, learning_rate=1.0),
        ("eta", oc.scale(ETA)),
        learning_rate=ALPHA,
    )


def sgdw() -> oc.Transformation:
    return oc.chain(
        oc.scale_by_learning_rate(),
        oc.apply_momentum(BETA_1),
        oc.decay_weights(ETA * LAMBDA, learning_rate=1.0),
        learning_rate=ETA * ALPHA,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("build", "paper"), [(adamw, paper_adamw), (sgdw, paper_sgdw)], ids=["AdamW", "SGDW"])
def test_a_chain_equals_the_papers_algorithm(
    build: Callable[[], oc.Transformation], paper: Callable[..., Any], dtype: str, record_error: Callable
) -> None:
    rng = np.random.default_rng(0)
    params, grads = random_params(rng, dtype), random_grads(rng, dtype, STEPS, factor=0.1)
    expected = by_leaf(paper, params, grads, dtype)
    with precision(dtype):
        for form, (history, _) in run_forms(build(), params, grads).items():
            error = worst_error(history, expected)
            record_error(("paper", paper.__name__, dtype, form), error)
            assert error <= BOUNDS[dtype], form


def by_leaf(paper: Callable[..., Any], params: Tree, grads: list[Tree], dtype: str) -> list[Tree]:
    """The reference computes in float64; what is compared is rounded."""
    leaves, treedef = jax.tree.flatten(params)
    columns = zip(*map(jax.tree.leaves, grads), strict=True)
    runs = [
        paper(p.astype(np.float64), [g.astype(np.float64) for g in column])
        for p, column in zip(leaves, columns, strict=True)
    ]
    return [treedef.unflatten([p.astype(dtype) for p in step]) for step in zip(*runs, strict=True)]
