"""What was measured, and where: rows that a table, a chart or a file is made of."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

LIBRARIES = ("optchain", "jax", "jaxlib", "optax", "keras", "torch", "numpy", "libtpu", "jax-cuda12-plugin")


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender at one recipe on one tree. Bytes are per parameter; None is what could not be counted."""

    tree: str
    recipe: str
    contender: str
    parameters: int
    milliseconds: float
    """Of a call: the median over the turns of the mean over a turn's calls (with accumulation, a window of four)."""
    mean_milliseconds: float
    waiting_milliseconds: float | None
    """Of a call that only accumulates, the median."""
    over_apply: float | None
    """This time over that of optchain's `apply`, the median over the turns."""
    over_update: float | None
    gigabytes_per_second: float
    """At the bytes of the floor."""
    floor_bytes: float
    bytes_accessed: float | None
    temporary_bytes: float | None
    not_aliased_bytes: float | None
    state_bytes: float
    trace_seconds: float | None
    compile_seconds: float | None


@dataclasses.dataclass(frozen=True)
class CompiledRow:
    """A program compiled for devices that are not there; bytes are per parameter that a device holds."""

    topology: str
    """The target as it was given: `h100`, `v5e`, `v5e:2x2`."""
    layout: str
    tree: str
    recipe: str
    contender: str
    waiting_bytes: float
    """Through main memory, in a call that takes the cheapest branch of every condition."""
    updating_bytes: float
    """Likewise, the dearest."""
    mean_bytes: float
    """Of the calls of a window."""
    temporary_bytes: float
    bytes_accessed: float | None
    """XLA's count, where the compiler gives one: all branches, copies to vector memory included."""
    waiting_kernels: int
    """What is launched, in a call that takes the cheapest branch of every condition; on a TPU, steps of its program."""
    updating_kernels: int
    copied_arrays: int
    """Copies of arrays in the program's text, scalars left out."""
    trace_seconds: float
    """Processor time, to trace the step and lower it to StableHLO."""
    compile_seconds: float
    """Likewise, to compile it."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    tree: str
    recipe: str
    contender: str
    reason: str


@dataclasses.dataclass
class Report:
    place: dict[str, Any]
    rows: list[Row] = dataclasses.field(default_factory=list)
    left_out: list[LeftOut] = dataclasses.field(default_factory=list)
    compiled: list[CompiledRow] = dataclasses.field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return rounded(dataclasses.asdict(self))


def place(**more: Any) -> dict[str, Any]:
    """The date, the machine and the versions: what a number means nothing without."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "backend": jax.default_backend(),
        "device": _device(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        **more,
    }


def _device() -> str:
    """The accelerator's kind, or the processor's name."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rounded(value: Any, digits: int = 4) -> Any:
    """The same with four significant digits."""
    match value:
        case float():
            return float(f"{value:.{digits}g}")
        case dict():
            return {key: rounded(item, digits) for key, item in value.items()}
        case list() | tuple():
            return [rounded(item, digits) for item in value]
        case _:
            return value
