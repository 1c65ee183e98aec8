"""Matrices of one shape, each computed whole by the device that owns it.

A function of a whole matrix, such as an orthogonalization, makes the compiler gather every matrix on every device where the
matrices are split. Stacked and split along the stack, each device has whole matrices of its own: one exchange brings them
there, one brings the results back, and no device computes what another does.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def owner_axes() -> tuple[str, ...]:
    """The axes of the mesh in context over which matrices can be dealt out: none without a mesh, or inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return ()
    return tuple(name for name, size in mesh.shape.items() if size > 1)


def by_owners(function: Callable[[jax.Array], jax.Array], matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """`function` of a stack of all the matrices, dealt out over the devices of the mesh in context.

    Args:
      function: takes a stack `(count, …)` and returns one of the same shape; each matrix by itself, and finite for zeros, which
        fill the stack up to a multiple of the devices.
      matrices: stacks `(n, …)` of one shape from the second axis on, and of one dtype. Where a mesh has explicit axes, inside of
        :func:`along_automatic_axes`.

    Returns:
      The results in the shapes of `matrices`.
    """
    axes = owner_axes()
    if not axes:
        return _cut(function(_joined(matrices)), matrices)
    mesh = jax.sharding.get_abstract_mesh()
    owners = math.prod(mesh.shape[name] for name in axes)
    # One axis at a time, and back: compilers exchange along one axis, and gather where they must exchange along several at once.
    steps = [_dealt(mesh, axes[:i], matrices[0].ndim, whole=i == len(axes)) for i in range(len(axes) + 1)]

    def dealt(stack: jax.Array, steps: Sequence[NamedSharding]) -> jax.Array:
        for step in steps:
            stack = lax.with_sharding_constraint(stack, step)
        stack = function(stack)
        for step in reversed(steps):
            stack = lax.with_sharding_constraint(stack, step)
        return stack

    # A stack that goes round may be split along itself already, such as the layers of a scanned model: it is dealt out by itself.
    alone = [len(part) > 0 and len(part) % owners == 0 for part in matrices]
    made = [dealt(part, steps[1:]) if is_alone else part for part, is_alone in zip(matrices, alone, strict=True)]
    rest = [i for i, is_alone in enumerate(alone) if not is_alone]
    if rest:
        parts = [matrices[i] for i in rest]
        stack = _joined(parts)
        stack = jnp.pad(stack, [(0, -len(stack) % owners), *[(0, 0)] * (stack.ndim - 1)])
        # First a stack that is not dealt out, and last: of one that is cut while it is dealt out each piece is sent by itself.
        for i, part in zip(rest, _cut(dealt(stack, steps), parts), strict=True):
            made[i] = part
    return made


def _joined(matrices: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate(matrices) if len(matrices) > 1 else matrices[0]


def _cut(stack: jax.Array, like: Sequence[jax.Array]) -> list[jax.Array]:
    ends = itertools.accumulate([len(part) for part in like], initial=0)
    return [stack[start:end] for start, end in itertools.pairwise(ends)]


def along_automatic_axes(
    function: Callable[..., tuple[jax.Array, ...]], arrays: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    """`function(*arrays)`, of which the compiler places what lies between: along explicit axes of a mesh neither merged axes nor
    a product of split matrices has one type. The results lie where the arrays do, whose shapes they have.
    """
    shardings = tuple(jax.typeof(x).sharding for x in arrays)
    mesh = jax.sharding.get_abstract_mesh()
    is_explicit = AxisType.Explicit in (mesh if not mesh.empty else shardings[0].mesh).axis_types
    automatic: Any = jax.sharding.auto_axes(function, out_sharding=shardings) if is_explicit else function
    return automatic(*arrays)


def _dealt(mesh: AbstractMesh, axes: tuple[str, ...], ndim: int, *, whole: bool) -> NamedSharding:
    """A stack that is split over some axes, its matrices whole or as the compiler finds best."""
    return NamedSharding(
        mesh, PartitionSpec(axes or None, *[None if whole else PartitionSpec.UNCONSTRAINED] * (ndim - 1))
    )
