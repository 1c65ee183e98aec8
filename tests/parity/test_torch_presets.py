"""`optchain.presets.torch` against PyTorch: every argument of every optimizer at once, over 50 steps."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optchain

from .helpers import DTYPES, few
from .recipes import floats32, log_uniform
from .torch_runs import STEPS, check, torch

pytestmark = pytest.mark.each_value

presets = optchain.presets.torch

# Two roundings of float32 are systematic, and 50 steps sum them up. PyTorch computes bias corrections in double precision,
# where ours, as Keras's, are float32: 1 − 0.999 is off by 1.3e-5 of itself, so an update must not be all of a parameter.
# And an update that is but a few units in the last place of its parameter is rounded the same way every time.
RATES = log_uniform(-4, -1)
ADAPTIVE_RATES = log_uniform(-3, -2)
BETAS = st.tuples(floats32(0, 0.99), floats32(0.5, 0.999))
EPSILONS = log_uniform(-8, -1)
DECAYS = st.just(0) | floats32(0, 0.5)
FLAGS = st.booleans()


@dataclasses.dataclass(frozen=True)
class Optimizer:
    ours: Callable[..., optchain.Transformation]
    theirs: str
    arguments: st.SearchStrategy[dict[str, Any]]

    def __str__(self) -> str:
        return self.theirs


def optimizer(ours: Callable[..., optchain.Transformation], theirs: str, **arguments: st.SearchStrategy) -> Optimizer:
    return Optimizer(ours, theirs, st.fixed_dictionaries(arguments))


def is_valid_sgd(arguments: dict[str, Any]) -> bool:
    return not arguments["nesterov"] or (arguments["momentum"] > 0 and arguments["dampening"] == 0)


SGD = {
    "lr": RATES,
    "momentum": st.just(0.0) | floats32(0.1, 1),
    "dampening": st.just(0.0) | floats32(0, 1),
    "weight_decay": DECAYS,
    "nesterov": FLAGS,
    "maximize": FLAGS,
}
ADAM = {
    "lr": ADAPTIVE_RATES,
    "betas": BETAS,
    "eps": EPSILONS,
    "weight_decay": DECAYS,
    "amsgrad": FLAGS,
    "maximize": FLAGS,
}
ADAMAX = {name: ADAM[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")}
RADAM = ADAMAX | {"decoupled_weight_decay": FLAGS}
NADAM = RADAM | {"momentum_decay": floats32(0, 1)}
RMSPROP = {
    "lr": ADAPTIVE_RATES,
    "alpha": floats32(0.5, 0.99),
    "eps": EPSILONS,
    "weight_decay": DECAYS,
    "momentum": st.just(0.0) | floats32(0.1, 1),
    "centered": FLAGS,
    "maximize": FLAGS,
}
ADAGRAD = {
    "lr": ADAPTIVE_RATES,
    "lr_decay": st.just(0.0) | floats32(0, 1),
    "weight_decay": DECAYS,
    "initial_accumulator_value": st.just(0.0) | floats32(0, 1),
    "eps": EPSILONS,
    "maximize": FLAGS,
}
ADADELTA = {
    "lr": log_uniform(-2, 0),
    "rho": floats32(0.5, 0.99),
    "eps": log_uniform(-6, -2),
    "weight_decay": DECAYS,
    "maximize": FLAGS,
}
RPROP = {
    "lr": log_uniform(-4, -1),
    "etas": st.tuples(floats32(0.1, 0.9), floats32(1.1, 2)),
    "step_sizes": st.tuples(log_uniform(-6, -4), log_uniform(-1, 1)),
    "maximize": FLAGS,
}
ASGD = {
    "lr": RATES,
    "lambd": st.just(0.0) | log_uniform(-4, 0),
    "alpha": floats32(0, 1),
    "t0": st.sampled_from([0, 3.5, 20, 1e6]),
    "weight_decay": DECAYS,
    "maximize": FLAGS,
}
ADAFACTOR = {
    "lr": log_uniform(-4, -1),
    "beta2_decay": floats32(-1, 0),
    "eps": st.tuples(st.none() | EPSILONS, EPSILONS),
    "d": floats32(1, 4),
    "weight_decay": DECAYS,
    "maximize": FLAGS,
}

OPTIMIZERS = [
    optimizer(presets.adamw, "AdamW", **ADAM),
    optimizer(presets.adam, "Adam", **ADAM, decoupled_weight_decay=FLAGS),
    optimizer(presets.nadam, "NAdam", **NADAM),
    optimizer(presets.radam, "RAdam", **RADAM),
    optimizer(presets.adamax, "Adamax", **ADAMAX),
    optimizer(presets.rmsprop, "RMSprop", **RMSPROP),
    optimizer(presets.adagrad, "Adagrad", **ADAGRAD),
    Optimizer(presets.sgd, "SGD", st.fixed_dictionaries(SGD).filter(is_valid_sgd)),
]
RARER = [
    optimizer(presets.adadelta, "Adadelta", **ADADELTA),
    optimizer(presets.rprop, "Rprop", **RPROP),
    optimizer(presets.asgd, "ASGD", **ASGD),
    optimizer(presets.adafactor, "Adafactor", **ADAFACTOR),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@few
def test_a_preset_equals_torch_step_for_step(
    optimizer: Optimizer, dtype: str, data: st.DataObject, seed: int, record_error: Callable
) -> None:
    check_preset(optimizer, dtype, data, seed, record_error)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", RARER, ids=str)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@few
def test_a_rarer_preset_equals_torch_step_for_step(
    optimizer: Optimizer, dtype: str, data: st.DataObject, seed: int, record_error: Callable
) -> None:
    check_preset(optimizer, dtype, data, seed, record_error)


def check_preset(optimizer: Optimizer, dtype: str, data: st.DataObject, seed: int, record_error: Callable) -> None:
    arguments = data.draw(optimizer.arguments)

    def build(leaves: list[Any]) -> Any:
        return getattr(torch.optim, optimizer.theirs)(leaves, **arguments)

    check(f"{optimizer.theirs} (preset)", dtype, seed, optimizer.ours(**arguments), build, record_error)


SWITCHES = {"self", "params", "foreach", "capturable", "differentiable", "fused"}
"""What chooses an implementation, or is no argument of ours."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS + RARER, ids=str)
def test_names_defaults_and_order_are_torchs(optimizer: Optimizer) -> None:
    def positional_first(parameters: list[inspect.Parameter]) -> list[tuple[str, Any]]:
        ordered = sorted(parameters, key=lambda p: p.kind is p.KEYWORD_ONLY)
        return [(p.name, p.default) for p in ordered if p.name not in SWITCHES]

    theirs = inspect.signature(getattr(torch.optim, optimizer.theirs).__init__).parameters.values()
    ours = inspect.signature(optimizer.ours).parameters.values()
    # `maximize` may stand among arguments that are not here, so that its position means nothing.
    assert [entry for entry in positional_first(list(ours)) if entry[0] != "maximize"] == [
        entry for entry in positional_first(list(theirs)) if entry[0] != "maximize"
    ]
    assert inspect.signature(optimizer.ours).parameters["maximize"].default is False


