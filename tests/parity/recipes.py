"""Random recipes: every argument of Keras's optimizers at once, for both libraries."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from hypothesis import strategies as st

import optchain

NAMES = ["bias", "gamma", "kernel"]
"""The parameters' own names, which are the names of Keras's variables."""


NAMES_OF_PRESETS = {"ScheduleFreeAdamW": "schedule_free_adamw"}
"""Where it is not Keras's name in lower case."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule by its class's name and its arguments, which Keras and optchain share."""

    name: str
    arguments: dict[str, Any]

    def build(self, library: Any) -> Any:
        return getattr(library, self.name)(**self.arguments)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The arguments of one optimizer, and of the run that it is tried in."""

    learning_rate: float | Schedule
    arguments: dict[str, Any]
    clip: dict[str, float]
    undecayed: list[str]
    steps: int
    seed: int

    @property
    def loss_scale(self) -> float:
        return self.arguments["loss_scale_factor"] or 1.0

    def build_optchain(self, optimizer: str) -> optchain.Transformation:
        excluded = {"exclude_from_weight_decay": [f"{name}$" for name in self.undecayed]} if self.undecayed else {}
        return preset(optimizer)(**self._arguments(optchain.schedules), **excluded)

    def build_keras(self, optimizer: str) -> keras.optimizers.Optimizer:
        built = getattr(keras.optimizers, optimizer)(**self._arguments(keras.optimizers.schedules))
        if self.undecayed:
            built.exclude_from_weight_decay(var_names=self.undecayed)
        return built

    def _arguments(self, library: Any) -> dict[str, Any]:
        rate = self.learning_rate
        rate = rate.build(library) if isinstance(rate, Schedule) else rate
        return {"learning_rate": rate, **self.arguments, **self.clip}


def preset(optimizer: str) -> Callable[..., optchain.Transformation]:
    """Our counterpart of a class of Keras's."""
    return getattr(optchain, NAMES_OF_PRESETS.get(optimizer, optimizer.lower()))


# Strategies ----------------------------------------------------------------------------------------------------------


