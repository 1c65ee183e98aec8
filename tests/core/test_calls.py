"""A wrong keyword names the function and the argument that was meant, in every dialect."""

import dataclasses
import inspect
import re

import hypothesis.strategies as st
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

import optchain as oc
from optchain.core.registry import FACTORIES

TORCH, KERAS_ADAMW = oc.presets.torch, oc.presets.keras_adamw
SCHEDULES = {
    name: kind
    for name, kind in vars(oc.schedules).items()
    if isinstance(kind, type) and kind is not oc.schedules.Schedule
}
OTHERS = {**SCHEDULES, **{kind.__name__: kind for kind in (oc.ReduceLROnPlateau, oc.EarlyStopping, oc.make_step)}}
OURS = {name: factory for name, factory in FACTORIES.items() if factory.__module__.startswith("optchain.")}


@pytest.mark.parametrize(
    ("function", "given", "meant"),
    [
        (oc.adamw, "b1", "adamw() has no argument 'b1'; did you mean beta_1?"),
        (oc.adamw, "b2", "did you mean beta_2?"),
        (oc.adamw, "betas", "did you mean beta_1 and beta_2?"),
        (oc.adamw, "eps", "did you mean epsilon?"),
        (oc.adamw, "lr", "did you mean learning_rate?"),
        (oc.adamw, "mu_dtype", "did you mean moment_dtype?"),
        (oc.adamw, "wd", "did you mean weight_decay?"),
        (
            oc.adamw,
            "mask",
            "did you mean exclude_from_weight_decay? It is the opposite: it chooses what mask leaves out.",
        ),
        (oc.adamw, "eps_root", "no argument 'eps_root' (Optax adds it within the root"),
        (oc.adamw, "max_grad_norm", "did you mean global_clipnorm?"),
        (oc.adamw, "global_clipnrom", "did you mean global_clipnorm?"),
        (oc.adafactor, "eps", "did you mean epsilon_1?"),
        (oc.muon, "betas", "did you mean adam_beta_1 and adam_beta_2?"),
        (oc.rmsprop, "alpha", "did you mean rho?"),
        (oc.sgd, "b1", "sgd() has no argument 'b1'; it has: learning_rate, momentum, nesterov"),
        (TORCH.adamw, "learning_rate", "presets.torch.adamw() has no argument 'learning_rate'; did you mean lr?"),
        (TORCH.adamw, "learnin_rate", "did you mean lr?"),
        (TORCH.adamw, "beta_1", "did you mean betas?"),
        (TORCH.adamw, "epsilon", "did you mean eps?"),
        (TORCH.adamw, "mask", "masked, freeze and multi_optimizer"),
        (TORCH.adamw, "fused", "XLA fuses"),
        (TORCH.adamw, "mu_dtype", "no argument 'mu_dtype' (the moments are a rule's, and so is their dtype"),
        (TORCH.sgd, "accumulator_dtype", "the moments are a rule's"),
        (TORCH.adam, "moment_dtype", "scale_by_adam(moment_dtype=…)"),
        (TORCH.rmsprop, "rho", "did you mean alpha?"),
        (KERAS_ADAMW.adamw, "b1", "presets.keras_adamw.adamw() has no argument 'b1'; did you mean beta_1?"),
        (KERAS_ADAMW.sgdw, "lr", "presets.keras_adamw.sgdw() has no argument 'lr'; did you mean learning_rate?"),
        (KERAS_ADAMW.adamw, "mu_dtype", "scale_by_adam(moment_dtype=…)"),
        (KERAS_ADAMW.adamw, "nu_dtype", "the moments are a rule's"),
        (KERAS_ADAMW.nadamw, "moment_dtype", "the moments are a rule's"),
        (KERAS_ADAMW.adamw, "mask", "presets.keras_adamw.adamw() has no argument 'mask'; did you mean weight_decays?"),
        (KERAS_ADAMW.sgdw, "weight_decay_mask", "did you mean weight_decays?"),
        (KERAS_ADAMW.sgdw, "weight_decay", "did you mean weight_decays?"),
        (KERAS_ADAMW.sgdw, "wd", "did you mean weight_decays?"),
        (KERAS_ADAMW.nadamw, "exclude_from_weight_decay", "did you mean weight_decays? It is the opposite"),
        (oc.scale_by_adam, "eps", "scale_by_adam() has no argument 'eps'; did you mean epsilon?"),
        (oc.scale_by_adam, "lr", "the rate is a chain's"),
        (oc.decay_weights, "exclude_from_weight_decay", "did you mean mask? It is the opposite"),
        (oc.chain, "lr", "chain() has no argument 'lr'; did you mean learning_rate?"),
        (oc.accumulate, "every_k_schedule", "did you mean steps?"),
        (oc.adamw, "momentum", "adamw() has no argument 'momentum'; did you mean beta_1?"),
        (TORCH.adam, "momentum", "did you mean betas?"),
        (oc.adagrad, "momentum", "no argument 'momentum' (apply_momentum is a link of its own"),
        (oc.sgd, "weight_decay_mask", "did you mean exclude_from_weight_decay? It is the opposite"),
        (oc.decay_weights, "weight_decay_mask", "did you mean mask?"),
        (
            SCHEDULES["CosineDecay"],
            "decay_step",
            "CosineDecay() has no argument 'decay_step'; did you mean decay_steps?",
        ),
        (SCHEDULES["CosineDecay"], "init_value", "did you mean initial_learning_rate?"),
        (SCHEDULES["CosineDecay"], "learning_rate", "did you mean initial_learning_rate?"),
        (SCHEDULES["StepLR"], "optimizer", "no argument 'optimizer' (a schedule is a function of the step"),
        (SCHEDULES["StepLR"], "learning_rate", "did you mean lr?"),
        (oc.ReduceLROnPlateau, "threshold", "ReduceLROnPlateau() has no argument 'threshold'; did you mean min_delta?"),
        (oc.ReduceLROnPlateau, "min_lr", "did you mean min_learning_rate?"),
        (
            TORCH.ReduceLROnPlateau,
            "min_delta",
            "ReduceLROnPlateau() has no argument 'min_delta'; did you mean threshold?",
        ),
        (TORCH.ReduceLROnPlateau, "min_learning_rate", "did you mean min_lr?"),
        (SCHEDULES["SequentialLR"], "boundaries", "did you mean milestones?"),
        (SCHEDULES["CyclicLR"], "cycle_momentum", "CyclicMomentum(cycle)"),
        (oc.EarlyStopping, "monitor", "update is given the metric itself"),
        (oc.make_step, "weight", "make_step() has no argument 'weight' (a call is given it"),
        (oc.make_step, "optimizer", "did you mean tx?"),
    ],
)
def test_a_wrong_keyword_names_the_function_and_the_one_that_was_meant(function, given, meant):
    with pytest.raises(TypeError) as raised:
        function(**{given: 0.5})
    assert meant in str(raised.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: oc.accumulate(oc.sgd(0.1)), "accumulate() missing a required argument: 'steps'"),
        (lambda: oc.clip_by_norm(1.0, 2.0), "clip_by_norm() too many positional arguments"),
        (lambda: TORCH.adamw(0.1, lr=0.1), "presets.torch.adamw() multiple values for argument 'lr'"),
    ],
)
def test_a_call_that_does_not_fit_names_the_function(call, words):
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value) == words


