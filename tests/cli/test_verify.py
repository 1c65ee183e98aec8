"""`optchain verify`: agreement passes, a wrong rule does not, who is missing is named."""

import importlib.util
import json

import pytest

import optchain
from optchain import verification
from optchain.cli import main, recipes
from optchain.verification import suite


def verified(capsys, code: int, *arguments: str) -> dict:
    assert main(["verify", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.thorough
def test_a_preset_that_agrees_passes_in_every_form_and_dtype(capsys):
    report = verified(capsys, 0, "--peer", "keras", "--optimizer", "SGD")
    assert report["passed"]
    assert {(row["recipe"], row["dtype"], row["form"]) for row in report["results"]} == {
        (recipe, dtype, form)
        for recipe in ("defaults", "every feature")
        for dtype in ("float32", "float64")
        for form in ("apply", "update")
    }
    assert all(row["error"] <= row["bound"] for row in report["results"])


def test_a_rule_that_is_wrong_in_the_seventh_digit_fails_in_float64(capsys, monkeypatch):
    monkeypatch.setitem(suite.KERAS_PRESETS, "SGD", lambda learning_rate: optchain.sgd(learning_rate * (1 + 1e-7)))
    monkeypatch.setattr(suite, "FEATURES", {})
    monkeypatch.setattr(suite, "SCHEDULE", {"initial_learning_rate": 0.01, "decay_steps": 10})
    chosen = [case for case in verification.cases(["Keras"]) if (case.name, case.recipe) == ("SGD", "defaults")]
    monkeypatch.setattr(verification, "cases", lambda peers: chosen)
    report = verified(capsys, 1, "--peer", "keras", "--dtype", "float64")
    assert not report["passed"]
    assert all(1e-10 < row["error"] < 1e-5 for row in report["results"])


def test_numbers_that_are_not_finite_are_told_and_fail(capsys, monkeypatch):
    bad = suite.Case("Optax", "sgd", "NaN", lambda: optchain.scale(float("3e38")), lambda params, grads: [params] * 30)
    monkeypatch.setattr(verification, "cases", lambda peers: [bad])
    assert main(["verify", "--peer", "optax", "--dtype", "float32"]) == 1
    shown = capsys.readouterr().out
    assert "not finite" in shown
    assert "2 above the bound" in shown


def test_a_peer_that_is_missing_is_named_and_the_rest_goes_on(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    chosen = ["--peer", "torch", "--peer", "optax", "--optimizer", "sgd", "--dtype", "float32"]
    report = verified(capsys, 0, *chosen)
    assert report["left_out"] == {"PyTorch": "not installed: pip install torch"}
    assert {row["peer"] for row in report["results"]} == {"Optax"}
    assert main(["verify", "--peer", "torch"]) == 2
    assert "PyTorch is not installed" in capsys.readouterr().err


def test_an_optimizer_that_nobody_has_is_refused_with_the_ones_that_there_are(capsys):
    assert main(["verify", "--peer", "optax", "--optimizer", "sdg"]) == 2
    assert "there are MultiSteps, adam, adamw, sgd" in capsys.readouterr().err


@pytest.mark.thorough
def test_every_case_of_optax_passes():
    """Those of Keras and PyTorch are compared in tests/parity over more arguments; Optax's cases are made here alone."""
    results = list(verification.verify(verification.cases(["Optax"])))
    assert len(results) == 20
    assert [result for result in results if not result.passed] == []


def test_every_preset_of_keras_and_torch_has_a_case():
    cases = {build.__name__ for build in suite.KERAS_PRESETS.values()}
    cases |= {f"torch.{name.lower()}" for name in suite.TORCH_RECIPES}
    assert not cases & suite.LEFT_OUT.keys()
    assert cases | suite.LEFT_OUT.keys() == {
        name for name in recipes.presets() if "." not in name or name.startswith("torch.")
    }


@pytest.mark.parametrize("command", ["train", "describe", "plot", "verify", "bench", "convert"])
def test_every_help_has_an_example(command: str, capsys):
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: optchain {command}" in shown
    assert main([]) == 2
    assert command in capsys.readouterr().out
