"""Reading what Keras saved, `.keras` and `.weights.h5`, without Keras and without trust.

A `.keras` archive is a zip of `config.json` and `model.weights.h5`, stored as they are. Nothing in either is executed:
JSON is data, and of an HDF5 file only plain numeric datasets are read, whose shapes are known to be the wanted ones
before a byte of them is.
"""

import contextlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from optchain.interop.packages import import_package

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MAX_CONFIG = 2**26  # bytes
MAX_DEPTH = 32
MAX_VARIABLES = MAX_GROUPS = 100_000
BFLOAT16 = jnp.dtype(jnp.bfloat16)


class Dataset:
    """One variable of a file, not read yet."""

    def __init__(self, dataset: Any, where: str, size: int):
        self.dataset, self.where, self.size = dataset, where, size
        self.shape: tuple[int, ...] = tuple(dataset.shape or ())

    def read(self) -> np.ndarray:
        """The values. The caller has compared the shape with the one it expects."""
        dtype = self.dataset.dtype
        is_bfloat16 = dtype == np.dtype("V2") and self.dataset.attrs.get("dtype") == "bfloat16"  # how Keras stores it
        if not is_bfloat16 and (dtype.kind not in "fiu" or dtype.itemsize > 8):
            raise ValueError(f"{self.where} must hold numbers; its dtype is {dtype}")
        self._check_size(math.prod(self.shape) * dtype.itemsize)
        values = np.asarray(self.dataset[()])
        return values.view(BFLOAT16) if is_bfloat16 else values

    def _check_size(self, declared: int) -> None:
        # HDF5 allocates what a shape says, and fills what was never written.
        stored = self.dataset.id.get_storage_size()
        if declared != stored or stored > self.size:
            raise ValueError(
                f"{self.where} of shape {self.shape} needs {declared} bytes; the file has {stored} of them in {self.size} bytes"
            )


class Weights:
    """The variables of an open HDF5 file."""

    def __init__(self, file: Any, what: str, size: int):
        self.file, self.what, self.size = file, what, size

    def variables(self, place: str) -> list[Dataset] | None:
        """The variables that Keras numbers `{place}/vars/0`, `1`, …; None if there is no such place."""
        group = self._group(f"{place}/vars")
        if group is None:
            return None
        if len(group) > MAX_VARIABLES:
            raise ValueError(f"{self.what}: {place} has {len(group)} variables; at most {MAX_VARIABLES} are read")
        return [self._dataset(group, f"{place}/vars", str(index)) for index in range(len(group))]

    def places(self, root: str = "layers") -> list[str]:
        """All places below a root that have variables, in the order of their names."""
        found, waiting, visited = list[str](), [(root, self._group(root))], 0
        while waiting:
            place, group = waiting.pop()
            visited += 1
            # A group may contain itself: the walk ends where it is too deep or too large for a model.
            if visited > MAX_GROUPS or place.count("/") > MAX_DEPTH:
                raise ValueError(f"{self.what}: {root} is too deep or too large to be a model")
            names = sorted((name for name in group or () if isinstance(name, str)), reverse=True)
            children = {name: self._child(group, name) for name in names}
            groups = {name: child for name, child in children.items() if isinstance(child, _h5py().Group)}
            if len(groups.pop("vars", ())):
                found.append(place)
            waiting += [(f"{place}/{name}", child) for name, child in groups.items()]
        return found

    def _group(self, place: str) -> Any:
        group = self.file
        for name in place.split("/"):
            group = self._child(group, name)
            if not isinstance(group, _h5py().Group):
                return None
        return group

    def _child(self, group: Any, name: str) -> Any:
        link = group.get(name, getlink=True) if name in group.keys() else None  # noqa: SIM118  # h5py follows links in `in`
        if link is None:
            return None
        if not isinstance(link, _h5py().HardLink):
            raise ValueError(
                f"{self.what}: {group.name}/{name} is a link to elsewhere, which Keras does not write: refused"
            )
        return group.get(name)

    def _dataset(self, group: Any, place: str, name: str) -> Dataset:
        found, where = self._child(group, name), f"{self.what}: {place}/{name}"
        if not isinstance(found, _h5py().Dataset):
            raise ValueError(f"{where} must be a dataset: this is no file of Keras's")
        if found.external or found.is_virtual or found.chunks is not None:
            raise ValueError(f"{where} must lie within the file as plain numbers, as Keras writes it: refused")
        return Dataset(found, where, self.size)


@contextlib.contextmanager
def open_run_file(path: str | Path) -> Iterator[tuple[Weights, Mapping[str, Any] | None]]:
    """The variables of a file and, if it is an archive, the model's config.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one of Keras's, or damaged.
      ImportError: h5py is not installed.
    """
    h5py = _h5py()
    what = str(path)
    with Path(path).open("rb") as file:  # says that there is none, or that it may not be read
        magic = file.read(8)
    config, content, size = None, path, Path(path).stat().st_size
    if magic.startswith(b"PK"):
        config, content = _archive(path, what)
    elif magic != b"\x89HDF\r\n\x1a\n":
        raise ValueError(
            f"{what} must be a .keras archive (a zip) or a .weights.h5 file (HDF5); it begins with {magic!r}, which is neither"
        )
    try:
        weights = h5py.File(content, "r")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{what}: the weights must be an HDF5 file, and do not open as one: {error}") from error
    with weights:
        try:
            yield Weights(weights, what, size), config
        except (OSError, RuntimeError) as error:  # h5py's, of damage that shows when it is read
            raise ValueError(f"{what} is damaged: {error}") from error


def config_of(path: str | Path) -> Mapping[str, Any]:
    """The config of the model in a `.keras` archive."""
    with Path(path).open("rb") as file:
        if file.read(2) != b"PK":
            raise ValueError(f"{path} must be a .keras archive, which has the recipe; it is no zip")
    return _archive(path, str(path), weights=False)[0]


def _archive(path: str | Path, what: str, weights: bool = True) -> tuple[Mapping[str, Any], io.BytesIO]:
    try:
        with zipfile.ZipFile(path) as archive:
            names, size = archive.namelist(), Path(path).stat().st_size
            if CONFIG not in names or WEIGHTS not in names:
                raise ValueError(
                    f"{what} must have {CONFIG} and {WEIGHTS} in it, as Keras writes them; it has {names[:10]}"
                )
            config = _member(archive, CONFIG, what, min(size, MAX_CONFIG))
            content = _member(archive, WEIGHTS, what, size) if weights else b""
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise ValueError(f"{what} must be a .keras archive, and is damaged or truncated: {error}") from error
    try:
        parsed = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {CONFIG} must be JSON: {error}") from error
    if not isinstance(parsed, Mapping):
        raise ValueError(f"{what}: {CONFIG} must be the config of a model, an object; it is {type(parsed).__name__}")
    return parsed, io.BytesIO(content)


def _member(archive: zipfile.ZipFile, name: str, what: str, largest: int) -> bytes:
    info = archive.getinfo(name)
    # Keras stores members as they are, so that none can unfold to more than the file has.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{what}: {name} must be stored uncompressed, as Keras writes it: refused")
    if info.file_size > largest:
        raise ValueError(f"{what}: {name} has {info.file_size} bytes; at most {largest} are read")
    return archive.read(info)  # checks its checksum


def _h5py() -> Any:
    return import_package("h5py")
