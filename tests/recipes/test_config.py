"""Recipes through JSON and back, Keras's own dictionaries, and data that means no good."""

import dataclasses
import inspect
import json
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity.helpers import random_grads, random_params
from parity.recipes import OWN, Recipe, preset, recipes

import optchain as oc
from optchain import schedules
from optchain.core.registry import FACTORIES

keras_variables = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # and NumPy 2

# Random recipes --------------------------------------------------------------------------------------------------------

# What float32 flushes to 0 or rounds to another end of a range is refused: the numbers here are float32's own.
POSITIVE = st.floats(2**-13, 1.0, width=32)
INTEGERS = st.integers(1, 20)


def from_zero(most: float) -> st.SearchStrategy[float]:
    return st.just(0.0) | st.floats(2**-20, most, width=32)


BASE_SCHEDULES = st.one_of(
    st.builds(schedules.CosineDecay, POSITIVE, INTEGERS, from_zero(1.0), st.none() | POSITIVE, INTEGERS),
    st.builds(schedules.CosineDecayRestarts, POSITIVE, INTEGERS, st.sampled_from([1.0, 1.5, 2.0]), POSITIVE),
    st.builds(schedules.ExponentialDecay, POSITIVE, INTEGERS, POSITIVE, st.booleans()),
    st.builds(schedules.InverseTimeDecay, POSITIVE, INTEGERS, POSITIVE, staircase=st.booleans()),
    st.builds(schedules.LinearWarmupDecay, POSITIVE, st.integers(0, 4), st.integers(5, 20), from_zero(2**-7)),
    st.builds(schedules.PolynomialDecay, POSITIVE, INTEGERS, POSITIVE, power=st.sampled_from([1, 2.0])),
    st.builds(lambda a, b: schedules.PiecewiseConstantDecay([a, a + b], [0.1, 0.2, 0.3]), INTEGERS, INTEGERS),
    st.builds(schedules.MultiStepLR, POSITIVE, st.lists(INTEGERS, max_size=3), POSITIVE),
    st.builds(schedules.CosineAnnealingWarmRestarts, POSITIVE, INTEGERS, st.integers(1, 3)),
    st.builds(schedules.OneCycleLR, POSITIVE, INTEGERS, div_factor=POSITIVE, three_phase=st.booleans()),
    st.builds(schedules.OneCycleMomentum, st.builds(schedules.OneCycleLR, POSITIVE, INTEGERS), POSITIVE),
    st.builds(schedules.PowerDecay, POSITIVE, INTEGERS, INTEGERS, POSITIVE),
    st.builds(schedules.ConstantLR, POSITIVE, POSITIVE, INTEGERS),
    st.builds(schedules.MultiplicativeLR.from_table, POSITIVE, st.lists(POSITIVE, min_size=1, max_size=4)),
    st.builds(
        schedules.CyclicLR,
        POSITIVE,
        POSITIVE,
        INTEGERS,
        st.none() | INTEGERS,
        st.sampled_from(["triangular", "triangular2", "exp_range"]),
    ),
    st.builds(schedules.CyclicMomentum, st.builds(schedules.CyclicLR, POSITIVE, POSITIVE), POSITIVE),
    st.builds(
        lambda lr, gamma, factors: schedules.ChainedScheduler(
            [schedules.ExponentialLR(lr, gamma), schedules.MultiplicativeLR.from_table(lr, factors)]
        ),
        POSITIVE,
        POSITIVE,
        st.lists(POSITIVE, min_size=1, max_size=4),
    ),
    st.builds(schedules.PerEpoch.from_table, st.lists(POSITIVE, min_size=1, max_size=4), INTEGERS),
)
SCHEDULES = st.recursive(
    BASE_SCHEDULES,
    lambda inner: st.one_of(
        st.builds(lambda schedule, factor: schedule * factor, inner, POSITIVE),
        st.builds(schedules.LegacyDecay, inner, POSITIVE),
        st.builds(schedules.LambdaLR, POSITIVE, inner),
        st.builds(lambda a, b, boundary: schedules.join([a, b], [boundary]), inner, inner, INTEGERS),
        st.builds(
            lambda a, b, step: schedules.SequentialLR([a, b], [step]),
            inner.filter(lambda schedule: not isinstance(schedule, schedules.MultiplicativeLR)),
            inner.filter(lambda schedule: not isinstance(schedule, schedules.MultiplicativeLR)),
            INTEGERS,
        ),
    ),
    max_leaves=3,
)
ARRAYS = st.builds(np.array, POSITIVE, st.sampled_from(["float32", "float64"]))


