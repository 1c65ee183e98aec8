"""What devices share inside `shard_map`, where JAX keeps track of the mesh axes over which a value varies.

Inside `pmap`, and inside `shard_map` with `check_vma=False`, it keeps none: there every value counts as the same on all
devices, and nothing can be checked. And in whose memory a value lies, a device's or the host's.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

AxisName = str | tuple[str, ...]


def varies_over(value: jax.Array) -> frozenset[str]:
    """The mesh axes along which devices have other values, as far as JAX knows."""
    return _varying(jax.typeof(value))


def _varying(kind: Any) -> frozenset[str]:
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())  # JAX renamed it


def varying_as(value: jax.Array, kind: Any) -> jax.Array:
    """`value`, or zeros in its place, varying over the mesh axes over which an array of the type `kind` does."""
    if not varies_over(value) <= _varying(kind):
        value = jnp.zeros(jnp.shape(value), value.dtype)
    return varying_also_as(value, kind)


def varying_also_as(value: jax.Array, kind: Any) -> jax.Array:
    """`value`, varying besides over the mesh axes over which an array of the type `kind` does."""
    missing = tuple(sorted(_varying(kind) - varies_over(value)))
    if not missing:
        return value
    older: Any = lax  # which calls it pvary
    return lax.pcast(value, missing, to="varying") if hasattr(lax, "pcast") else older.pvary(value, missing)


def placed_as(value: jax.Array, kind: Any) -> jax.Array:
    """Like `varying_as`, and split over the explicit axes of a mesh as an array of the type `kind` is."""
    return split_as(varying_as(value, kind), kind)


def split_as(value: jax.Array, kind: Any) -> jax.Array:
    """The value, split over the explicit axes of a mesh as an array of the type `kind` is."""
    wanted = getattr(kind, "sharding", None)
    if wanted is None or wanted.mesh.empty or jax.typeof(value).sharding.spec == wanted.spec:
        return value
    return jax.sharding.reshard(value, wanted)


def is_tracked(axis: str) -> bool:
    """Whether JAX keeps track of what varies along an axis: then it knows that the devices' own numbers do."""
    return axis in varies_over(lax.axis_index(axis))


def check_same(owner: str, what: str, value: jax.Array, axis_name: AxisName | None) -> None:
    """Refuses what is decided by devices that differ; an `axis_name` of `()` says that each may decide for itself."""
    varying = sorted(varies_over(value))
    if varying and axis_name != ():
        names = ", ".join(map(repr, varying))
        argument = names if len(varying) == 1 else f"({names})"
        raise ValueError(
            f"{owner}: {what} differs over the devices of the axis {names}, and they would diverge. If each device has a part "
            f"of the batch, put cross_replica_mean({argument}) first in the chain. If each has a part of the parameters, "
            f"give {owner} axis_name={argument}. If each trains a model of its own, give axis_name=()."
        )


def sum_over(values: Iterable[jax.Array], axis_name: AxisName) -> jax.Array:
    """The sum of scalars over the devices of some axes; one that is the same on all devices of an axis counts once there."""
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    tracked = [name for name in axes if is_tracked(name)]
    sums: dict[tuple[str, ...], jax.Array] = {}
    for value in values:
        split = tuple(name for name in axes if name not in tracked or name in varies_over(value))
        sums[split] = jnp.add(sums[split], value) if split in sums else value
    return sum(lax.psum(value, split) if split else value for split, value in sums.items())  # pyright: ignore


def on_host(x: Any) -> bool:
    """Whether an array lies in the host's memory."""
    return isinstance(x, jax.Array) and jax.typeof(x).memory_space == jax.memory.Space.Host


def fetched(x: Any) -> Any:
    """The array in the device's memory."""
    return jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x
