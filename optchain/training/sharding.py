"""State over a mesh of devices: where each leaf lies, states that are made there, and steps that leave them there.

This module is for `jit` over sharded arrays. Inside `shard_map` and `pmap` nothing is laid out for a transformation:
there `cross_replica_mean` and the `axis_name` of a link say what the devices share.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from optchain.core import arguments
from optchain.core.optax_link import as_transformation
from optchain.core.storage import block_shape
from optchain.core.transformation import State
from optchain.core.trees import Path, Tree, check_leaves, dtype_of, leaves_with_paths, path_code, path_names

AnyMesh: TypeAlias = Mesh | AbstractMesh
Axis: TypeAlias = str | tuple[str, ...] | None


def state_shardings(
    tx: optax.GradientTransformation, params: Tree, mesh: AnyMesh, *, axis: str | tuple[str, ...] | None = None
) -> Tree:
    """Where each leaf of the state lies on a mesh: with its parameter, and with `axis` split once more.

    A leaf of the state mirrors a parameter if it lies at the parameter's path below a tree in which every leaf does. It has
    the parameter's sharding if it has its shape; counters, metrics, hyperparameters, and leaves of other shapes (the rows
    and columns of `scale_by_factored_rms`) are whole on every device. Codes of `compact` and their scales are split as their
    parameter is, where 32 times the number of parts divides its length.

    With `axis` every leaf that mirrors a parameter is split over that axis too, along the first dimension that still
    divides; one with no such dimension stays as it is. Over the axis of the batch that is ZeRO's first stage: each device
    keeps, and updates, its part of the state. Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models", 2020, arXiv:1910.02054, section 5.1; Xu et al., "Automatic Cross-Replica Sharding of Weight Update
    in Data-Parallel Training", 2020, arXiv:2004.13336.

    Args:
      tx: a transformation of optchain or Optax.
      params: the parameters, arrays or `jax.ShapeDtypeStruct`, with their shardings over `mesh`; one without a
        sharding, or not committed to devices, counts as whole on every device.
      mesh: the devices. An `AbstractMesh` will do for shape structs.
      axis: the name of a mesh axis, or of several; None to leave each leaf with its parameter.

    Returns:
      A tree of `NamedSharding` of the state's structure: for `out_shardings`, for a checkpoint's restore.

    Raises:
      ValueError: a parameter on another mesh or on a device alone (the message names it), or an axis that the mesh has not.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec as P
      >>> mesh = AbstractMesh((8, 2), ("data", "model"))
      >>> kernel = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "model")))
      >>> shardings = optchain.state_shardings(optchain.sgd(0.1, 0.9), {"kernel": kernel}, mesh, axis="data")
      >>> tuple(shardings["apply_momentum"]["velocity"]["kernel"].spec)
      ('data', 'model')
    """
    as_transformation(tx)  # refuses what is none
    axes = check_axis(axis, mesh)
    placed = parameter_shardings(params, mesh)
    state = jax.eval_shape(tx.init, jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), dtype_of(p)), params))
    parameters = {
        path_names(path): (jnp.shape(leaf), sharding)
        for (path, leaf), sharding in zip(leaves_with_paths(params), jax.tree.leaves(placed), strict=True)
    }
    owners = mirrored(state, frozenset(parameters))
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path: Path, leaf: Any) -> NamedSharding:
        owner = owners.get(path_names(path))
        if owner is None:
            return whole
        shape, sharding = parameters[owner]
        scales = block_shape(shape)
        if scales is not None and _is_in_blocks(path, owner, leaf) and _divides(sharding, scales):
            return split(sharding, scales, axes)  # codes and scales alike, and no block is cut
        return split(sharding if leaf.shape == shape else whole, leaf.shape, axes)

    return jax.tree_util.tree_map_with_path(place, state)


def init_sharded(
    tx: optax.GradientTransformation, params: Tree, mesh: Mesh, *, axis: str | tuple[str, ...] | None = None
) -> State:
    """The state of `tx.init(params)`, each leaf made where :func:`state_shardings` says: nowhere is it ever whole.

    Args:
      tx: a transformation of optchain or Optax.
      params: the parameters, on the mesh.
      mesh: the devices.
      axis: an axis over which state is split besides; see :func:`state_shardings`.

    Raises:
      ValueError: as :func:`state_shardings`.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> params = jax.device_put({"w": jnp.zeros((64, 2))}, NamedSharding(mesh, P()))
      >>> state = optchain.init_sharded(optchain.adam(0.1), params, mesh, axis="data")
      >>> tuple(state["scale_by_adam"]["mu"]["w"].sharding.spec)
      ('data', None)
    """
    shardings = state_shardings(tx, params, mesh, axis=axis)
    return jax.jit(tx.init, out_shardings=shardings)(params)


# The layout of a step -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a step's parameters and state lie, before it and after."""

    params: Tree
    state: Tree
    gradients: Tree
    """The parameters' shardings, split over the axis: where a state of their shapes lies, and so where updates are made."""

    @classmethod
    def of(cls, tx: optax.GradientTransformation, params: Tree, mesh: AnyMesh, axis: Axis) -> "Layout":
        placed, axes = parameter_shardings(params, mesh), check_axis(axis, mesh)
        gradients = jax.tree.map(lambda sharding, p: split(sharding, jnp.shape(p), axes), placed, params)
        return cls(placed, state_shardings(tx, params, mesh, axis=axis), gradients)

    def around(self, apply: Callable[..., tuple[Tree, State]]) -> Callable[..., tuple[Tree, State]]:
        """A transformation's `apply`, its gradients reduced to where they are used, its results where its arguments were."""
        reduce, keep = Placement(self.gradients), Placement(self.params)

        def laid_out(params: Tree, state: State, grads: Tree, extra: dict[str, Any]) -> tuple[Tree, State]:
            # Where each device wants a part of a sum, compilers can make it by a reduce-scatter in place of an all-reduce.
            params, state = apply(params, state, grads=reduce(grads), keep_layout=keep, **extra)
            return keep(params), state

        # On a mesh of explicit axes every operation would have to say where its result lies. (JAX 0.7 takes abstract meshes.)
        out_sharding = jax.tree.map(lambda s: NamedSharding(s.mesh.abstract_mesh, s.spec), (self.params, self.state))
        automatic: Any = jax.sharding.auto_axes(laid_out, out_sharding=out_sharding)
        return lambda params, state, *, grads, **extra: automatic(params, state, grads, extra)


