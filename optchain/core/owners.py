"""Matrices of one shape, each computed whole by the device that owns it.

A function of a whole matrix, such as an orthogonalization, makes the compiler gather every matrix on every device where the
matrices are split. Stacked and split along the stack, each device has whole matrices of its own: one exchange brings them
there, one brings the results back, and no device computes what another does.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from optchain.core.trees import Tree


def owner_axes() -> tuple[str, ...]:
    """The axes of the mesh in context over which matrices can be dealt out: none without a mesh, or inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return ()
    return tuple(name for name, size in mesh.shape.items() if size > 1)


def by_owners(function: Callable[[Tree], Tree], stacks: Sequence[Tree]) -> list[Tree]:
    """`function` of a stack of all the matrices, dealt out over the devices of the mesh in context.

    Args:
      function: takes a stack `(count, …)`, or a tree of such, and returns one of as many; each matrix by itself, and finite for
        zeros, which fill the stack up to a multiple of the devices.
      stacks: `(n, …)` each, or trees of such, alike in all but `n`. Where a mesh has explicit axes, inside of
        :func:`along_automatic_axes`.

    Returns:
      The results of each of the stacks.
    """
    axes, lengths = owner_axes(), [len(jax.tree.leaves(stack)[0]) for stack in stacks]
    if not axes:
        return _cut(function(_joined(stacks)), lengths)
    mesh = jax.sharding.get_abstract_mesh()
    owners = math.prod(mesh.shape[name] for name in axes)

    def split(stack: Tree, over: tuple[str, ...]) -> Tree:
        """A stack that is split over these axes: over all of them its matrices are whole."""
        place = functools.partial(_dealt, mesh=mesh, axes=over, whole=len(over) == len(axes))
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, place(ndim=x.ndim)), stack)

    def dealt(stack: Tree, first: int, axes: tuple[str, ...]) -> Tree:
        # One axis at a time, and back: compilers exchange along one axis, and gather where they must exchange along several at once.
        for count in range(first, len(axes) + 1):
            stack = split(stack, axes[:count])
        stack = function(stack)
        for count in range(len(axes), first - 1, -1):
            stack = split(stack, axes[:count])
        return stack

    def fill(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, -len(x) % owners), *[(0, 0)] * (x.ndim - 1)])

    # A stack that goes round may be split along itself already, such as the layers of a scanned model, over the first axis: it is
    # dealt out by itself.
    alone = [length > 0 and length % owners == 0 for length in lengths]
    made = [dealt(stack, 1, axes) if is_alone else stack for stack, is_alone in zip(stacks, alone, strict=True)]
    rest = [i for i, is_alone in enumerate(alone) if not is_alone]
    if rest:
        stack = jax.tree.map(fill, _joined([stacks[i] for i in rest]))
        # First a stack that is not dealt out, and last: of one that is cut while it is dealt out each piece is sent by itself. The last
        # axis first: where a matrix is split over several at once, `P(("data", "model"))`, it is the innermost, which can be exchanged.
        for i, part in zip(rest, _cut(dealt(stack, 0, axes[::-1]), [lengths[i] for i in rest]), strict=True):
            made[i] = part
    return made


def _joined(stacks: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda first, *rest: jnp.concatenate([first, *rest]) if rest else first, *stacks)


def _cut(stack: Tree, lengths: Sequence[int]) -> list[Tree]:
    ends = itertools.accumulate(lengths, initial=0)
    return [jax.tree.map(operator.itemgetter(slice(*ends)), stack) for ends in itertools.pairwise(ends)]


def along_automatic_axes(function: Callable[..., Tree], like: Tree, *given: Any) -> Tree:
    """`function(*given)`, of which the compiler places what lies between: along explicit axes of a mesh neither merged axes nor
    a product of split matrices has one type. The results lie where `like`, a tree of their shapes, does.
    """
    shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    mesh = jax.sharding.get_abstract_mesh()
    meshes = [sharding.mesh for sharding in jax.tree.leaves(shardings)] if mesh.empty else [mesh]
    is_explicit = any(AxisType.Explicit in mesh.axis_types for mesh in meshes)
    automatic: Any = jax.sharding.auto_axes(function, out_sharding=shardings) if is_explicit else function
    return automatic(*given)


def _dealt(mesh: AbstractMesh, axes: tuple[str, ...], ndim: int, *, whole: bool) -> NamedSharding:
    """A stack that is split over some axes, its matrices whole or as the compiler finds best."""
    return NamedSharding(
        mesh, PartitionSpec(axes or None, *[None if whole else PartitionSpec.UNCONSTRAINED] * (ndim - 1))
    )
