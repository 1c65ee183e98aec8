"""`describe`: a recipe as a table, with what its state costs, on real parameters or on paper."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from optchain.core.arguments import is_number
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree, dtype_of, leaves_with_paths, path_names
from optchain.core.values import holds_link, to_code
from optchain.core.walk import Node, walk
from optchain.recipes import per_parameter
from optchain.recipes.per_parameter import ParameterRow
from optchain.training.sharding import beneath, mirrored, parameter_shardings, state_shardings


@dataclasses.dataclass(frozen=True)
class LinkRow:
    """One link of a recipe, and the state that it keeps itself."""

    path: str
    """Where its state is: `accumulate/inner/scale_by_adam`."""
    depth: int
    code: str
    """What builds it, on one line."""
    rule: str
    """The registered name of what builds it; its own name if there is none."""
    arguments: dict[str, float | str | bool | None]
    """What it was built with, defaults too: numbers as numbers, anything else as code; without the links within."""
    entries: dict[str, dict[str, int]]
    """What it keeps: how many values of which dtype each entry has."""
    bytes: int
    device_bytes: int
    """What of it one device of the mesh holds."""


@dataclasses.dataclass(frozen=True)
class LeafRow:
    """How an array lies over a mesh."""

    path: str
    """Its place in the parameters, or in the state: `dense/kernel`, `scale_by_adam/mu/dense/kernel`."""
    of: str
    """The path of the parameter that it is, or mirrors; its own if it mirrors none."""
    is_state: bool
    shape: tuple[int, ...]
    dtype: str
    lies: tuple[str, ...]
    """For each dimension the mesh axes that it is split over, joined by commas; empty where it is split over none."""
    device_bytes: int


@dataclasses.dataclass(frozen=True)
class Description:
    """What `describe` found; prints as a table."""

    name: str
    rows: tuple[LinkRow, ...]
    parameters: int
    """The number of values of the parameters."""
    parameter_bytes: int
    state_bytes: int
    per_parameter: tuple[ParameterRow, ...] = ()
    """What happens to each parameter: its group, its optimizer, its rate, its decay, its storage."""
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    """The axes of the mesh and the number of devices along each; empty without one."""
    leaves: tuple[LeafRow, ...] = ()
    """On a mesh, how each array of the parameters and of the state lies; scalars, which are on every device, left out."""
    device_parameter_bytes: int = 0
    """What of the parameters one device holds."""
    device_state_bytes: int = 0

    @property
    def state_bytes_per_parameter(self) -> float:
        return self.state_bytes / self.parameters if self.parameters else 0.0

    @property
    def total(self) -> str:
        """The last line of the table."""
        return (
            f"{self.parameters:,} parameters ({size(self.parameter_bytes)}), state {size(self.state_bytes)}: "
            f"{self.state_bytes_per_parameter:.2f} bytes per parameter"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as data for JSON."""
        return dataclasses.asdict(self) | {"state_bytes_per_parameter": self.state_bytes_per_parameter}

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [("link", "keeps", "bytes", *["a device"] * bool(self.mesh))]
        for row in self.rows:
            kept = ", ".join(f"{name}: {contents(what)}" for name, what in row.entries.items())
            counts = [row.bytes, row.device_bytes] if self.mesh else [row.bytes]
            table.append(("  " * row.depth + row.code, kept or "-", *(size(n) if n else "-" for n in counts)))
        lines = aligned(table, "<<>>")
        if self.per_parameter:
            lines += ["", *aligned(per_parameter.table(self.per_parameter), "<<<<<<<<")]
            if any(row.decay and row.rate_factor not in (0, 1) for row in self.per_parameter):
                lines.append(per_parameter.DECAY_AND_FACTOR)
        if self.mesh:
            lines += ["", *aligned(_lying(self.leaves), "<><<<>>")]
        return "\n".join([*lines, "", self.total, *self._on_a_device()])

    def _on_a_device(self) -> list[str]:
        if not self.mesh:
            return []
        axes = " × ".join(f"{count} {name}" for name, count in self.mesh.items())
        share = self.device_state_bytes / self.state_bytes if self.state_bytes else 1.0
        return [
            f"{math.prod(self.mesh.values())} devices ({axes}), on each: parameters {size(self.device_parameter_bytes)}, "
            f"state {size(self.device_state_bytes)}, {share:.2%} of it"
        ]


