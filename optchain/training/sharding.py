"""State over a mesh of devices: where each leaf lies, states that are made there, and steps that leave them there.

This module is for `jit` over sharded arrays. Inside `shard_map` and `pmap` nothing is laid out for a transformation:
there `cross_replica_mean` and the `axis_name` of a link say what the devices share.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from optchain.core import arguments, memory
from optchain.core.optax_link import as_transformation
from optchain.core.slot import OWN_ENTRIES, slot_names
from optchain.core.storage import block_shape
from optchain.core.transformation import State
from optchain.core.trees import Path, Tree, check_leaves, dtype_of, leaves_with_paths, path_code, path_names
from optchain.training.memory_kind import AnyMesh, MemoryKind, check_memory_kind, check_slots

Axis: TypeAlias = str | tuple[str, ...] | None


def state_shardings(
    tx: optax.GradientTransformation,
    params: Tree,
    mesh: AnyMesh,
    *,
    axis: str | tuple[str, ...] | None = None,
    memory_kind: str | Mapping[str, str] | None = None,
) -> Tree:
    """Where each leaf of the state lies on a mesh: with its parameter, with `axis` split once more, or in the host's memory.

    A leaf of the state mirrors a parameter if it lies at the parameter's path below a tree in which every leaf does. It has
    the parameter's sharding if it has its shape; counters, metrics, hyperparameters, and leaves of other shapes (the rows
    and columns of `scale_by_factored_rms`) are whole on every device. Where a slot keeps several arrays for a parameter, as
    `scale_by_soap` does, each is split over the axes over which the parameter is. Codes of `compact` and their scales are split as their
    parameter is, where 32 times the number of parts divides its length.

    With `axis` every leaf that mirrors a parameter is split over that axis too, along the first dimension that still
    divides; one with no such dimension stays as it is. Over the axis of the batch that is ZeRO's first stage: each device
    keeps, and updates, its part of the state. Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models", 2020, arXiv:1910.02054, section 5.1; Xu et al., "Automatic Cross-Replica Sharding of Weight Update
    in Data-Parallel Training", 2020, arXiv:2004.13336.

    With a `memory_kind` of `"pinned_host"` the leaves that mirror parameters lie in the host's memory, and a step brings each
    to the device and back: the device's memory holds a few leaves of them at a time. Scalars stay on the device.

    Args:
      tx: a transformation of optchain or Optax.
      params: the parameters, arrays or `jax.ShapeDtypeStruct`, with their shardings over `mesh`; one without a
        sharding, or not committed to devices, counts as whole on every device.
      mesh: the devices. An `AbstractMesh` will do for shape structs.
      axis: the name of a mesh axis, or of several; None to leave each leaf with its parameter.
      memory_kind: `"pinned_host"` or `"device"`; or one of these for each slot by its name, such as
        `{"mu": "pinned_host", "nu": "pinned_host"}`. None, and a slot that is left out: the memory of the parameter.

    Returns:
      A tree of `NamedSharding` of the state's structure: for `out_shardings`, for a checkpoint's restore.

    Raises:
      ValueError: a parameter on another mesh or on a device alone (the message names it), an axis that the mesh has not, a
        memory that its devices have not, or a slot that the state has not.
      TypeError: a `memory_kind` that is none of these.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec as P
      >>> mesh = AbstractMesh((8, 2), ("data", "model"))
      >>> kernel = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "model")))
      >>> shardings = optchain.state_shardings(optchain.sgd(0.1, 0.9), {"kernel": kernel}, mesh, axis="data")
      >>> tuple(shardings["apply_momentum"]["velocity"]["kernel"].spec)
      ('data', 'model')
      >>> offloaded = optchain.state_shardings(optchain.sgd(0.1, 0.9), {"kernel": kernel}, mesh, memory_kind="pinned_host")
      >>> offloaded["apply_momentum"]["velocity"]["kernel"].memory_kind
      'pinned_host'
    """
    as_transformation(tx)  # refuses what is none
    axes = check_axis(axis, mesh)
    check_memory_kind(memory_kind, mesh)
    placed = parameter_shardings(params, mesh)
    state = jax.eval_shape(tx.init, jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), dtype_of(p)), params))
    parameters = {
        path_names(path): (jnp.shape(leaf), sharding)
        for (path, leaf), sharding in zip(leaves_with_paths(params), jax.tree.leaves(placed), strict=True)
    }
    owners, owners_of_several = mirrored(state, frozenset(parameters)), beneath(state, frozenset(parameters))
    slots = {path: slot for path, owner in owners.items() if (slot := _slot_of(path, owner)) not in OWN_ENTRIES}
    if isinstance(memory_kind, Mapping):
        check_slots(memory_kind, {slot for slot in slots.values() if slot is not None})
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path: Path, leaf: Any) -> NamedSharding:
        names = path_names(path)
        if names in owners_of_several:
            _, sharding = parameters[owners_of_several[names]]
            of_parameter = [name for part in _parts(sharding.spec) for name in part]
            return split(whole, leaf.shape, tuple(dict.fromkeys([*of_parameter, *axes])))
        if names not in owners:
            return whole
        shape, sharding = parameters[owners[names]]
        scales = block_shape(shape)
        if scales is not None and is_in_blocks(names, owners[names], leaf) and _divides(sharding, scales):
            placed = split(sharding, scales, axes)  # codes and scales alike, and no block is cut
        else:
            placed = split(sharding if leaf.shape == shape else whole, leaf.shape, axes)
        kind = memory_kind.get(slots.get(names) or "") if isinstance(memory_kind, Mapping) else memory_kind
        offloadable = leaf.ndim and names in slots
        return in_memory(placed, (kind or sharding.memory_kind) if offloadable else whole.memory_kind)

    return jax.tree_util.tree_map_with_path(place, state)


def init_sharded(
    tx: optax.GradientTransformation,
    params: Tree,
    mesh: Mesh,
    *,
    axis: str | tuple[str, ...] | None = None,
    memory_kind: str | Mapping[str, str] | None = None,
) -> State:
    """The state of `tx.init(params)`, each leaf made where :func:`state_shardings` says: nowhere is it ever whole.

    Where axes are explicit, a `jit` of one's own cannot add arrays that lie differently: with an `axis`, or the rows and columns of Adafactor,
    take `make_step(mesh=…)`, which moves them, or the state of `tx.init`.

    Args:
      tx: a transformation of optchain or Optax.
      params: the parameters, on the mesh.
      mesh: the devices.
      axis: an axis over which state is split besides; see :func:`state_shardings`.
      memory_kind: the memory in which the state lies, or some slots of it; see :func:`state_shardings`.

    Raises:
      TypeError, ValueError: as :func:`state_shardings`.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> params = jax.device_put({"w": jnp.zeros((64, 2))}, NamedSharding(mesh, P()))
      >>> state = optchain.init_sharded(optchain.adam(0.1), params, mesh, axis="data")
      >>> tuple(state["scale_by_adam"]["mu"]["w"].sharding.spec)
      ('data', None)
    """
    shardings = state_shardings(tx, params, mesh, axis=axis, memory_kind=memory_kind)

    # On a mesh of explicit axes every operation would have to say where its result lies.
    out_sharding = jax.tree.map(lambda s: NamedSharding(s.mesh.abstract_mesh, s.spec), shardings)
    automatic: Any = jax.sharding.auto_axes(lambda params: tx.init(params), out_sharding=out_sharding)

    def init(params: Tree) -> State:
        state = automatic(jax.tree.map(memory.fetched, params))
        return memory.sent_in_order(
            state, jax.tree.map(lambda sharding: sharding.memory_kind == "pinned_host", shardings)
        )

    return jax.jit(init, out_shardings=shardings)(params)


# The layout of a step -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a step's parameters and state lie, before it and after."""

    params: Tree
    state: Tree
    gradients: Tree
    """The parameters' shardings, split over the axis: where a state of their shapes lies, and so where updates are made."""

    @classmethod
    def of(
        cls, tx: optax.GradientTransformation, params: Tree, mesh: AnyMesh, axis: Axis, memory_kind: MemoryKind
    ) -> "Layout":
        placed, axes = parameter_shardings(params, mesh), check_axis(axis, mesh)
        gradients = jax.tree.map(lambda sharding, p: split(sharding, jnp.shape(p), axes), placed, params)
        return cls(placed, state_shardings(tx, params, mesh, axis=axis, memory_kind=memory_kind), gradients)

    @functools.cached_property
    def _of_state(self) -> Mapping[tuple[str, ...], NamedSharding]:
        return {path_names(path): sharding for path, sharding in leaves_with_paths(self.state)}

    def in_its_memories(self, state: State) -> State:
        """The state with each leaf in the memory in which it belongs. A donated buffer is used again, whichever it lies in."""

        def put(path: Path, leaf: Any) -> Any:
            sharding = self._of_state.get(path_names(path))
            lies_there = sharding is None or memory.on_host(leaf) == (sharding.memory_kind == "pinned_host")
            return leaf if lies_there else jax.device_put(leaf, sharding)

        return jax.tree_util.tree_map_with_path(put, state)

    def around(self, apply: Callable[..., tuple[Tree, State]]) -> Callable[..., tuple[Tree, State]]:
        """A transformation's `apply`, its gradients reduced to where they are used, its results where its arguments were."""
        reduce, keep = Placement(self.gradients), Placement(self.params)

        def laid_out(params: Tree, state: State, grads: Tree, extra: dict[str, Any]) -> tuple[Tree, State]:
            # Where each device wants a part of a sum, compilers can make it by a reduce-scatter in place of an all-reduce.
            params, state = apply(params, state, grads=reduce(grads), keep_layout=keep, **extra)
            return keep(params), state

        # On a mesh of explicit axes every operation would have to say where its result lies. (JAX 0.7 takes abstract meshes.)
        out_sharding = jax.tree.map(lambda s: NamedSharding(s.mesh.abstract_mesh, s.spec), (self.params, self.state))
        abstract = next((s.mesh.abstract_mesh for s in jax.tree.leaves(self.params)), None)

        def with_mesh(*args: Any) -> tuple[Tree, State]:
            # Rules of whole matrices deal them out over the mesh, which on one of automatic axes alone no context has yet.
            if abstract is None or not jax.sharding.get_abstract_mesh().empty:
                return laid_out(*args)
            with jax.sharding.use_abstract_mesh(abstract):
                return laid_out(*args)

        automatic: Any = jax.sharding.auto_axes(with_mesh, out_sharding=out_sharding)
        return lambda params, state, *, grads, **extra: automatic(params, state, grads, extra)


