"""Docstrings of presets: an argument that several presets share has the same words in each."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from optchain.presets import keras, keras_adamw, optax, torch

FAMILIES = {"keras": keras, "keras_adamw": keras_adamw, "optax": optax, "torch": torch}
"""Dialects: a name means the same within one, and may mean something else in another."""

OWN_MEANING = {
    "keras": {
        ("adadelta", "epsilon"): "it is in the numerator too, and decides the size of the first steps",
        ("adagrad", "epsilon"): "in the root",
        ("adamax", "beta_2"): "decay of a maximum, not of a mean",
        ("lion", "beta_1"): "a weight in the step, not the decay of a slot",
        ("lion", "beta_2"): "decay of the only slot, an average of gradients",
        ("muon", "epsilon"): "of Adam's part alone",
        ("muon", "momentum"): "of the matrices alone",
        ("muon", "weight_decay"): "of the matrices alone",
        ("rmsprop", "epsilon"): "in the root",
        ("schedule_free_adamw", "beta_1"): "the place where gradients are taken, not the decay of a slot",
    },
    "keras_adamw": {("nadamw", "epsilon"): "in the root"},
    "optax": {
        ("adagrad", "eps"): "in the root",
        ("lamb", "weight_decay"): "before the norm is taken",
        ("lion", "b1"): "a weight in the step, not the decay of a slot",
        ("lion", "b2"): "decay of the only slot, an average of gradients",
        ("lion", "mu_dtype"): "of the only slot",
        ("rmsprop", "eps"): "in the root or outside it",
        ("sgd", "nesterov"): "of the velocity",
        ("rmsprop", "nesterov"): "of the velocity",
    },
    "torch": {
        ("adamax", "betas"): "the second is the decay of a maximum",
        ("adamax", "eps"): "added to the gradient, not to the denominator",
        ("adamw", "weight_decay"): "decoupled, where the others add an L2 penalty",
    },
}
"""Arguments that mean something else in one preset, and what."""


def presets_of(module: Any) -> dict[str, Callable[..., Any]]:
    functions = inspect.getmembers(module, inspect.isfunction)
    return {
        name: f
        for name, f in functions
        if f.__module__.startswith("optchain.presets.") and re.search("^    Args:$", f.__doc__ or "", re.MULTILINE)
    }


def described_arguments(function: Callable[..., Any]) -> Mapping[str, str]:
    """The words of a docstring on each argument, on one line."""
    section = re.search(r"^Args:\n((?:  .*\n|\n)*)", inspect.cleandoc(function.__doc__ or ""), re.MULTILINE)
    assert section is not None
    entries = re.split(r"^  (\w+): ", section[1], flags=re.MULTILINE)[1:]
    return {name: " ".join(words.split()) for name, words in zip(entries[::2], entries[1::2], strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_presets_describe_a_shared_argument_in_the_same_words(family: str) -> None:
    described: dict[str, dict[str, list[str]]] = {}
    for preset, function in presets_of(FAMILIES[family]).items():
        for argument, words in described_arguments(function).items():
            if (preset, argument) not in OWN_MEANING[family]:
                described.setdefault(argument, {}).setdefault(words, []).append(preset)
    assert {argument: words for argument, words in described.items() if len(words) > 1} == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_argument_with_a_meaning_of_its_own_has_words_of_its_own(family: str) -> None:
    presets = presets_of(FAMILIES[family])
    everywhere = {preset: described_arguments(function) for preset, function in presets.items()}
    for preset, argument in OWN_MEANING[family]:
        words = everywhere[preset][argument]
        others = {
            other[argument]
            for name, other in everywhere.items()
            if argument in other and (name, argument) not in OWN_MEANING[family]
        }
        assert words not in others, (preset, argument)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_argument_of_a_preset_is_described(family: str) -> None:
    for preset, function in presets_of(FAMILIES[family]).items():
        missing = set(inspect.signature(function).parameters) - set(described_arguments(function))
        assert not missing, (preset, missing)
