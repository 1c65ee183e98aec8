"""`optchain convert` with Keras's archives."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import optchain
from optchain.cli import main
from optchain.interop import orbax

from .helpers import assert_same

# Keras's own: how it turns a variable into an array when it saves one.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and a run of Keras."""
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")], name="net")
    model.compile(optimizer=keras.optimizers.Adam(0.25), loss="mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), batch_size=2, verbose=0)
    model.save("run.keras")
    Path("recipe.json").write_text(json.dumps(optchain.to_config(optchain.adam(0.1))))
    return tmp_path


@pytest.mark.parametrize("arguments", [["--recipe", "recipe.json"], []], ids=["recipe", "its own recipe"])
def test_a_run_of_keras_becomes_a_checkpoint_of_ours_and_comes_back(arguments, files, capsys):
    assert main(["convert", "run.keras", "--to", "orbax", "--out", "run", *arguments]) == 0
    assert "scale_by_adam/nu" in capsys.readouterr().out
    held = orbax.read("run")
    assert held["state"]["scale_by_adam"]["count"] == 2
    assert held["state"]["hyperparams"]["learning_rate"] == 0.25
    there = keras.models.load_model("run.keras")
    np.testing.assert_array_equal(held["params"]["head"]["kernel"], there.layers[0].kernel)

    assert main(["convert", "run", "--to", "keras", "--model", "run.keras", "--out", "back.keras", *arguments]) == 0
    back = keras.models.load_model("back.keras")
    assert back.optimizer.iterations == 2
    for a, b in zip(back.optimizer.variables, there.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(back.trainable_variables, there.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_of_weights_alone_needs_a_recipe_and_the_names_in_its_optimizers_order(files, capsys):
    keras.models.load_model("run.keras").save_weights("run.weights.h5")
    names = {"head/kernel": "layers/dense/vars/0", "head/bias": "layers/dense/vars/1"}
    Path("names.json").write_text(json.dumps(names))
    arguments = ["convert", "run.weights.h5", "--to", "orbax", "--recipe", "recipe.json"]
    assert main([*arguments, "--out", "run", "--names", "names.json"]) == 0
    assert main(["convert", "run.keras", "--to", "orbax", "--out", "other", "--recipe", "recipe.json"]) == 0
    a, b = orbax.read("run"), orbax.read("other")
    assert_same(a, b)
    assert main([*arguments, "--out", "again"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_of_another_recipe_is_refused_in_one_line(files, capsys):
    Path("recipe.json").write_text(json.dumps(optchain.to_config(optchain.nadam(0.1))))
    assert main(["convert", "run.keras", "--to", "orbax", "--out", "run", "--recipe", "recipe.json"]) == 2
    error = capsys.readouterr().err
    assert error.count("run.keras") == 1
    assert "Adam" in error
    assert error.count("\n") == 1
    assert not Path("run").exists()