@jax.tree_util.register_static
class Placement:
    """Puts leaves where those of their paths belong: in the parameters, in a part of them."""

    def __init__(self, shardings: Tree):
        placed = leaves_with_paths(shardings)
        self._shardings = {
            path_names(path): NamedSharding(s.mesh, s.spec) for path, s in placed
        }  # in the device's memory

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
      compile_for: the parameters, as shape structs with their shardings, to the jitted step and its layout.
    """

    def __init__(self, mesh: AnyMesh, compile_for: Callable[[Tree], tuple[Any, Layout]]):
        self._mesh = mesh
        self._compiled = functools.cache(lambda treedef, leaves: compile_for(treedef.unflatten(leaves)))

    def __call__(self, params: Tree, state: State, *batch: Any, **options: Any) -> Any:
        jitted, layout = self._compiled_for(params)
        return jitted(params, layout.in_its_memories(state), *batch, **options)

    def lower(self, params: Tree, state: State, *batch: Any, **options: Any) -> jax.stages.Lowered:
        """As of `jax.jit`: for shape structs with shardings, and for a look at the compiled program."""
        return self._compiled_for(params)[0].lower(params, state, *batch, **options)

    def _compiled_for(self, params: Tree) -> tuple[Any, Layout]:
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
            return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
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


def beneath(state: Tree, parameters: frozenset[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """For the path of each leaf that is one of several that a slot keeps for a parameter, the path of that parameter.

    Such a leaf lies beneath the parameter's path: `gram/kernel/axis_0`. The longest such path counts.
    """
    alone, found = mirrored(state, parameters), dict[tuple[str, ...], tuple[str, ...]]()
    slots = slot_names()
    for path, _ in leaves_with_paths(state):
        names = path_names(path)
        if names in alone:
            continue
        places = itertools.combinations_with_replacement(range(1, len(names)), 2)
        within = [names[start:end] for start, end in places if names[start - 1] in slots]
        owners = [owner for owner in within if owner in parameters]
        if owners:
            found[names] = max(owners, key=len)
    return found


def is_in_blocks(names: tuple[str, ...], owner: tuple[str, ...], leaf: Any) -> bool:
    """Whether a leaf is the codes or the scales of numbers that are stored in blocks."""
    kind = names[len(names) - len(owner) - 1 : len(names) - len(owner)]
    return kind == ("scales",) or (kind == ("codes",) and jnp.issubdtype(leaf.dtype, jnp.integer))


def _divides(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether the sharding splits the shape evenly."""
    pieces = [math.prod(sharding.mesh.shape[name] for name in names) for names in _parts(sharding.spec)]
    return all(length % count == 0 for length, count in zip(shape, pieces, strict=False))


