"""What a file of `torch.save` declares, held against what it has, before PyTorch reads or allocates any of it.

PyTorch looks at no checksum, takes the lengths of storages as they are written, and lets a tensor of any size be made of one
number. The pickle in the file is read here with inert stand-ins for all that it names: nothing is imported and no code runs.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

ZIP = b"PK\x03\x04"
LEGACY_PICKLES = 4
"""A magic number, a version, the system, and what was saved: how files begin that are no zip."""


def check(path: Path) -> None:
    """Refuses a file that is damaged, or declares more than it has.

    Raises:
      ValueError: which of both, and where.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP
        file.seek(0)
        if is_zip:
            _check_zip(path, file)
        else:  # of before 2020: no sums and no records
            size = path.stat().st_size
            for _ in range(LEGACY_PICKLES):
                _Declared(file, lambda key: size, exact=False).load()


def _check_zip(path: Path, file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        sizes = {member.filename: member.file_size for member in members}
        packed = [
            m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size
        ]
        if packed or len(sizes) < len(members) or sum(sizes.values()) > path.stat().st_size:
            raise ValueError(
                "its records are not stored as torch.save stores them: each once, as it is, within the file"
            )
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} has not the checksum that was written with it")
        pickles = [name for name in sizes if name.endswith("/data.pkl")]
        for name in pickles:
            folder = name.removesuffix("data.pkl")
            with archive.open(name) as data:
                _Declared(data, _records(sizes, folder), exact=True).load()


def _records(sizes: Mapping[str, int], folder: str) -> Callable[[str], int]:
    def size(key: str) -> int:
        if f"{folder}data/{key}" not in sizes:
            raise ValueError(f"there is no record of the storage {key}")
        return sizes[f"{folder}data/{key}"]

    return size


class _Inert(dict):
    """Stands for whatever a pickle names or makes, takes everything, and does nothing."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Inert()

    def __setstate__(self, state: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class _Storage(_Inert):
    """Numbers that a pickle says are elsewhere in the file."""

    bytes = 0


class _Declared(pickle.Unpickler):
    """Reads a pickle for what it declares, and makes nothing of it."""

    def __init__(self, file: Any, size: Callable[[str], int], *, exact: bool):
        super().__init__(file)
        self._size, self._exact = size, exact

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in (
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
            "_rebuild_qtensor",
        ):
            return _tensor
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return lambda make, kind, args, state: make(*args)
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            import torch

            kind = getattr(torch, name, None)
            return (lambda width: lambda: width)(1 if kind in (None, torch.UntypedStorage) else kind.dtype.itemsize)
        return _Inert

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5:
            return _Storage()
        _, kind, key, _, count, *_ = pid
        width = kind() if callable(kind) else 1
        storage = _Storage()
        storage.bytes = count * width if isinstance(count, int) and isinstance(width, int) else -1
        held = self._size(str(key))
        if storage.bytes < 0 or storage.bytes > held or (self._exact and storage.bytes != held):
            raise ValueError(f"the storage {key} is declared with {storage.bytes} bytes, and the file has {held}")
        return storage


def _tensor(storage: Any, offset: Any = 0, size: Any = (), *rest: Any) -> _Inert:
    count = math.prod(n for n in size if isinstance(n, int)) if isinstance(size, tuple) else 0
    if isinstance(storage, _Storage) and count > storage.bytes:
        raise ValueError(f"a tensor of shape {size} is declared, and its storage has {storage.bytes} bytes")
    return _Inert()
