"""The argument `memory_kind`: in which memory the state lies, the device's or the host's."""

import functools
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from optchain.core import memory
from optchain.core.calls import closest_name

AnyMesh: TypeAlias = Mesh | AbstractMesh
MemoryKind: TypeAlias = str | Mapping[str, str] | None

KINDS = ("device", "pinned_host")
ALLOWED = "'device' or 'pinned_host'"


def check_memory_kind(memory_kind: Any, mesh: Any) -> None:
    """Requires kinds of memory that the devices of the mesh have. Of those of an `AbstractMesh` nobody knows."""
    by_slot = isinstance(memory_kind, Mapping)
    if not (memory_kind is None or by_slot or isinstance(memory_kind, str)):
        raise TypeError(
            f"memory_kind must be {ALLOWED}, a mapping of the names of slots to these, or None; "
            f"got {memory_kind!r} ({type(memory_kind).__name__})"
        )
    given = memory_kind if by_slot else {} if memory_kind is None else {None: memory_kind}
    for slot, kind in given.items():
        argument = "memory_kind" if slot is None else f"memory_kind[{slot!r}]"
        if kind not in KINDS:
            raise ValueError(f"{argument} must be {ALLOWED}; got {kind!r}")
        if kind == "pinned_host" and not _has_host_memory(mesh):
            raise ValueError(
                f"{argument} must be 'device' here: JAX {jax.__version__} can use no memory of the host from the devices of the "
                f"mesh; got {kind!r}"
            )


def check_slots(memory_kind: Mapping[str, str], slots: Collection[str]) -> None:
    """Requires names of slots of the state."""
    known = sorted(slots)
    for name in memory_kind:
        if name not in known:
            meant = closest_name(name, known)
            hint = "" if meant is None else f" (did you mean {meant}?)"
            there_are = ", ".join(map(repr, known)) or "none"
            raise ValueError(
                f"memory_kind names a slot {name!r}, which the state has not{hint}; there are: {there_are}"
            )


def _has_host_memory(mesh: Any) -> bool:
    if not isinstance(mesh, Mesh):
        return True
    device = next(iter(mesh.local_devices), mesh.devices.flat[0])
    try:
        kinds = {found.kind for found in device.addressable_memories()}
    except jax.errors.JaxRuntimeError:  # a GPU for which programs are only compiled
        return False
    return "pinned_host" in kinds and (device.platform != "cpu" or _cpu_programs_use_it())


@functools.cache
def _cpu_programs_use_it() -> bool:
    """Older versions of JAX put arrays there, and compile no program that reads them."""
    try:
        with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: memory.fetched(x) + 1)(memory.sent(jnp.zeros(1)))
    except jax.errors.JaxRuntimeError:
        return False
    return True