def describe(
    tx: optax.GradientTransformation,
    params: Tree,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    axis: str | tuple[str, ...] | None = None,
) -> Description:
    """The recipe as a table: each link with its arguments, what it keeps, and the bytes of it.

    Nothing is allocated: the parameters may be arrays or `jax.ShapeDtypeStruct`, so that a model of billions of
    parameters can be described on a laptop. With a mesh, or parameters that lie on one, also how each array lies over it,
    as `state_shardings(tx, params, mesh, axis=axis)` has it, and what a device holds; the mesh may be an `AbstractMesh`.

    Args:
      tx: a transformation.
      params: the parameters, or their shapes: `jax.eval_shape(model.init, …)`.
      mesh: the devices; None for the mesh on which the parameters lie, if they lie on one.
      axis: the mesh axis over which the state is split besides.

    Returns:
      A `Description`: `print` shows the table, `to_dict()` is for JSON, `rows` and the totals are fields.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
      >>> print(optchain.describe(optchain.adamw(1e-3, weight_decay=None), params))
      link                                                      keeps                                                                 bytes
      --------------------------------------------------------  ------------------------------------------------------------------  -------
      adamw(learning_rate=0.001, weight_decay=None)             hyperparams: 1 × float32                                                4 B
        scale_by_adam(beta_1=0.9, beta_2=0.999, epsilon=1e-07)  count: 1 × int32, mu: 1,000,000 × float32, nu: 1,000,000 × float32  8.00 MB
        scale_by_learning_rate()                                -                                                                         -
      <BLANKLINE>
      parameter  rate   decay  optimizer  keeps
      ---------  -----  -----  ---------  ---------------
      w          0.001  -      adamw      mu, nu: float32
      <BLANKLINE>
      1,000,000 parameters (4.00 MB), state 8.00 MB: 8.00 bytes per parameter
    """
    transformation = as_transformation(tx)
    facts: dict[str, per_parameter.Facts] = {}

    def trace(params: Tree) -> Any:
        state = transformation.init(params)
        facts.update(per_parameter.facts_of(transformation, params))
        return state

    state = jax.eval_shape(trace, params)
    rows_per_parameter = tuple(per_parameter.rows_of(transformation, facts, state))
    leaves = jax.tree.leaves(params)
    if mesh is None:
        mesh = next((mesh for leaf in leaves if (mesh := _mesh_of(leaf))), None)
    if mesh is None and axis is not None:
        raise ValueError(f"axis must be given with the mesh that has it; got {axis=} and no mesh")
    if mesh is not None:
        state = _placed(state, state_shardings(tx, params, mesh, axis=axis))
        params = _placed(params, parameter_shardings(params, mesh))
    return Description(
        name=transformation.name,
        rows=tuple(_row(node, transformation.name) for node in walk(transformation, state)),
        parameters=sum(leaf.size for leaf in leaves),
        parameter_bytes=_bytes(params),
        state_bytes=_bytes(state),
        per_parameter=rows_per_parameter,
        mesh={} if mesh is None else dict(mesh.shape),
        leaves=() if mesh is None else tuple(_leaf_rows(params, state)),
        device_parameter_bytes=_device_bytes(params),
        device_state_bytes=_device_bytes(state),
    )


# Over a mesh ----------------------------------------------------------------------------------------------------------


def _mesh_of(leaf: Any) -> Mesh | AbstractMesh | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def _placed(tree: Tree, shardings: Tree) -> Tree:
    """The shapes of a tree with shardings."""

    def struct(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype_of(leaf), sharding=sharding)

    return jax.tree.map(struct, tree, shardings)


def _leaf_rows(params: Tree, state: Tree) -> Iterator[LeafRow]:
    parameters = frozenset(path_names(path) for path, _ in leaves_with_paths(params))
    owners = mirrored(state, parameters) | beneath(state, parameters)
    for tree in (params, state):
        for path, leaf in leaves_with_paths(tree):
            if leaf.shape:
                spec = [*leaf.sharding.spec, *[None] * (len(leaf.shape) - len(leaf.sharding.spec))]
                lies = tuple(",".join(part) if isinstance(part, tuple) else part or "" for part in spec)
                names = path_names(path)
                of = "/".join(owners.get(names, names) if tree is state else names)
                what = (leaf.shape, dtype_of(leaf).name, lies, _device_bytes(leaf))
                yield LeafRow("/".join(names), of, tree is state, *what)


