"""What a mistake gets: one row each, with the type of the error and the words that help.

A wrong argument fails where it is written; a wrong tree when the step is traced, and by name.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones(3)}}
TX = oc.adamw(0.1)
TORCH, KERAS_ADAMW = oc.presets.torch, oc.presets.keras_adamw


class Mistake(NamedTuple):
    name: str
    make: Callable[[], Any]
    error: type[Exception]
    words: str
    """Plain text, or a regular expression where it begins with `re:`."""


def check(mistake: Mistake) -> None:
    pattern = mistake.words.removeprefix("re:") if mistake.words.startswith("re:") else re.escape(mistake.words)
    with pytest.raises(mistake.error, match=pattern):
        mistake.make()


def params_with(**changed):
    return {**PARAMS, **changed}


# Arguments ------------------------------------------------------------------------------------------------------------

FINITE, POSITIVE = "a finite number >= 0", "a finite number > 0"
BELOW_ONE, FRACTION = "a number in [0, 1)", "a number in [0, 1]"

# Every numeric argument: how to build with it, what is allowed, and values that are not.
NUMBERS: list[tuple[str, str, Callable[[Any], Any], str, list[float]]] = [
    ("clip_by_value", "max_value", oc.clip_by_value, POSITIVE, [0, -1.0]),
    ("clip_by_norm", "max_norm", oc.clip_by_norm, POSITIVE, [0.0, -1]),
    ("clip_by_global_norm", "max_norm", oc.clip_by_global_norm, POSITIVE, [0.0, -1.0]),
    ("scale_by_adam", "beta_1", lambda v: oc.scale_by_adam(beta_1=v), BELOW_ONE, [-0.1, 1.0, 1]),
    ("scale_by_adam", "beta_2", lambda v: oc.scale_by_adam(beta_2=v), BELOW_ONE, [-0.1, 1.0]),
    ("scale_by_adam", "epsilon", lambda v: oc.scale_by_adam(epsilon=v), FINITE, [-1e-7]),
    ("apply_momentum", "momentum", oc.apply_momentum, FRACTION, [-0.1, 1.1]),
    ("apply_momentum", "dampening", lambda v: oc.apply_momentum(0.9, dampening=v), FRACTION, [-0.1, 1.1]),
    ("add_l2_penalty", "weight_decay", oc.add_l2_penalty, FINITE, [-0.1]),
    ("decay_by_path", "learning_rate", lambda v: oc.decay_by_path({"": (0, 1)}, learning_rate=v), FINITE, [-0.1]),
    ("scale_by_nadam", "momentum_decay", lambda v: oc.scale_by_nadam(momentum_decay=v), FINITE, [-0.1]),
    ("scale_by_radam", "beta_2", lambda v: oc.scale_by_radam(beta_2=v), BELOW_ONE, [-0.1, 1.0]),
    *(
        (f"torch.{preset.__name__}", name, lambda v, preset=preset, name=name: preset(**{name: v}), FINITE, [-0.1])
        for preset in (TORCH.adamw, TORCH.adam, TORCH.nadam, TORCH.radam, TORCH.adamax, TORCH.rmsprop, TORCH.adagrad)
        for name in ("lr", "eps", "weight_decay")
    ),
    *(
        (f"torch.{preset.__name__}", f"betas[{i}]", make, BELOW_ONE, [-0.1, 1.0])
        for preset in (TORCH.adamw, TORCH.adam, TORCH.nadam, TORCH.radam, TORCH.adamax)
        for i, make in enumerate(
            (lambda v, p=preset: p(betas=(v, 0.9)), lambda v, p=preset: p(betas=(0.9, v)))  # what the two decays may be
        )
    ),
    ("torch.nadam", "momentum_decay", lambda v: TORCH.nadam(momentum_decay=v), FINITE, [-0.1]),
    ("torch.rmsprop", "alpha", lambda v: TORCH.rmsprop(alpha=v), BELOW_ONE, [-0.1, 1.0]),
    ("torch.rmsprop", "momentum", lambda v: TORCH.rmsprop(momentum=v), FRACTION, [-0.1, 1.1]),
    ("torch.sgd", "lr", lambda v: TORCH.sgd(lr=v), FINITE, [-0.1]),
    ("torch.sgd", "momentum", lambda v: TORCH.sgd(momentum=v), FRACTION, [-0.1, 1.1]),
    ("torch.sgd", "dampening", lambda v: TORCH.sgd(momentum=0.9, dampening=v), FRACTION, [-0.1, 1.1]),
    ("torch.sgd", "weight_decay", lambda v: TORCH.sgd(weight_decay=v), FINITE, [-0.1]),
    ("keras_adamw.adamw", "learning_rate", lambda v: KERAS_ADAMW.adamw(v), FINITE, [-0.1]),
    ("keras_adamw.adamw", "beta_1", lambda v: KERAS_ADAMW.adamw(beta_1=v), BELOW_ONE, [-0.1, 1.0]),
    ("keras_adamw.nadamw", "schedule_decay", lambda v: KERAS_ADAMW.nadamw(schedule_decay=v), FINITE, [-0.1]),
    ("keras_adamw.sgdw", "momentum", lambda v: KERAS_ADAMW.sgdw(momentum=v), FRACTION, [-0.1, 1.1]),
    ("scale_by_learning_rate", "learning_rate", oc.scale_by_learning_rate, FINITE, [-0.1]),
    ("chain", "learning_rate", lambda v: oc.chain(oc.scale_by_learning_rate(), learning_rate=v), FINITE, [-0.1]),
    ("decay_weights", "weight_decay", oc.decay_weights, FINITE, [-0.1]),
    ("decay_weights", "learning_rate", lambda v: oc.decay_weights(0.1, learning_rate=v), FINITE, [-0.1]),
    ("average_params", "momentum", oc.average_params, FRACTION, [-0.1, 1.1]),
    ("clip_by_block_rms", "threshold", oc.clip_by_block_rms, POSITIVE, [0.0, -1.0]),
    ("adaptive_grad_clip", "clipping", oc.adaptive_grad_clip, POSITIVE, [0.0, -0.1]),
    ("adaptive_grad_clip", "epsilon", lambda v: oc.adaptive_grad_clip(0.1, v), FINITE, [-1e-3]),
    ("add_noise", "eta", oc.add_noise, FINITE, [-0.1]),
    ("add_noise", "gamma", lambda v: oc.add_noise(0.1, v), FINITE, [-0.55]),
    ("project_max_norm", "max_value", oc.project_max_norm, POSITIVE, [0.0, -1.0]),
    ("project_min_max_norm", "min_value", oc.project_min_max_norm, FINITE, [-0.1]),
    ("project_min_max_norm", "max_value", lambda v: oc.project_min_max_norm(max_value=v), POSITIVE, [0.0, -1.0]),
    ("project_min_max_norm", "rate", lambda v: oc.project_min_max_norm(rate=v), FRACTION, [-0.1, 1.1]),
    (
        "dynamic_loss_scale",
        "initial_scale",
        lambda v: oc.dynamic_loss_scale(oc.sgd(0.1), v),
        "a number in [5.96046e-08, 1.70141e+38]",
        [0.0, -1.0, 2.0**-25],
    ),
    ("unscale_gradients", "loss_scale", oc.unscale_gradients, POSITIVE, [0.0, -2.0]),
    *(
        (preset.__name__, name, lambda v, preset=preset, name=name, on=on: preset(**{name: v}, **on), allowed, values)
        for preset in (oc.adamw, oc.adam, oc.sgd)
        for name, allowed, values, on in [
            ("learning_rate", FINITE, [-0.1], {}),
            ("weight_decay", FINITE, [-0.1], {}),
            ("clipnorm", POSITIVE, [0.0, -1.0], {}),
            ("clipvalue", POSITIVE, [0.0, -1.0], {}),
            ("global_clipnorm", POSITIVE, [0.0, -1.0], {}),
            ("ema_momentum", FRACTION, [-0.1, 1.1], {"use_ema": True}),
            ("loss_scale_factor", POSITIVE, [0.0, -1.0], {}),
            ("decay", FINITE, [-0.1], {}),
        ]
    ),
    *(
        (preset.__name__, name, lambda v, preset=preset, name=name: preset(**{name: v}), allowed, values)
        for preset in (oc.adamw, oc.adam)
        for name, allowed, values in [
            ("beta_1", BELOW_ONE, [-0.1, 1.0]),
            ("beta_2", BELOW_ONE, [-0.1, 1.0]),
            ("epsilon", FINITE, [-1e-7]),
        ]
    ),
    ("sgd", "momentum", lambda v: oc.sgd(momentum=v), FRACTION, [-0.1, 1.1]),
    ("scale", "factor", oc.scale, "a finite number", []),
    ("scale_by_muon", "momentum", oc.scale_by_muon, FRACTION, [-0.1, 1.1]),
    ("schedule_free", "beta_1", lambda v: oc.schedule_free(oc.scale_by_learning_rate(0.1), v), BELOW_ONE, [1.0]),
    ("decay_first", "weight_decay", lambda v: oc.decay_first(oc.scale(1.0), v), FINITE, [-0.1]),
    (
        "decay_first",
        "learning_rate",
        lambda v: oc.decay_first(oc.scale(1.0), 0.1, learning_rate=v),
        FINITE,
        [-0.1],
    ),
    ("clip_by_block_rms", "threshold", oc.clip_by_block_rms, POSITIVE, [0.0, -1.0]),
    ("scale_by_param_block_rms", "min_scale", oc.scale_by_param_block_rms, FINITE, [-1.0]),
    *(
        (link.__name__, name, lambda v, link=link, name=name: link(**{name: v}), BELOW_ONE, [-0.1, 1.0])
        for link, names in {
            oc.scale_by_rms: ("rho",),
            oc.scale_by_adadelta: ("rho",),
            oc.scale_by_adamax: ("beta_1", "beta_2"),
            oc.scale_by_nadam: ("beta_1", "beta_2"),
            oc.scale_by_lion: ("beta_1", "beta_2"),
            oc.rmsprop: ("rho",),
            oc.adadelta: ("rho",),
            oc.adamax: ("beta_1", "beta_2"),
            oc.nadam: ("beta_1", "beta_2"),
            oc.lion: ("beta_1", "beta_2"),
            oc.lamb: ("beta_1", "beta_2"),
            oc.schedule_free_adamw: ("beta_1", "beta_2"),
            oc.muon: ("adam_beta_1", "adam_beta_2"),
        }.items()
        for name in names
    ),
    *(
        (link.__name__, name, lambda v, link=link, name=name: link(**{name: v}), FINITE, [-0.1])
        for link, names in {
            oc.rmsprop: ("epsilon",),
            oc.adagrad: ("epsilon", "initial_accumulator_value"),
            oc.adadelta: ("epsilon",),
            oc.adamax: ("epsilon",),
            oc.nadam: ("epsilon",),
            oc.lamb: ("epsilon", "weight_decay"),
            oc.schedule_free_adamw: ("epsilon", "weight_decay"),
            oc.adafactor: ("epsilon_1", "epsilon_2"),
            oc.muon: ("epsilon", "weight_decay", "adam_weight_decay", "adam_lr_ratio", "rms_rate"),
            oc.ftrl: (
                "initial_accumulator_value",
                "l1_regularization_strength",
                "l2_regularization_strength",
                "l2_shrinkage_regularization_strength",
                "beta",
            ),
        }.items()
        for name in names
    ),
    ("rmsprop", "momentum", lambda v: oc.rmsprop(momentum=v), FRACTION, [-0.1, 1.1]),
    ("adafactor", "clip_threshold", lambda v: oc.adafactor(clip_threshold=v), POSITIVE, [0.0, -1.0]),
    ("adafactor", "beta_2_decay", lambda v: oc.adafactor(beta_2_decay=v), "a finite number <= 0", [0.1]),
    ("ftrl", "learning_rate_power", lambda v: oc.ftrl(learning_rate_power=v), "a finite number <= 0", [0.1]),
    ("muon", "muon_a", lambda v: oc.muon(muon_a=v), "a finite number", []),
    ("muon", "muon_b", lambda v: oc.muon(muon_b=v), "a finite number", []),
    ("muon", "muon_c", lambda v: oc.muon(muon_c=v), "a finite number", []),
]

PLAIN_NUMBERS = {
    "decay",
    "initial_scale",
    "initial_accumulator_value",
    "learning_rate_power",
    "beta_2_decay",
    "muon_a",
    "muon_b",
    "muon_c",
}
"""Arguments that no array and no schedule can be."""


@pytest.mark.parametrize(
    ("owner", "argument", "make", "allowed", "values"), NUMBERS, ids=lambda x: x if type(x) is str else ""
)
def test_a_number_out_of_range_names_the_argument_the_value_and_what_is_allowed(owner, argument, make, allowed, values):
    for value in [*values, float("nan"), float("inf"), -float("inf")]:
        with pytest.raises(ValueError, match=re.escape(f"{argument} must be {allowed}; got {float(value)!r}")):
            make(value)
        # A concrete array is looked at too; in float32 the value may print differently.
        if argument not in PLAIN_NUMBERS:
            with pytest.raises(ValueError, match=re.escape(f"{argument} must be {allowed}; got ")):
                make(jnp.array(value))


OPTIONAL = {"weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor", "decay"}
OPTIONAL |= {"adam_weight_decay", "rms_rate"}
PRESETS = {"adamw", "adam", "sgd", "lamb", "muon", "schedule_free_adamw"}
RATE_MAY_BE_NONE = {"scale_by_learning_rate", "decay_by_path", "chain", "decay_weights", "decay_first"}


@pytest.mark.parametrize(
    ("owner", "argument", "make", "allowed", "values"), NUMBERS, ids=lambda x: x if type(x) is str else ""
)
def test_a_value_of_the_wrong_kind_names_the_argument_and_the_value(owner, argument, make, allowed, values):
    wrong = ["0.1", True, [0.1], {"a": 0.1}, 1j, object]
    # None is "not set" where that is the default, and the chain's own rate where a link or chain says so.
    none_is_meant = argument in OPTIONAL and owner in PRESETS
    none_is_meant |= argument == "learning_rate" and owner in RATE_MAY_BE_NONE
    if not none_is_meant:
        wrong.append(None)
    for value in wrong:
        if value is object and argument not in PLAIN_NUMBERS:
            continue  # a class is a callable
        with pytest.raises(TypeError, match=rf"{re.escape(argument)} must be .*got "):
            make(value)


@pytest.mark.parametrize("preset", [oc.adamw, oc.adam, oc.sgd])
def test_an_array_that_is_no_real_scalar_is_refused(preset):
    for value in (jnp.ones(2), jnp.array(1j), jnp.array(True), np.ones((1,))):
        with pytest.raises(ValueError, match="learning_rate must be a real scalar; got an array of shape"):
            preset(value)


INTEGERS = [
    ("steps", lambda v: oc.accumulate(oc.sgd(0.1), v)),
    ("overwrite_every", lambda v: oc.average_params(overwrite_every=v)),
    ("calls_per_step", lambda v: oc.average_params(calls_per_step=v)),
    ("growth_steps", lambda v: oc.dynamic_loss_scale(oc.sgd(0.1), growth_steps=v)),
    ("ns_steps", lambda v: oc.muon(ns_steps=v)),
    ("dynamic_growth_steps", lambda v: oc.loss_scale_optimizer(oc.sgd(0.1), dynamic_growth_steps=v)),
    ("max_consecutive", lambda v: oc.skip_nonfinite(oc.sgd(0.1), v)),
    *(
        (name, lambda v, preset=preset, name=name: preset(0.1, **{name: v}))
        for preset in (oc.adamw, oc.adam, oc.sgd)
        for name in ("gradient_accumulation_steps", "ema_overwrite_frequency")
    ),
]


@pytest.mark.parametrize(("argument", "make"), INTEGERS, ids=lambda x: x if type(x) is str else "")
def test_a_count_must_be_an_integer_of_at_least_one(argument, make):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{argument} must be an integer >= 1; got {value}"):
            make(value)
    for value in (1.5, 2.0, "2", True, [2]):
        with pytest.raises(TypeError, match=rf"{argument} must be an integer >= 1; got .*\({type(value).__name__}\)"):
            make(value)


FLAGS = [
    ("amsgrad", lambda v: oc.scale_by_adam(amsgrad=v)),
    ("per_subtree", oc.monitor),
    ("epsilon_hat", lambda v: oc.scale_by_adam(epsilon_hat=v)),
    ("nesterov", lambda v: oc.apply_momentum(0.9, v)),
    ("amsgrad", lambda v: oc.adamw(amsgrad=v)),
    ("amsgrad", lambda v: oc.adam(amsgrad=v)),
    ("nesterov", lambda v: oc.sgd(nesterov=v)),
    ("centered", lambda v: oc.rmsprop(centered=v)),
    ("epsilon_in_root", lambda v: oc.scale_by_rms(epsilon_in_root=v)),
    ("bias_correction", lambda v: oc.scale_by_rms(bias_correction=v)),
    ("relative_step", lambda v: oc.adafactor(relative_step=v)),
    ("exclude_embeddings", lambda v: oc.muon(exclude_embeddings=v)),
    ("nesterov", lambda v: oc.muon(nesterov=v)),
    ("use_ema", lambda v: oc.adamw(use_ema=v)),
    ("use_ema", lambda v: oc.adam(use_ema=v)),
    ("use_ema", lambda v: oc.sgd(use_ema=v)),
    ("epsilon_in_root", lambda v: oc.scale_by_nadam(epsilon_in_root=v)),
    ("next_momentum", lambda v: oc.scale_by_nadam(next_momentum=v)),
    ("epsilon_in_maximum", lambda v: oc.scale_by_adamax(epsilon_in_maximum=v)),
    ("epsilon_in_root", lambda v: oc.scale_by_rss(epsilon_in_root=v)),
    ("amsgrad", lambda v: TORCH.adamw(amsgrad=v)),
    ("maximize", lambda v: TORCH.adamw(maximize=v)),
    ("maximize", lambda v: TORCH.sgd(maximize=v)),
    ("nesterov", lambda v: TORCH.sgd(nesterov=v)),
    ("centered", lambda v: TORCH.rmsprop(centered=v)),
    ("decoupled_weight_decay", lambda v: TORCH.adam(decoupled_weight_decay=v)),
    ("use_cosine_annealing", lambda v: KERAS_ADAMW.adamw(use_cosine_annealing=v)),
]


@pytest.mark.parametrize(("argument", "make"), FLAGS, ids=lambda x: x if type(x) is str else "")
def test_a_flag_must_be_a_bool(argument, make):
    for value in (1, 0, "yes", None, 0.5):
        with pytest.raises(TypeError, match=f"{argument} must be True or False; got {value!r}"):
            make(value)


DTYPES = [
    ("moment_dtype", lambda v: oc.scale_by_adam(moment_dtype=v)),
    ("moment_dtype", lambda v: oc.apply_momentum(0.9, moment_dtype=v)),
    ("average_dtype", lambda v: oc.average_params(average_dtype=v)),
    ("accumulator_dtype", lambda v: oc.accumulate(oc.sgd(0.1), 2, accumulator_dtype=v)),
    *(
        ("moment_dtype", lambda v, preset=preset: preset(moment_dtype=v))
        for preset in (
            oc.rmsprop,
            oc.adadelta,
            oc.adamax,
            oc.nadam,
            oc.lion,
            oc.lamb,
            oc.muon,
            oc.schedule_free_adamw,
        )
    ),
    ("moment_dtype", lambda v: oc.adamw(moment_dtype=v)),
    ("moment_dtype", lambda v: oc.adam(moment_dtype=v)),
    ("moment_dtype", lambda v: oc.sgd(moment_dtype=v)),
    ("moment_dtype", lambda v: oc.scale_by_radam(moment_dtype=v)),
]


@pytest.mark.parametrize(("argument", "make"), DTYPES, ids=lambda x: x if type(x) is str else "")
def test_a_dtype_must_be_floating_point(argument, make):
    for value in ("int32", jnp.complex64, bool):
        with pytest.raises(ValueError, match=f"{argument} must be a floating-point dtype or None; got"):
            make(value)
    for value in ("no_such_dtype", 3):
        with pytest.raises(TypeError, match=f"{argument} must be a floating-point dtype or None; got"):
            make(value)


RATE, ADAM, DECAY = oc.scale_by_learning_rate(), oc.scale_by_adam(), oc.decay_weights(0.1)

ARGUMENTS = [
    Mistake(
        "two clips",
        lambda: oc.adamw(0.1, clipnorm=1.0, clipvalue=0.5),
        ValueError,
        "only one of clipnorm, clipvalue and global_clipnorm can be set; got clipnorm=1.0, clipvalue=0.5",
    ),
    Mistake(
        "three clips",
        lambda: oc.sgd(0.1, clipnorm=1.0, clipvalue=0.5, global_clipnorm=2.0),
        ValueError,
        "got clipnorm=1.0, clipvalue=0.5, global_clipnorm=2.0",
    ),
    Mistake("unknown keyword", lambda: oc.adamw(0.1, lr=0.1), TypeError, "lr"),
    Mistake("unknown keyword of a link", lambda: oc.scale_by_adam(b1=0.9), TypeError, "b1"),
    Mistake("unknown keyword of chain", lambda: oc.chain(oc.sgd(0.1), momentum=0.9), TypeError, "momentum"),
    Mistake("a keyword twice", lambda: oc.adamw(0.1, learning_rate=0.2), TypeError, "learning_rate"),
    Mistake("too many arguments", lambda: oc.clip_by_norm(1.0, 2.0), TypeError, "too many positional arguments"),
    Mistake("an extra by position", lambda: oc.scale_by_adam(0.9, 0.99, 1e-7, True), TypeError, "positional"),
    Mistake("a missing argument", lambda: oc.clip_by_norm(), TypeError, "max_norm"),
    Mistake(
        "exclusions without decay",
        lambda: oc.adam(0.1, exclude_from_weight_decay=["bias"]),
        ValueError,
        "exclude_from_weight_decay was given without a weight_decay",
    ),
    Mistake(
        "exclusions with the decay switched off",
        lambda: oc.adamw(0.1, None, exclude_from_weight_decay=["bias"]),
        ValueError,
        "exclude_from_weight_decay was given without a weight_decay",
    ),
    Mistake(
        "a plain string of exclusions",
        lambda: oc.adamw(0.1, exclude_from_weight_decay="bias"),
        TypeError,
        "exclude_from_weight_decay must be a list of patterns, not a single string; got 'bias'",
    ),
    Mistake("no exclusions", lambda: oc.adamw(0.1, exclude_from_weight_decay=[]), ValueError, "at least one pattern"),
    Mistake(
        "an exclusion that is no regular expression",
        lambda: oc.adamw(0.1, exclude_from_weight_decay=["("]),
        ValueError,
        "pattern '(' is not a regular expression",
    ),
    Mistake(
        "a number as exclusions",
        lambda: oc.adamw(0.1, exclude_from_weight_decay=3),
        TypeError,
        "re:exclude_from_weight_decay.* must be .*got 3",
    ),
    Mistake(
        "numbers as exclusions",
        lambda: oc.adamw(0.1, exclude_from_weight_decay=[1, 2]),
        TypeError,
        "re:exclude_from_weight_decay.*got 1",
    ),
    Mistake(
        "a string as mask",
        lambda: oc.decay_weights(0.1, learning_rate=1.0, mask="bias"),
        TypeError,
        "mask must be a tree of bools or a callable of the parameters (see matching); got 'bias'",
    ),
    Mistake(
        "strings in a mask",
        lambda: oc.decay_weights(0.1, learning_rate=1.0, mask=["bias"]),
        TypeError,
        "mask[0] must be True or False; got 'bias' (str)",
    ),
    Mistake(
        "numbers in a mask",
        lambda: oc.decay_weights(0.1, learning_rate=1.0, mask={"dense": {"kernel": 1}}),
        TypeError,
        'mask["dense"]["kernel"] must be True or False; got 1 (int)',
    ),
    Mistake(
        "a single number as mask",
        lambda: oc.decay_weights(0.1, learning_rate=1.0, mask=0),
        TypeError,
        "mask must be True or False; got 0 (int)",
    ),
    Mistake(
        "an empty mask",
        lambda: oc.decay_weights(0.1, learning_rate=1.0, mask={}),
        TypeError,
        "mask must be a tree of bools",
    ),
    Mistake(
        "a pattern as the mask of frozen parameters",
        lambda: oc.freeze(oc.sgd(0.1), "bias"),
        TypeError,
        "mask must be a tree of bools or a callable of the parameters (see matching); got 'bias'",
    ),
    Mistake(
        "a mask where the transformation belongs",
        lambda: oc.masked(oc.matching("bias"), oc.sgd(0.1)),
        TypeError,
        "inner must be an optchain or Optax transformation; got matching('bias') (Matching)",
    ),
    Mistake(
        "a loss scale for some parameters",
        lambda: oc.masked(oc.sgd(0.1, loss_scale_factor=8.0), oc.matching("bias")),
        ValueError,
        "masked would unscale the gradients of some parameters only (unscale_gradients), and the loss is scaled for all: "
        "put unscale_gradients around masked",
    ),
    Mistake(
        "a dynamic loss scale for some parameters",
        lambda: oc.masked(oc.skip_nonfinite(oc.dynamic_loss_scale(oc.sgd(0.1))), oc.matching("bias")),
        ValueError,
        "put dynamic_loss_scale around masked",
    ),
    Mistake(
        "no groups", lambda: oc.multi_optimizer(default=TX), ValueError, "multi_optimizer needs at least one group"
    ),
    Mistake(
        "a group without a name",
        lambda: oc.multi_optimizer(("bias", TX)),
        TypeError,
        "group 0 must be a tuple (name, parameters, transformation); got ('bias', adamw(learning_rate=0.1))",
    ),
    Mistake(
        "groups as a dict",
        lambda: oc.multi_optimizer({"bias": TX}),
        TypeError,
        "group 0 must be a tuple (name, parameters, transformation); got {'bias'",
    ),
    Mistake(
        "two groups of one name",
        lambda: oc.multi_optimizer(("a", "bias", TX), ("a", "kernel", TX)),
        ValueError,
        "re:the name of a group must be its own and not one of .*; got 'a'",
    ),
    *(
        Mistake(
            f"a group named {name!r}",
            lambda name=name: oc.multi_optimizer((name, "bias", TX)),
            ValueError,
            f"re:the name of a group must be .*; got '{name}'",
        )
        for name in ("default", "inner", "metrics", "average", "a/b")
    ),
    Mistake(
        "a group of a number",
        lambda: oc.multi_optimizer(("a", 3, TX)),
        TypeError,
        "the parameters of group 'a' must be True or False; got 3",
    ),
    Mistake(
        "a group that is not trained by anything",
        lambda: oc.multi_optimizer(("a", "bias", oc.sgd)),
        TypeError,
        "the transformation of group 'a' must be an optchain or Optax transformation; got <function sgd",
    ),
    Mistake(
        "a loss scale in a group",
        lambda: oc.multi_optimizer(("a", "bias", TX), default=oc.dynamic_loss_scale(TX)),
        ValueError,
        "put dynamic_loss_scale around multi_optimizer",
    ),
    Mistake(
        "an axis of outputs that is none",
        lambda: oc.centralize_gradients([0]),
        TypeError,
        "output_axis must be an integer; got [0]",
    ),
    Mistake(
        "units along no axis", lambda: oc.adaptive_grad_clip(0.1, axis="rows"), TypeError, "axis must be an integer or"
    ),
    Mistake(
        "a seed that is several keys",
        lambda: oc.add_noise(0.1, seed=jax.random.split(jax.random.key(0), 3)),
        ValueError,
        "seed must be one key; got an array of them, of shape (3,)",
    ),
    Mistake("a negative seed", lambda: oc.add_noise(0.1, seed=-1), ValueError, "seed must be an integer >= 0; got -1"),
    Mistake(
        "replicas without an axis",
        lambda: oc.cross_replica_mean(None),
        TypeError,
        "axis_name must be a string or a tuple of strings; got None",
    ),
    Mistake(
        "a smallest norm above the largest",
        lambda: oc.project_min_max_norm(2.0, 1.0),
        ValueError,
        "min_value must be at most max_value; got 2.0 and 1.0",
    ),
    Mistake(
        "an axis that is no integer",
        lambda: oc.project_unit_norm(0.5),
        TypeError,
        "axis must be an integer or a sequence of integers; got 0.5",
    ),
    Mistake(
        "an axis twice",
        lambda: oc.project_max_norm(1.0, [0, 0]),
        ValueError,
        "axis must not have an axis twice; got [0, 0]",
    ),
    Mistake(
        "a pattern as a projection's mask",
        lambda: oc.project_non_negative(mask="kernel"),
        TypeError,
        "mask must be a tree of bools or a callable of the parameters (see matching); got 'kernel'",
    ),
    Mistake(
        "an axis name of the wrong kind",
        lambda: oc.clip_by_global_norm(1.0, axis_name=3),
        TypeError,
        "re:axis_name must be .*got 3",
    ),
    Mistake(
        "a callable of two arguments",
        lambda: oc.sgd(lambda step, epoch: 0.1),
        TypeError,
        "re:learning_rate must be callable with the step or with no arguments; got .*\\(step, epoch\\)",
    ),
    Mistake(
        "the legacy decay of an array",
        lambda: oc.sgd(jnp.array(0.1), decay=0.1),
        TypeError,
        "with decay, learning_rate must be a number or a schedule",
    ),
    *(
        Mistake(
            f"betas {betas!r}",
            lambda betas=betas: TORCH.adamw(betas=betas),
            TypeError,
            f"betas must be a pair of numbers in [0, 1); got {betas!r}",
        )
        for betas in (0.9, (0.9,), (0.9, 0.99, 0.999), "ab", None)
    ),
    *(
        Mistake(
            f"PyTorch's nesterov with {given}",
            lambda given=given: TORCH.sgd(nesterov=True, **given),
            ValueError,
            "nesterov needs a momentum > 0 and no dampening; got momentum=",
        )
        for given in ({}, {"momentum": 0.9, "dampening": 0.1})
    ),
    Mistake("Keras's name in PyTorch's dialect", lambda: TORCH.sgd(learning_rate=0.1), TypeError, "learning_rate"),
    Mistake("PyTorch's switches", lambda: TORCH.adamw(fused=True), TypeError, "fused"),
    Mistake(
        "a schedule as Adagrad's decay",
        lambda: TORCH.adagrad(lr_decay=lambda step: 0.1),
        TypeError,
        "lr_decay must be a finite number >= 0",
    ),
    Mistake("factors that are no mapping", lambda: oc.scale_by_path(["a"]), TypeError, "factors must be a mapping"),
    Mistake("no factors", lambda: oc.scale_by_path({}), ValueError, "factors needs at least one pattern"),
    Mistake(
        "a factor's pattern",
        lambda: oc.scale_by_path({"(": 1.0}),
        ValueError,
        "pattern '(' is not a regular expression",
    ),
    Mistake(
        "a negative factor",
        lambda: oc.scale_by_path({"a": -1.0}),
        ValueError,
        "factors['a'] must be a finite number >= 0; got -1.0",
    ),
    Mistake(
        "a decay that is no pair",
        lambda: oc.decay_by_path({"a": 0.1}),
        TypeError,
        "weight_decays['a'] must be a pair (l1, l2) of numbers >= 0; got 0.1",
    ),
    Mistake(
        "a negative decay",
        lambda: oc.decay_by_path({"a": (0.1, -1.0)}),
        ValueError,
        "weight_decays['a'][1] must be a finite number >= 0; got -1.0",
    ),
    *(
        Mistake(
            f"keras-adamw's {name} without total_iterations",
            lambda given=given: KERAS_ADAMW.adamw(**given),
            ValueError,
            "total_iterations must be >= 2 for use_cosine_annealing and weight_decays; got 0",
        )
        for name, given in {
            "annealing": {"use_cosine_annealing": True},
            "decays": {"weight_decays": {"a": (0.0, 0.1)}},
        }.items()
    ),
    *(
        Mistake(
            f"keras-adamw's {next(iter(given))} without annealing",
            lambda given=given: KERAS_ADAMW.sgdw(total_iterations=10, **given),
            ValueError,
            "autorestart, eta_min, eta_max and t_cur have no effect without use_cosine_annealing",
        )
        for given in ({"autorestart": True}, {"eta_min": 0.1}, {"eta_max": 2}, {"t_cur": 1})
    ),
    Mistake(
        "a negative warmup",
        lambda: oc.schedule_free_adamw(warmup_steps=-1),
        ValueError,
        "warmup_steps must be an integer >= 0; got -1",
    ),
    Mistake(
        "decay_first of a gate",
        lambda: oc.decay_first(oc.accumulate(oc.sgd(0.1), 2), 0.1),
        ValueError,
        "rule must act on gradients; accumulate is a gate transformation: put decay_first within it",
    ),
    Mistake(
        "decay_first of a factory", lambda: oc.decay_first(oc.lamb, 0.1), TypeError, "rule must be an optchain or Optax"
    ),
    Mistake(
        "a string as the mask of decay_first",
        lambda: oc.decay_first(oc.scale(1.0), 0.1, mask="bias"),
        TypeError,
        "mask must be a tree of bools or a callable of the parameters (see matching); got 'bias'",
    ),
    Mistake(
        "a learning rate after decay_first, whose rule has one",
        lambda: oc.chain(oc.decay_first(RATE, 0.1), RATE, learning_rate=0.1),
        ValueError,
        "the updates would be scaled twice",
    ),
    Mistake(
        "schedule_free of an average",
        lambda: oc.schedule_free(oc.chain(oc.sgd(0.1), oc.average_params())),
        ValueError,
        "inner must act on gradients; chain is a parameter transformation",
    ),
    Mistake(
        "a static loss scale that cannot be dropped",
        lambda: oc.loss_scale_optimizer(oc.chain(oc.unscale_gradients(8.0), oc.sgd(0.1))),
        ValueError,
        "unscale_gradients within the loss_scale_optimizer would divide the gradients a second time",
    ),
    Mistake(
        "a loss scale out of range",
        lambda: oc.loss_scale_optimizer(oc.sgd(0.1), -1.0),
        ValueError,
        "initial_scale must be a number in [5.96046e-08, 1.70141e+38]; got -1.0",
    ),
    Mistake(
        "layers as one string",
        lambda: oc.muon(exclude_layers="head"),
        TypeError,
        "exclude_layers must be a list of patterns or None; got 'head'",
    ),
    Mistake(
        "layers that there are not",
        lambda: oc.muon(exclude_layers=["haed"]).init(PARAMS),
        ValueError,
        "matching('haed') matches no parameter; the paths are: dense/bias, dense/kernel, head/kernel",
    ),
    Mistake(
        "exclusions with both of Muon's decays switched off",
        lambda: oc.muon(weight_decay=None, adam_weight_decay=None, exclude_from_weight_decay=["bias"]),
        ValueError,
        "exclude_from_weight_decay was given without a weight_decay",
    ),
    Mistake(
        "two coefficients",
        lambda: oc.scale_by_muon(coefficients=(1.5, -0.5)),
        TypeError,
        "coefficients must be three numbers; got (1.5, -0.5)",
    ),
    Mistake(
        "an update of Ftrl without parameters",
        lambda: oc.ftrl().update(PARAMS, oc.ftrl().init(PARAMS)),
        ValueError,
        "apply_ftrl needs the parameters, and update() got none",
    ),
    Mistake(
        "a rule without its learning rate",
        lambda: oc.apply_ftrl().apply(PARAMS, oc.apply_ftrl().init(PARAMS), grads=PARAMS),
        TypeError,
        "apply_ftrl needs learning_rate, and the call did not give it",
    ),
    Mistake("no learning rate", lambda: oc.adamw(None), TypeError, "learning_rate must be"),
    Mistake("a preset's name that is no identifier", lambda: oc.adamw(0.1, name="my adam"), ValueError, "identifier"),
    Mistake(
        "a preset's name that is no string", lambda: oc.adamw(0.1, name=3), TypeError, "name must be a string; got 3"
    ),
    Mistake(
        "accumulate without a transformation",
        lambda: oc.accumulate(0.1, 2),
        TypeError,
        "inner must be an optchain or Optax transformation; got 0.1 (float)",
    ),
    Mistake(
        "accumulate of a factory that was not called",
        lambda: oc.accumulate(oc.sgd, 2),
        TypeError,
        "inner must be an optchain or Optax transformation; got <function sgd",
    ),
    Mistake(
        "make_step without a transformation",
        lambda: oc.make_step(lambda params: 0.0, oc.sgd),
        TypeError,
        "must be an optchain or Optax transformation; got <function sgd",
    ),
]


@pytest.mark.parametrize("mistake", ARGUMENTS, ids=lambda mistake: mistake.name)
def test_a_wrong_argument_fails_where_it_is_written(mistake):
    check(mistake)


def test_with_two_clips_of_which_one_is_none_all_is_well():
    assert oc.adamw(0.1, clipnorm=None, clipvalue=0.5) == oc.adamw(0.1, clipvalue=0.5)


# Chains ---------------------------------------------------------------------------------------------------------------

CHAINS = [
    Mistake("no links", lambda: oc.chain(), ValueError, "chain needs at least one link"),
    Mistake(
        "a link that is none",
        lambda: oc.chain(RATE, 0.1, learning_rate=0.1),
        TypeError,
        "link 1 must be an optchain or Optax transformation, or a pair (name, transformation); got 0.1 (float)",
    ),
    Mistake(
        "a factory that was not called", lambda: oc.chain(oc.scale_by_adam), TypeError, "link 0 must be an optchain"
    ),
    Mistake(
        "a list of links", lambda: oc.chain([ADAM, RATE], learning_rate=0.1), TypeError, "link 0 must be an optchain"
    ),
    Mistake("a pair without a transformation", lambda: oc.chain(("adam", 3)), TypeError, "link 0 must be an optchain"),
    Mistake(
        "a pair with a number for a name",
        lambda: oc.chain((3, ADAM)),
        TypeError,
        "the name of a link must be a string; got 3 (int)",
    ),
    Mistake(
        "two links of one name",
        lambda: oc.chain(("a", ADAM), ("a", oc.apply_momentum(0.9))),
        ValueError,
        "two links of the chain are named 'a'",
    ),
    *(
        Mistake(
            f"name {name!r}",
            lambda name=name: oc.chain((name, ADAM)),
            ValueError,
            f"must be an identifier (letters, digits, underscores); got {name!r}",
        )
        for name in ("a.b", "a/b", "a b", "", "1a", "a-b")
    ),
    *(
        Mistake(f"reserved {name!r}", lambda name=name: oc.chain((name, ADAM)), ValueError, f"got {name!r}")
        for name in (
            "hyperparams",
            "scheduled",
            "count",
            "metrics",
            "inner",
            "mu",
            "nu",
            "nu_max",
            "velocity",
            "average",
            "grads",
            "params",
        )
    ),
    *(
        Mistake(
            f"chain named {name!r}", lambda name=name: oc.chain(oc.chain(ADAM, name=name)), ValueError, f"got {name!r}"
        )
        for name in ("metrics", "mu", "hyperparams")
    ),
    Mistake("a chain's name", lambda: oc.chain(ADAM, name="a/b"), ValueError, "name must be an identifier"),
    Mistake(
        "a rate that no link takes",
        lambda: oc.chain(oc.clip_by_norm(1.0), ADAM, learning_rate=0.1),
        ValueError,
        "the chain was given a learning_rate that none of its links takes (clip_by_norm, scale_by_adam): "
        "add scale_by_learning_rate()",
    ),
    Mistake(
        "a rate around a preset that has its own",
        lambda: oc.chain(oc.adam(0.1), learning_rate=0.1),
        ValueError,
        "a learning_rate that none of its links takes (adam)",
    ),
    Mistake(
        "two learning rates",
        lambda: oc.chain(oc.scale_by_learning_rate(0.1), oc.scale_by_learning_rate(0.2)),
        ValueError,
        "scale_by_learning_rate_2 stands after scale_by_learning_rate, and cannot: the updates would be scaled twice",
    ),
    Mistake(
        "two learning rates, one in a preset",
        lambda: oc.chain(oc.sgd(0.1), RATE, learning_rate=0.1),
        ValueError,
        "the updates would be scaled twice, and their sign flipped twice",
    ),
    Mistake(
        "adam after the learning rate",
        lambda: oc.chain(RATE, ADAM, learning_rate=0.1),
        ValueError,
        "scale_by_adam stands after scale_by_learning_rate, and cannot: a rule that divides by the gradient's own size "
        "cancels the learning rate",
    ),
    Mistake(
        "adam after the learning rate, inside a gate",
        lambda: oc.chain(RATE, oc.accumulate(ADAM, 2), learning_rate=0.1),
        ValueError,
        "cancels the learning rate",
    ),
    Mistake(
        "decay before the learning rate",
        lambda: oc.chain(DECAY, RATE, learning_rate=0.1),
        ValueError,
        "scale_by_learning_rate stands after decay_weights, and cannot: the decay would be scaled again and its sign "
        "flipped: weights would grow",
    ),
    Mistake(
        "decay before adam",
        lambda: oc.chain(oc.decay_weights(0.1, learning_rate=1.0), ADAM),
        ValueError,
        "scale_by_adam stands after decay_weights, and cannot: the decay would be rescaled with the gradient",
    ),
    Mistake(
        "a penalty after the learning rate",
        lambda: oc.chain(RATE, oc.add_l2_penalty(0.1), learning_rate=0.1),
        ValueError,
        "add_l2_penalty stands after scale_by_learning_rate, and cannot: the sign has flipped: weights would grow",
    ),
    Mistake(
        "a penalty before unscaling",
        lambda: oc.chain(oc.add_l2_penalty(0.1), oc.unscale_gradients(1024.0)),
        ValueError,
        "unscale_gradients stands after add_l2_penalty, and cannot: the penalty is not scaled as the gradients are",
    ),
    Mistake(
        "clip before unscaling",
        lambda: oc.chain(oc.clip_by_global_norm(1.0), oc.unscale_gradients(1024.0)),
        ValueError,
        "unscale_gradients stands after clip_by_global_norm, and cannot: the threshold would apply to gradients that are "
        "still scaled",
    ),
    *(
        Mistake(
            f"{clip.name} before unscaling",
            lambda clip=clip: oc.chain(clip, oc.unscale_gradients(1024.0)),
            ValueError,
            f"unscale_gradients stands after {clip.name}, and cannot: the threshold would apply to gradients that are still "
            "scaled",
        )
        for clip in (oc.clip_by_block_rms(1.0), oc.adaptive_grad_clip(0.1))
    ),
    Mistake(
        "adam before unscaling",
        lambda: oc.chain(ADAM, oc.unscale_gradients(1024.0)),
        ValueError,
        "unscale_gradients stands after scale_by_adam, and cannot",
    ),
    Mistake(
        "unscaling after the learning rate",
        lambda: oc.chain(oc.scale_by_learning_rate(0.1), oc.unscale_gradients(1024.0)),
        ValueError,
        "unscale_gradients stands after scale_by_learning_rate, and cannot: the updates are not gradients any more",
    ),
    Mistake(
        "a learning rate for some after one for all",
        lambda: oc.chain(oc.sgd(0.1), oc.masked(oc.sgd(0.1), oc.matching("bias"))),
        ValueError,
        "the updates would be scaled twice, and their sign flipped twice",
    ),
    Mistake(
        "a learning rate after groups that have their own",
        lambda: oc.chain(oc.multi_optimizer(("a", "bias", oc.sgd(0.1)), default=TX), RATE, learning_rate=0.1),
        ValueError,
        "the updates would be scaled twice, and their sign flipped twice",
    ),
    Mistake(
        "a gradient link after a group with a gate",
        lambda: oc.chain(oc.multi_optimizer(("a", "bias", oc.skip_nonfinite(TX)), default=TX), oc.clip_by_norm(1.0)),
        ValueError,
        "clip_by_norm (gradient) stands after multi_optimizer (gate)",
    ),
    Mistake(
        "a gradient link after a frozen gate",
        lambda: oc.chain(oc.freeze(oc.accumulate(oc.sgd(0.1), 2), oc.matching("bias")), oc.clip_by_norm(1.0)),
        ValueError,
        "clip_by_norm (gradient) stands after freeze (gate)",
    ),
    Mistake(
        "a gradient link after a gate",
        lambda: oc.chain(oc.accumulate(oc.sgd(0.1), 2), oc.clip_by_norm(1.0)),
        ValueError,
        "clip_by_norm (gradient) stands after accumulate (gate): a link on gradients cannot follow a gate",
    ),
    Mistake(
        "a gradient link after an average",
        lambda: oc.chain(oc.average_params(), oc.clip_by_norm(1.0)),
        ValueError,
        "clip_by_norm (gradient) stands after average_params (parameter)",
    ),
    Mistake(
        "an Optax link after an average",
        lambda: oc.chain(oc.average_params(), optax.trace(0.9)),
        ValueError,
        "optax (gradient) stands after average_params (parameter)",
    ),
    Mistake(
        "an average after a projection",
        lambda: oc.chain(oc.project_unit_norm(), oc.average_params()),
        ValueError,
        "average_params stands after project_unit_norm, and cannot: the average would take the parameters out of the "
        "projection",
    ),
    Mistake(
        "an average after a projection of some",
        lambda: oc.chain(oc.project_non_negative(mask=oc.matching("kernel")), oc.average_params()),
        ValueError,
        "average_params stands after project_non_negative, and cannot",
    ),
    Mistake(
        "a gate after an average",
        lambda: oc.chain(oc.average_params(), oc.accumulate(oc.sgd(0.1), 2)),
        ValueError,
        "accumulate (gate) stands after average_params (parameter)",
    ),
    Mistake(
        "two gates",
        lambda: oc.chain(oc.accumulate(oc.sgd(0.1), 2), oc.accumulate(oc.apply_momentum(0.9), 2)),
        ValueError,
        "accumulate_2 (gate) stands after accumulate (gate): a chain has at most one gate",
    ),
    Mistake(
        "a wrong order across nested chains",
        lambda: oc.chain(oc.chain(oc.sgd(0.1), oc.average_params()), oc.chain(oc.clip_by_norm(1.0))),
        ValueError,
        "clip_by_norm (gradient) stands after average_params (parameter)",
    ),
]


@pytest.mark.parametrize("mistake", CHAINS, ids=lambda mistake: mistake.name)
def test_a_chain_that_cannot_be_meant_says_which_link_and_why(mistake):
    check(mistake)


# Trees ----------------------------------------------------------------------------------------------------------------


def apply(grads=PARAMS, params=PARAMS, tx=TX, state=None, **extra):
    return tx.apply(params, tx.init(PARAMS) if state is None else state, grads=grads, **extra)


def update(updates=PARAMS, params=PARAMS, tx=TX, state=None, **extra):
    return tx.update(updates, tx.init(PARAMS) if state is None else state, params, **extra)


def kernel(value):
    return params_with(dense={"kernel": value, "bias": jnp.ones(3)})


TREES = [
    Mistake(
        "a shape that would broadcast",
        lambda: apply(kernel(jnp.ones((1, 3)))),
        ValueError,
        'grads["dense"]["kernel"]: shape (1, 3), params have (3, 3)',
    ),
    Mistake(
        "a scalar that would broadcast",
        lambda: apply(kernel(1.0)),
        ValueError,
        'grads["dense"]["kernel"]: shape (), params have (3, 3)',
    ),
    Mistake(
        "a missing gradient",
        lambda: apply(kernel(None)),
        ValueError,
        'grads["dense"]["kernel"] is missing, params have an array of shape (3, 3) there',
    ),
    Mistake(
        "a missing key",
        lambda: apply({"dense": PARAMS["dense"]}),
        ValueError,
        'grads["head"]["kernel"] is missing, params have an array of shape (3,) there',
    ),
    Mistake(
        "an extra leaf",
        lambda: apply(params_with(tail=jnp.ones(2))),
        ValueError,
        'grads["tail"] has no counterpart: params have no leaf there',
    ),
    Mistake(
        "a gradient for a parameter that is None",
        lambda: TX.apply(kernel(None), TX.init(kernel(None)), grads=PARAMS),
        ValueError,
        'grads["dense"]["kernel"] has no counterpart',
    ),
    Mistake(
        "another container",
        lambda: TX.apply([jnp.ones(2)], TX.init([jnp.ones(2)]), grads=(jnp.ones(2),)),
        ValueError,
        "grads and params have the same paths in different containers",
    ),
    Mistake(
        "a list for a dict",
        lambda: apply([jnp.ones(3)]),
        ValueError,
        'grads["dense"]["bias"] is missing',
    ),
    Mistake(
        "the wrong shape in the update form",
        lambda: update(kernel(jnp.ones((1, 3)))),
        ValueError,
        'updates["dense"]["kernel"]: shape (1, 3), params have (3, 3)',
    ),
    Mistake(
        "integer parameters",
        lambda: TX.init(params_with(step=jnp.array(3))),
        TypeError,
        'params["step"] has dtype int32; parameters must be floating-point or complex arrays',
    ),
    Mistake("a Python integer", lambda: TX.init({"step": 3}), TypeError, 'params["step"] has dtype int'),
    Mistake("bools", lambda: TX.init({"mask": jnp.array(True)}), TypeError, 'params["mask"] has dtype bool'),
    Mistake(
        "integer gradients",
        lambda: apply(jax.tree.map(lambda p: p.astype(jnp.int32), PARAMS)),
        TypeError,
        'grads["dense"]["bias"] has dtype int32',
    ),
    Mistake(
        "gradients of integers",
        lambda: apply(kernel(np.zeros((3, 3), jax.dtypes.float0))),
        TypeError,
        'grads["dense"]["kernel"] has dtype',
    ),
    Mistake(
        "a function among the parameters",
        lambda: TX.init(params_with(activation=jax.nn.relu)),
        TypeError,
        're:params\\["activation"\\] is .*; parameters must be floating-point or complex arrays.*put None',
    ),
    Mistake(
        "a string among the parameters",
        lambda: TX.init({"name": "dense"}),
        TypeError,
        "params[\"name\"] is 'dense' (str)",
    ),
    Mistake(
        "a key array among the parameters",
        lambda: TX.init(params_with(rng=jax.random.key(0))),
        TypeError,
        'params["rng"] has dtype key',
    ),
    Mistake(
        "complex gradients of real parameters",
        lambda: apply(kernel(jnp.ones((3, 3), jnp.complex64))),
        TypeError,
        'grads["dense"]["kernel"] is complex (complex64), its parameter is real (float32)',
    ),
    Mistake(
        "gradients of another shape than the state, without params",
        lambda: oc.scale_by_adam().update(kernel(jnp.ones((1, 3))), oc.scale_by_adam().init(PARAMS)),
        ValueError,
        're:scale_by_adam state\\["mu"\\]\\["dense"\\]\\["kernel"\\]: shape \\(3, 3\\), updates have \\(1, 3\\)',
    ),
    Mistake(
        "a factor for no parameter",
        lambda: oc.scale_by_path({"kernel": 1.0, "gamma": 0.5}).init(PARAMS),
        ValueError,
        "factors: pattern 'gamma' decides for no parameter: it matches none; the paths are: dense/bias, dense/kernel, "
        "head/kernel",
    ),
    Mistake(
        "a factor whose parameters are taken",
        lambda: oc.scale_by_path({"kernel": 1.0, "head/kernel": 0.5}).init(PARAMS),
        ValueError,
        "pattern 'head/kernel' decides for no parameter: every parameter that it matches is taken by a pattern before it",
    ),
    Mistake(
        "a decay for no parameter",
        lambda: KERAS_ADAMW.adamw(total_iterations=5, weight_decays={"gamma": (0.0, 0.1)}).init(PARAMS),
        ValueError,
        "weight_decays: pattern 'gamma' decides for no parameter",
    ),
    Mistake(
        "no params in update, with a penalty",
        lambda: update(params=None, tx=TORCH.sgd(weight_decay=0.1)),
        ValueError,
        "add_l2_penalty needs the parameters",
    ),
    Mistake("trees by position", lambda: TX.apply(PARAMS, TX.init(PARAMS), PARAMS), TypeError, "positional argument"),
    Mistake(
        "params and gradients in Optax's order",
        lambda: TX.apply(PARAMS, PARAMS, TX.init(PARAMS)),
        TypeError,
        "positional argument",
    ),
    Mistake("no gradients", lambda: TX.apply(PARAMS, TX.init(PARAMS)), TypeError, "grads"),
    Mistake(
        "state and params swapped",
        lambda: TX.apply(TX.init(PARAMS), PARAMS, grads=PARAMS),
        (TypeError, ValueError),
        "re:.",
    ),
    Mistake(
        "no params in update",
        lambda: TX.update(PARAMS, TX.init(PARAMS)),
        ValueError,
        "decay_weights needs the parameters, and update() got none: call tx.update(updates, state, params)",
    ),
    Mistake(
        "no params in update, in a gate in a chain",
        lambda: update(params=None, tx=oc.sgd(0.1, weight_decay=0.1, gradient_accumulation_steps=2)),
        ValueError,
        "decay_weights needs the parameters",
    ),
    Mistake(
        "no params in update, under its chosen name",
        lambda: update(params=None, tx=oc.chain(("slow", oc.average_params()))),
        ValueError,
        "slow needs the parameters",
    ),
]


@pytest.mark.parametrize("mistake", TREES, ids=lambda mistake: mistake.name)
def test_a_wrong_tree_is_an_error_that_names_the_leaf(mistake):
    check(mistake)


@pytest.mark.parametrize("form", [apply, update])
def test_a_wrong_tree_is_an_error_under_jit_too(form):
    with pytest.raises(ValueError, match=r'\["dense"\]\["kernel"\]: shape \(1, 3\), params have \(3, 3\)'):
        jax.jit(form)(kernel(jnp.ones((1, 3))))


def test_update_without_params_works_where_no_link_needs_them():
    updates, _ = update(params=None, tx=oc.adam(0.1, clipnorm=1.0))
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


# States ---------------------------------------------------------------------------------------------------------------

STATES = [
    Mistake(
        "Optax's state",
        lambda: apply(state=optax.adamw(0.1).init(PARAMS)),
        TypeError,
        "the state of adamw must be the dict that init returned; got tuple",
    ),
    Mistake("no state", lambda: TX.apply(PARAMS, None, grads=PARAMS), TypeError, "got NoneType"),
    Mistake(
        "an empty state",
        lambda: apply(state={}),
        ValueError,
        "the state of adamw has no entry 'hyperparams': it is another transformation's",
    ),
    Mistake(
        "the state of a chain without a link",
        lambda: apply(state={k: v for k, v in TX.init(PARAMS).items() if k != "scale_by_adam"}),
        ValueError,
        "the state of adamw has no entry 'scale_by_adam'",
    ),
    Mistake(
        "the state of sgd",
        lambda: apply(state=oc.sgd(0.1, 0.9).init(PARAMS)),
        ValueError,
        "the state of adamw has no entry 'scale_by_adam'",
    ),
    Mistake(
        "the state of a chain with another link",
        lambda: apply(state=oc.adamw(0.1, use_ema=True).init(PARAMS)),
        ValueError,
        "the state of adamw has an entry 'average_params' that adamw does not know",
    ),
    Mistake(
        "the state without AMSGrad",
        lambda: apply(tx=oc.adamw(0.1, amsgrad=True), state=TX.init(PARAMS)),
        ValueError,
        "the state of scale_by_adam has no entry 'nu_max'",
    ),
    Mistake(
        "the state of a number where there is a schedule",
        lambda: apply(tx=oc.adamw(lambda step: 0.1), state=TX.init(PARAMS)),
        ValueError,
        "the state of adamw has no entry 'count'",
    ),
    Mistake(
        "a state that misses one hyperparameter",
        lambda: apply(tx=oc.adam(0.1, jnp.array(0.9), jnp.array(0.9)), state=oc.adam(0.1, jnp.array(0.9)).init(PARAMS)),
        ValueError,
        "beta_2",
    ),
    Mistake(
        "the state of a chain of other links, nested in a gate",
        lambda: apply(
            tx=oc.adam(0.1, gradient_accumulation_steps=2),
            state=oc.sgd(0.1, 0.9, gradient_accumulation_steps=2).init(PARAMS),
        ),
        ValueError,
        "has no entry 'scale_by_adam'",
    ),
    Mistake(
        "the state of other parameters",
        lambda: apply(state=TX.init(kernel(jnp.ones((2, 2))))),
        ValueError,
        're:scale_by_adam state\\["mu"\\]\\["dense"\\]\\["kernel"\\]: shape \\(2, 2\\), updates have \\(3, 3\\)',
    ),
    Mistake(
        "the state of fewer parameters",
        lambda: apply(state=TX.init({"dense": PARAMS["dense"]})),
        ValueError,
        're:scale_by_adam state\\["mu"\\]\\["head"\\]\\["kernel"\\] is missing',
    ),
    Mistake(
        "a state without the Optax link's",
        lambda: apply(tx=oc.chain(("trace", optax.trace(0.9))), state={}),
        ValueError,
        "the state has no entry 'trace'",
    ),
]


@pytest.mark.parametrize("mistake", STATES, ids=lambda mistake: mistake.name)
def test_a_foreign_state_is_an_error_that_names_the_link(mistake):
    check(mistake)


# Calls ----------------------------------------------------------------------------------------------------------------

CALLS = [
    Mistake(
        "no learning rate for the link",
        lambda: apply(tx=RATE, state={}),
        TypeError,
        "scale_by_learning_rate needs learning_rate, and the call did not give it; give it to the chain, "
        "chain(…, learning_rate=…)",
    ),
    Mistake(
        "no learning rate for the chain",
        lambda: apply(tx=oc.chain(ADAM, RATE)),
        TypeError,
        "scale_by_learning_rate needs learning_rate",
    ),
    Mistake(
        "no learning rate for decay, under its chosen name",
        lambda: apply(tx=oc.chain(("shrink", DECAY)), state={}),
        TypeError,
        "shrink needs learning_rate",
    ),
    Mistake(
        "no learning rate in a gate",
        lambda: apply(tx=oc.accumulate(oc.chain(ADAM, RATE), 2)),
        TypeError,
        "scale_by_learning_rate needs learning_rate",
    ),
    Mistake(
        "a learning rate at the call of a chain that owns one",
        lambda: apply(learning_rate=0.5),
        TypeError,
        "adamw owns learning_rate: change it with set_hyperparams, not by the call",
    ),
    Mistake(
        "a learning rate at the call of a link that owns one",
        lambda: update(tx=oc.scale_by_learning_rate(0.1), learning_rate=0.5),
        TypeError,
        "scale_by_learning_rate owns learning_rate",
    ),
]


@pytest.mark.parametrize("mistake", CALLS, ids=lambda mistake: mistake.name)
def test_a_wrong_call_is_an_error_that_names_the_link(mistake):
    check(mistake)


# Masks on parameters --------------------------------------------------------------------------------------------------


def decay_with(mask):
    return oc.decay_weights(0.1, learning_rate=1.0, mask=mask)


MASKS = [
    Mistake(
        "a pattern that matches nothing",
        lambda: oc.adamw(0.1, exclude_from_weight_decay=["biass"]).init(PARAMS),
        ValueError,
        "re:'biass'.* matches no parameter; the paths are: dense/bias, dense/kernel, head/kernel",
    ),
    Mistake(
        "a mask of another structure",
        lambda: decay_with({"dens": True}).init(PARAMS),
        ValueError,
        "mask does not fit the parameters",
    ),
    Mistake(
        "a mask that goes deeper than the parameters",
        lambda: decay_with({"dense": {"kernel": {"a": True}, "bias": True}, "head": True}).init(PARAMS),
        ValueError,
        "mask does not fit the parameters",
    ),
    Mistake(
        "a mask with a key too many",
        lambda: decay_with({"dense": True, "head": True, "tail": True}).init(PARAMS),
        ValueError,
        "mask does not fit the parameters",
    ),
    Mistake(
        "a list for a dict",
        lambda: decay_with([True, False]).init(PARAMS),
        ValueError,
        "mask does not fit the parameters",
    ),
    Mistake(
        "a callable that returns no bools",
        lambda: decay_with(lambda params: jax.tree.map(jnp.ndim, params)).init(PARAMS),
        TypeError,
        'mask["dense"]["bias"] must be True or False; got 1 (int)',
    ),
    Mistake(
        "a callable that returns arrays of bools",
        lambda: decay_with(lambda params: jax.tree.map(lambda p: p > 0, params)).init(PARAMS),
        TypeError,
        'mask["dense"]["bias"] must be True or False; got',
    ),
    Mistake(
        "frozen parameters of no such name",
        lambda: oc.freeze(oc.sgd(0.1), oc.matching("^encoder/")).init(PARAMS),
        ValueError,
        "matching('^encoder/') matches no parameter; the paths are: dense/bias, dense/kernel, head/kernel",
    ),
    Mistake(
        "a kernel without the axis of outputs",
        lambda: update(tx=oc.centralize_gradients(2), state={}),
        ValueError,
        "centralize_gradients: dense/kernel of shape (3, 3) has no axis 2: leave it out by a mask",
    ),
    Mistake(
        "a rank that has no units",
        lambda: oc.adaptive_grad_clip(0.1).init({"w": jnp.ones((2,) * 6)}),
        ValueError,
        "adaptive_grad_clip has no rule for w of shape (2, 2, 2, 2, 2, 2): give the axis, or leave it out with masked",
    ),
    Mistake(
        "an adaptive clip without parameters",
        lambda: update(params=None, tx=oc.adaptive_grad_clip(0.1), state={}),
        ValueError,
        "adaptive_grad_clip needs the parameters, and update() got none",
    ),
    Mistake(
        "an axis that a parameter does not have",
        lambda: oc.project_max_norm(1.0, 1).init(PARAMS),
        ValueError,
        "project_max_norm: dense/bias of shape (3,) has no axis 1: leave it out by a mask",
    ),
    Mistake(
        "a projection of no parameter",
        lambda: oc.project_non_negative(mask=oc.matching("kernels")).init(PARAMS),
        ValueError,
        "matching('kernels') matches no parameter",
    ),
    Mistake(
        "an excluding tree that does not fit",
        lambda: oc.adamw(0.1, exclude_from_weight_decay={"dens": True}).init(PARAMS),
        ValueError,
        "exclude_from_weight_decay does not fit the parameters",
    ),
    Mistake(
        "an excluding callable that returns a string",
        lambda: oc.adamw(0.1, exclude_from_weight_decay=lambda params: "bias").init(PARAMS),
        TypeError,
        "exclude_from_weight_decay must be True or False; got 'bias'",
    ),
]


@pytest.mark.parametrize("mistake", MASKS, ids=lambda mistake: mistake.name)
def test_a_mask_that_fits_nothing_is_an_error_at_init(mistake):
    check(mistake)
