"""Small files that declare 32 GiB, and files whose sums do not hold, are refused before anything of them is made."""

import json
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import optchain
from optchain.cli import main
from optchain.interop import keras as interop_keras
from optchain.interop import orbax

torch = pytest.importorskip("torch")

HUGE = 2**33  # numbers of four bytes
ROOM = 2**32
"""Bytes of address space that a reader may take more: far fewer than are declared."""


@pytest.fixture(autouse=True)
def _with_little_room() -> Iterator[None]:
    """An allocation of what is declared fails, whatever the machine has, and does not come back as success."""
    torch.zeros(1), jnp.zeros(1).block_until_ready()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def saved(folder: Path, **tensors: Any) -> Path:
    path = folder / "run.pt"
    torch.save(tensors, path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes], how: int = zipfile.ZIP_STORED) -> Path:
    """A zip with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def a_long_storage(folder: Path) -> Path:
    """The pickle says that the storage has more numbers than its record: PyTorch reads them from behind it."""
    path = saved(folder, w=torch.ones(300))
    number = b"M" + struct.pack("<H", 300)

    def change(name: str, data: bytes) -> bytes:
        return data.replace(number, b"\x8a\x05" + HUGE.to_bytes(5, "little")) if name.endswith("data.pkl") else data

    return rewritten(path, change)


def one_number_of_any_shape(folder: Path) -> Path:
    return saved(folder, w=torch.ones(1).expand(HUGE))


def a_parameter_of_any_shape(folder: Path) -> Path:
    return saved(folder, w=torch.nn.Parameter(torch.ones(1).expand(HUGE)))


def a_storage_in_a_file_that_is_no_zip(folder: Path) -> Path:
    path = folder / "run.pt"
    torch.save({"w": torch.ones(300)}, path, _use_new_zipfile_serialization=False)
    number = b"M" + struct.pack("<H", 300)
    path.write_bytes(path.read_bytes().replace(number, b"\x8a\x05" + HUGE.to_bytes(5, "little")))
    return path


def a_zip_that_unfolds(folder: Path) -> Path:
    path = saved(folder, w=torch.ones(300))
    return rewritten(path, lambda name, data: bytes(2**24) if name.endswith("/0") else data, zipfile.ZIP_DEFLATED)


def safetensors(folder: Path, header: bytes, data: bytes = b"") -> Path:
    path = folder / "run.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def a_header_of_any_shape(folder: Path) -> Path:
    about = {"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}
    return safetensors(folder, json.dumps(about).encode(), bytes(64))


def a_header_of_any_length(folder: Path) -> Path:
    path = safetensors(folder, b"{}")
    path.write_bytes(struct.pack("<Q", 2**35) + b"{}")
    return path


def deep_json_in_a_header(folder: Path) -> Path:
    return safetensors(folder, b'{"w":' + b"[" * 20_000)


def deep_json_in_the_groups(folder: Path) -> Path:
    about = {"__metadata__": {"optimizer.param_groups": "[" * 20_000}}
    return safetensors(folder, json.dumps(about).encode())


def fp8_in_safetensors(folder: Path) -> Path:
    about = {"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    return safetensors(folder, json.dumps(about).encode(), bytes(2))


def keras_weights(folder: Path, **how: Any) -> Path:
    path = folder / "run.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/dense/vars/0", shape=(HUGE,), dtype="float32", **how)
    return path


def a_dataset_that_was_never_written(folder: Path) -> Path:
    return keras_weights(folder)


def a_dataset_in_chunks(folder: Path) -> Path:
    return keras_weights(folder, chunks=(2**20,))


def a_compressed_dataset(folder: Path) -> Path:
    return keras_weights(folder, compression="gzip", chunks=(2**20,))


def a_dataset_of_a_fill_value(folder: Path) -> Path:
    return keras_weights(folder, fillvalue=1.5)


def keras_archive(folder: Path, how: int, size: int | None = None) -> Path:
    path = folder / "run.keras"
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(2**24))
    if size is not None:  # in the central directory
        data = path.read_bytes()
        path.write_bytes(
            data.replace(struct.pack("<II", 2**24, 2**24), struct.pack("<II", size, size)).replace(bytes(2**24), b"")
        )
    return path


def a_keras_archive_that_unfolds(folder: Path) -> Path:
    return keras_archive(folder, zipfile.ZIP_DEFLATED)


def a_keras_archive_with_a_member_larger_than_itself(folder: Path) -> Path:
    return keras_archive(folder, zipfile.ZIP_STORED, 2**32 - 16)


def orbax_zeros(folder: Path, ours: bool) -> Path:
    path = folder / "run"
    tree = {"params": {"w": np.zeros(2**10, np.float32)}, "state": {}}
    if ours:
        orbax.save(path, 1, {"params": tree["params"]})
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, {"params": tree["params"]})
    return path


def orbax_metadata_of_any_shape(folder: Path) -> Path:
    """Zeros are not written, so that a shape is all that there is of them."""
    path = folder / "run"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path, {"params": {"w": np.zeros(2**10, np.float32)}})
    (about,) = path.rglob(".zarray")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"shape": [HUGE]}))
    return path


HUGE_BYTES = 4 * HUGE
FILES = {
    a_long_storage: f"the storage 0 is declared with {HUGE_BYTES} bytes, and the file has 1200",
    one_number_of_any_shape: f"a tensor of shape ({HUGE},) is declared, and its storage has 4 bytes",
    a_parameter_of_any_shape: f"a tensor of shape ({HUGE},) is declared, and its storage has 4 bytes",
    a_storage_in_a_file_that_is_no_zip: f" is declared with {HUGE_BYTES} bytes, and the file has ",
    a_zip_that_unfolds: "its records are not stored as torch.save stores them",
    a_header_of_any_shape: "it is damaged or none: ",
    a_header_of_any_length: "it is damaged or none: ",
    deep_json_in_a_header: "it is damaged or none: ",
    deep_json_in_the_groups: "its description of the optimizer cannot be read: ",
    fp8_in_safetensors: "w is F8_E4M3, which NumPy has not",
    a_dataset_that_was_never_written: f"of shape ({HUGE},) needs {HUGE_BYTES} bytes; the file has 0 of them",
    a_dataset_in_chunks: "must lie within the file as plain numbers",
    a_compressed_dataset: "must lie within the file as plain numbers",
    a_dataset_of_a_fill_value: f"of shape ({HUGE},) needs {HUGE_BYTES} bytes; the file has 0 of them",
    a_keras_archive_that_unfolds: "must be stored uncompressed",
    a_keras_archive_with_a_member_larger_than_itself: "is damaged or truncated: ",
    orbax_metadata_of_any_shape: f"it declares {HUGE_BYTES} bytes of arrays, and its files have ",
}
"""Each with what is said of it, which shows that nothing was allocated."""


@pytest.mark.parametrize(("write", "words"), FILES.items(), ids=[write.__name__ for write in FILES])
def test_a_small_file_that_declares_much_is_one_line(
    write: Callable[[Path], Path],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    Path("recipe.json").write_text(json.dumps(optchain.to_config(optchain.presets.torch.sgd(0.1))))
    Path("names.json").write_text(json.dumps({"w": "layers/dense/vars/0" if path.suffix == ".h5" else "w"}))
    arguments = [str(path), "--to", "orbax", "--out", "out", "--recipe", "recipe.json", "--names", "names.json"]
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"optchain: {path}")
    assert words in said
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_npz_shapes_are_read_of_the_headers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "params.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % HUGE
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")
    assert main(["describe", "sgd", "--params", str(path)]) == 0
    np.savez(path, **{"a.kernel": np.ones((3, 2)), "b": np.ones(4, np.float16)})
    assert main(["describe", "adamw", "--params", str(path)]) == 0
    assert "10" in capsys.readouterr().out


# Sums -----------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_pt_file_is_refused_or_changes_nothing(tmp_path: Path):
    from optchain.interop.torch import read

    path = saved(tmp_path, w=torch.arange(200.0))
    written, where = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        flipped = bytearray(written)
        flipped[where.randrange(len(written))] ^= 1 << where.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read(path)
        except ValueError:
            refused += 1
            continue
        assert found.model is not None
        np.testing.assert_array_equal(found.model["w"], torch.arange(200.0))
    assert refused > 100


class Malice:
    def __reduce__(self) -> Any:
        return print, ("code was run",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pickle_is_run(zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from optchain.interop.torch import read

    path = tmp_path / "run.pt"
    torch.save({"w": Malice()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds something else or is damaged"):
        read(path)
    path.write_bytes(pickle.dumps(Malice()))
    with pytest.raises(ValueError, match="expected a checkpoint of"):
        read(path)
    assert capsys.readouterr().out == ""


KINDS = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(2, 2, device="meta"),
    "float8_e4m3fn": lambda: torch.ones(2, 2).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of what is on its way out
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["model", "state"])
def test_tensors_that_are_no_plain_arrays_are_one_line(
    kind: str, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    odd, plain = KINDS[kind](), torch.ones(2, 2)
    slot = {"step": torch.tensor(1.0), "exp_avg": odd if of == "state" else plain, "exp_avg_sq": plain}
    group = {"lr": 0.1, "params": [0]}
    model = {"w": odd if of == "model" else plain}
    torch.save({"model": model, "optimizer": {"state": {0: slot}, "param_groups": [group]}}, "run.pt")
    Path("recipe.json").write_text(json.dumps(optchain.to_config(optchain.presets.torch.adam(0.1))))
    Path("names.json").write_text(json.dumps({"a/scale": "w"}))
    arguments = ["run.pt", "--to", "orbax", "--out", "out", "--recipe", "recipe.json", "--names", "names.json"]
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("optchain: run.pt")
    assert not Path("out").exists()


def test_zeros_that_were_asked_for_are_restored_though_no_file_has_them(tmp_path: Path):
    zeros = {"params": {"w": jnp.zeros(2**25)}}
    orbax.save(tmp_path, 0, zeros)
    restored, _ = orbax.restore(tmp_path, zeros, hyperparams="saved")
    assert restored["params"]["w"].shape == (2**25,)
    with pytest.raises(ValueError, match=r"declares \d+ bytes of arrays, and its files have"):
        orbax.read(tmp_path)


def test_keras_files_as_keras_writes_them_are_read(tmp_path: Path):
    path = tmp_path / "run.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2), np.float32)
        file["layers/dense/vars/1"] = np.float32(3)
        file["layers/dense/vars/2"] = np.ones((0, 2), np.float32)
    params = {"w": jnp.zeros((2, 2)), "s": jnp.zeros(()), "e": jnp.zeros((0, 2))}
    names = {name: f"layers/dense/vars/{i}" for i, name in enumerate(params)}
    assert interop_keras.load_params(params, path, names)["s"] == 3
