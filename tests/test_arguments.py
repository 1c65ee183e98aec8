"""What every argument of every public factory, schedule and callback refuses, and what it takes.

The cases come from the signatures: the annotation says whether an argument is a number, a count, a flag, a dtype, a mask or a
transformation, and whether it may be None; the tables say by its name what else is allowed. An argument that no table knows
fails `test_no_argument_is_left_out`, so that those of a new factory are looked at from the start.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import Mask
from optchain.core.registry import FACTORIES

INF, NAN = float("inf"), float("nan")

# What is allowed ------------------------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    names: str
    outside: tuple[float, ...]
    inside: tuple[float, ...]


NUMBERS = {
    "a finite number": Numbers("baseline factor muon_a muon_b muon_c", (), (-1.0, 0, 1.0)),
    "a finite number >= 0": Numbers(
        """
        adam_lr_ratio adam_weight_decay base_lr beta decay end end_learning_rate eps eps_root epsilon epsilon_1
        epsilon_2 epsilon_root eta eta_max eta_min
        gamma initial_accumulator_value initial_learning_rate l1_regularization_strength l2_regularization_strength
        l2_shrinkage_regularization_strength lambd learning_rate lr lr_decay max_lr min_delta min_learning_rate min_lr min_scale min_value
        momentum_decay peak rms_rate schedule_decay slow_weight stable_steps warmup_steps warmup_target weight_decay
        """,
        (-1e-7, -1e-3, -0.1, -0.55, -1.0),
        (0.0, 0, 1.0),
    ),
    "a number >= 0, or infinity": Numbers("t0", (-1e-7, -1.0), (0.0, 0, INF, 1.0)),
    "a finite number > 0": Numbers(
        """
        clip_threshold clipnorm clipping clipvalue decay_rate decay_steps div_factor final_div_factor first_decay_steps
        deviations global_clipnorm max_learning_rate loss_scale loss_scale_factor m_mul max_norm max_value power t_mul threshold timescale total_steps
        """,
        (0.0, 0, -0.1, -1.0, -1, -2.0),
        (1e-3, 1, 2.0),
    ),
    "a finite number <= 0": Numbers("beta2_decay beta_2_decay learning_rate_power", (1e-7, 0.1), (-1.0, 0.0)),
    "a number in [0, 1]": Numbers(
        "base_momentum dampening ema_momentum end_factor max_momentum momentum pct_start rate",
        (-0.1, 1.1),
        (0.0, 1, 1.0),
    ),
    "a number in [0, 1)": Numbers(
        "adam_beta_1 adam_beta_2 alpha b1 b2 beta_1 beta_2 beta_3 betas[0] betas[1] rho shampoo_beta",
        (-0.1, 1.0, 1),
        (0.0, 0, 0.999),
    ),
    "a finite number >= 1": Numbers("d", (0.0, 0.99, -1.0), (1.0, 1, 2.0)),
    "a number in (0, 1]": Numbers("start_factor", (0.0, 0, -0.1, 1.1), (1e-3, 1, 1.0)),
    "a number in (0, 0.2886]": Numbers("width", (0.0, 0, -0.1, 0.3), (1e-3, 0.1, 0.2886)),
    "a number in (0, 1)": Numbers("", (0.0, 0, 1.0, 1), (1e-3, 0.999)),
    "a number in [5.96046e-08, 1.70141e+38]": Numbers("initial_scale", (0.0, -1.0, 2.0**-25), (2.0**-24, 1, 2.0**127)),
}
ALLOWED = {name: allowed for allowed, numbers in NUMBERS.items() for name in numbers.names.split()}
"""What a number may be, by the argument's name, or by that of the factory too where it differs from the others of its name."""
ALLOWED |= {
    "Constant.rate": "a finite number >= 0",
    "ConstantLR.factor": "a number in [0, 1]",
    "CosineDecay.alpha": "a finite number >= 0",
    "CosineDecayRestarts.alpha": "a finite number >= 0",
    "InverseTimeDecay.decay_rate": "a finite number >= 0",
    "ReduceLROnPlateau.factor": "a number in (0, 1)",
    "Scaled.factor": "a finite number >= 0",
    "WarmupStableDecay.decay_steps": "a finite number >= 0",
    "adagc.decay": "a number in [0, 1)",
    "DebiasedEMA.momentum": "a number in [0, 1)",
    "zclip.decay": "a number in [0, 1)",
    "presets.torch.asgd.alpha": "a finite number >= 0",
    "depth_factors.decay": "a number in (0, 1]",
    "scale_by_asgd.alpha": "a finite number >= 0",
    "presets.optax.rmsprop.decay": "a number in [0, 1)",
    "presets.optax.rmsprop.initial_scale": "a finite number >= 0",
    "presets.torch.ReduceLROnPlateau.factor": "a number in [0, 1)",
    "presets.torch.ReduceLROnPlateau.threshold": "a finite number >= 0",
}