def run_time(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """A number, an array below 1, in float32 too, or a schedule."""
    return numbers | ARRAYS.filter(lambda array: np.float32(array) < 1) | SCHEDULES


RATES = run_time(POSITIVE | st.just(1))
BETAS = run_time(from_zero(0.984375)).filter(lambda beta: not callable(beta))
PATTERNS = st.lists(st.sampled_from(["bias$", "^norm/", "gamma|kernel", "dense"]), min_size=1, max_size=2, unique=True)
MASKS = st.one_of(
    PATTERNS.map(lambda patterns: oc.matching(*patterns)),
    PATTERNS.map(lambda patterns: ~oc.matching(*patterns, allow_unmatched=True)),
    st.just({"dense": {"bias": False, "kernel": True}, "norm": {"gamma": False}}),
    st.just({"dense": True, "norm": False}),
)
DTYPES = st.none() | st.sampled_from(["float32", "bfloat16"])


def optional(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


def called(factory: Any, arguments: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[oc.Transformation]:
    return arguments.map(lambda given: factory(**given))


CLIPS = st.just({}) | st.sampled_from(["clipnorm", "clipvalue", "global_clipnorm"]).flatmap(
    lambda name: st.fixed_dictionaries({name: run_time(POSITIVE)})
)
SHARED = {
    "weight_decay": st.none() | run_time(POSITIVE),
    "use_ema": st.booleans(),
    "ema_momentum": run_time(from_zero(1.0)),
    "ema_overwrite_frequency": st.none() | INTEGERS,
    "loss_scale_factor": st.none() | POSITIVE,
    "gradient_accumulation_steps": st.none() | st.integers(1, 4),
    "name": st.none() | st.sampled_from(["body", "adam_w"]),
    "moment_dtype": DTYPES,
}
ADAM = {"beta_1": BETAS, "beta_2": BETAS, "epsilon": run_time(POSITIVE), "amsgrad": st.booleans()}


@st.composite
def presets(draw: st.DrawFn) -> oc.Transformation:
    factory, own = draw(
        st.sampled_from([(oc.adamw, ADAM), (oc.adam, ADAM), (oc.sgd, {"momentum": BETAS, "nesterov": st.booleans()})])
    )
    arguments = draw(optional(**SHARED | own)) | draw(CLIPS)
    rate = draw(RATES)
    if isinstance(rate, float | schedules.Schedule) and draw(st.booleans()):
        arguments["decay"] = draw(POSITIVE)
    decays = arguments.get("weight_decay", 0.004 if factory is oc.adamw else None) is not None
    if decays and draw(st.booleans()):
        arguments["exclude_from_weight_decay"] = draw(PATTERNS | MASKS)
    return factory(rate, **arguments)


TORCH, KERAS_ADAMW = oc.presets.torch, oc.presets.keras_adamw
PAIRS = st.tuples(BETAS, BETAS)
PATHS = {"lr_multipliers": st.dictionaries(st.sampled_from(["bias", "^norm/", "kernel"]), POSITIVE, max_size=2)}
DECAYS = st.dictionaries(st.sampled_from(["bias", "kernel"]), st.tuples(POSITIVE, POSITIVE), max_size=2)
DIALECTS = st.one_of(
    called(TORCH.adamw, optional(lr=RATES, betas=PAIRS, weight_decay=run_time(POSITIVE), maximize=st.booleans())),
    called(TORCH.nadam, optional(lr=RATES, betas=PAIRS, momentum_decay=run_time(POSITIVE))),
    called(TORCH.sgd, optional(lr=RATES, momentum=BETAS, dampening=BETAS, weight_decay=run_time(POSITIVE))),
    called(TORCH.adagrad, optional(lr=RATES, lr_decay=POSITIVE, maximize=st.booleans())),
    called(
        KERAS_ADAMW.adamw,
        optional(learning_rate=RATES, beta_1=BETAS, weight_decays=DECAYS, **PATHS).map(
            lambda given: given | {"total_iterations": 5, "use_cosine_annealing": True}
        ),
    ),
)
AXES = st.none() | st.sampled_from([0, -1, [0], [-1]])
CONSTRAINED = st.sampled_from([oc.matching("kernel"), {"dense": True, "norm": False}])
PROJECTIONS = st.one_of(
    st.builds(oc.project_non_negative, mask=st.none() | CONSTRAINED),
    st.builds(oc.project_unit_norm, st.sampled_from([0, [0], [-1]]), mask=CONSTRAINED),
    st.builds(oc.project_max_norm, run_time(POSITIVE), mask=st.none() | CONSTRAINED),
    st.builds(oc.project_min_max_norm, POSITIVE, st.just(1.0) | ARRAYS, run_time(from_zero(1.0)), mask=CONSTRAINED),
)


@st.composite
def chains(draw: st.DrawFn) -> oc.Transformation:
    links: list[Any] = draw(
        st.lists(
            st.one_of(
                st.builds(oc.clip_by_norm, run_time(POSITIVE)),
                st.builds(oc.clip_by_value, run_time(POSITIVE)),
                st.builds(oc.clip_by_global_norm, run_time(POSITIVE)),
                st.builds(oc.clip_by_block_rms, run_time(POSITIVE)),
                st.builds(oc.adaptive_grad_clip, run_time(POSITIVE), run_time(POSITIVE), axis=AXES),
                st.builds(oc.add_noise, run_time(POSITIVE), seed=INTEGERS),
                st.builds(oc.centralize_gradients, st.sampled_from([0, -1])),
            ),
            max_size=2,
        )
    )
    if draw(st.booleans()):
        links.append(called(oc.scale_by_adam, optional(**ADAM, epsilon_hat=st.booleans(), moment_dtype=DTYPES)))
        links[-1] = draw(links[-1])
    links.append(oc.scale_by_learning_rate())
    if draw(st.booleans()):
        links.append(oc.apply_momentum(draw(BETAS), draw(st.booleans())))
    if draw(st.booleans()):
        rate = draw(st.none() | st.just(1.0) | SCHEDULES)
        links.append(oc.decay_weights(draw(run_time(POSITIVE)), learning_rate=rate, mask=draw(st.none() | MASKS)))
    if draw(st.booleans()):
        links.append(("watch", oc.monitor(draw(st.booleans()))))
    body = oc.chain(*links, learning_rate=draw(RATES), name=draw(st.sampled_from(["chain", "body"])))
    after = []
    if draw(st.booleans()):
        momentum = draw(run_time(from_zero(1.0)))
        after = [oc.average_params(momentum, overwrite_every=draw(st.none() | INTEGERS), average_dtype=draw(DTYPES))]
    if draw(st.booleans()):
        after.append(draw(PROJECTIONS))
    return oc.chain(("nested", body), *after) if after or draw(st.booleans()) else body


def gated(inner: st.SearchStrategy[oc.Transformation]) -> st.SearchStrategy[oc.Transformation]:
    return st.one_of(
        st.builds(oc.accumulate, inner, st.integers(1, 4), accumulator_dtype=DTYPES),
        st.builds(oc.skip_nonfinite, unscaled(inner), st.none() | INTEGERS),
        st.builds(oc.dynamic_loss_scale, inner, st.sampled_from([1.0, 2.0**15, 1024]), INTEGERS),
    )


def unscaled(inner: st.SearchStrategy[oc.Transformation]) -> st.SearchStrategy[oc.Transformation]:
    """Those that a mask may cut in parts, and any gate may keep calls from: without a loss scale."""
    return inner.filter(lambda tx: "loss_scale" not in repr(tx) and "dynamic_loss_scale" not in repr(tx))


def in_parts(inner: st.SearchStrategy[oc.Transformation]) -> st.SearchStrategy[oc.Transformation]:
    masks = st.sampled_from(["bias|gamma", oc.matching("bias$", "^norm/"), {"dense": False, "norm": True}])
    return st.one_of(
        st.builds(oc.freeze, inner, MASKS),
        st.builds(oc.masked, unscaled(inner), MASKS),
        st.builds(
            lambda mask, first, rest: oc.multi_optimizer(("first", mask, first), default=rest),
            masks,
            unscaled(inner),
            unscaled(inner),
        ),
    )


RECIPES = st.recursive(presets() | DIALECTS | chains(), gated, max_leaves=3)
CUT_RECIPES = st.recursive(presets() | DIALECTS | chains(), lambda inner: gated(inner) | in_parts(inner), max_leaves=3)


@pytest.mark.thorough
@given(tx=RECIPES | CUT_RECIPES)
@hypothesis.settings(max_examples=5 * hypothesis.settings.default.max_examples)
def test_a_recipe_comes_back_from_json_the_same(tx: oc.Transformation) -> None:
    config = oc.to_config(tx)
    back = oc.from_config(json.loads(json.dumps(config, allow_nan=False)))
    assert back == tx
    assert hash(back) == hash(tx)
    assert repr(back) == repr(tx)
    assert oc.to_config(back) == config
    assert back.kind == tx.kind
    assert [link.name for link in back.links] == [link.name for link in tx.links]


@pytest.mark.thorough
@given(tx=RECIPES)
@hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 10)
def test_a_recipe_that_came_back_takes_the_same_steps_to_the_bit(tx: oc.Transformation) -> None:
    back = oc.from_config(json.loads(json.dumps(oc.to_config(tx))))
    rng = np.random.default_rng(0)
    params, grads = random_params(rng, "float32"), random_grads(rng, "float32", 5)
    for a, b in zip(
        jax.tree.leaves(steps(tx, params, grads)), jax.tree.leaves(steps(back, params, grads)), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def steps(tx: oc.Transformation, params: Any, grads: list[Any]) -> Any:
    """Parameters and state after the steps, operation by operation: to compile each recipe would take a minute."""
    with jax.disable_jit():
        state = tx.init(params)
        for g in grads:
            params, state = tx.apply(params, state, grads=g)
    return params, state


def test_a_config_is_fresh_and_holds_nothing_but_json() -> None:
    tx = oc.adamw(jnp.array(0.1), exclude_from_weight_decay={"b": True, "w": False})
    config = oc.to_config(tx)
    config["arguments"]["exclude_from_weight_decay"]["tree"]["b"] = "changed"
    assert oc.to_config(tx) != config
    assert oc.from_config(oc.to_config(tx)) == tx


def test_only_arguments_that_were_given_are_written() -> None:
    assert oc.to_config(oc.adamw(0.1)) == {
        "optchain": 1,
        "transformation": "adamw",
        "arguments": {"learning_rate": 0.1},
    }


def test_a_registered_factory_comes_back_by_its_name() -> None:
    @oc.register(name="tests_double")
    def double(times: int = 2) -> Any:
        return optax.scale(float(times))

    tx = oc.chain(("doubled", double(3)), oc.sgd(0.1))
    assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: oc.chain(("look", optax.scale(2.0)), oc.sgd(0.1)),
            r"config\.links\[0\]\[1\] is .*no config: decorate",
        ),
        (lambda: oc.sgd(lambda step: 0.1), r"config\.learning_rate is <function .*a config cannot hold"),
        (lambda: oc.sgd(oc.schedules.join([abs, abs], [3])), r"config\.learning_rate\.schedules\[0\] is <built-in"),
        (
            lambda: oc.adamw(0.1, exclude_from_weight_decay=lambda p: p),
            r"config\.exclude_from_weight_decay is <function",
        ),
        (lambda: optax.adam(0.1), "config is .*no config: decorate"),
        (lambda: oc.schedules.StepLR(0.1, 5), r"a config is of a transformation; got StepLR\(.*scale_by_learning_rate"),
        (lambda: {"w": 1}, "a config is of a transformation; got {'w': 1}"),
    ],
)
def test_what_is_not_data_is_refused_and_the_message_says_where(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        oc.to_config(make())


def test_a_traced_value_is_refused() -> None:
    with pytest.raises(TypeError, match=r"config\.learning_rate is .*a config cannot hold"):
        jax.jit(lambda rate: oc.to_config(oc.sgd(rate)) and rate)(0.1)


# Keras's dictionaries --------------------------------------------------------------------------------------------------

KERAS = list(OWN)
few = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 4)