@jax.tree_util.register_static
class Placement:
    """Puts leaves where those of their paths belong: in the parameters, in a part of them."""

    def __init__(self, shardings: Tree):
        self._shardings = {path_names(path): sharding for path, sharding in leaves_with_paths(shardings)}

    def __call__(self, tree: Tree) -> Tree:
        context = jax.sharding.get_abstract_mesh()

        def put(path: Path, leaf: jax.Array) -> jax.Array:
            sharding = self._shardings[path_names(path)]
            here = sharding if context.empty else NamedSharding(context, sharding.spec)
            return lax.with_sharding_constraint(leaf, here)

        return jax.tree_util.tree_map_with_path(put, tree)


class StepOverMesh:
    """A step that is compiled for the layout in which its parameters come, and keeps it.

    Args:
      mesh: the devices.
      compile_for: the parameters, as shape structs with their shardings, to the jitted step.
    """

    def __init__(self, mesh: AnyMesh, compile_for: Callable[[Tree], Any]):
        self._mesh = mesh
        self._compiled = functools.cache(lambda treedef, leaves: compile_for(treedef.unflatten(leaves)))

    def __call__(self, params: Tree, state: State, *batch: Any, **options: Any) -> Any:
        return self._jitted(params)(params, state, *batch, **options)

    def lower(self, params: Tree, state: State, *batch: Any, **options: Any) -> jax.stages.Lowered:
        """As of `jax.jit`: for shape structs with shardings, and for a look at the compiled program."""
        return self._jitted(params).lower(params, state, *batch, **options)

    def _jitted(self, params: Tree) -> Any:
        check_leaves("params", params)
        leaves, treedef = jax.tree.flatten(params)
        if any(map(arguments.is_traced, leaves)):
            raise TypeError(
                "a step over a mesh reads the shardings of its parameters, which they do not have inside jit, scan or vmap: "
                "use tx.apply there, and give out_shardings to the outermost jit"
            )
        shardings = jax.tree.leaves(parameter_shardings(params, self._mesh))
        structs = (
            jax.ShapeDtypeStruct(jnp.shape(leaf), dtype_of(leaf), sharding=sharding)
            for leaf, sharding in zip(leaves, shardings, strict=True)
        )
        return self._compiled(treedef, tuple(structs))