LEAST = dict.fromkeys(["cooldown", "start", "patience", "start_from", "t_cur", "total_iterations", "warmup_steps"], 0)
"""The least that a count may be, where that is not 1."""
LEAST |= {
    "CosineMultiplier.total_iterations": 2,
    "skip_spikes.window": 4,
    "zclip.warmup_steps": 2,
    "adagc.warmup_steps": 1,
    "scale_by_ademamix.warmup_steps": 1,
}

NO_PATTERN = "pattern '(' is not a regular expression"
MAPPING = [(["a"], TypeError, "must be a mapping of patterns"), ({"(": 1.0}, ValueError, NO_PATTERN)]
FACTORS = [*MAPPING, ({"a": -1.0}, ValueError, "['a'] must be a finite number >= 0; got -1.0")]
PAIR = "betas must be a pair of numbers in [0, 1); got "
NUMBERS_OF = "must be a sequence of numbers; got "
MESH_AXIS = [(3, TypeError, "axis must be a string"), ("model", ValueError, "axis must be one of the mesh's, 'data'")]
MEMORY = [
    (
        3,
        TypeError,
        "memory_kind must be 'device' or 'pinned_host', a mapping of the names of slots to these, or None; got 3",
    ),
    ("host", ValueError, "memory_kind must be 'device' or 'pinned_host'; got 'host'"),
    ({"mu": "host"}, ValueError, "memory_kind['mu'] must be 'device' or 'pinned_host'; got 'host'"),
]