def serialized(optimizer: keras.optimizers.Optimizer) -> Any:
    return json.loads(json.dumps(keras.optimizers.serialize(optimizer)))


@keras_variables
@pytest.mark.parametrize("name", KERAS)
@given(data=st.data())
@few
def test_a_live_keras_optimizer_becomes_the_preset_of_its_arguments(name: str, data: st.DataObject) -> None:
    recipe: Recipe = data.draw(recipes(name).filter(lambda recipe: not recipe.undecayed))
    tx = oc.from_config(serialized(recipe.build_keras(name)))
    expected = recipe.build_optchain(name)
    rate, wanted = tx.config["learning_rate"], expected.config["learning_rate"]
    if not isinstance(wanted, schedules.Schedule):
        # Keras keeps it in a float32 variable.
        assert rate == float(np.float32(wanted))
        tx = tx.rebuilt(learning_rate=wanted)
    assert tx.rebuilt(name=expected.name) == expected


@keras_variables
@pytest.mark.parametrize("name", KERAS)
def test_the_loss_scale_optimizer_becomes_a_gate_around_the_preset(name: str) -> None:
    inner = getattr(keras.optimizers, name)(
        keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.2]), loss_scale_factor=8.0, clipnorm=1.0
    )
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0, dynamic_growth_steps=7)
    tx = oc.from_config(serialized(optimizer))
    rate = schedules.PiecewiseConstantDecay([3], [0.1, 0.2])
    ours = preset(name)(rate, clipnorm=1.0, name=tx.links[0].name)
    assert tx == oc.loss_scale_optimizer(ours, 1024.0, 7, name=optimizer.name)


@keras_variables
def test_the_names_that_keras_gives_are_kept_as_identifiers() -> None:
    config = serialized(keras.optimizers.SGD(0.5, name="my sgd.1"))
    assert oc.from_config(config).name == "my_sgd_1"