class Scheduled:
    """An optimizer and its scheduler, stepped one after the other as PyTorch's users do."""

    def __init__(self, optimizer: Any, scheduler: Any):
        self.optimizer, self.scheduler = optimizer, scheduler

    def step(self) -> None:
        self.optimizer.step()
        self.scheduler.step()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_one_cycle_of_rate_and_momentum_trains_as_in_torch(name: str, dtype: str, record_error: Callable) -> None:
    cycle = optchain.schedules.OneCycleLR(0.01, total_steps=STEPS + 1, pct_start=0.4)
    momentum = optchain.schedules.OneCycleMomentum(cycle)
    ours = presets.sgd(cycle, momentum, nesterov=True) if name == "SGD" else presets.adamw(cycle, (momentum, 0.99))
    arguments = {"momentum": 0.5, "nesterov": True} if name == "SGD" else {"betas": (0.5, 0.99)}

    def build(leaves: list[Any]) -> Scheduled:
        optimizer = getattr(torch.optim, name)(leaves, **arguments)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS + 1, pct_start=0.4)
        return Scheduled(optimizer, scheduler)

    check(f"{name} (one cycle)", dtype, 0, ours, build, record_error)


class Decaying:
    """A PyTorch optimizer whose decay a loop sets before each step."""

    def __init__(self, optimizer: Any, decay: Callable[[int], float]) -> None:
        self.optimizer, self.decay, self.steps = optimizer, decay, 0

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.decay(self.steps)
        self.optimizer.step()
        self.steps += 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_decay_of_weights_that_follows_a_schedule_trains_as_in_torch(
    name: str, dtype: str, record_error: Callable
) -> None:
    decay = optchain.schedules.StepLR(0.5, step_size=10, gamma=0.5)
    ours = getattr(presets, name.lower())(0.01, weight_decay=decay)
    assert optchain.from_config(optchain.to_config(ours)) == ours

    def build(leaves: list[Any]) -> Decaying:
        return Decaying(getattr(torch.optim, name)(leaves, lr=0.01), lambda step: 0.5 * 0.5 ** (step // 10))

    check(f"{name} (scheduled decay)", dtype, 0, ours, build, record_error)


def test_an_average_that_never_begins_is_the_parameters():
    leaf = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.ASGD([leaf], lr=0.1, t0=math.inf)
    tx, params = optchain.presets.torch.asgd(0.1, t0=math.inf), jnp.ones(2)
    state = tx.init(params)
    for _ in range(2):
        leaf.grad = torch.ones(2)
        optimizer.step()
        params, state = tx.apply(params, state, grads=jnp.ones(2))
    np.testing.assert_allclose(optchain.averaged_params(state), optimizer.state[leaf]["ax"], rtol=1e-6)
    np.testing.assert_array_equal(optchain.averaged_params(state), params)
    assert optchain.from_config(optchain.to_config(tx)) == tx
    with pytest.raises(ValueError, match="t0 must be"):
        optchain.polyak_average(-math.inf)


def test_a_nan_stays_in_rprop_where_torch_passes_over_it():
    leaf = torch.ones(2, requires_grad=True)
    leaf.grad = torch.tensor([math.nan, 1.0])
    torch.optim.Rprop([leaf], lr=0.1).step()
    tx = optchain.presets.torch.rprop(0.1)
    params, _ = tx.apply(jnp.ones(2), tx.init(jnp.ones(2)), grads=jnp.array([math.nan, 1.0]))
    np.testing.assert_allclose(leaf.detach().numpy(), [1.0, 0.9], rtol=1e-6)
    np.testing.assert_allclose(params, [math.nan, 0.9], rtol=1e-6)
