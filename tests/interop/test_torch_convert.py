"""`optchain convert`: runs in files, from one library to the other and on."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain
from optchain.cli import main
from optchain.interop import orbax
from optchain.interop import torch as interop

torch = pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")

NAMES = {"dense/kernel": "dense.weight", "dense/bias": "dense.bias"}
TX = optchain.presets.torch.adamw(0.1, weight_decay=0.5)
PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.ones(2)}}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, a table of names, and a run of PyTorch."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text(json.dumps(optchain.to_config(TX)))
    Path("names.json").write_text(json.dumps(NAMES))
    model = torch.nn.ModuleDict({"dense": torch.nn.Linear(3, 2)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, weight_decay=0.5)
    model["dense"](torch.arange(6.0).reshape(2, 3)).square().sum().backward()
    optimizer.step()
    torch.save({"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, "run.pt")
    return tmp_path


def run(*arguments: Any) -> int:
    return main(["convert", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line of a refusal."""
    before = sorted(Path().rglob("*"))
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("optchain: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return error


def described(*more: str) -> list[str]:
    return ["--recipe", "recipe.json", "--names", "names.json", *more]


def test_a_run_of_torch_becomes_a_checkpoint_of_ours_with_a_table_of_what_went_where(files, capsys):
    assert run("run.pt", "--to", "orbax", "--out", "run", *described()) == 0
    shown = capsys.readouterr().out
    assert "scale_by_adam/nu" in shown
    assert "restored" in shown
    assert "hyperparameters: saved" in shown
    target = {"params": PARAMS, "state": TX.init(PARAMS)}
    restored, report = orbax.restore("run", target, hyperparams="saved")
    assert (report.new, report.gone) == ([], [])
    assert restored["state"]["scale_by_adam"]["count"] == 1
    assert optchain.get_hyperparams(restored["state"])["learning_rate"] == 0.25
    saved = torch.load("run.pt", weights_only=True)
    np.testing.assert_array_equal(restored["params"]["dense"]["kernel"], saved["model"]["dense.weight"].numpy().T)
    assert optchain.from_config(orbax.latest("run").metadata["recipe"]) == TX


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_run_comes_back_to_torch_as_it_went(suffix, files):
    assert run("run.pt", "--to", "orbax", "--out", "run", *described()) == 0
    assert run("run", "--to", "torch", "--out", f"back{suffix}", "--names", "names.json") == 0  # the recipe is in it
    there, back = interop.read("run.pt"), interop.read(f"back{suffix}")
    for name in NAMES.values():
        np.testing.assert_array_equal(np.asarray(back.model[name]), there.model[name])
    for number, slot in there.optimizer["state"].items():
        for field, value in slot.items():
            np.testing.assert_array_equal(np.asarray(back.optimizer["state"][number][field]), value)
    assert back.optimizer["param_groups"][0]["lr"] == 0.25


def test_a_run_goes_to_optax_and_on_from_there(files):
    assert run("run.pt", "--to", "optax", "--out", "run", *described()) == 0
    optax_tx = optax.adamw(0.25, weight_decay=0.5)
    target = {"params": PARAMS, "opt_state": optax_tx.init(PARAMS)}
    restored, report = orbax.restore("run", target, hyperparams="saved")
    assert (report.new, report.gone) == ([], [])
    assert restored["opt_state"][0].count == 1
    assert run("run", "--to", "torch", "--out", "back.pt", *described()) == 0
    slot = interop.read("back.pt").optimizer["state"][0]
    np.testing.assert_array_equal(slot["exp_avg"], interop.read("run.pt").optimizer["state"][0]["exp_avg"])


def test_the_recipes_rate_is_taken_where_it_is_asked_for(files, capsys):
    assert run("run.pt", "--to", "torch", "--out", "b.pt", *described("--hyperparams", "configured")) == 0
    assert interop.read("b.pt").optimizer["param_groups"][0]["lr"] == 0.1
    assert "hyperparameters: configured" in capsys.readouterr().out


def test_what_has_no_place_is_refused_or_left_behind_in_sight(files, capsys):
    tx = optchain.chain(TX, optchain.average_params(0.9))
    Path("recipe.json").write_text(json.dumps(optchain.to_config(tx)))
    arguments = ["run.pt", "--to", "torch", "--out", "b.pt", *described()]
    assert "no place for average_params/average" in refused(capsys, *arguments)
    assert run(*arguments, "--lossy") == 0
    assert "left behind" in capsys.readouterr().out


class Malice:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was_here",)


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({}, ["nowhere.pt", "--to", "orbax"], "nowhere.pt: there is no such file"),
        ({}, ["recipe.json", "--to", "orbax"], "SOURCE recipe.json: expected .keras"),
        ({"run.pt": b"PK\x03\x04 and no more"}, ["run.pt", "--to", "orbax"], "damaged or none"),
        ({"run.pt": Malice()}, ["run.pt", "--to", "orbax"], "tensors, numbers and names alone"),
        ({"run.pt": {"state": {}, "param_groups": []}}, ["run.pt", "--to", "orbax"], "run.pt holds no model"),
        ({"names.json": {"dense/kernel": "w"}}, ["run.pt", "--to", "orbax"], "run.pt has no w; it has dense.weight"),
        ({"names.json": {"dense/kernel": "dense.weight"}}, ["run.pt", "--to", "orbax"], "parameter 1"),
        ({"names.json": [1]}, ["run.pt", "--to", "orbax"], "--names names.json: it must be a table of strings"),
        (
            {"recipe.json": {"optchain": 1}},
            ["run.pt", "--to", "orbax"],
            "--recipe recipe.json: config must have one of",
        ),
        (
            {"recipe.json": optchain.to_config(optchain.presets.torch.adamw(0.1))},
            ["run.pt", "--to", "orbax"],
            "saved weight_decay 0.5, configured 0.01",
        ),
        (
            {"recipe.json": optchain.to_config(optchain.presets.torch.sgd(0.1, 0.9))},
            ["run.pt", "--to", "orbax", "--hyperparams", "configured"],
            "has exp_avg of dense.weight, for which sgd has no place",
        ),
        ({}, ["run.pt", "--to", "keras"], "--model FILE, a .keras archive of the model, goes with --to keras"),
        ({}, ["run.pt", "--to", "tensorflow"], "'tensorflow' is not one of 'keras', 'torch', 'optax', 'orbax'"),
        ({}, [".", "--to", "orbax"], "the folder holds no checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(change, arguments, said, files, capsys):
    for name, content in change.items():
        if name.endswith(".json"):
            Path(name).write_text(json.dumps(content))
        elif isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            torch.save(content, name)
    assert said in refused(capsys, *arguments, "--out", "out", *described())
    assert not Path("was_here").exists()


def test_narrow_parameters_stay_narrow_and_their_moments_become_wide(files):
    saved = torch.load("run.pt", weights_only=True)
    saved["model"] = {name: tensor.to(torch.bfloat16) for name, tensor in saved["model"].items()}
    for slot in saved["optimizer"]["state"].values():
        slot["exp_avg"] = slot["exp_avg"].to(torch.bfloat16)
    torch.save(saved, "narrow.pt")
    assert run("narrow.pt", "--to", "orbax", "--out", "run", *described()) == 0
    held = orbax.read("run")
    assert held["params"]["dense"]["kernel"].dtype == jnp.bfloat16
    assert held["state"]["scale_by_adam"]["mu"]["dense"]["kernel"].dtype == np.float32


def test_a_source_that_does_not_say_its_recipe_needs_one(files, capsys):
    said = refused(capsys, "run.pt", "--to", "orbax", "--out", "run", "--names", "names.json")
    assert "--recipe FILE: run.pt does not say which optimizer it is of" in said


def test_an_out_that_is_there_is_left_alone(files, capsys):
    assert "--out names.json is there already" in refused(
        capsys, "run.pt", "--to", "torch", "--out", "names.json", *described()
    )
    assert json.loads(Path("names.json").read_text()) == NAMES