@keras_variables
def test_every_schedule_of_keras_comes_along() -> None:
    theirs = keras.optimizers.schedules
    for schedule in (
        theirs.CosineDecay(0.1, 10, 0.2, warmup_target=0.5, warmup_steps=3),
        theirs.CosineDecayRestarts(0.1, 10, 1.5, 0.9, 0.1),
        theirs.ExponentialDecay(0.1, 10, 0.5, True),
        theirs.InverseTimeDecay(0.1, 10, 0.5, True),
        theirs.PiecewiseConstantDecay([1, 5], [0.1, 0.2, 0.3]),
        theirs.PolynomialDecay(0.1, 10, 0.01, 2.0, True),
    ):
        ours = oc.from_config(serialized(keras.optimizers.SGD(schedule))).config["learning_rate"]
        assert type(ours).__name__ == type(schedule).__name__
        for step in (0, 1, 2, 7, 25):
            assert float(ours(step)) == pytest.approx(float(schedule(step)), rel=1e-5)


def test_a_minimal_keras_dictionary_will_do() -> None:
    assert oc.from_config({"class_name": "AdamW", "config": {}}) == oc.adamw()
    assert oc.from_config({"class_name": "AdamW", "config": {"weight_decay": False}}) == oc.adamw(weight_decay=None)


# Data that means no good -----------------------------------------------------------------------------------------------

NAN, INF, HUGE = float("nan"), float("inf"), 10**400


def ours(name: Any = "sgd", /, **given: Any) -> dict[Any, Any]:
    return {"optchain": 1, "transformation": name, "arguments": given}


def part(name: Any = "sgd", /, **given: Any) -> dict[Any, Any]:
    return {"transformation": name, "arguments": given}


def rate(name: Any, /, **given: Any) -> dict[Any, Any]:
    return ours(learning_rate={"schedule": name, "arguments": given})


def theirs(name: Any = "SGD", /, **given: Any) -> dict[Any, Any]:
    return {"module": "keras.optimizers", "class_name": name, "config": given, "registered_name": None}


def deep(levels: int, config: Any) -> Any:
    for _ in range(levels):
        config = {"transformation": "accumulate", "arguments": {"inner": config, "steps": 2}}
    return config | {"optchain": 1}


def deep_lists(levels: int) -> Any:
    nested: Any = []
    for _ in range(levels):
        nested = [nested]
    return nested


def laughs(levels: int = 12) -> Any:
    """A thousand million entries and more, of a few shared ones."""
    nested: Any = [1.0]
    for _ in range(levels):
        nested = [nested] * 10
    return nested


def loop() -> Any:
    config = ours("chain")
    config["arguments"]["links"] = [config]
    return config


def keras_in_keras(levels: int) -> Any:
    config = theirs(learning_rate=0.1)
    for _ in range(levels):
        config = theirs("LossScaleOptimizer", inner_optimizer=config)
    return config