def floats32(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that float32 makes neither 0 nor 1 of: those are refused."""
    return st.floats(low, high).map(lambda x: 0.0 if abs(x) < 1e-6 else 1.0 if 0 < 1 - x < 1e-6 else x)


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers between two powers of ten, each decade as likely as another."""
    return st.floats(low, high).map(lambda exponent: 10**exponent)


MAX_STEPS = 30
RATES = log_uniform(-4, 0)

# XLA turns a division by a constant into a product with its reciprocal, in Keras's schedules as in any. So that one rounding
# does not decide on which side of a jump a step falls, restarts lie between two steps, and the quotients by `decay_steps`
# are exact as products too (21 · (1/7) is not). And a power that is not whole is tried within `decay_steps` only: at their
# end Keras takes it of a number that should be 0 and may be -1e-8.
SCHEDULES = [
    (
        "CosineDecay",
        {
            "initial_learning_rate": RATES,
            "decay_steps": st.integers(5, 40),
            "alpha": floats32(0, 1),
            "warmup_target": st.none() | RATES,
            "warmup_steps": st.integers(1, 15),
        },
    ),
    (
        "CosineDecayRestarts",
        {
            "initial_learning_rate": RATES,
            "first_decay_steps": st.integers(4, 15).map(lambda steps: steps + 0.3),
            "t_mul": st.sampled_from([1.0, 1.5, 2.0]),
            "m_mul": floats32(0.5, 1.5),
            "alpha": floats32(0, 1),
        },
    ),
    (
        "ExponentialDecay",
        {
            "initial_learning_rate": RATES,
            "decay_steps": st.integers(1, 30),
            "decay_rate": floats32(0.1, 1.1),
            "staircase": st.booleans(),
        },
    ),
    (
        "InverseTimeDecay",
        {
            "initial_learning_rate": RATES,
            "decay_steps": st.integers(1, 30),
            "decay_rate": floats32(0, 2),
            "staircase": st.booleans(),
        },
    ),
    (
        "PiecewiseConstantDecay",
        {
            "boundaries": st.lists(st.integers(1, 30), min_size=2, max_size=2, unique=True).map(sorted),
            "values": st.lists(RATES, min_size=3, max_size=3),
        },
    ),
    (
        "PolynomialDecay",
        {
            "initial_learning_rate": RATES,
            "decay_steps": st.integers(8, MAX_STEPS),
            "end_learning_rate": log_uniform(-5, -2),
            "power": st.sampled_from([1.0, 2.0, 3.0]),
            "cycle": st.booleans(),
        },
    ),
    (
        "PolynomialDecay",
        {
            "initial_learning_rate": RATES,
            "decay_steps": st.integers(MAX_STEPS + 1, 2 * MAX_STEPS),
            "end_learning_rate": log_uniform(-5, -2),
            "power": floats32(0.5, 3),
            "cycle": st.booleans(),
        },
    ),
]

LEARNING_RATES = RATES | st.one_of(
    [st.builds(Schedule, st.just(name), st.fixed_dictionaries(arguments)) for name, arguments in SCHEDULES]
)

SHARED = {
    "weight_decay": st.none() | floats32(0, 0.5),
    "use_ema": st.booleans(),
    "ema_momentum": floats32(0, 1),
    "ema_overwrite_frequency": st.none() | st.integers(1, 8),
    "loss_scale_factor": st.none() | log_uniform(-1, 5),
    "gradient_accumulation_steps": st.none() | st.integers(2, 5),
}

ADAM = {
    "beta_1": floats32(0, 0.99),
    "beta_2": floats32(0.5, 0.9999),
    "epsilon": log_uniform(-8, -1),
    "amsgrad": st.booleans(),
}

EPSILON = log_uniform(-8, -1)

OWN = {
    "Adadelta": {"rho": floats32(0, 0.999), "epsilon": EPSILON},
    "Adafactor": {
        "beta_2_decay": floats32(-1, -0.1),
        "epsilon_1": st.just(1e-30) | log_uniform(-12, -3),
        "epsilon_2": log_uniform(-4, -1),
        "clip_threshold": log_uniform(-1, 1),
        "relative_step": st.booleans(),
    },
    "Adagrad": {"initial_accumulator_value": st.just(0.0) | log_uniform(-3, 1), "epsilon": EPSILON},
    "Adamax": {"beta_1": floats32(0, 0.99), "beta_2": floats32(0.5, 0.9999), "epsilon": EPSILON},
    "Ftrl": {
        "learning_rate_power": st.just(-0.5) | floats32(-1, 0),
        "initial_accumulator_value": log_uniform(-3, 1),
        "l1_regularization_strength": st.just(0.0) | log_uniform(-3, 0),
        "l2_regularization_strength": st.just(0.0) | log_uniform(-3, 0),
        "l2_shrinkage_regularization_strength": st.just(0.0) | log_uniform(-3, 0),
        "beta": st.just(0.0) | log_uniform(-3, 0),
    },
    "Lamb": {"beta_1": floats32(0, 0.99), "beta_2": floats32(0.5, 0.9999), "epsilon": EPSILON},
    "Lion": {"beta_1": floats32(0.1, 0.99), "beta_2": floats32(0.1, 0.99)},
    "Nadam": {"beta_1": floats32(0, 0.99), "beta_2": floats32(0.5, 0.9999), "epsilon": EPSILON},
    "Muon": {
        "adam_beta_1": floats32(0, 0.99),
        "adam_beta_2": floats32(0.5, 0.9999),
        "adam_weight_decay": st.none() | floats32(0, 0.5),
        "epsilon": EPSILON,
        "exclude_layers": st.none() | st.just(["kernel"]) | st.just(["gamma", "bias"]),
        "exclude_embeddings": st.booleans(),
        "muon_a": floats32(1.5, 3.4445),
        "adam_lr_ratio": st.just(1) | floats32(0.1, 2),
        "momentum": floats32(0, 1),
        "ns_steps": st.integers(1, 6),
        "nesterov": st.booleans(),
        "rms_rate": st.none() | floats32(0.1, 1),
    },
    "ScheduleFreeAdamW": {
        "beta_1": floats32(0.1, 0.99),
        "beta_2": floats32(0.5, 0.9999),
        "epsilon": EPSILON,
        "warmup_steps": st.integers(0, 15),
    },
    "RMSprop": {
        # A variance is the difference of two averages, which cancel to their last digits as rho falls to 0.
        "rho": floats32(0.5, 0.999),
        "momentum": st.just(0.0) | floats32(0.1, 1),
        "epsilon": EPSILON,
        "centered": st.booleans(),
    },
    "AdamW": ADAM | {"weight_decay": floats32(0, 0.5)},  # Keras's has no None
    "Adam": ADAM,
    "SGD": {"momentum": st.just(0.0) | floats32(0.1, 1), "nesterov": st.booleans()},
}

CLIPS = st.sampled_from([None, "clipnorm", "clipvalue", "global_clipnorm"]).flatmap(
    lambda name: st.fixed_dictionaries({name: log_uniform(-2, 1)} if name else {})
)


@st.composite
def recipes(draw: st.DrawFn, optimizer: str) -> Recipe:
    arguments = draw(st.fixed_dictionaries(SHARED | OWN[optimizer]))
    decays = arguments["weight_decay"] is not None
    return Recipe(
        learning_rate=draw(LEARNING_RATES),
        arguments=arguments,
        clip=draw(CLIPS),
        undecayed=draw(st.lists(st.sampled_from(NAMES), unique=True)) if decays else [],
        steps=draw(st.integers(20, MAX_STEPS)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