def test_a_link_of_ones_own_says_so_too():
    @oc.register(name="tests.warm")
    def warm(temperature=0.5):
        return oc.scale(temperature)

    with pytest.raises(TypeError, match=r"tests\.warm\(\) has no argument 'temprature'; did you mean temperature\?"):
        warm(temprature=0.1)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(OURS | OTHERS)), st.text(min_size=1, max_size=20))
def test_no_unknown_keyword_is_taken_and_every_one_is_named(name, keyword):
    factory = (OURS | OTHERS)[name]
    parameters = inspect.signature(factory).parameters
    if keyword in parameters:
        return
    with pytest.raises(TypeError) as raised:
        factory(**{keyword: 1})
    assert str(raised.value).startswith(f"{name}() has no argument {keyword!r}")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_two_letters_that_changed_places_are_understood(data):
    every = OURS | OTHERS
    name = data.draw(st.sampled_from(sorted(every)))
    known = [p for p in inspect.signature(every[name]).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    long = [p.name for p in known if len(p.name) >= 8]
    if not long:
        return
    meant = data.draw(st.sampled_from(long))
    place = data.draw(st.integers(1, len(meant) - 2))
    typo = meant[:place] + meant[place + 1] + meant[place] + meant[place + 2 :]
    if typo in {p.name for p in known}:
        return
    with pytest.raises(TypeError, match="did you mean"):
        every[name](**{typo: 1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lr", "hyperparameter 'lr' is unknown (did you mean learning_rate?); there are: learning_rate, weight_decay"),
        ("learning_rat", "did you mean learning_rate?"),
        ("wd", "did you mean weight_decay?"),
        ("zzz", "hyperparameter 'zzz' is unknown; there are: learning_rate, weight_decay"),
    ],
)
def test_a_wrong_hyperparameter_names_the_one_that_was_meant(name, words):
    state = oc.adamw(jnp.array(0.1), weight_decay=jnp.array(0.1)).init(jnp.ones(2))
    with pytest.raises(ValueError, match=re.escape(words)):
        oc.set_hyperparams(state, {name: 0.5})


def test_a_registered_schedule_of_ones_own_says_so_too():
    @oc.schedules.register
    @dataclasses.dataclass(frozen=True, repr=False)
    class Ramp(oc.schedules.Schedule):
        temperature: float

    assert Ramp(0.5) == Ramp(temperature=0.5)
    with pytest.raises(TypeError, match=r"Ramp\(\) has no argument 'temprature'; did you mean temperature\?"):
        Ramp(temprature=0.1)


@pytest.mark.parametrize("kind", OTHERS.values(), ids=OTHERS)
def test_the_signature_is_as_it_was_written(kind):
    names = list(inspect.signature(kind).parameters)
    assert names
    assert not {"args", "kwargs"} & set(names)