HOSTILE: dict[str, tuple[Any, str]] = {
    # No config at all.
    "none": (None, "a config must be a mapping; got NoneType"),
    "list": ([], "a config must be a mapping; got list"),
    "string": ("sgd", "a config must be a mapping; got str"),
    "bytes": (b"sgd", "a config must be a mapping; got bytes"),
    "number": (1, "a config must be a mapping; got int"),
    "class": (dict, "a config must be a mapping; got type"),
    "empty": ({}, r'config\["optchain"\] must be 1'),
    "version missing": (part(learning_rate=0.1), r'config\["optchain"\] must be 1'),
    "version of tomorrow": (ours() | {"optchain": 2}, r'config\["optchain"\] must be 1, .*got 2'),
    "version true": (ours() | {"optchain": True}, r'config\["optchain"\] must be 1, .*got True'),
    "version a string": (ours() | {"optchain": "1"}, r"must be 1, .*got '1'"),
    "version a list": (ours() | {"optchain": [1]}, r"must be 1, .*got \[1\]"),
    "version only": ({"optchain": 1}, "config must have one of the keys 'transformation', 'schedule', 'mask'"),
    "a schedule": ({"optchain": 1, "schedule": "Scaled"}, "config"),
    "a mask": (
        {"optchain": 1, "mask": "matching", "arguments": {"patterns": ["a"]}},
        "a config must name a transformation",
    ),
    "an array": ({"optchain": 1, "array": 1.0, "dtype": "float32"}, "a config must name a transformation"),
    "a tree": ({"optchain": 1, "tree": {"a": 1}}, "a config must name a transformation"),
    # Names.
    "unknown": (
        ours("adagrad2"),
        "config: no transformation is registered as 'adagrad2' .did you mean 'adagrad'.*; there are: .*adamw",
    ),
    "empty name": (ours(""), "config: no transformation is registered as ''"),
    "dotted": (ours("os.system", learning_rate="true"), "config: no transformation is registered as 'os.system'"),
    "builtin": (ours("eval", source="1/0"), "config: no transformation is registered as 'eval'"),
    "dunder": (ours("__import__", name="antigravity"), "config: no transformation is registered as '__import__'"),
    "dunder class": (ours("__class__"), "config: no transformation is registered as '__class__'"),
    "module path": (ours("optchain.presets.keras.adamw"), "no transformation is registered as 'optchain.presets"),
    "colon path": (ours("antigravity:fly"), "no transformation is registered as 'antigravity:fly'"),
    "function of optchain": (ours("make_step"), "no transformation is registered as 'make_step'"),
    "name a list": (ours(["sgd"]), "config: 'transformation' must be a string"),
    "name a dict": (ours({"a": 1}), "config: 'transformation' must be a string"),
    "name none": (ours(None), "config: 'transformation' must be a string"),
    "name bytes": (ours(b"sgd"), "config: 'transformation' must be a string"),
    "schedule dotted": (rate("os.system", command="true"), r"config\.learning_rate: no schedule .*'os\.system'"),
    "schedule dunder": (rate("__class__"), r"config\.learning_rate: no schedule is registered as '__class__'"),
    "schedule base": (rate("Schedule"), r"config\.learning_rate: no schedule is registered as 'Schedule'"),
    "schedule a list": (rate([1]), r"config\.learning_rate: 'schedule' must be a string"),
    "mask dotted": (
        ours("adamw", exclude_from_weight_decay={"mask": "os.system", "arguments": {}}),
        r"config\.exclude_from_weight_decay: no mask is registered as 'os\.system'",
    ),
    "inner dotted": (
        ours("accumulate", inner=part("subprocess.run", args=["true"]), steps=2),
        r"config\.inner: no transformation is registered as 'subprocess\.run'",
    ),
    "link dunder": (
        ours("chain", links=[part(), part("__reduce__")]),
        r"config\.links\[1\]: no transformation is registered as '__reduce__'",
    ),
    "named link unknown": (
        ours("chain", links=[["a", part("nope")]]),
        r"config\.links\[0\]\[1\]: no transformation is registered as 'nope'",
    ),
    # Keys.
    "extra key": (ours() | {"module": "os"}, r"config has keys that are not known: \['module'\]"),
    "reduce key": (ours() | {"__reduce__": ["os.system", ["true"]]}, r"not known: \['__reduce__'\]"),
    "py/object": ({"optchain": 1, "py/object": "os.system"}, "config must have one of the keys"),
    "extra key within": (
        ours("accumulate", inner=part() | {"x": 1}, steps=2),
        r"config\.inner has keys that are not known: \['x'\]",
    ),
    "two kinds": (ours() | {"schedule": "CosineDecay"}, r"not known: \['schedule'\]"),
    "number key": (ours() | {1: 2}, r"not known: \['1'\]"),
    "number argument": ({**ours(), "arguments": {1: 2}}, "config has a key that is not a string: 1"),
    "none argument": ({**ours(), "arguments": {None: 2}}, "config has a key that is not a string: None"),
    "tuple argument": ({**ours(), "arguments": {("a", "b"): 2}}, "config has a key that is not a string"),
    "arguments a list": ({**ours(), "arguments": [0.1]}, "config: .*'arguments' a mapping"),
    "arguments none": ({**ours(), "arguments": None}, "config: .*'arguments' a mapping"),
    "unknown argument": (ours(rate=0.1), "config: sgd: .*rate"),
    "dunder argument": (ours(__class__="x"), "config: sgd: .*__class__"),
    "self argument": (ours(self=1), "config: sgd: .*self"),
    "where argument": (ours(where=1), "config: sgd: .*where"),
    "build argument": (rate("CosineDecay", build=1), r"config\.learning_rate: CosineDecay: .*build"),
    "number key in a tree": (
        ours("adamw", exclude_from_weight_decay={"tree": {1: True}}),
        r"config\.exclude_from_weight_decay has a key that is not a string: 1",
    ),
    "tree of what is no tree": (
        ours("adamw", exclude_from_weight_decay={"tree": [1]}),
        r"config\.exclude_from_weight_decay must have one of the keys",
    ),
    # Arguments.
    "missing argument": (ours("accumulate", steps=2), "config: accumulate: .*inner"),
    "missing schedule argument": (rate("CosineDecay"), r"config\.learning_rate: CosineDecay: .*initial_learning_rate"),
    "missing table": (rate("PerEpoch"), r"config\.learning_rate: PerEpoch: .*values"),
    "missing pattern": (
        ours("adamw", exclude_from_weight_decay={"mask": "matching", "arguments": {}}),
        r"config\.exclude_from_weight_decay: matching: .*patterns",
    ),
    "no patterns": (
        ours("adamw", exclude_from_weight_decay={"mask": "matching", "arguments": {"patterns": []}}),
        r"config\.exclude_from_weight_decay: matching: .*at least one pattern",
    ),
    "bad pattern": (
        ours("adamw", exclude_from_weight_decay={"mask": "matching", "arguments": {"patterns": ["("]}}),
        r"config\.exclude_from_weight_decay: matching: pattern '\(' is not a regular expression",
    ),
    "patterns a string": (
        ours("adamw", exclude_from_weight_decay={"mask": "matching", "arguments": {"patterns": "bias"}}),
        r"config\.exclude_from_weight_decay: matching: .*patterns",
    ),
    "patterns a number": (
        ours("adamw", exclude_from_weight_decay={"mask": "matching", "arguments": {"patterns": 5}}),
        r"config\.exclude_from_weight_decay: matching:",
    ),
    "string rate": (ours(learning_rate="0.1"), "config: sgd: learning_rate must be .*got '0.1'"),
    "bool rate": (ours(learning_rate=True), "config: sgd: learning_rate must be .*got True"),
    "none rate": (ours(learning_rate=None), "config: sgd: learning_rate must be .*got None"),
    "list rate": (ours(learning_rate=[0.1]), r"config: sgd: learning_rate must be .*got \[0\.1\]"),
    "bytes rate": (ours(learning_rate=b"0.1"), r"config\.learning_rate is bytes, which a config cannot hold"),
    "set rate": (ours(learning_rate={0.1}), r"config\.learning_rate is set, which a config cannot hold"),
    "function rate": (ours(learning_rate=abs), r"config\.learning_rate is builtin_function_or_method, which"),
    "object rate": (ours(learning_rate=object()), r"config\.learning_rate is object, which a config cannot hold"),
    "complex rate": (ours(learning_rate=1j), r"config\.learning_rate is complex, which a config cannot hold"),
    "NaN rate": (ours(learning_rate=NAN), "config: sgd: learning_rate must be .*got nan"),
    "infinite rate": (ours(learning_rate=INF), "config: sgd: learning_rate must be .*got inf"),
    "negative rate": (ours(learning_rate=-0.1), "config: sgd: learning_rate must be .*got -0.1"),
    "huge rate": (ours(learning_rate=HUGE), "config: sgd: learning_rate must be"),
    "huge clip": (ours("clip_by_norm", max_norm=HUGE), "config: clip_by_norm: max_norm must be"),
    "huge schedule": (
        rate("CosineDecay", initial_learning_rate=HUGE, decay_steps=10),
        r"config\.learning_rate: CosineDecay: initial_learning_rate must be",
    ),
    "huge boundary": (
        rate("PiecewiseConstantDecay", boundaries=[HUGE], values=[0.1, 0.2]),
        r"config\.learning_rate: PiecewiseConstantDecay: boundaries must be",
    ),
    "huge scale": (
        ours("dynamic_loss_scale", inner=part(), initial_scale=HUGE),
        "config: dynamic_loss_scale: initial_scale must be",
    ),
    "huge steps": (ours("accumulate", inner=part(), steps=HUGE), "config: accumulate: steps must be"),
    "huge array": (
        ours(learning_rate={"array": HUGE, "dtype": "float32"}),
        r"config\.learning_rate: array: ",
    ),
    "float steps": (ours("accumulate", inner=part(), steps=2.0), "config: accumulate: steps must be an integer"),
    "string steps": (ours("accumulate", inner=part(), steps="2"), "config: accumulate: steps must be an integer"),
    "zero steps": (ours("accumulate", inner=part(), steps=0), "config: accumulate: steps must be an integer >= 1"),
    "schedule as steps": (
        ours("accumulate", inner=part(), steps=part()),
        "config: accumulate: steps must be",
    ),
    "string scale": (
        ours("dynamic_loss_scale", inner=part(), initial_scale="8"),
        "config: dynamic_loss_scale: initial_scale must be",
    ),
    "mask as rate": (ours(learning_rate={"mask": "matching", "arguments": {"patterns": ["a"]}}), "config: sgd:"),
    "link as rate": (ours(learning_rate=part()), "config: sgd: learning_rate must be"),
    "rate as link": (ours("chain", links=[0.1]), "config: chain: link 0 must be"),
    "string as link": (ours("chain", links=["sgd"]), "config: chain: link 0 must be .*got 'sgd'"),
    "schedule as link": (
        ours("chain", links=[{"schedule": "PerEpoch", "arguments": {"values": [1.0], "steps_per_epoch": 1}}]),
        "config: chain: link 0 must be",
    ),
    "links a dict": (ours("chain", links={"tree": {"a": 1}}), "config: chain: links must be a list"),
    "links a string": (ours("chain", links="sgd"), "config: chain: links must be a list"),
    "no links": (ours("chain", links=[]), "config: chain: chain needs at least one link"),
    "links missing": (ours("chain"), "config: chain: chain needs at least one link"),
    "pair of three": (ours("chain", links=[["a", part(), part()]]), "config: chain: link 0 must be"),
    "pair without a name": (ours("chain", links=[[1, part()]]), "config: chain: the name of a link must be a string"),
    "slash in a name": (ours("chain", links=[["a/b", part()]]), "config: chain: the name of a link must be an ident"),
    "reserved name": (ours("chain", links=[["metrics", part()]]), "config: chain: a link cannot be called 'metrics'"),
    "order": (ours("chain", links=[part(), part()]), "config: chain: .* stands after"),
    "inner a string": (ours("accumulate", inner="sgd", steps=2), "config: accumulate: inner must be an optchain"),
    "dtype unknown": (ours("adamw", moment_dtype="float1000"), "config: adamw: moment_dtype must be"),
    "dtype integer": (ours("adamw", moment_dtype="int32"), "config: adamw: moment_dtype must be"),
    "dtype object": (ours("adamw", moment_dtype="O"), "config: adamw: moment_dtype must be"),
    "array of text": (ours(learning_rate={"array": "1", "dtype": "float32"}), r"config\.learning_rate: array: "),
    "array of objects": (ours(learning_rate={"array": 1.0, "dtype": "object"}), r"config\.learning_rate: array: "),
    "array dtype a dict": (ours(learning_rate={"array": 1.0, "dtype": {"a": 1}}), r"config\.learning_rate: array: "),
    "array dtype a list": (ours(learning_rate={"array": 1.0, "dtype": [[1, 2]]}), r"config\.learning_rate: array: "),
    "array NaN": (ours(learning_rate={"array": NAN, "dtype": "float32"}), "config: sgd: learning_rate must be"),
    "array of a list": (ours(learning_rate={"array": [1.0, 2.0], "dtype": "float32"}), r"config\.learning_rate: array"),
    "a bare dict": (ours(learning_rate={"a": 1}), r"config\.learning_rate must have one of the keys"),
    "schedule of a number": (rate("Scaled", schedule=0.1, factor=0.5), r"config\.learning_rate: Scaled: "),
    "decay of a number": (rate("LegacyDecay", schedule=0.1, decay=0.5), r"config\.learning_rate: LegacyDecay: "),
    "join of numbers": (
        rate("Join", schedules=[0.1, 0.2], boundaries=[3]),
        r"config\.learning_rate: Join: schedules must be callables",
    ),
    "join of one number": (rate("Join", schedules=0.1, boundaries=[3]), r"config\.learning_rate: Join: "),
    "join of a link": (rate("Join", schedules=[part(), part()], boundaries=[3]), r"config\.learning_rate: Join: "),
    # Bombs.
    "deep": (deep(10_000, part()), "the config is nested more than 64 deep"),
    "deep lists": (ours(learning_rate=deep_lists(10_000)), "the config is nested more than 64 deep"),
    "deep tree": (ours("adamw", exclude_from_weight_decay=deep(10_000, part())), "the config is nested more than 64"),
    "wide": (ours("chain", links=[part()] * 200_000), "the config has more than 100000 entries"),
    "laughs": (ours(learning_rate=laughs()), "the config has more than 100000 entries"),
    "loop": (loop(), "the config is nested more than 64 deep"),
    "1,000 rates": (ours("chain", links=[part()] * 1000), "config: chain: .* stands after"),
    # Keras's.
    "keras unknown": (
        theirs("Adagrad2"),
        r"config: Keras's 'Adagrad2' has no counterpart here \(did you mean 'Adagrad'\?\); there are: Adadelta, Adafactor, ",
    ),
    "keras dotted": (theirs("os.system", command="true"), "config: Keras's 'os.system' has no counterpart"),
    "keras lambda": (theirs("__lambda__", value="x"), "config: Keras's '__lambda__' has no counterpart"),
    "keras class a list": (theirs(["SGD"]), "config is not one of Keras's"),
    "keras config a list": ({"class_name": "SGD", "config": [0.1]}, "config is not one of Keras's"),
    "keras config missing": ({"class_name": "SGD"}, "config is not one of Keras's"),
    "keras extra key": (theirs() | {"__reduce__": 1}, "config is not one of Keras's.*__reduce__"),
    "keras unknown argument": (theirs(rate=0.1), "config: SGD: .*rate"),
    "keras where argument": (theirs(where=0.1), "config: SGD: .*where"),
    "keras bad argument": (theirs(learning_rate="0.1"), "config: SGD: learning_rate must be"),
    "keras number key": ({"class_name": "SGD", "config": {1: 2}}, "config has a key that is not a string: 1"),
    "keras schedule dotted": (
        theirs(learning_rate={"class_name": "os.system", "config": {}}),
        r"config\.learning_rate: no schedule is registered as 'os\.system'",
    ),
    "keras lambda rate": (
        theirs(learning_rate={"class_name": "function", "config": "f", "registered_name": "f"}),
        r"config\.learning_rate is not one of Keras's",
    ),
    "keras bare rate": (theirs(learning_rate={"value": 1}), r"config\.learning_rate is not one of Keras's"),
    "keras schedule argument": (
        theirs(learning_rate={"class_name": "CosineDecay", "config": {"decay_steps": 0, "initial_learning_rate": 1.0}}),
        r"config\.learning_rate: CosineDecay: decay_steps must be",
    ),
    "keras inner missing": (theirs("LossScaleOptimizer"), r"config\.inner_optimizer must be a mapping"),
    "keras inner a string": (
        theirs("LossScaleOptimizer", inner_optimizer="SGD"),
        r"config\.inner_optimizer must be a mapping",
    ),
    "keras inner unknown": (
        theirs("LossScaleOptimizer", inner_optimizer=theirs("os.system")),
        r"config\.inner_optimizer: Keras's 'os\.system' has no counterpart",
    ),
    "keras scale": (
        theirs("LossScaleOptimizer", inner_optimizer=theirs(), initial_scale=-1.0),
        "config: LossScaleOptimizer: initial_scale must be",
    ),
    "keras scale of a scale": (keras_in_keras(2), r"config"),
    "keras deep": (keras_in_keras(10_000), "the config is nested more than 64 deep"),
    "keras scale argument": (
        theirs("LossScaleOptimizer", inner_optimizer=theirs(), dynamic=False),
        "config: LossScaleOptimizer: .*dynamic",
    ),
}