OTHERS: dict[str, list[tuple[Any, type[Exception], str]]] = {
    "anneal_strategy": [("exp", ValueError, "anneal_strategy must be 'cos' or 'linear'; got 'exp'")],
    "axis": [
        (0.5, TypeError, "axis must be an integer or a sequence of integers; got 0.5"),
        ("rows", TypeError, "axis must be an integer or a sequence of integers; got 'rows'"),
        (True, TypeError, "axis must be an integer or a sequence of integers; got True"),
        ([0, 0], ValueError, "axis must not have an axis twice; got [0, 0]"),
    ],
    "describe.axis": MESH_AXIS,
    "init_sharded.axis": MESH_AXIS,
    "make_step.axis": MESH_AXIS,
    "state_shardings.axis": MESH_AXIS,
    "axis_name": [(value, TypeError, "axis_name must be a string") for value in (3, ("data", 3))],
    "betas": [(value, TypeError, f"{PAIR}{value!r}") for value in (0.9, (0.9,), (0.9, 0.99, 0.999), "ab")],
    "memory_kind": MEMORY,
    "compact.moments": [
        ("int4", ValueError, "moments must be 'float32', 'bfloat16' or 'int8'; got 'int4'"),
        (8, ValueError, "moments must be 'float32', 'bfloat16' or 'int8'; got 8"),
        ({"velocit": "int8"}, ValueError, "moments has 'velocit', which no link of "),
    ],
    "compact.average": [("int4", ValueError, "average must be 'float32', 'bfloat16' or 'int8'; got 'int4'")],
    "compact.accumulator": [("fp8", ValueError, "accumulator must be 'float32', 'bfloat16' or 'int8'; got 'fp8'")],
    "compact.weights": [
        (value, ValueError, f"weights must be 24, 32 or 'stochastic'; got {value!r}") for value in (16, True, "int8")
    ],
    "boundaries": [
        ("12", TypeError, f"boundaries {NUMBERS_OF}'12'"),
        ([None], TypeError, f"boundaries {NUMBERS_OF}"),
        ([-1], ValueError, "boundaries must be finite numbers >= 0; got -1"),
        ([1, 2], ValueError, "one more"),
    ],
    "coefficients": [
        *(
            (value, TypeError, f"coefficients must be three numbers, a list of such, or a name; got {value!r}")
            for value in ((1.5, -0.5), 3, [], [(1.5, -0.5)], ["abc"])
        ),
        ("abc", ValueError, "coefficients must be 'classic', 'polar_express' or 'cans'; got 'abc'"),
        ([(1.5, float("nan"), 0.0)], ValueError, "muon_b must be a finite number; got nan"),
    ],
    "depth_factors.layers": [
        ("embed", TypeError, "layers must be a sequence of patterns; got 'embed'"),
        (["a", "a"], ValueError, "layers must not have a pattern twice"),
    ],
    "adjust_lr_fn": [("adam", ValueError, "adjust_lr_fn must be 'original' or 'match_rms_adamw'; got 'adam'")],
    "ns_coefficients": [
        (value, TypeError, f"ns_coefficients must be three numbers; got {value!r}") for value in ((1.5, -0.5), 3, "abc")
    ],
    "etas": [
        (0.5, TypeError, "etas must be a pair of numbers; got 0.5"),
        ((0.0, 1.2), ValueError, "etas[0] must be a number in (0, 1); got 0.0"),
        ((0.5, 1.0), ValueError, "etas[1] must be a finite number > 1; got 1.0"),
    ],
    "step_sizes": [
        ("ab", TypeError, "step_sizes must be a pair of numbers; got 'ab'"),
        ((0.0, 1.0), ValueError, "step_sizes[0] must be a finite number > 0; got 0.0"),
        ((2.0, 1.0), ValueError, "step_sizes must be a pair, the smallest first; got (2.0, 1.0)"),
    ],
    "presets.torch.adafactor.eps": [
        (1e-3, TypeError, "eps must be a pair: a number >= 0 or None, and a number >= 0; got 0.001"),
        ((-1.0, 1e-3), ValueError, "eps[0] must be a finite number >= 0; got -1.0"),
        ((None, None), TypeError, "eps[1] must be a finite number >= 0; got None"),
    ],
    "presets.torch.muon.output_axis": [(2, ValueError, "output_axis must be an integer <= 1; got 2")],
    "scale_by_muon_average.output_axis": [(2, ValueError, "output_axis must be an integer <= 1; got 2")],
    "matrices": [
        *MAPPING,
        *(
            (
                {"a": value},
                TypeError,
                f"matrices['a'] must be (axes in, axes out), such as (-2, -1) or (0, (1, 2)), or None; got {value!r}",
            )
            for value in (0, (0,), (0, ()), "ab", (0.5, 1), (True, 1))
        ),
    ],
    "scaling": [(value, ValueError, f"scaling must be 'rms' or 'width'; got {value!r}") for value in ("keras", 0.2)],
    "exclude_from_weight_decay": [
        ("bias", TypeError, "exclude_from_weight_decay must be a list of patterns, not a single string; got 'bias'"),
        ([], ValueError, "at least one pattern"),
        (["("], ValueError, NO_PATTERN),
        (3, TypeError, "exclude_from_weight_decay must be True or False; got 3 (int)"),
        ([1, 2], TypeError, "exclude_from_weight_decay[0] must be True or False; got 1 (int)"),
    ],
    "exclude_layers": [("head", TypeError, "exclude_layers must be a list of patterns or None; got 'head'")],
    "factors": [*FACTORS, ({}, ValueError, "factors needs at least one pattern")],
    "fn": [(0.5, TypeError, "fn must be a function of the epoch and the learning rate; got 0.5")],
    "loss_fn": [(0.1, TypeError, "loss_fn must be a function; got 0.1 (float)")],
    "lr_multipliers": FACTORS,
    "mesh": [(value, TypeError, f"mesh must be a jax.sharding.Mesh; got {value!r}") for value in ("data", 0)],
    "milestones": [
        (10, TypeError, "milestones must be integers >= 0; got 10"),
        ("10", TypeError, "milestones must be integers >= 0; got '10'"),
        ([-1], ValueError, "a milestone must be an integer >= 0; got -1"),
        ([1.5], TypeError, "a milestone must be an integer >= 0; got 1.5 (float)"),
    ],
    "lr_lambda": [(0.5, TypeError, "lr_lambda must be a callable of the step; got 0.5")],
    "CyclicLR.mode": [
        ("square", ValueError, "mode must be 'triangular', 'triangular2' or 'exp_range'; got 'square'"),
    ],
    "mode": [(value, ValueError, f"mode must be 'min' or 'max'; got {value!r}") for value in ("mean", 3)],
    "name": [
        (3, TypeError, "name must be a string; got 3 (int)"),
        ("my adam", ValueError, "name must be an identifier"),
        ("a/b", ValueError, "name must be an identifier"),
    ],
    "release": [
        (value, TypeError, f"release must be the path of the stacked layers, such as 'layers', or None; got {value!r}")
        for value in (True, 3, "")
    ],
    "ReduceLROnPlateau.name": [(3, TypeError, "name must be a string; got 3 (int)")],
    "presets.torch.ReduceLROnPlateau.name": [(3, TypeError, "name must be a string; got 3 (int)")],
    "CyclicMomentum.cycle": [(0.1, TypeError, "cycle must be a CyclicLR; got 0.1")],
    "OneCycleMomentum.cycle": [(0.1, TypeError, "cycle must be a OneCycleLR; got 0.1")],
    "output_axis": [
        (value, TypeError, f"output_axis must be an integer; got {value!r}") for value in ([0], 0.5, True, "rows")
    ],
    "schedule": [(v, TypeError, f"schedule must be a callable of the step; got {v!r}") for v in (0.1, "cos")],
    "scale_fn": [(0.5, TypeError, "scale_fn must be a callable of the step; got 0.5")],
    "scale_mode": [("step", ValueError, "scale_mode must be 'cycle' or 'iterations'; got 'step'")],
    "threshold_mode": [("both", ValueError, "threshold_mode must be 'rel' or 'abs'; got 'both'")],
    "ChainedScheduler.schedulers": [
        (0.1, TypeError, "schedulers must be a sequence of schedules; got 0.1"),
        ([abs], TypeError, "schedulers must be schedules that multiply the rate"),
        ([], ValueError, "schedulers must have at least one entry"),
    ],
    "SequentialLR.schedulers": [
        ([0.1, 0.2], TypeError, "schedulers must be callables of the step; got 0.1"),
        ([abs], ValueError, "schedulers must be one more than milestones; got 1 schedulers and 1 milestones"),
    ],
    "SequentialLR.milestones": [
        (10, TypeError, "milestones must be a sequence of integers >= 0; got 10"),
        ([-1], ValueError, "a milestone must be an integer >= 0; got -1"),
    ],
    "schedules": [
        ([0.1, 0.2], TypeError, "schedules must be callables of the step; got 0.1"),
        ([abs], ValueError, "schedules must be one more than boundaries; got 1 schedules and 1 boundaries"),
    ],
    "seed": [
        (-1, ValueError, "seed must be an integer >= 0; got -1"),
        (0.5, TypeError, "seed must be an integer >= 0; got 0.5 (float)"),
        (jnp.zeros(3), TypeError, "seed must be an integer or a key; got an array of shape (3,), dtype float32"),
        (
            jax.random.split(jax.random.key(0), 3),
            ValueError,
            "seed must be one key; got an array of them, of shape (3,)",
        ),
    ],
    "shape": [("cos", ValueError, "shape must be 'linear', 'cosine' or 'sqrt'; got 'cos'")],
    "values": [
        ("12", TypeError, f"values {NUMBERS_OF}'12'"),
        ([0.1, None], TypeError, f"values {NUMBERS_OF}[0.1, None]"),
        ([0.1, -0.2], ValueError, "values must be finite numbers >= 0; got -0.2"),
    ],
    "weight_decays": [
        *MAPPING,
        ({"a": 0.1}, TypeError, "weight_decays['a'] must be a pair (l1, l2) of numbers >= 0; got 0.1"),
        ({"a": (0.1, -1.0)}, ValueError, "weight_decays['a'][1] must be a finite number >= 0; got -1.0"),
    ],
}
"""What an argument refuses that is no single number, count, flag, dtype, mask or transformation."""