def split(sharding: NamedSharding, shape: tuple[int, ...], axes: tuple[str, ...]) -> NamedSharding:
    """The sharding, split over more axes along the first dimension that they divide; as it is where there is none."""
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    parts = _parts(spec)
    used = {name for part in parts for name in part}
    added = tuple(name for name in axes if name not in used)
    pieces = math.prod(sharding.mesh.shape[name] for name in added)
    for dimension, length in enumerate(sharding.shard_shape(shape) if added else ()):
        if length and length % pieces == 0:
            names = (*parts[dimension], *added)
            spec[dimension] = names[0] if len(names) == 1 else names
            return NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)
    return sharding


def _parts(spec: Iterable[Any]) -> list[tuple[str, ...]]:
    """For each dimension the axes that it is split over."""
    return [() if part is None else part if isinstance(part, tuple) else (part,) for part in spec]


def in_memory(sharding: NamedSharding, kind: str | None) -> NamedSharding:
    return NamedSharding(sharding.mesh, sharding.spec, memory_kind=kind)


def _slot_of(path: tuple[str, ...], owner: tuple[str, ...]) -> str | None:
    """The name of the entry in which a leaf of the state mirrors a parameter; None for a state that is the tree itself."""
    above = path[: len(path) - len(owner)]
    if above[-1:] in (("codes",), ("scales",)):  # of an entry that is packed
        above = above[:-1]
    return above[-1] if above else None


def check_axis(axis: Any, mesh: AnyMesh) -> tuple[str, ...]:
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh; got {mesh!r} ({type(mesh).__name__})")
    axis = arguments.check_axis_name(axis, "axis")
    axes = () if axis is None else (axis,) if isinstance(axis, str) else axis
    for name in axes:
        if name not in mesh.axis_names:
            raise ValueError(f"axis must be one of the mesh's, {', '.join(map(repr, mesh.axis_names))}; got {name!r}")
    return axes