@pytest.fixture
def nothing_imported() -> Iterator[None]:
    before = set(sys.modules)
    yield
    assert set(sys.modules) == before


@pytest.mark.usefixtures("nothing_imported")
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_recipe_is_a_value_error_that_says_where_and_imports_nothing(name: str) -> None:
    config, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message):
        oc.from_config(config)


def test_the_innermost_place_is_named() -> None:
    bad = part("chain", links=[part("clip_by_norm", max_norm=-1.0), part()])
    config = ours("skip_nonfinite", inner=part("accumulate", inner=bad, steps=2))
    with pytest.raises(
        ValueError, match=r"config\.inner\.inner\.links\[0\]: clip_by_norm: max_norm must be .*got -1\.0"
    ):
        oc.from_config(config)


def test_a_config_of_a_reasonable_depth_is_read() -> None:
    assert oc.from_config(deep(20, part(learning_rate=0.1))).kind == "gate"


# Patterns, of which the first that is found decides -----------------------------------------------------------------

BY_PATTERN = {
    "scale_by_path": lambda p: oc.scale_by_path({name: 2.0 + i for i, name in enumerate(p)}),
    "decay_by_path": lambda p: oc.decay_by_path({name: (0.0, 0.1 + i) for i, name in enumerate(p)}, learning_rate=0.1),
    "scale_by_muon": lambda p: oc.scale_by_muon(matrices={name: (i, 1 - i) for i, name in enumerate(p)}),
    "scale_by_neuron_rms": lambda p: oc.scale_by_neuron_rms(matrices={name: (i, 1 - i) for i, name in enumerate(p)}),
    "muon_adamw": lambda p: oc.muon_adamw(matrices={name: (0, 1) if i else None for i, name in enumerate(p)}),
    "lr_multipliers": lambda p: oc.presets.keras_adamw.sgdw(lr_multipliers={name: 2.0 + i for i, name in enumerate(p)}),
    "weight_decays": lambda p: oc.presets.keras_adamw.adamw(
        weight_decays={name: (0.0, 0.1 + i) for i, name in enumerate(p)}, total_iterations=10
    ),
}