# What builds ----------------------------------------------------------------------------------------------------------

MESH = jax.make_mesh((1,), ("data",))
REQUIRED: dict[str, Any] = {
    "axis_name": "data",
    "boundaries": [10],
    "cycle": oc.schedules.OneCycleLR(0.1, total_steps=100),
    "CyclicMomentum.cycle": oc.schedules.CyclicLR(0.01, 0.1),
    "factors": {"kernel": 0.5},
    "fn": lambda epoch, rate: rate,
    "inner": oc.sgd(0.1),
    "loss_fn": lambda params: 0.0,
    "lr_lambda": lambda step: 0.5,
    "mask": oc.matching("kernel"),
    "mesh": MESH,
    "milestones": [10],
    "params": {"kernel": jnp.ones(3)},
    "rule": oc.scale(1.0),
    "schedule": oc.schedules.CosineDecay(0.1, 100),
    "schedulers": [oc.schedules.StepLR(0.1, 10)] * 2,
    "schedules": [oc.schedules.CosineDecay(0.1, 100)] * 2,
    "tx": oc.sgd(0.1),
    "values": [0.1, 0.2],
    "weight_decays": {"kernel": (0.0, 0.1)},
    "LinearWarmupDecay.warmup_steps": 0.0,
    "layers": ["embed", "head"],
    "OneCycleLR.total_steps": 10,
}
"""What is given for an argument that must be given, while another is looked at; a number is one of those in its range."""

