"""Files of PyTorch, `.pt` and `.safetensors`, as data alone."""

import dataclasses
import errno
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optchain.interop.packages import import_package
from optchain.interop.report import join_paths
from optchain.interop.system import reason

PICKLED = (".pt", ".pth", ".bin")
SAFE = (".safetensors",)
UNREADABLE = (
    *(RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError, MemoryError),
    *(RecursionError, zipfile.BadZipFile, struct.error),
)
"""What readers raise of a file that is damaged."""
SYSTEM = frozenset(map(os.strerror, errno.errorcode))
NUMBERS = frozenset(["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64", "C64"])
"""The dtypes of `.safetensors` that NumPy has, and bfloat16."""
MODEL, STATE, GROUPS = "model.", "optimizer.state.", "optimizer.param_groups"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    model: dict[str, Any] | None
    """The parameters by their names."""
    optimizer: dict[str, Any] | None
    """The state of the optimizer."""


def read(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint of PyTorch. No code in it is run.

    Args:
      path: a `.pt`, `.pth` or `.bin` file of `torch.save`: a model's `state_dict`, an optimizer's, or a dict with both
        under names of their own, as training scripts save them; or a `.safetensors` file, of parameters or as `write`
        leaves it.

    Returns:
      The model's and the optimizer's `state_dict`, None where there is none.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another kind of file, a damaged one, whose checksums do not hold or that declares more than it has, one that
        holds more than data, or neither of the two.
      ImportError: PyTorch or safetensors is not installed; the message says what installs it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix in SAFE:
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _found(path, _read_pickled(path))
    raise ValueError(f"{path}: expected a file of PyTorch, {', '.join((*PICKLED, *SAFE))}")


def write(path: str | os.PathLike, model: Mapping[str, Any] | None, optimizer: Mapping[str, Any] | None) -> None:
    """Writes a checkpoint that `read` reads, and `torch.load` if it is a `.pt`: `{"model": …, "optimizer": …}`.

    A `.safetensors` file has the tensors of the model under `model.<name>`, those of the state under
    `optimizer.state.<number>.<entry>`, and the groups as JSON among its metadata. The file is complete or not there.

    Raises:
      ValueError: another ending.
      OSError: it cannot be written, say because the disk is full.
    """
    path = Path(path)
    if path.suffix not in PICKLED + SAFE:
        raise ValueError(f"{path}: the name must end in {', '.join((*PICKLED, *SAFE))}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix in SAFE:
            _write_safetensors(partial, model, optimizer)
        else:
            torch = import_package("torch")
            parts = {"model": model, "optimizer": optimizer}
            with partial.open("wb") as file:  # whose error says why; PyTorch's own does not
                torch.save({name: part for name, part in parts.items() if part is not None}, file)
        partial.replace(path)
    except Exception as error:  # both libraries have errors of their own for what the system refuses
        why = reason(error)
        if isinstance(error, OSError) or why in SYSTEM:
            raise OSError(f"cannot write {path}: {why}") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _read_pickled(path: Path) -> Any:
    torch = import_package("torch")
    from optchain.interop.torch import archive

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how it was pickled: an unreadable file is an error anyway
            archive.check(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: expected a checkpoint of torch.save with tensors, numbers and names alone, and it was not read, since it "
            "holds something else or is damaged"
        ) from error
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path}: expected a checkpoint of torch.save, and it is damaged or none: {reason}") from error


def _found(path: Path, data: Any) -> Checkpoint:
    """The parts of a checkpoint, wherever a training script has put them."""
    candidates = [data]
    for value in data.values() if isinstance(data, Mapping) else ():
        candidates += value if isinstance(value, list) else [value]
    optimizers = [value for value in candidates if _is_optimizer(value)]
    models = [value for value in candidates if _is_model(value)]
    if not optimizers + models or len(optimizers) > 1 or len(models) > 1:
        held = join_paths(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(
            f"{path}: expected the state_dict of a model, of an optimizer, or a dict with one of each; it holds "
            f"{len(models)} and {len(optimizers)} of them: {held}"
        )
    model, optimizer = next(iter(models), None), next(iter(optimizers), None)
    return Checkpoint(None if model is None else dict(model), None if optimizer is None else dict(optimizer))


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()


def _is_model(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(hasattr(tensor, "shape") for tensor in value.values())


def _read_safetensors(path: Path) -> Checkpoint:
    safetensors = import_package("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            foreign = next((name for name in names if dtypes[name] not in NUMBERS), None)
            tensors = {} if foreign is not None else {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, *UNREADABLE) as error:
        raise ValueError(
            f"{path}: expected a .safetensors file of numbers that NumPy has, and it is damaged or none: {error}"
        ) from error
    if foreign is not None:
        raise ValueError(f"{path}: {foreign} is {dtypes[foreign]}, which NumPy has not: save it dense, as float32 say")
    try:
        groups = json.loads(metadata[GROUPS]) if GROUPS in metadata else None
        slots = _slots(tensors)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its description of the optimizer cannot be read: {error}") from error
    if groups is None:
        plain = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()}
        return Checkpoint(plain, None)
    model = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    return Checkpoint(model or None, {"state": slots, "param_groups": groups})


def _slots(tensors: Mapping[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    slots: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if name.startswith(STATE):
            number, _, entry = name.removeprefix(STATE).partition(".")
            slots.setdefault(int(number), {})[entry] = tensor
    return slots


def _write_safetensors(path: Path, model: Mapping[str, Any] | None, optimizer: Mapping[str, Any] | None) -> None:
    import_package("safetensors")
    from safetensors.numpy import save_file

    from optchain.interop.torch.layouts import to_array

    tensors = {f"{MODEL}{name}": to_array(tensor) for name, tensor in (model or {}).items()}
    metadata = {"format": "pt"}
    if optimizer is not None:
        metadata[GROUPS] = json.dumps(optimizer["param_groups"])
        for number, slot in optimizer["state"].items():
            tensors |= {f"{STATE}{number}.{entry}": to_array(value) for entry, value in slot.items()}
    save_file({name: np.array(tensor, order="C") for name, tensor in tensors.items()}, path, metadata)
