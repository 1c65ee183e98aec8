"""Chains of optchain's links against PyTorch's optimizers: other ε, the same decay, its own momentum."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import optchain

from .helpers import DTYPES, few
from .recipes import floats32, log_uniform
from .torch_runs import STEPS, check, torch

SEEDS = st.integers(0, 2**32 - 1)
RATES = log_uniform(-4, -1)
# Two roundings of float32 are systematic, and 50 steps sum them up. PyTorch computes bias corrections in double precision,
# where ours, as Keras's, are float32: 1 − 0.999 is off by 1.3e-5 of itself, so an update must not be all of a parameter.
# And an update that is but a few units in the last place of its parameter is rounded the same way every time.
ADAM_RATES = log_uniform(-3, -2)
ADAM = {
    "betas": st.tuples(floats32(0, 0.99), floats32(0.5, 0.999)),
    "eps": log_uniform(-8, -1),
    "amsgrad": st.booleans(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rate=ADAM_RATES, decay=floats32(0, 0.5), rule=st.fixed_dictionaries(ADAM))
@few
def test_adam_chain_with_decay_equals_torch_adamw(
    dtype: str, seed: int, rate: float, decay: float, rule: dict[str, Any], record_error: Callable
) -> None:
    ours = adam_chain(rate, rule, optchain.decay_weights(decay))
    check(
        "AdamW",
        dtype,
        seed,
        ours,
        lambda leaves: torch.optim.AdamW(leaves, rate, **rule, weight_decay=decay),
        record_error,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rate=ADAM_RATES, rule=st.fixed_dictionaries(ADAM))
@few
def test_adam_chain_equals_torch_adam(
    dtype: str, seed: int, rate: float, rule: dict[str, Any], record_error: Callable
) -> None:
    check(
        "Adam", dtype, seed, adam_chain(rate, rule), lambda leaves: torch.optim.Adam(leaves, rate, **rule), record_error
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rates=st.tuples(RATES, RATES), momentum=floats32(0.1, 1), nesterov=st.booleans())
@few
def test_momentum_before_a_changing_rate_equals_torch_sgd(
    dtype: str, seed: int, rates: tuple[float, float], momentum: float, nesterov: bool, record_error: Callable
) -> None:
    """PyTorch's rate multiplies the velocity, Keras's is inside it: a change of the rate tells them apart."""
    schedule = optchain.schedules.PiecewiseConstantDecay([STEPS // 2], rates)
    rule = optchain.apply_momentum(momentum, nesterov)
    ours = optchain.chain(rule, optchain.scale_by_learning_rate(), learning_rate=schedule)

    def build(leaves: list[Any]) -> Any:
        return torch.optim.SGD(leaves, rates[0], momentum=momentum, nesterov=nesterov)

    check("SGD", dtype, seed, ours, build, record_error, lambda step: rates[step > STEPS // 2])


def adam_chain(rate: float, rule: dict[str, Any], *links: optchain.Transformation) -> optchain.Transformation:
    adam = optchain.scale_by_adam(*rule["betas"], rule["eps"], amsgrad=rule["amsgrad"], epsilon_hat=False)
    return optchain.chain(adam, optchain.scale_by_learning_rate(), *links, learning_rate=rate)