def _lying(leaves: Sequence[LeafRow]) -> list[tuple[str, ...]]:
    """A line a parameter, and one for those that lie alike: numbers in their paths, such as those of layers, are starred."""
    by_parameter: dict[str, list[LeafRow]] = {}
    for row in leaves:
        by_parameter.setdefault(row.of, []).append(row)
    alike: dict[tuple[str, ...], list[list[LeafRow]]] = {}
    for of, rows in by_parameter.items():
        of_state = [row for row in rows if row.is_state]
        own = next((row for row in rows if not row.is_state), rows[0])
        shape = " × ".join(map(str, own.shape))
        lies = "; ".join(dict.fromkeys(map(_split_over, of_state))) or "-"
        alike.setdefault((re.sub(r"\d+", "*", of), shape, _split_over(own), lies), []).append(rows)
    lines: list[tuple[str, ...]] = [
        ("parameter", "how many", "of shape", "split over", "its state over", "a device", "its state")
    ]
    for (path, shape, split, state_split), groups in alike.items():
        bytes_of = [sum(row.device_bytes for rows in groups for row in rows if row.is_state == flag) for flag in (0, 1)]
        shown = groups[0][0].of if len(groups) == 1 else path
        lines.append((shown, str(len(groups)), shape, split, state_split, *map(size, bytes_of)))
    return lines


def _split_over(row: LeafRow) -> str:
    return ", ".join(part or "-" for part in row.lies) if any(row.lies) else "whole"


def _device_bytes(tree: Any) -> int:
    """What of the arrays one device holds; of those that lie on no mesh, all."""

    def of(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if isinstance(sharding, NamedSharding) else leaf.shape
        return math.prod(shape) * dtype_of(leaf).itemsize

    return sum(map(of, jax.tree.leaves(tree)))


# Links ----------------------------------------------------------------------------------------------------------------


def _row(node: Node, root: str) -> LinkRow:
    link = node.link
    own = per_parameter.own_entries(node)
    entries = own if isinstance(own, dict) else {"state": own}
    return LinkRow(
        path="/".join([root, *node.path]),
        depth=len(node.path),
        code=_code(link),
        rule=node.rule if link.is_registered else link.name,
        arguments={name: _datum(value) for name, value in link.config.items() if name not in HIDDEN},
        entries={name: _contents(entry) for name, entry in entries.items()},
        bytes=_bytes(own),
        device_bytes=_device_bytes(own),
    )


def _code(link: Transformation) -> str:
    """What builds a link, on one line: the arguments that were given, and the numbers that it goes by if they were not; of
    a composite without the transformations within, which follow. A name that is not the builder's stands before it.
    """
    if not link.is_registered:
        return f"{link.name}()" if link.parts else " ".join(repr(link).split())
    given = link.given()
    # In the dialects the learning rate has other names.
    own = link.hyperparams.names | ({"lr"} if "learning_rate" in link.hyperparams.names else set())
    if any(map(holds_link, link.config.values())):  # what goes around others has numbers that are no hyperparameters
        own |= {
            name for name, value in link.config.items() if isinstance(value, int | float | str) and value is not False
        }
    own -= {name for name, value in link.config.items() if is_number(value) and value == 0}  # it does nothing
    shown = {
        name: value for name, value in link.config.items() if name not in HIDDEN and (name in given or name in own)
    }
    code = " ".join(link.code(shown, one_line=True).split())
    name = link.registered_name
    # A second one in a chain is `decay_weights_2`.
    plain = re.fullmatch(rf"({re.escape(name)}|{re.escape(name.rpartition('.')[2])})(_\d+)?", link.name)
    return code if plain else f"{link.name}: {code}"


def _datum(value: Any) -> float | str | bool | None:
    """An argument for JSON: a number, a flag, a name or None as it is, an array of one number too, anything else as code."""
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else to_code(value)


HIDDEN = {"links", "inner", "groups", "default", "name"}
"""Arguments that hold transformations, and the name, which stands before them."""


def contents(sizes: Mapping[str, int]) -> str:
    """What an entry holds: `1,000,000 × float32`."""
    return " + ".join(f"{size:,} × {dtype}" for dtype, size in sizes.items()) or "nothing"


def _contents(entry: Any) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for leaf in jax.tree.leaves(entry):
        sizes[dtype_of(leaf).name] = sizes.get(dtype_of(leaf).name, 0) + leaf.size
    return sizes


def _bytes(tree: Any) -> int:
    return sum(leaf.size * dtype_of(leaf).itemsize for leaf in jax.tree.leaves(tree))


def aligned(table: Sequence[tuple[str, ...]], alignments: str) -> list[str]:
    """The lines of a table, with a rule under the first."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    columns = list(zip(alignments, widths, strict=False))
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, (side, width) in zip(row, columns, strict=True)).rstrip()
        for row in table
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def size(count: float) -> str:
    """A number of bytes for people: `8.00 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
