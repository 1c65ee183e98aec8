"""A wrong keyword names the function and the argument that was meant, in every dialect."""

import inspect

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import optchain as oc
from optchain.core.registry import FACTORIES

TORCH, KERAS_ADAMW = oc.presets.torch, oc.presets.keras_adamw
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
        (TORCH.rmsprop, "rho", "did you mean alpha?"),
        (KERAS_ADAMW.adamw, "b1", "presets.keras_adamw.adamw() has no argument 'b1'; did you mean beta_1?"),
        (KERAS_ADAMW.sgdw, "lr", "presets.keras_adamw.sgdw() has no argument 'lr'; did you mean learning_rate?"),
        (oc.scale_by_adam, "eps", "scale_by_adam() has no argument 'eps'; did you mean epsilon?"),
        (oc.scale_by_adam, "lr", "the rate is a chain's"),
        (oc.decay_weights, "exclude_from_weight_decay", "did you mean mask? It is the opposite"),
        (oc.chain, "lr", "chain() has no argument 'lr'; did you mean learning_rate?"),
        (oc.accumulate, "every_k_schedule", "did you mean steps?"),
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
@given(st.sampled_from(sorted(OURS)), st.text(min_size=1, max_size=20))
def test_no_unknown_keyword_is_taken_and_every_one_is_named(name, keyword):
    factory = OURS[name]
    parameters = inspect.signature(factory).parameters
    if keyword in parameters:
        return
    with pytest.raises(TypeError) as raised:
        factory(**{keyword: 1})
    assert str(raised.value).startswith(f"{name}() has no argument {keyword!r}")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_two_letters_that_changed_places_are_understood(data):
    name = data.draw(st.sampled_from(sorted(OURS)))
    known = [p for p in inspect.signature(OURS[name]).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    long = [p.name for p in known if len(p.name) >= 8]
    if not long:
        return
    meant = data.draw(st.sampled_from(long))
    place = data.draw(st.integers(1, len(meant) - 2))
    typo = meant[:place] + meant[place + 1] + meant[place] + meant[place + 2 :]
    if typo in {p.name for p in known}:
        return
    with pytest.raises(TypeError, match="did you mean"):
        OURS[name](**{typo: 1})
