"""Files that are damaged, wrong or hostile: a clear error, no code run, nothing changed."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import optchain
from optchain.interop.keras import from_keras, load_params, load_state, save_params, save_state

from .digits import flax_params, keras_model

# Keras's own: how it turns a variable into an array when it saves one.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

TX = optchain.adam(0.1)
ORDER = ["conv_1/kernel", "conv_1/bias", "conv_2/kernel", "conv_2/bias", "logits/kernel", "logits/bias"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run of Adam's, in both kinds of file, with other numbers everywhere than a fresh one."""
    folder = tmp_path_factory.mktemp("run")
    model = keras_model(keras.optimizers.Adam(0.1))
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(np.full(variable.shape, number + 1))
    model.save(folder / "run.keras")
    model.save_weights(folder / "run.weights.h5")
    return folder


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def weights_with(run: Path, path: Path, change: Callable[[h5py.File], None]) -> Path:
    """The archive, with its HDF5 file changed."""
    contents = members(run / "run.keras")
    buffer = io.BytesIO(contents["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return archive_of(path, contents | {"model.weights.h5": buffer.getvalue()})


def replaced(file: h5py.File, **dataset: Any) -> None:
    del file["optimizer/vars/2"]
    file.create_dataset("optimizer/vars/2", **dataset)


def test_good_files_load(run: Path) -> None:
    params = flax_params()
    state = load_state(TX, params, run / "run.keras")
    adam = state["scale_by_adam"]
    assert int(adam["count"]) == 1
    assert float(state["hyperparams"]["learning_rate"]) == 2
    assert float(adam["mu"]["conv_1"]["kernel"].max()) == 3
    assert float(adam["nu"]["logits"]["bias"].min()) == 14
    by_order = load_state(TX, params, run / "run.weights.h5", ORDER)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(by_order), strict=True))
    assert from_keras(run / "run.keras").registered_name == "adam"
    configured = load_state(TX, params, run / "run.keras", hyperparams="configured")
    assert float(configured["hyperparams"]["learning_rate"]) == np.float32(0.1)


def test_parameters_of_a_weights_file_are_found_by_its_own_names(run: Path) -> None:
    places = {"conv_1": "layers/conv2d", "conv_2": "layers/conv2d_1", "logits": "layers/dense"}
    table = {path: f"{places[path.split('/')[0]]}/vars/{int('bias' in path)}" for path in ORDER}
    by_table = load_params(flax_params(), run / "run.weights.h5", table)
    by_name = load_params(flax_params(), run / "run.keras")
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(by_table), jax.tree.leaves(by_name), strict=True))


def large_model() -> keras.Model:
    """All that a model may be made of whose variables have names: models within models, frozen layers, seeds, statistics."""
    layers = keras.layers
    inner = keras.Sequential(
        [layers.Conv2D(3, 2, name="conv"), layers.BatchNormalization(scale=False, name="norm")], name="inner"
    )
    image, words = keras.Input((5, 5, 2)), keras.Input((4,), dtype="int32")
    hidden = layers.SeparableConv2D(4, 2, name="separable")(image)
    hidden = layers.Dropout(0.5, seed=1)(layers.BatchNormalization(name="norm")(hidden))
    hidden = layers.DepthwiseConv2D(1, use_bias=False, name="depthwise")(hidden)
    hidden = layers.GroupNormalization(1, center=False, name="group")(inner(hidden))
    hidden = layers.PReLU(name="prelu")(layers.Flatten()(hidden))
    read = layers.LayerNormalization(name="layer")(layers.Embedding(7, 3, name="words")(words))
    read = layers.EinsumDense("abc,cd->abd", output_shape=(4, 5), bias_axes=None, name="einsum")(read)
    read = layers.MultiHeadAttention(2, 3, name="attention")(read, read)
    read = layers.Dense(2, name="frozen")(layers.Flatten()(layers.RMSNormalization(name="rms")(read)))
    model = keras.Model([image, words], layers.Dense(1, name="head")(layers.Concatenate()([hidden, read])))
    model.get_layer("frozen").trainable = False
    model.compile(keras.optimizers.Lion(keras.optimizers.schedules.CosineDecay(0.1, 10)), "mse")
    model.optimizer.build(model.trainable_variables)
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(np.full(variable.shape, number))
    return model


