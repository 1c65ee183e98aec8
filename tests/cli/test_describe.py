"""`optchain describe`: parameters from everywhere, a recipe from a file or by its name, and what a mistake gets."""

import json
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import optchain
from optchain.cli import main
from optchain.cli.describe import parameters
from optchain.cli.recipes import build, presets

SHAPES = '{"dense": {"kernel": [784, 10], "bias": "bfloat16[10]"}}'
BYTES = 2 * 4 * (784 * 10 + 10) + 4 + 4  # two moments in float32, the rate, the count


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["describe", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["describe", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


def test_a_preset_by_name_on_shapes_in_the_line(capsys):
    report = described(capsys, "adamw", "--params", SHAPES)
    assert report["parameters"] == 784 * 10 + 10
    assert report["state_bytes"] == BYTES


def test_the_table_has_every_link_and_the_total_and_no_colour(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["describe", "adamw", "--params", SHAPES]) == 0
    shown = capsys.readouterr().out
    for word in (
        "scale_by_adam(beta_1=0.9,",
        "mu: 7,850 × float32",
        "decay_weights(0.004)",
        "7,850 parameters",
        "per parameter",
    ):
        assert word in shown
    assert "\x1b[" not in shown


@pytest.mark.parametrize("suffix", [".json", ".toml", ".safetensors", ".npz", ""])
def test_parameters_are_the_same_wherever_they_are_told(suffix: str, tmp_path: Path):
    path = tmp_path / f"model{suffix}"
    arrays = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    match suffix:
        case ".json":
            path.write_text('{"dense": {"kernel": [3, 2], "bias": "float32[2]"}}')
        case ".toml":
            path.write_text("[dense]\nkernel = [3, 2]\nbias = [2]\n")
        case ".safetensors":
            about = {"dense.kernel": ("F32", [3, 2]), "dense.bias": ("F32", [2])}
            header = {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in about.items()}
            text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text)
        case ".npz":
            np.savez(path, **{f"dense/{name}": np.asarray(leaf) for name, leaf in arrays["dense"].items()})
        case _:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, {"params": arrays, "state": {"count": jnp.zeros(())}})
    found = parameters.read(str(path))
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in found["dense"].items()} == {
        "kernel": ((3, 2), "float32"),
        "bias": ((2,), "float32"),
    }


def test_a_recipe_of_a_file_says_which_link_acts_on_which_parameter(tmp_path, capsys):
    tx = optchain.freeze(optchain.sgd(0.1), optchain.matching("bias$"))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(optchain.to_config(tx)))
    rows = described(capsys, str(file), "--params", SHAPES)["per_parameter"]
    assert {row["path"]: row["group"] for row in rows}["dense/bias"] == "frozen"


@pytest.mark.parametrize(
    ("recipe", "params", "told"),
    [
        ("adamv", SHAPES, "adamw? There are adadelta"),
        ("nothing.toml", SHAPES, "No such file"),
        ("adamw", "nothing.json", "No such file"),
        ("adamw", "model.h5", "must be a file that ends in .json"),
        ("adamw", "{}", "shapes must be a mapping"),
        ("adamw", '{"kernel": 3}', "kernel must be a shape"),
        ("adamw", '{"kernel": [-1]}', "integers >= 0"),
        ("adamw", '{"kernel": "float33[3]"}', "float33"),
        ("adamw", '{"kernel": "int32[3]"}', "kernel"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(recipe: str, params: str, told: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, recipe, "--params", params)


def test_a_pattern_that_finds_no_parameter_is_told(tmp_path, capsys):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(optchain.to_config(optchain.adamw(exclude_from_weight_decay=["gamma"]))))
    assert "gamma" in refused(capsys, str(file), "--params", SHAPES)


def test_the_shell_completes_the_names_of_presets(monkeypatch, capsys):
    monkeypatch.setenv("_OPTCHAIN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "optchain describe keras_adamw.")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == ["keras_adamw.adamw", "keras_adamw.nadamw", "keras_adamw.sgdw"]


def test_at_80_columns_names_are_whole_and_columns_without_room_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    body = optchain.adamw(1e-3, global_clipnorm=1.0, exclude_from_weight_decay=["bias$"])
    tx = optchain.chain(body, optchain.scale_by_path({"kernel": 2.0}))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(optchain.to_config(tx)))
    path = "encoder/block_with_a_long_name/attention/kernel"
    shapes = json.dumps({"encoder": {"block_with_a_long_name": {"attention": {"kernel": [3, 2], "bias": [2]}}}})
    assert main(["describe", str(file), "--params", shapes]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for name in (path, "scale_by_learning_rate()", "clip_by_global_norm(1.0)", "0.001 × 2"):
        assert name in shown
    assert "no room at 80 columns for: " in shown
    assert "keeps" in shown.partition("no room at 80 columns for: ")[2]


def test_json_tells_what_happens_to_each_parameter_in_numbers(capsys):
    rows = {row["path"]: row for row in described(capsys, "adamw", "--params", SHAPES)["per_parameter"]}
    assert rows["dense/kernel"]["decay"] == {"weight_decay": 0.004}
    assert (rows["dense/bias"]["learning_rate"], rows["dense/bias"]["rate_factor"]) == (0.001, 1.0)


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_that_is_offered_is_built(name: str) -> None:
    assert build(name).init({"kernel": jnp.ones((2, 3))}) is not None
