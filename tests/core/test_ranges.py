"""Ranges hold for the number that is used, in JAX's default float, and not only for the one that is written."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optchain as oc
from optchain.core import arguments
from optchain.core.arguments import Range
from optchain.core.hyperparams import Hyperparams
from optchain.core.precision import enable_x64
from optchain.interop import checks

CYCLE = oc.schedules.OneCycleLR(0.1, total_steps=100)
CASES = [
    (lambda: oc.sgd(1e39), "learning_rate must be a finite number >= 0; got 1e+39, which overflows in float32"),
    (
        lambda: oc.clip_by_global_norm(1e39),
        "max_norm must be a finite number > 0; got 1e+39, which overflows in float32",
    ),
    (
        lambda: oc.adam(beta_1=1 - 1e-9),
        "beta_1 must be a number in [0, 1); got 0.999999999, which rounds to 1 in float32",
    ),
    (
        lambda: oc.adam(beta_2=1 - 1e-9),
        "beta_2 must be a number in [0, 1); got 0.999999999, which rounds to 1 in float32",
    ),
    (
        lambda: oc.unscale_gradients(1e-39),
        "loss_scale must be a finite number > 0; got 1e-39, which is flushed to 0 in float32",
    ),
    (lambda: oc.sgd(1e-60), "learning_rate must be a finite number >= 0; got 1e-60, which is flushed to 0 in float32"),
    (
        lambda: oc.adam(epsilon=1e-60),
        "epsilon must be a finite number >= 0; got 1e-60, which is flushed to 0 in float32",
    ),
    (lambda: oc.sgd(np.array(1e-60)), "learning_rate must be"),
    (lambda: oc.adafactor(epsilon_1=1e-60), "epsilon_1 must be"),
    (lambda: oc.adaptive_grad_clip(0.01, epsilon=1e-60), "epsilon must be"),
    (lambda: oc.scale(-1e-60), "factor must be a finite number; got -1e-60, which is flushed to 0 in float32"),
    (lambda: oc.scale_by_path({"w": 1e-60}), "factors['w'] must be"),
    (lambda: oc.schedules.CosineDecay(1e-60, 10), "initial_learning_rate must be"),
    (lambda: oc.schedules.PiecewiseConstantDecay([1], [0.1, 1e-60]), "values[1] must be"),
    (lambda: oc.set_hyperparams(oc.sgd(0.1).init(jnp.ones(1)), learning_rate=1e-60), "learning_rate must be"),
    (lambda: oc.sweep(oc.sgd(0.1).init(jnp.ones(1)), learning_rate=[0.1, 1e-60]), "learning_rate must be"),
    (
        lambda: oc.average_params(1 - 1e-9),
        "momentum must be a number in [0, 1]; got 0.999999999, which rounds to 1 in float32",
    ),
    (lambda: oc.adam(use_ema=True, ema_momentum=1 - 1e-9), "ema_momentum must be"),
    (lambda: oc.sgd(0.1, momentum=1 - 1e-9), "momentum must be"),
    (lambda: oc.presets.torch.sgd(0.1, momentum=0.9, dampening=1 - 1e-9), "dampening must be"),
    (lambda: oc.schedules.OneCycleMomentum(CYCLE, max_momentum=1 - 1e-9), "max_momentum must be"),
    (lambda: oc.sweep(oc.sgd(0.1, momentum=np.array(0.9)).init(jnp.ones(1)), momentum=[1 - 1e-9]), "momentum must be"),
    (lambda: oc.sgd(0.1, loss_scale_factor=1e-39), "loss_scale_factor must be"),
    (lambda: oc.sgd(0.1, clipnorm=1e-39), "clipnorm must be"),
    (lambda: oc.presets.torch.adam(betas=(0.9, 1 - 1e-9)), "betas[1] must be"),
    (lambda: oc.scale_by_path({"w": 1e39}), "factors['w'] must be"),
    (lambda: oc.schedules.StepLR(1e39, 2), "lr must be"),
    (lambda: oc.schedules.CosineDecay(1e39, 10), "initial_learning_rate must be"),
    (lambda: oc.schedules.CosineDecay(0.1, 1e-39), "decay_steps must be"),
    (lambda: oc.schedules.PiecewiseConstantDecay([1], [0.1, 1e39]), "values[1] must be"),
    (lambda: oc.schedules.PerEpoch(lambda epoch: 1e39, 2, 0.1, 3), "learning_rate must be"),
    (lambda: oc.schedules.CosineDecay(0.1, 10) * 1e39, "factor must be"),
]


@pytest.mark.parametrize(("build", "message"), CASES)
def test_what_float32_makes_of_a_number_is_refused_in_words(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: oc.sgd(0.1, momentum=1.0),
        lambda: oc.average_params(1),
        lambda: oc.adam(epsilon=0.0),
        lambda: oc.schedules.LinearLR(0.1, end_factor=1 - 1e-9),  # as 1 it does the same
        lambda: oc.sgd(1 - 1e-9),
    ],
)
def test_the_ends_themselves_are_taken(build):
    build()


def test_a_rate_may_decay_to_nothing():
    tx = oc.sgd(lambda step: 1e-60)
    tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.ones(1))
    schedule = oc.schedules.PerEpoch(lambda epoch, rate: rate * 1e-30, 1, 0.1, epochs=3)
    assert oc.from_config(oc.to_config(oc.sgd(schedule))) == oc.sgd(schedule)


@pytest.mark.parametrize("value", [1e39, np.float64(1e39), np.array([1e39])[0]])
def test_set_hyperparams_refuses_it_too(value):
    state = oc.sgd(0.1).init(jnp.ones(1))
    with pytest.raises(ValueError, match=r"learning_rate must be a finite number >= 0; got 1e\+39"):
        oc.set_hyperparams(state, learning_rate=value)


def test_float64_keeps_what_float32_does_not():
    with enable_x64():
        for build in (lambda: oc.sgd(1e39), lambda: oc.adam(beta_2=1 - 1e-9), lambda: oc.unscale_gradients(1e-39)):
            build()
        with pytest.raises(ValueError, match=r"which rounds to 1 in float64|must be a number in \[0, 1\)"):
            oc.adam(beta_1=1 - 1e-17)


ON_FLOAT32 = {
    "learning_rate": lambda: oc.sgd(1e39),
    "learning_rate of an array": lambda: oc.sgd(np.float64(1e39) * np.ones(())),
    "learning_rate of a link": lambda: oc.scale_by_learning_rate(1e39),
    "beta_1": lambda: oc.adam(0.1, beta_1=1 - 1e-9),
    "beta_2": lambda: oc.adam(0.1, beta_2=1 - 1e-9),
    "max_norm": lambda: oc.sgd(1.0, clipnorm=1e-39),
    "loss_scale": lambda: oc.sgd(0.1, loss_scale_factor=1e-39),
    "max_value": lambda: oc.project_max_norm(1e39),
    "rate of one's own": lambda: oc.rule(
        lambda own: lambda g: (own * g, {}),
        slots={},
        hyperparams=Hyperparams({"own": arguments.BELOW_ONE}, own=1 - 1e-9),
    ),
}
AROUND = {
    "alone": lambda tx: tx,
    "gate": oc.skip_nonfinite,
    "mask": lambda tx: oc.masked(tx, {"a": False, "b": [True]}),
    "group": lambda tx: oc.multi_optimizer(("rest", "a", oc.sgd(0.1)), ("all", "b", tx)),
}


@pytest.mark.parametrize(
    ("case", "around"),
    # A loss scale is divided out for all leaves or for none.
    [(case, around) for case in ON_FLOAT32 for around in AROUND if case != "loss_scale" or around in ("alone", "gate")],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_init_refuses_what_the_dtype_of_a_leaf_makes_of_a_number(case, around, dtype):
    name = {"rate of one's own": "own"}.get(case, case.split()[0])
    with enable_x64():
        tx = AROUND[around](ON_FLOAT32[case]())
        params = {"a": jnp.ones(2, "float64"), "b": [jnp.ones((2, 2), dtype)]}
        where = r" in float32, the dtype in which params\[\"b\"\]\[0\] is computed"
        with pytest.raises(ValueError, match=f"{name} must be .*; got .*, which .*{where}"):
            tx.init(params)
        with pytest.raises(ValueError, match=name):
            jax.eval_shape(tx.init, params)
        tx.init(jax.tree.map(lambda p: jnp.ones(p.shape, jnp.promote_types(p.dtype, "float64")), params))


def test_a_number_meets_the_leaves_of_its_own_link_only():
    with enable_x64():
        tx = oc.multi_optimizer(("narrow", "b", oc.sgd(0.1)), ("wide", "a", oc.sgd(1e39)))
        tx.init({"a": jnp.ones(2, "float64"), "b": jnp.ones(2, "float32")})


@given(name=st.sampled_from(sorted(arguments.RANGES)), value=st.floats() | st.floats(1 - 1e-6, 1) | st.floats(0, 1e-37))
def test_what_is_accepted_is_in_range_when_xla_has_it(name, value):
    try:
        arguments.check_range(name, value)
    except ValueError:
        return
    met = float(used(jnp.float32(value)))
    assert met in arguments.RANGES[name]
    assert (met == 0) == (value == 0)
    if name in ("momentum", "dampening", "ema_momentum"):
        assert (met == 1) == (value == 1)


@jax.jit
def used(x):
    return x * 1


@given(
    end=st.floats(-(2.0**60), 2.0**60).filter(lambda x: abs(x) > 1e-30 or x == 0),
    as_given=st.sampled_from([float, np.float32, np.float64, jnp.float32, jnp.bfloat16]),
)
def test_an_end_lies_in_the_range_if_it_is_closed_however_it_is_rounded(end, as_given):
    """float32(0.1) is larger than 0.1, and float32(0.7) is smaller than 0.7."""
    for low, high, names in ((end, math.inf, "low_open"), (-math.inf, end, "high_open")):
        oc.rule(scaled, slots={}, hyperparams=Hyperparams({"own": Range(low, high)}, own=as_given(end)))
        checks.number("own", as_given(end), Range(low, high))
        open_end = Range(low, high, **{names: True})
        with pytest.raises(ValueError, match="own must be"):
            oc.rule(scaled, slots={}, hyperparams=Hyperparams({"own": open_end}, own=as_given(end)))


def scaled(own):
    return lambda g: (own * g, {})


def test_a_callable_of_no_arguments_may_give_the_end_too():
    tx = oc.rule(scaled, slots={}, hyperparams=Hyperparams({"own": Range(0.0, 0.1)}, own=lambda: 0.1))
    np.testing.assert_array_equal(tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0], np.float32(0.1))


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (Range(-math.inf), "a finite number"),
        (Range(-math.inf, 0.5), "a finite number <= 0.5"),
        (Range(-math.inf, 0.5, high_open=True), "a finite number < 0.5"),
        (Range(0.5), "a finite number >= 0.5"),
        (Range(0.5, low_open=True), "a finite number > 0.5"),
        (Range(0.5, endless=True), "a number >= 0.5, or infinity"),
        (Range(0, 0.5, low_open=True), "a number in (0, 0.5]"),
        (Range(0, 0.5, high_open=True), "a number in [0, 0.5)"),
    ],
)
def test_a_range_says_which_ends_are_in_it(allowed, words):
    assert str(allowed) == words


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (("0",), r"low must be a number or an infinity; got '0' \(str\)"),
        ((0.0, None), r"high must be a number or an infinity; got None \(NoneType\)"),
        ((True,), r"low must be a number or an infinity; got True \(bool\)"),
    ],
)
def test_the_ends_are_numbers(ends, message):
    with pytest.raises(TypeError, match=message):
        Range(*ends)