@pytest.mark.thorough
def test_the_variables_of_a_file_have_the_names_that_keras_gives_them(tmp_path: Path) -> None:
    model = large_model()
    model.save(tmp_path / "run.keras")
    params: dict[str, Any] = {}
    for variable in model.trainable_variables:  # a flat tree, whose keys are paths
        params[variable.path] = jnp.asarray(variable.value)
    empty = jax.tree.map(jnp.zeros_like, params)
    loaded = load_params(empty, tmp_path / "run.keras")
    assert all(np.array_equal(loaded[path], params[path]) for path in params)
    state = load_state(from_keras(tmp_path / "run.keras"), params, tmp_path / "run.keras")
    assert [int(state["scale_by_lion"]["mu"][v.path].max()) for v in model.trainable_variables] == list(
        range(1, len(params) + 1)
    )


@pytest.mark.thorough
def test_where_names_are_not_known_the_order_is_asked_for(tmp_path: Path) -> None:
    layers = keras.layers
    words = keras.Input((3, 4))
    hidden = layers.LSTM(2, name="memory")(words)
    model = keras.Model(words, layers.Dense(1, name="head")(hidden))
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(np.full(variable.shape, number))
    model.save(tmp_path / "run.keras")
    params = {v.path.replace("/", "."): jnp.asarray(v.value) for v in model.trainable_variables}
    tx = from_keras(tmp_path / "run.keras")
    words = r"variables of the layer 'memory' \(LSTM\) the names are not known(?s:.*)layers/lstm/cell/vars/0 \(4, 8\)"
    with pytest.raises(ValueError, match=words):
        load_state(tx, params, tmp_path / "run.keras")
    with pytest.raises(ValueError, match=words):
        load_params(params, tmp_path / "run.keras")
    velocity = load_state(tx, params, tmp_path / "run.keras", list(params))["apply_momentum"]["velocity"]
    assert [int(velocity[path].max()) for path in params] == list(range(2, 2 + len(params)))


def test_variables_of_bfloat16_are_read_and_written(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16", name="dense")])
    model.compile(keras.optimizers.Adam(0.5), "mse")
    model.optimizer.build(model.trainable_variables)
    params = {"dense": {"kernel": jnp.ones((3, 2), "bfloat16"), "bias": jnp.full(2, 0.3, "bfloat16")}}
    tx = from_keras(model.optimizer)
    params, state = tx.apply(params, tx.init(params), grads=params)
    save_params(params, model)
    save_state(tx, params, state, model)
    model.save(tmp_path / "run.keras")
    loaded = load_params(params, tmp_path / "run.keras")
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (loaded, params)), strict=True))
    mu, kept = (
        s["scale_by_adam"]["mu"]["dense"]["bias"] for s in (state, load_state(tx, params, tmp_path / "run.keras"))
    )
    assert kept.dtype == "float32"
    assert np.array_equal(kept, mu.astype("bfloat16").astype("float32"))  # what Keras's variable holds of it


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (BOMB,)


BOMB = "/tmp/optchain-must-not-exist"
PICKLE = pickle.dumps(Bomb())


def truncated(run: Path, path: Path) -> Path:
    content = (run / path.name.replace("bad", "run")).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def written(content: bytes) -> Callable[[Path, Path], Path]:
    def write(run: Path, path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


def flipped(run: Path, path: Path) -> Path:
    content = bytearray((run / "run.keras").read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


def other_model(run: Path, path: Path) -> Path:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="logits")])
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    return path


def without_optimizer(run: Path, path: Path) -> Path:
    return weights_with(run, path, lambda file: file.__delitem__("optimizer"))