@pytest.mark.parametrize("make", BY_PATTERN.values(), ids=BY_PATTERN)
def test_the_order_of_patterns_is_part_of_a_recipe(make: Any) -> None:
    tx, same, turned = make(["^head", "kernel"]), make(["^head", "kernel"]), make(["kernel", "^head"])
    assert (tx, hash(tx), repr(tx)) == (same, hash(same), repr(same))
    assert tx != turned
    for each in (tx, turned):
        back = oc.from_config(json.loads(json.dumps(oc.to_config(each), sort_keys=True)))
        assert back == each
        assert repr(back) == repr(each)
        assert pickle.loads(pickle.dumps(each)) == each


def test_every_argument_of_patterns_is_among_them() -> None:
    found = {
        (name, parameter.name)
        for name, factory in FACTORIES.items()
        if factory.__module__.startswith("optchain.")
        for parameter in inspect.signature(factory).parameters.values()
        if "Mapping[str" in str(parameter.annotation)
    }
    dialect = [
        (f"presets.keras_adamw.{preset}", name)
        for preset in ("adamw", "nadamw", "sgdw")
        for name in ("lr_multipliers", "weight_decays")
    ]
    assert found - {("compact", "moments")} == {  # which are by slot
        ("scale_by_path", "factors"), ("decay_by_path", "weight_decays"), ("scale_by_muon", "matrices"),
        ("scale_by_neuron_rms", "matrices"), ("muon_adamw", "matrices"), *dialect,
    }  # fmt: skip


def test_a_recipe_of_other_patterns_is_compiled_anew() -> None:
    params = {name: {"kernel": jnp.ones(2), "bias": jnp.ones(2)} for name in ("head", "body")}

    def moved(tx: oc.Transformation) -> Any:
        step = jax.jit(lambda tx, params: tx.apply(params, tx.init(params), grads=params)[0], static_argnums=0)
        return step(tx, params)["head"]["kernel"].tolist()

    def by(factors: dict[str, float]) -> oc.Transformation:
        return oc.chain(oc.scale_by_path(factors), oc.scale_by_learning_rate(1.0))

    assert moved(by({"^head": 10.0, "kernel": 1.0})) == [-9.0, -9.0]
    assert moved(by({"kernel": 1.0, "^head": 10.0})) == [0.0, 0.0]