# What lies where ------------------------------------------------------------------------------------------------------


def parameter_shardings(params: Tree, mesh: AnyMesh) -> Tree:
    """The parameters' own shardings; a leaf without one counts as whole on every device."""

    def placed(path: Path, leaf: Any) -> NamedSharding:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh in (mesh, mesh.abstract_mesh):
            return NamedSharding(mesh, sharding.spec)
        if sharding is None or not getattr(leaf, "committed", True):
            return NamedSharding(mesh, PartitionSpec())
        raise ValueError(
            f"{path_code('params', path)} lies elsewhere than on the mesh {dict(mesh.shape)}: {sharding}. Put it there: "
            "jax.device_put(params, NamedSharding(mesh, PartitionSpec(…)))"
        )

    return jax.tree_util.tree_map_with_path(placed, params)


def mirrored(state: Tree, parameters: frozenset[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """For the path of each leaf of the state that mirrors a parameter, the path of that parameter.

    A tree mirrors the parameters if the path of every leaf within is that of a parameter. The largest such trees count: a
    parameter may itself be called `mu`.
    """
    paths = [path_names(path) for path, _ in leaves_with_paths(state)]
    mirrors: dict[tuple[str, ...], bool] = {}
    for path in paths:
        for depth in range(len(path) + 1):
            mirrors[path[:depth]] = mirrors.get(path[:depth], True) and path[depth:] in parameters
    roots = ((path, next((d for d in range(len(path) + 1) if mirrors[path[:d]]), None)) for path in paths)
    return {path: path[depth:] for path, depth in roots if depth is not None}


def _is_in_blocks(path: Path, owner: tuple[str, ...], leaf: Any) -> bool:
    """Whether a leaf is the codes or the scales of numbers that are stored in blocks."""
    names = path_names(path)
    kind = names[len(names) - len(owner) - 1 : len(names) - len(owner)]
    return kind == ("scales",) or (kind == ("codes",) and jnp.issubdtype(leaf.dtype, jnp.integer))


def _divides(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether the sharding splits the shape evenly."""
    parts = [() if part is None else part if isinstance(part, tuple) else (part,) for part in sharding.spec]
    pieces = [math.prod(sharding.mesh.shape[name] for name in names) for names in parts]
    return all(length % count == 0 for length, count in zip(shape, pieces, strict=False))


def split(sharding: NamedSharding, shape: tuple[int, ...], axes: tuple[str, ...]) -> NamedSharding:
    """The sharding, split over more axes along the first dimension that they divide; as it is where there is none."""
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    parts = [() if part is None else part if isinstance(part, tuple) else (part,) for part in spec]
    used = {name for part in parts for name in part}
    added = tuple(name for name in axes if name not in used)
    pieces = math.prod(sharding.mesh.shape[name] for name in added)
    for dimension, length in enumerate(sharding.shard_shape(shape) if added else ()):
        if length and length % pieces == 0:
            names = (*parts[dimension], *added)
            spec[dimension] = names[0] if len(names) == 1 else names
            return NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return sharding


def check_axis(axis: Any, mesh: AnyMesh) -> tuple[str, ...]:
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh; got {mesh!r} ({type(mesh).__name__})")
    axis = arguments.check_axis_name(axis, "axis")
    axes = () if axis is None else (axis,) if isinstance(axis, str) else axis
    for name in axes:
        if name not in mesh.axis_names:
            raise ValueError(f"axis must be one of the mesh's, {', '.join(map(repr, mesh.axis_names))}; got {name!r}")
    return axes