def external_link(file: h5py.File) -> None:
    del file["optimizer/vars/2"]
    file["optimizer/vars/2"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file: h5py.File) -> None:
    del file["optimizer/vars"]
    file["optimizer/vars"] = h5py.SoftLink("/layers/dense/vars")


def objects(file: h5py.File) -> None:
    replaced(file, data=np.full((3, 3, 1, 4), "cos\nsystem\n", dtype=object), dtype=h5py.string_dtype())


def a_group(file: h5py.File) -> None:
    del file["optimizer/vars/2"]
    file.create_group("optimizer/vars/2")


def a_model_in_itself(file: h5py.File) -> None:
    """Groups that contain themselves, in a model whose layers have no names: the walk through it must end."""
    for name in "abcdefgh":
        file[f"layers/dense/{name}"] = file["layers"]
    del file["optimizer"]
    file["layers/conv2d/vars/2"] = np.zeros(1)


def config_with(**changed: Any) -> Callable[[Path, Path], Path]:
    def write(run: Path, path: Path) -> Path:
        contents = members(run / "run.keras")
        config = json.loads(contents["config.json"])
        config["compile_config"]["optimizer"].update(changed)
        return archive_of(path, contents | {"config.json": json.dumps(config).encode()})

    return write


def rezipped(run: Path, path: Path) -> Path:
    contents = members(run / "run.keras")
    return archive_of(path, contents | {"model.weights.h5": b"\0" * 10**6}, zipfile.ZIP_DEFLATED)


def changed(change: Callable[[h5py.File], None]) -> Callable[[Path, Path], Path]:
    return lambda run, path: weights_with(run, path, change)