BY_POSITION = {
    "chain": (oc.scale_by_learning_rate(),),
    "matching": ("kernel",),
    "multi_optimizer": (("kernels", "kernel", oc.sgd(0.1)),),
}
"""What is given for `*links`, `*patterns` and `*groups`, of which `test_mistakes.py` has what they refuse."""

ANNEALING = {"use_cosine_annealing": True, "total_iterations": 10}
GOES_WITH: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("autorestart", "eta_min", "eta_max", "t_cur"), ANNEALING),
    "axis": {"mesh": MESH},
    "dampening": {"momentum": 0.9},
    "exclude_from_weight_decay": {"weight_decay": 0.1},
    "nesterov": {"momentum": 0.9},
    "presets.optax.sgd.accumulator_dtype": {"momentum": 0.9},
    "scale_by_adam.epsilon_root": {"epsilon_hat": False},
    "scale_by_adam.nesterov": {"epsilon_hat": False},
    "InverseSquareRoot.warmup_steps": {"timescale": 10.0},
    "OneCycleLR.epochs": {"steps_per_epoch": 10, "total_steps": None},
    "OneCycleLR.steps_per_epoch": {"epochs": 10, "total_steps": None},
    "PowerDecay.warmup_steps": {"stable_steps": 10.0},
    "scale_by_factored_rms.epsilon": {"epsilon_in_average": False},
    "use_cosine_annealing": {"total_iterations": 10},
}
"""What must be given with an argument for it to have an effect, of what the factory takes."""

LEFT_OUT = {
    "takes a state": """
        averaged_params finalize flush get_hyperparams metrics posthoc_average raise_if_nonfinite raise_if_spiking schedule_free_params scale_loss set_hyperparams wide_params
        steps_taken sweep
    """,
    "takes arrays, and trees of them": "RowGradient as_mask coordinate_sizes matrices rows_of width_factors",
    "takes a config, or makes one": "from_config to_config",
    "makes links of one's own": "ParameterLink Slot Transformation register rule",
    "has no arguments of its own": "Schedule",
    "is the `decay` of the presets": "legacy_decay",
}
"""What is public and not looked at here, by the reason."""


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, factory in FACTORIES.items():
        if factory.__module__.startswith("optchain."):  # and not a test's
            yield name, factory
    left_out = " ".join(LEFT_OUT.values()).split()
    for name, function in (vars(oc.schedules) | vars(oc)).items():
        if callable(function) and function not in FACTORIES.values() and name not in left_out:
            yield name, function
    yield "presets.torch.ReduceLROnPlateau", oc.presets.torch.ReduceLROnPlateau


PUBLIC = dict(public())

KINDS = {
    frozenset(members): kind
    for kind, *annotations in [
        ("hyperparameter", get_args(Hyperparam)),
        ("number", [float]),
        ("count", [int], [int, Callable[[jax.Array], Any]]),
        ("flag", [bool]),
        ("mask", get_args(Mask)),
        ("transformation", [optax.GradientTransformation]),
    ]
    for members in annotations
}
"""The kind of an argument by the members of its annotation, None left out."""


