"""What goes wrong gets one line and exit code 2; and what every command has: a version, any width, data for programs."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from optchain.cli import main, recipes
from optchain.cli.convert.command import with_source
from optchain.cli.errors import UserError
from optchain.cli.train.folder import made
from optchain.interop import orbax
from optchain.interop import torch as interop_torch

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


FULL_DISK = (
    "import resource; sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
)
"""Python would cut off what it compiles of itself, and keep it."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "target",
    [
        ["orbax", "out"],
        ["torch", "out.pt"],
        pytest.param(["torch", "out.safetensors"], marks=pytest.mark.for_release),
    ],
)
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


@pytest.mark.parametrize("rate", [1e39, 1e300, 1e-60, 1e-39])
def test_a_rate_that_float32_has_not_is_refused_by_its_name(
    rate: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = refused(capsys, "train", "--learning-rate", rate, "--out", tmp_path / "run")
    becomes = "overflows" if rate > 1 else "is flushed to 0"
    assert f"--learning-rate must be a finite number > 0; got {rate!r}, which {becomes} in float32" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--steps", "--schedule-steps", "--checkpoint-every"])
def test_a_number_of_steps_that_int32_has_not_is_refused_by_its_name(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = refused(capsys, "train", option, 2**31, "--out", tmp_path / "run")
    assert f"{option} must be between 1 and {2**31 - 1}; got {2**31}" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["train", "--steps", "4", "--out"], "file/run"),
        (["train", "--steps", "4", "--resume-or-start"], "file/run"),
        (["train", "--steps", "4", "--resume-or-start"], "file/deep/run"),
        (["race", "--out"], "file/race"),
        (["plot", "adamw", "--out"], "file/rate.png"),
        (["plot", "adamw", "--out"], "nowhere/rate.png"),
    ],
)
def test_where_nothing_can_be_written_is_told_with_the_option(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    said = refused(capsys, *command, name)
    assert said.startswith(f"optchain: {command[-1]} {name}: ")
    assert "Errno" not in said
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_a_folder_that_the_system_does_not_let_make_is_told_with_the_option(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--out .*: File name too long$"):
        made(tmp_path / ("x" * 300), "--out")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("command", ["convert", "describe"])
def test_a_path_below_another_is_told_in_either_order(
    command: str, order: int, folder: Path, capsys: pytest.CaptureFixture[str]
):
    names = ["head", "head/deep/bias"][::order]
    if command == "convert":
        option, file = "--names", "within.json"
        Path(file).write_text(json.dumps({name: f"its {name}" for name in names}))
        said = refused(capsys, "convert", "run", "--to", "torch", "--out", "out.pt", option, file)
    else:
        option, file = "--params", "within.npz"
        np.savez(file, allow_pickle=False, **{name: np.ones(2) for name in names})
        said = refused(capsys, "describe", "adamw", option, file)
    assert f"{option} {file}: head/deep/bias lies below head, which is a parameter itself" in said


@pytest.mark.parametrize("path", ["", "/kernel", "dense/", "dense//kernel"])
def test_a_path_without_a_name_is_refused(path: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("names.json").write_text(json.dumps({path: "weight"}))
    said = refused(capsys, "convert", "run", "--to", "torch", "--out", "out.pt", "--names", "names.json")
    assert f"--names names.json: {path!r} is no path" in said


@pytest.mark.parametrize(("dtype", "numbers"), [("F8_E4M3", 4), ("F8_E5M2", 4), ("F4", 8), ("F8_E8M0", 4)])
def test_weights_of_safetensors_that_numpy_has_not_are_told_with_what_helps(
    dtype: str, numbers: int, folder: Path, capsys: pytest.CaptureFixture[str]
):
    header = json.dumps({"w": {"dtype": dtype, "shape": [numbers], "data_offsets": [0, 4]}}).encode()
    Path("run.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    said = refused(capsys, "convert", "run.safetensors", "--to", "orbax", "--out", "out", *described())
    assert said == (f"optchain: run.safetensors: w is {dtype}, which NumPy has not: save it dense, as float32 say\n")


def test_bfloat16_of_safetensors_is_read(folder: Path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, "run.safetensors")
    model = interop_torch.read("run.safetensors").model
    assert model is not None
    assert (model["w"].dtype, model["w"].tolist()) == (jnp.bfloat16, [1.5, -2.0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([3], "a list of groups with 'params', a list of numbers or names"),
        (["params"], "a list of groups with 'params', a list of numbers or names"),
        ([{"lr": 0.1, "params": 3}], "a list of groups with 'params', a list of numbers or names"),
        ([{"lr": 0.1, "params": [[0]]}], "a list of groups with 'params', a list of numbers or names"),
        ([{"lr": 0.1, "params": [0], "param_names": 3}], "a list of groups with 'params', a list of numbers or names"),
        ([{"lr": np.ones(2), "params": [0]}], "lr of group 0 must be a number; it is a tensor of shape (2,)"),
        ([{"lr": 0.1, "eps": np.ones(2), "params": [0]}], "eps of group 0 must be a number; it is a tensor of"),
        ([{"lr": 0.1, "initial_lr": "x", "params": [0]}], "initial_lr of the group of w must be a finite number >= 0"),
        ([{"lr": 0.1, "betas": 0.9, "params": [0]}], "betas of group 0 must be two numbers; they are 0.9"),
        ([{"lr": 0.1, "betas": (np.ones(2), 0.9), "params": [0]}], "betas[0] of group 0 must be a number"),
    ],
)
def test_groups_that_no_optimizer_has_are_told_by_their_place(
    change: list[Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    torch = pytest.importorskip("torch")
    groups = jax.tree.map(lambda value: torch.tensor(value) if isinstance(value, np.ndarray) else value, change)
    slot = {"step": 1.0, "exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.ones(2, 2)}
    torch.save({"model": {"w": torch.ones(2, 2)}, "optimizer": {"state": {0: slot}, "param_groups": groups}}, "run.pt")
    Path("names.json").write_text('{"scale": "w"}')
    told = refused(capsys, "convert", "run.pt", "--to", "orbax", "--out", "out", *described())
    assert told.startswith("optchain: run.pt: ")
    assert said in told


def in_torch(weight: Callable[[Any, Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch = pytest.importorskip("torch")
        optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        torch.save({"model": {"w": weight(torch, torch.ones(2, 2))}, "optimizer": optimizer}, path)

    return write


def in_keras(**members: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr({"config": "config.json", "weights": "model.weights.h5"}[name], data)

    return write


def in_hdf5(path: Path) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones(3, "complex64")


def cut(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_half(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write_half


DAMAGED: dict[str, Callable[[Path], object]] = {
    "float8.pt": in_torch(lambda torch, dense: dense.to(torch.float8_e4m3fn)),
    "sparse.pt": in_torch(lambda torch, dense: dense.to_sparse()),
    "quantized.pt": in_torch(lambda torch, dense: torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8)),
    "meta.pt": in_torch(lambda torch, dense: dense.to("meta")),
    "none at all.pt": lambda path: pytest.importorskip("torch").save([1], path),
    "cut.pt": cut(in_torch(lambda torch, dense: dense)),
    "no archive.keras": lambda path: path.write_bytes(b"a text"),
    "cut.keras": cut(in_keras(config="{}", weights="")),
    "no weights.keras": in_keras(config="{}"),
    "no json.keras": in_keras(config="{", weights=""),
    "no object.keras": in_keras(config="[]", weights=""),
    "no recipe.keras": in_keras(config="{}", weights="a text"),
    "odd recipe.keras": in_keras(config='{"compile_config": {"optimizer": 3}}', weights="a text"),
    "no hdf5.h5": lambda path: path.write_bytes(b"a text"),
    "cut.h5": cut(in_hdf5),
    "complex.h5": in_hdf5,
    "no header.safetensors": lambda path: path.write_bytes(b"a text"),
}


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
@pytest.mark.parametrize("recipe", ["the file's", "given"])
@pytest.mark.parametrize("name", DAMAGED)
def test_the_file_is_named_once(name: str, recipe: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    DAMAGED[name](Path(name))
    Path("names.json").write_text(json.dumps({"w": "layers/dense/vars/0" if name.endswith(".h5") else "w"}))
    options = described() if recipe == "given" or not name.endswith(".keras") else []
    said = refused(capsys, "convert", name, "--to", "orbax", "--out", "out", *options)
    assert said.startswith(f"optchain: {name}")
    assert said.count(name) == 1


@pytest.mark.parametrize(
    ("source", "said", "told"),
    [
        ("run.pt", "it is damaged", "run.pt: it is damaged"),
        ("run.pt", "run.pt: it is damaged", "run.pt: it is damaged"),
        ("run.pt", "run.pt must be a zip", "run.pt must be a zip"),
        ("run.pt", "lr is 3 in tx, and 4 in run.pt", "lr is 3 in tx, and 4 in run.pt"),
        ("run.pt", "run.pth: it is damaged", "run.pt: run.pth: it is damaged"),
        ("run", "run/3: it is damaged", "run/3: it is damaged"),
        ("run", "no run has such a rate", "run: no run has such a rate"),
    ],
)
def test_the_name_is_added_where_it_is_not_said(source: str, said: str, told: str, folder: Path):
    assert with_source(said, Path(source)) == told


READERS = {
    "--recipe": ["convert", "run", "--to", "torch", "--out", "out.pt", "--recipe"],
    "--names": ["convert", "run", "--to", "torch", "--out", "out.pt", "--names"],
    "RECIPE": ["describe", "--params", '{"w": [2]}'],
    "--params": ["describe", "adamw", "--params"],
}


@pytest.mark.parametrize("option", READERS)
def test_what_is_nested_too_deep_is_told_so(option: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("deep.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    said = refused(capsys, *READERS[option], "deep.json")
    assert f"{option} deep.json: it is nested too deep" in said


def test_a_key_that_is_there_twice_in_the_line_is_an_error(capsys: pytest.CaptureFixture[str]):
    assert "the key 'k' is there twice" in refused(capsys, "describe", "adamw", "--params", '{"k":[3],"k":[4]}')


@pytest.mark.parametrize("option", READERS)
def test_a_key_that_is_there_twice_is_an_error(option: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("twice.json").write_text('{"optchain": 1, "arguments": {"lr": 0.1, "lr": 0.2}, "transformation": "sgd"}')
    said = refused(capsys, *READERS[option], "twice.json")
    assert f"{option} twice.json: the key 'lr' is there twice" in said


RECIPES = {".json": '{"optchain": 1, "transformation": "sgd"}', ".toml": 'optchain = 1\r\ntransformation = "sgd"\r\n'}


@pytest.mark.parametrize("suffix", RECIPES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_recipe_that_is_not_in_utf_8_is_told_to_be_saved_so(
    suffix: str, encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = (tmp_path / "recipe").with_suffix(suffix)
    path.write_bytes(RECIPES[suffix].encode(encoding))
    if encoding == "utf-8-sig":  # a mark at the beginning is no other encoding
        assert recipes.build(str(path)) == optchain.sgd()
    else:
        said = refused(capsys, "describe", path, "--params", '{"w": [2]}')
        assert said.rstrip().endswith(f"{path}: it is not in UTF-8, but UTF-16 or another encoding: save it as UTF-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"optchain": 1, "transformaton": "adamw"}', "'transformaton' (did you mean 'transformation'?)"),
        ('{"optchain": 1, "transformation": "adamw", "argument": {}}', "'argument' (did you mean 'arguments'?)"),
        ('{"optchian": 1, "transformation": "adamw"}', "'optchian' (did you mean 'optchain'?)"),
        ('{"class_nam": "SGD", "config": {}}', "'class_nam' (did you mean 'class_name'?)"),
        ('{"class_name": "SGD", "confg": {}}', "'confg' (did you mean 'config'?)"),
        (
            '{"optchain": 1, "transformation": "sgd", "arguments": {"learning_rate": {"shedule": "StepLR"}}}',
            "'shedule' (did you mean 'schedule'?)",
        ),
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


@pytest.mark.thorough
def test_bench_that_timed_nothing_does_not_succeed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import importlib

    from optchain.cli.bench import trees
    from optchain.cli.bench.names import TreeName

    find = importlib.import_module

    def without_torch(name: str, package: str | None = None) -> object:
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return find(name, package)

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
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
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
