"""What goes wrong gets one line and exit code 2; and what every command has: a version, any width, data for programs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from optchain.cli import main
from optchain.interop import orbax

TX = optchain.presets.torch.adam(0.1)
RECIPE = json.dumps(optchain.to_config(TX))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    said = capsys.readouterr().err
    assert said.startswith("optchain: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of ours, a recipe and a table of names."""
    monkeypatch.chdir(tmp_path)
    params = {"w": jnp.ones((2, 2))}
    orbax.save("run", 3, {"params": params, "state": TX.init(params)}, metadata={"recipe": optchain.to_config(TX)})
    Path("recipe.json").write_text(RECIPE)
    Path("names.json").write_text('{"w": "w"}')
    return tmp_path


def optchain_command(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after some code."""
    whole = f"import sys\n{code}\nfrom optchain.cli import main\nsys.exit(main())"
    env = os.environ | {"PYTHONPATH": str(Path(optchain.__file__).parents[1])} | environment
    command = [sys.executable, "-c", whole, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)


@pytest.mark.parametrize(
    ("package", "source", "extra"),
    [
        ("h5py", "run.keras", "interop"),
        ("h5py", "run.weights.h5", "interop"),
        ("safetensors", "run.safetensors", "interop"),
        ("torch", "run.pt", "torch"),
    ],
)
def test_a_missing_package_of_a_file_is_named_with_its_extra(
    package: str,
    source: str,
    extra: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    Path(source).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(capsys, "convert", source, "--to", "orbax", "--out", "out", *described())
    assert said == f'optchain: this command needs {package}, which is not installed: pip install "optchain[{extra}]"\n'


def test_every_extra_that_is_named_is_there_and_has_the_package():
    import tomllib

    from optchain.interop.packages import EXTRAS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for package, extra in EXTRAS.items():
        assert any(line.startswith(f"{package}>=") for line in project["optional-dependencies"][extra])


def described() -> list[str]:
    return ["--recipe", "recipe.json", "--names", "names.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.pt", "--to", "orbax", "--out", "out"], "SOURCE missing.pt: there is no such file"),
        (["missing.keras", "--to", "torch", "--out", "out.pt", *described()], "SOURCE missing.keras: there is no such"),
        (["run", "--to", "torch", "--out", "o.pt", "--names", "gone.json"], "--names gone.json: there is no such file"),
        (["run", "--to", "orbax", "--out", "o", "--recipe", "gone.json"], "--recipe gone.json: there is no such file"),
        (["run", "--to", "keras", "--out", "o.keras", "--model", "gone.keras"], "--model gone.keras: there is no such"),
    ],
)
def test_a_file_that_is_not_there_is_named_first(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert said in refused(capsys, "convert", *arguments)


@pytest.mark.parametrize(("entry", "value"), [("step", float("inf")), ("lr", 10**400), ("lr", float("nan"))])
def test_numbers_that_no_run_has_are_one_line(entry: str, value: Any, folder: Path, capsys: pytest.CaptureFixture[str]):
    torch = pytest.importorskip("torch")
    slot = {"step": 1.0, "exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.ones(2, 2)}
    group = {"lr": 0.1, "params": [0]}
    (slot if entry == "step" else group)[entry] = value
    torch.save({"model": {"w": torch.ones(2, 2)}, "optimizer": {"state": {0: slot}, "param_groups": [group]}}, "run.pt")
    Path("names.json").write_text('{"scale": "w"}')
    said = refused(capsys, "convert", "run.pt", "--to", "orbax", "--out", "out", *described())
    assert f"optchain: run.pt: {entry} of " in said
    assert "must be" in said


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"


@pytest.mark.parametrize("target", [["orbax", "out"], ["torch", "out.pt"], ["torch", "out.safetensors"]])
def test_a_full_disk_is_one_line_and_leaves_nothing(target: list[str], folder: Path):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = {f"layer_{i}": {"kernel": jnp.asarray(rng.normal(size=(60, 60)), "float32")} for i in range(30)}
    orbax.save("large", 0, {"params": params, "state": TX.init(params)})
    Path("names.json").write_text(json.dumps({f"layer_{i}/kernel": f"{i}.weight" for i in range(30)}))
    to, out = target
    done = optchain_command(FULL_DISK, "convert", "large", "--to", to, "--out", out, *described())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(": File too large\n")
    assert sorted(path.name for path in folder.iterdir()) == ["large", "names.json", "recipe.json", "run"]


@pytest.mark.parametrize("option", ["--recipe", "--names"])
def test_a_key_that_is_there_twice_is_an_error(option: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("twice.json").write_text('{"optchain": 1, "arguments": {"lr": 0.1, "lr": 0.2}, "transformation": "sgd"}')
    said = refused(capsys, "convert", "run", "--to", "torch", "--out", "out.pt", option, "twice.json")
    assert f"{option} twice.json: the key 'lr' is there twice" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"optchain": 1, "transformation": "adamW"}', "'adamW' (did you mean 'adamw'?)"),
        (
            '{"optchain": 1, "transformation": "sgd", "arguments": {"learning_rat": 1}}',
            "(did you mean 'learning_rate'?)",
        ),
        (
            '{"optchain": 1, "transformation": "sgd", "arguments": {"learning_rate": {"schedule": "CosineDecays"}}}',
            "(did you mean 'CosineDecay'?)",
        ),
        (
            '{"optchain": 1, "transformation": "sgd", "arguments": {"learning_rate": '
            '{"schedule": "StepLR", "arguments": {"lr": 0.1, "step_sise": 3}}}}',
            "(did you mean 'step_size'?)",
        ),
        ('{"class_name": "Adams", "config": {}}', "(did you mean 'Adam'?)"),
        ('{"class_name": "SGD", "config": {"momentums": 0.5}}', "(did you mean 'momentum'?)"),
        ('{"optchain": 1, "transformation": "qqqq"}', "'qqqq'; there are: "),
    ],
)
def test_a_misspelt_name_in_a_config_gets_a_suggestion(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "recipe.json").write_text(text)
    assert said in refused(capsys, "describe", tmp_path / "recipe.json", "--params", '{"w": [2]}')


def test_bench_that_timed_nothing_does_not_succeed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import importlib

    from optchain.cli.bench import trees
    from optchain.cli.bench.names import TreeName

    find = importlib.import_module

    def without_torch(name: str, *rest: str) -> object:
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return find(name, *rest)

    small_tree = ("two small layers", lambda: trees.transformer(layers=2, width=8))
    monkeypatch.setitem(trees.TREES, TreeName.TRANSFORMER, small_tree)
    monkeypatch.setattr(importlib, "import_module", without_torch)
    assert main(["bench", "--recipe", "adamw", "--contender", "torch-fused", "--steps", "1", "--json"]) == 2
    output, errors = capsys.readouterr()
    assert json.loads(output)["rows"] == []
    assert errors.splitlines()[-1] == "optchain: nothing was timed: torch-fused, torch is not installed"


# What every command has -----------------------------------------------------------------------------------------------


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"optchain {optchain.__version__}\n"


@pytest.mark.parametrize("arguments", [["describe", "adamw", "--params", '{"w": [2]}'], ["--help"]])
def test_a_width_of_0_prints(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    usual = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setenv("LINES", "0")
    assert main(arguments) == 0
    assert capsys.readouterr().out == usual
    assert len(usual) > 200


def test_convert_prints_data_for_a_program(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", "run", "--to", "orbax", "--out", "out", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["source"], said["out"], said["hyperparameters"], said["left_behind"]) == ("run", "out", "saved", [])
    assert {"entry": "params", "arrays": 1, "became": "restored", "note": ""} in said["entries"]
    assert {entry["became"] for entry in said["entries"]} == {"restored"}