class Argument(NamedTuple):
    factory: str
    name: str
    annotation: Any
    default: Any

    def __str__(self) -> str:
        return f"{self.factory}.{self.name}"

    def look_up(self, table: Mapping[str, Any]) -> Any:
        """The row of this argument: that of its factory's own, if there is one, or else that of its name."""
        return table.get(str(self), table.get(self.name))

    @property
    def members(self) -> frozenset[Any]:
        is_union = get_origin(self.annotation) in (Union, UnionType)
        return frozenset(get_args(self.annotation) if is_union else [self.annotation])

    @property
    def kind(self) -> str | None:
        if self.look_up(OTHERS):
            return "other"
        if self.annotation is Any:
            return "tree" if self.name == "params" else "dtype" if self.name.endswith("_dtype") else None
        return KINDS.get(self.members - {NoneType})

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty or str(self) in REQUIRED

    @property
    def example(self) -> Any:
        if (example := self.look_up(REQUIRED)) is not None:
            return example
        return 10 if self.kind == "count" else NUMBERS[self.look_up(ALLOWED)].inside[-1]

    def give(self, value: Any) -> Any:
        """Builds with this value, and with what else must be there."""
        there = BY_FACTORY[self.factory]
        given = {name: other.example for name, other in there.items() if other.required}
        given |= {name: it for name, it in (self.look_up(GOES_WITH) or {}).items() if name in there}
        given[self.name] = value
        if self.name in BETAS:
            given["betas"] = [given.pop(name, 0.9) for name in BETAS]
        return PUBLIC[self.factory](*BY_POSITION.get(self.factory, ()), **given)

    def refuses(self, value: Any, error: type[Exception], allowed: str, got: Any) -> None:
        """The value is an error that names the argument, what is allowed and what it got."""
        words = f"^{re.escape(self.name)} must be {re.escape(allowed)}.*; got {re.escape(str(got))}"
        with pytest.raises(error, match=words):
            self.give(value)


BETAS = ("betas[0]", "betas[1]")


def arguments() -> Iterator[Argument]:
    for factory in PUBLIC:
        for parameter in inspect.signature(PUBLIC[factory], eval_str=True).parameters.values():
            if parameter.kind is not parameter.VAR_POSITIONAL or factory not in BY_POSITION:
                yield Argument(factory, parameter.name, parameter.annotation, parameter.default)
            if parameter.name == "betas":
                yield from (Argument(factory, name, Hyperparam, 0.9) for name in BETAS)


ARGUMENTS = list(arguments())
BY_FACTORY = {factory: {a.name: a for a in ARGUMENTS if a.factory == factory} for factory in PUBLIC}