def test_a_config_from_before_its_patterns_had_an_order_is_read() -> None:
    config = {"optchain": 1, "transformation": "scale_by_path", "arguments": {"factors": {"tree": {"^head": 10.0}}}}
    assert oc.from_config(config) == oc.scale_by_path({"^head": 10.0})


@pytest.mark.parametrize(
    ("ordered", "message"),
    [
        ([["a", 1.0], ["a", 2.0]], "'ordered' has a key twice: 'a'"),
        ([["a"]], "'ordered' must be a list of pairs"),
        ([[1, 2.0]], "config.factors"),
    ],
)
def test_a_wrong_order_is_refused(ordered: Any, message: str) -> None:
    config = {"optchain": 1, "transformation": "scale_by_path", "arguments": {"factors": {"ordered": ordered}}}
    with pytest.raises(ValueError, match=message):
        oc.from_config(config)


def test_register_refuses_an_order_of_no_argument() -> None:
    with pytest.raises(TypeError, match="ordered must be a list of names of arguments; got 'factors'"):
        oc.register(lambda factors: oc.scale(1.0), name="of_letters", ordered="factors")
    with pytest.raises(ValueError, match="ordered must name arguments of of_none; got factor"):

        @oc.register(ordered=["factor"])
        def of_none(factors: dict[str, float]) -> oc.Transformation:
            return oc.scale(1.0)


# Any JSON --------------------------------------------------------------------------------------------------------------

# fmt: off
NAMES = st.sampled_from([
    "optchain", "transformation", "arguments", "schedule", "mask", "array", "dtype", "ordered", "tree", "class_name", "config",
    "inner", "links", "steps", "learning_rate", "patterns", "name", "initial_scale", "schedules", "boundaries",
    "inner_optimizer", "weight_decay", "moment_dtype", "values", "exclude_from_weight_decay", "decay",
])
WORDS = st.sampled_from([
    "sgd", "adamw", "chain", "accumulate", "dynamic_loss_scale", "CosineDecay", "Join", "PerEpoch", "matching", "SGD",
    "LossScaleOptimizer", "float32", "O", "float8_e4m3fn", "(", "", "a/b", "bias$", "1", "nan",
])
# fmt: on
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.just(HUGE),
    st.just(-HUGE),
    st.floats(),
    WORDS,
    NAMES,
    st.text(max_size=3),
)
JSON = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | WORDS | st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
VALID = [
    oc.to_config(tx)
    for tx in (
        oc.adamw(schedules.CosineDecay(0.1, 10) * 0.5, np.float32(0.1), exclude_from_weight_decay=["bias"]),
        oc.sgd(schedules.join([schedules.PerEpoch.from_table([0.1], 2), schedules.LinearWarmupDecay(1.0, 1, 5)], [3])),
        oc.chain(
            ("clip", oc.clip_by_norm(1.0)), oc.sgd(np.array(0.5)), oc.average_params(0.5, average_dtype="bfloat16")
        ),
        oc.dynamic_loss_scale(oc.skip_nonfinite(oc.accumulate(oc.adam(0.1, clipvalue=1.0), 2), 3)),
        oc.chain(oc.scale_by_learning_rate(0.1), oc.decay_weights(0.1, learning_rate=1.0, mask=~oc.matching("bias"))),
        oc.adamw(0.1, exclude_from_weight_decay={"w": {"b": True}}),
    )
] + [
    theirs(learning_rate=0.1, momentum=0.5, name="x"),
    theirs("LossScaleOptimizer", inner_optimizer=theirs("AdamW", learning_rate=0.1), initial_scale=8.0),
    theirs(
        "Adam", learning_rate={"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.1, "decay_steps": 5}}
    ),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(node: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = node.copy()
    copied[path[0]] = replaced(node[path[0]], path[1:], new)
    return copied


def read(config: Any) -> None:
    """A transformation, or a `ValueError` that says where, and nothing else."""
    made: Any
    try:
        made = oc.from_config(config)
    except ValueError as error:
        made = str(error)
    assert isinstance(made, oc.Transformation) or "config" in made


@given(data=st.data())
@hypothesis.settings(max_examples=600)
def test_a_config_with_anything_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(VALID))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(config))))
        config = replaced(config, path, data.draw(JSON))
    read(config)


@given(config=JSON)
@hypothesis.settings(max_examples=300)
def test_any_json_is_read_or_refused(config: Any) -> None:
    read(config)


# Schedules and arrays of one's own --------------------------------------------------------------------------------------


@schedules.register
@dataclasses.dataclass(frozen=True, repr=False)
class Rooted(schedules.Schedule):
    """A schedule that a user wrote, and registered."""

    rate: float
    offset: int = 1

    def value(self, step: jax.Array) -> jax.Array:
        return self.rate / jnp.sqrt(step + self.offset)


@dataclasses.dataclass(frozen=True, repr=False)
class CosineDecay(schedules.CosineDecay):
    """A schedule of one's own, unregistered, of the name of one of ours."""


def test_a_schedule_of_ones_own_that_is_registered_comes_back():
    for schedule in (Rooted(0.5), Rooted(0.5, offset=3), Rooted(0.5) * 0.5):
        tx = oc.sgd(schedule)
        assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx


@pytest.mark.parametrize("make", [lambda: CosineDecay(0.1, 10), lambda: CosineDecay(0.1, 10) * 0.5])
def test_a_schedule_that_could_not_be_read_back_is_not_written(make):
    with pytest.raises(
        TypeError, match=r"learning_rate.* is CosineDecay\(0.1, 10\), a schedule that no config can name: decor"
    ):
        oc.to_config(oc.sgd(make()))


def test_a_name_of_a_schedule_is_given_once():
    with pytest.raises(ValueError, match=r"name 'CosineDecay' is taken by optchain\.schedules\.decays\.CosineDecay"):
        schedules.register(CosineDecay)
    with pytest.raises(TypeError, match="register takes a subclass of Schedule that is itself a frozen dataclass"):
        schedules.register(lambda step: 0.1)
    assert schedules.register(Rooted) is Rooted


@given(
    st.sampled_from(["int8", "int32", "uint16", "float16", "float32", "bfloat16"]).flatmap(
        lambda dtype: st.builds(lambda value: jnp.asarray(value, dtype), st.integers(1, 100))
    )
)
def test_what_is_written_of_an_array_can_be_read(rate):
    tx = oc.sgd(rate)
    assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx
