"""`describe`: a recipe as a table, with what its state costs, on real parameters or on paper."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import optax

from optchain.core.config import to_code
from optchain.core.masks import select
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree, dtype_of, leaves_with_paths, path_string


@dataclasses.dataclass(frozen=True)
class LinkRow:
    """One link of a recipe, and the state that it keeps itself."""

    path: str
    """Where its state is: `accumulate/inner/scale_by_adam`."""
    depth: int
    code: str
    """What builds it, on one line."""
    entries: dict[str, str]
    """What it keeps: the dtypes and the number of values of each entry."""
    bytes: int


@dataclasses.dataclass(frozen=True)
class Description:
    """What `describe` found; prints as a table."""

    name: str
    rows: tuple[LinkRow, ...]
    parameters: int
    """The number of values of the parameters."""
    parameter_bytes: int
    state_bytes: int
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where not every link acts on every parameter: the path of each to those of the links, or `frozen`."""

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
        table = [("link", "keeps", "bytes")]
        for row in self.rows:
            kept = ", ".join(f"{name}: {what}" for name, what in row.entries.items())
            table.append(("  " * row.depth + row.code, kept or "-", size(row.bytes) if row.bytes else "-"))
        lines = _aligned(table, "<<>")
        if self.groups:
            lines += ["", *_aligned([("parameter", "acted on by"), *self.groups.items()], "<<")]
        return "\n".join([*lines, "", self.total])


def describe(tx: optax.GradientTransformation, params: Tree) -> Description:
    """The recipe as a table: each link with its arguments, what it keeps, and the bytes of it.

    Nothing is allocated: the parameters may be arrays or `jax.ShapeDtypeStruct`, so that a model of billions of
    parameters can be described on a laptop.

    Args:
      tx: a transformation.
      params: the parameters, or their shapes: `jax.eval_shape(model.init, …)`.

    Returns:
      A `Description`: `print` shows the table, `to_dict()` is for JSON, `rows` and the totals are fields.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
      >>> print(optchain.describe(optchain.adamw(1e-3, weight_decay=None), params))
      link                        keeps                                                                 bytes
      --------------------------  ------------------------------------------------------------------  -------
      adamw(weight_decay=None)    hyperparams: 1 × float32, metrics: 1 × float32                          8 B
        scale_by_adam()           count: 1 × int32, mu: 1,000,000 × float32, nu: 1,000,000 × float32  8.00 MB
        scale_by_learning_rate()  -                                                                         -
      <BLANKLINE>
      1,000,000 parameters (4.00 MB), state 8.00 MB: 8.00 bytes per parameter
    """
    transformation = as_transformation(tx, "optax")
    groups: dict[str, list[str]] = {}

    def trace(params: Tree) -> Any:
        groups.update(_groups(transformation, params, transformation.name))
        return transformation.init(params)

    state = jax.eval_shape(trace, params)
    leaves = jax.tree.leaves(params)
    return Description(
        name=transformation.name,
        rows=tuple(_rows(transformation, state, transformation.name, 0)),
        parameters=sum(leaf.size for leaf in leaves),
        parameter_bytes=_bytes(params),
        state_bytes=_bytes(state),
        groups={path: ", ".join(names) for path, names in groups.items()},
    )


def _groups(link: Transformation, params: Tree, path: str) -> dict[str, list[str]]:
    """What acts on each parameter, by the links' paths, as far as something within does not act on all."""
    labels = None if link.labels is None else link.labels(params)
    found: dict[str, list[str]] = {}
    for name, inner in inner_links(link):
        seen = (
            params if labels is None else select(jax.tree.map(lambda label, name=name: label == name, labels), params)
        )
        for parameter, names in _groups(inner, seen, f"{path}/{name}").items():
            found.setdefault(parameter, []).extend(names)
    for place, label in [] if labels is None else leaves_with_paths(labels):
        acting = f"{path}/{label}" if label in dict(inner_links(link)) else label
        found.setdefault(path_string(place), [acting])
    return {path_string(place): found[path_string(place)] for place, _ in leaves_with_paths(params)} if found else {}


def _rows(link: Transformation, state: Any, path: str, depth: int) -> Iterator[LinkRow]:
    below = dict(inner_links(link))
    own = (
        {name: entry for name, entry in state.items() if name not in below}
        if isinstance(state, dict)
        else {"state": state}
    )
    code = _heading(link) if below else " ".join(repr(link).split())
    yield LinkRow(path, depth, code, {name: _contents(entry) for name, entry in own.items()}, _bytes(own))
    for name, inner in below.items():
        inner_state = state.get(name, {}) if isinstance(state, dict) else {}
        yield from _rows(inner, inner_state, f"{path}/{name}", depth + 1)


def _heading(link: Transformation) -> str:
    """A composite by its name and its arguments, without the transformations within, which follow."""
    given = link.given() if link.is_registered else {}
    shown = [f"{name}={to_code(value)}" for name, value in given.items() if name not in HIDDEN]
    return f"{link.name}({', '.join(shown)})"


HIDDEN = {"links", "inner", "groups", "default", "name"}
"""Arguments that hold transformations, and the name, which stands before them."""


def inner_links(link: Transformation) -> list[tuple[str, Transformation]]:
    """The transformations within, by the names of their states."""
    entries = link.fields | link.optional_fields
    return [(inner.name if inner.name in entries else "inner", inner) for inner in link.links]


def _contents(entry: Any) -> str:
    """What an entry holds: `1,000,000 × float32`."""
    sizes: dict[str, int] = {}
    for leaf in jax.tree.leaves(entry):
        sizes[dtype_of(leaf).name] = sizes.get(dtype_of(leaf).name, 0) + leaf.size
    return " + ".join(f"{size:,} × {dtype}" for dtype, size in sizes.items()) or "nothing"


def _bytes(tree: Any) -> int:
    return sum(leaf.size * dtype_of(leaf).itemsize for leaf in jax.tree.leaves(tree))


def _aligned(table: Sequence[tuple[str, ...]], alignments: str) -> list[str]:
    """The lines of a table, with a rule under the first."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    columns = list(zip(alignments, widths, strict=True))
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