def each(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("argument", [a for a in ARGUMENTS if a.kind in kinds], ids=str)


# The claims -----------------------------------------------------------------------------------------------------------


def test_no_argument_is_left_out():
    unknown = [str(a) for a in ARGUMENTS if a.kind is None]
    unknown += [str(a) for a in ARGUMENTS if a.kind in ("number", "hyperparameter") and not a.look_up(ALLOWED)]
    assert not unknown, f"say in a table of this file what these may be: {unknown}"


def test_no_table_has_a_row_for_nothing():
    names = {name for a in ARGUMENTS for name in (a.factory, a.name, str(a))}
    assert not {row for table in (ALLOWED, LEAST, OTHERS, REQUIRED, BY_POSITION, GOES_WITH) for row in table} - names


@each("number", "hyperparameter")
def test_a_number_out_of_range_names_the_argument_the_value_and_what_is_allowed(argument):
    allowed = argument.look_up(ALLOWED)
    numbers = NUMBERS[allowed]
    for value in (*numbers.outside, NAN, -INF, *({INF} - {*numbers.inside})):
        argument.refuses(value, ValueError, allowed, float(value))
        if argument.kind == "hyperparameter":  # an array is looked at too; in float32 it may print differently
            argument.refuses(jnp.array(value), ValueError, allowed, "")


@each("number", "hyperparameter")
def test_a_number_at_the_edge_of_its_range_is_taken(argument):
    for value in NUMBERS[argument.look_up(ALLOWED)].inside:
        argument.give(value)
        argument.give(np.float32(value))
        if argument.kind == "hyperparameter":
            argument.give(jnp.array(value))
            argument.give(lambda step, value=value: value)


@each("number", "hyperparameter")
def test_what_is_no_number_names_the_argument_and_the_value(argument):
    allowed = argument.look_up(ALLOWED)
    wrong = ["0.1", True, [0.1], {"a": 0.1}, 1j]
    if argument.kind == "number":  # which no array and no schedule can be
        wrong += [object, abs, jnp.array(0.1)]
    for value in wrong:
        argument.refuses(value, TypeError, allowed, repr(value))


@each("hyperparameter")
def test_an_array_that_is_no_real_scalar_is_refused(argument):
    for value in (jnp.ones(2), jnp.array(1j), jnp.array(True), np.ones((1,))):
        argument.refuses(value, ValueError, "a real scalar", f"an array of shape {value.shape}, dtype {value.dtype}")


@each("hyperparameter")
def test_a_callable_of_more_than_the_step_is_refused(argument):
    with pytest.raises(TypeError, match=rf"{re.escape(argument.name)} must be callable with the step.*\(step, epoch\)"):
        argument.give(lambda step, epoch: 0.1)


@each("count")
def test_a_count_must_be_an_integer_of_at_least_its_least(argument):
    least = 1 if (own := argument.look_up(LEAST)) is None else own
    argument.give(max(least, 1))
    for value in (least - 1, -1):
        argument.refuses(value, ValueError, f"an integer >= {least}", value)
    for value in (1.5, 2.0, "2", True, [2]):
        argument.refuses(value, TypeError, f"an integer >= {least}", f"{value!r} ({type(value).__name__})")
    argument.refuses(2**31, ValueError, "an integer <= ", "2.14748e+09")


@each("flag")
def test_a_flag_must_be_a_bool(argument):
    for value in (True, False, np.True_, np.False_):
        if argument.name != "lazy" or not value:  # for some rules the chain cannot be lazy
            argument.give(value)
    for value in (1, 0, "yes", 0.5):
        argument.refuses(value, TypeError, "True or False", f"{value!r} ({type(value).__name__})")


@each("dtype")
def test_a_dtype_must_be_floating_point(argument):
    for value in ("float32", jnp.bfloat16, np.dtype("float32")):
        argument.give(value)
    for value in ("int32", jnp.complex64, bool):
        argument.refuses(value, ValueError, "a floating-point dtype or None", jnp.dtype(value).name)
    for value in ("no_such_dtype", 3):
        argument.refuses(value, TypeError, "a floating-point dtype or None", repr(value))


@each("mask")
def test_a_mask_must_be_a_tree_of_bools_or_a_callable(argument):
    for value in ("bias", {}):
        argument.refuses(
            value, TypeError, "a tree of bools or a callable of the parameters (see matching)", repr(value)
        )
    argument.refuses(0, TypeError, "True or False", "0 (int)")
    for value in (["bias"], {"kernel": 1}):
        with pytest.raises(TypeError, match=r'(mask|keep)\[(0|"kernel")\] must be True or False; got '):
            argument.give(value)


@each("transformation")
def test_a_transformation_must_have_been_built(argument):
    for value in (0.1, "sgd", oc.matching("bias"), [oc.sgd(0.1)]):
        argument.refuses(value, TypeError, "an optchain or Optax transformation", f"{value!r} ({type(value).__name__})")
    argument.refuses(oc.sgd, TypeError, "an optchain or Optax transformation", "<function sgd")


@each("other")
def test_what_an_argument_cannot_be_names_it(argument):
    for value, error, words in argument.look_up(OTHERS):
        with pytest.raises(error, match=re.escape(words)):
            argument.give(value)


CHOICES = {
    "adjust_lr_fn",
    "anneal_strategy",
    "mode",
    "scale_mode",
    "scaling",
    "threshold_mode",
    "moments",
    "average",
    "accumulator",
}
"""Whose refusal of None is that of any other value."""
ALTERNATIVES = {"OneCycleLR.total_steps", "OneCycleLR.epochs", "OneCycleLR.steps_per_epoch"}
"""Which may be None only where others are not."""


@pytest.mark.parametrize("argument", [a for a in ARGUMENTS if a.kind != "tree" and str(a) not in ALTERNATIVES], ids=str)
def test_none_is_taken_where_the_signature_has_it_and_nowhere_else(argument):
    if NoneType in argument.members or argument.default is None:
        argument.give(None)
    else:
        is_choice = argument.name in CHOICES
        argument.refuses(None, ValueError if is_choice else TypeError, "", None)