BAD: dict[str, tuple[str, Callable[[Path, Path], Path], str]] = {
    "a truncated archive": ("bad.keras", truncated, "must be a .keras archive, and is damaged or truncated"),
    "a truncated weights file": ("bad.weights.h5", truncated, "must be an HDF5 file, and do not open as one"),
    "a flipped bit": ("bad.keras", flipped, "is damaged or truncated: Bad CRC-32"),
    "an empty file": ("bad.keras", written(b""), "must be a .keras archive (a zip) or a .weights.h5 file (HDF5)"),
    "a pickle": ("bad.keras", written(PICKLE), "must be a .keras archive (a zip) or a .weights.h5 file (HDF5)"),
    "a pickle that says it is HDF5": (
        "bad.weights.h5",
        written(b"\x89HDF\r\n\x1a\n" + PICKLE),
        "must be an HDF5 file, and do not open as one",
    ),
    "a pickle that says it is a zip": ("bad.keras", written(b"PK\x03\x04" + PICKLE), "is damaged or truncated"),
    "a checkpoint of PyTorch": (
        "bad.keras",
        lambda run, path: archive_of(path, {"archive/data.pkl": PICKLE}),
        "must have config.json and model.weights.h5 in it, as Keras writes them; it has ['archive/data.pkl']",
    ),
    "a pickle for the weights": (
        "bad.keras",
        lambda run, path: archive_of(path, members(run / "run.keras") | {"model.weights.h5": PICKLE}),
        "must be an HDF5 file, and do not open as one",
    ),
    "a pickle for the config": (
        "bad.keras",
        lambda run, path: archive_of(path, members(run / "run.keras") | {"config.json": PICKLE}),
        "config.json must be JSON",
    ),
    "a config that is deep": (
        "bad.keras",
        lambda run, path: archive_of(path, members(run / "run.keras") | {"config.json": b"[" * 10**6}),
        "config.json must be JSON",
    ),
    "an archive that unfolds": ("bad.keras", rezipped, "must be stored uncompressed, as Keras writes it: refused"),
    "another model": ("bad.keras", other_model, "names do not tell which is which"),
    "no optimizer": ("bad.keras", without_optimizer, "has no state of an optimizer"),
    "another class": (
        "bad.keras",
        config_with(class_name="Lion", config={"learning_rate": 0.1}),
        "tx is an optimizer of the class Adam, that of",
    ),
    "a class that is code": (
        "bad.keras",
        config_with(module="os", class_name="mkdir", config={"path": BOMB}),
        "Keras's 'mkdir' has no counterpart here",
    ),
    "a link to another file": ("bad.keras", changed(external_link), "is a link to elsewhere"),
    "a link within the file": ("bad.keras", changed(soft_link), "is a link to elsewhere"),
    "objects for numbers": ("bad.keras", changed(objects), "must hold numbers; its dtype is object"),
    "a group for a dataset": ("bad.keras", changed(a_group), "must be a dataset"),
    "a shape that differs": (
        "bad.keras",
        changed(lambda file: replaced(file, data=np.zeros((3, 3, 4, 1), "float32"))),
        "variable 2 of the optimizer of",
    ),
    "a dataset that unfolds": (
        "bad.keras",
        changed(lambda file: replaced(file, shape=(3, 3, 1, 4), dtype="f4", chunks=(3, 3, 1, 4), compression="gzip")),
        "must lie within the file as plain numbers",
    ),
    "a dataset of another file": (
        "bad.keras",
        changed(lambda file: replaced(file, shape=(3, 3, 1, 4), dtype="f4", external="/etc/passwd")),
        "must lie within the file as plain numbers",
    ),
    "a model in itself": ("bad.keras", changed(a_model_in_itself), "is too deep or too large to be a model"),
    "a variable too few": (
        "bad.keras",
        changed(lambda file: file.__delitem__("optimizer/vars/13")),
        "has 13 variables",
    ),
    "a count below zero": (
        "bad.keras",
        changed(lambda file: file["optimizer/vars/0"].write_direct(np.array(-1, "int32"))),
        "the iteration of",
    ),
    "a learning rate that is no number": (
        "bad.keras",
        changed(lambda file: file["optimizer/vars/1"].write_direct(np.array(np.nan, "float32"))),
        "the learning_rate of",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_clear_error_and_runs_no_code(name: str, run: Path, tmp_path: Path) -> None:
    file_name, make, words = BAD[name]
    path = make(run, tmp_path / file_name)
    mapping = ORDER if file_name.endswith(".h5") else None
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load_state(TX, flax_params(), path, mapping)
    assert file_name in str(caught.value) or name == "a class that is code"
    assert not Path(BOMB).exists()


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no_such_file"):
        load_state(TX, flax_params(), tmp_path / "no_such_file.keras")


def test_reading_a_file_imports_no_keras(run: Path) -> None:
    code = (
        "import sys, jax.numpy as jnp; from optchain.interop.keras import from_keras, load_params, load_state\n"
        f"path, shapes = {str(run / 'run.keras')!r}, {jax.tree.map(jnp.shape, flax_params())!r}\n"
        "import jax; params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda s: isinstance(s, tuple))\n"
        "load_state(from_keras(path), load_params(params, path), path)\n"
        "assert 'keras' not in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_target_that_does_not_fit_is_not_touched() -> None:
    params = flax_params()
    model = keras_model(keras.optimizers.Adam(0.1))
    before = [
        keras.ops.convert_to_numpy(v.value).tobytes() for v in [*model.optimizer.variables, *model.trainable_variables]
    ]
    # The last of the six differs: the five before it must not have been assigned.
    wrong = params | {"logits": params["logits"] | {"kernel": jnp.ones((1, 1))}}
    with pytest.raises(ValueError, match=r"logits/kernel has shape \(1, 1\), and sequential.*/logits/kernel of"):
        save_params(wrong, model)
    with pytest.raises(ValueError, match=r"logits/kernel has shape \(1, 1\)"):
        save_state(TX, wrong, TX.init(wrong), model)
    with pytest.raises(ValueError, match=r"\[\"nu_max\"\].* has no counterpart: the states of tx have no leaf there"):
        save_state(TX, params, optchain.adam(0.1, amsgrad=True).init(params), model)
    after = [
        keras.ops.convert_to_numpy(v.value).tobytes() for v in [*model.optimizer.variables, *model.trainable_variables]
    ]
    assert after == before
