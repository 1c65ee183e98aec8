"""Which parameter here is which variable there: by their names, by a given order, or by a table.

Nothing is guessed. Shapes never decide what belongs together, they only confirm it; an ambiguous or incomplete mapping is
an error that prints both sides.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp

from optchain.core import trees
from optchain.core.trees import Tree

Correspondence: TypeAlias = Mapping[str, str] | Sequence[str] | Literal["order"] | None
"""How the two sides belong together.

- None: by names. The prefix that all paths of a side share is dropped (`params/`, `sequential/`); the rest must be equal.
- a sequence of our paths, in the order of the other side's variables.
- `"order"`: the leaves of our tree, in its own order, are the other side's variables in theirs.
- a table `{our path: their name}`.
"""


class Entry(NamedTuple):
    """A parameter here, or a variable there."""

    path: str
    shape: tuple[int, ...]


def parameter_entries(params: Tree) -> list[Entry]:
    """The parameters of a tree, in its order, by their paths."""
    return [Entry(trees.path_string(path), jnp.shape(leaf)) for path, leaf in trees.leaves_with_paths(params)]


def match(
    ours: Sequence[Entry],
    theirs: Sequence[Entry],
    mapping: Correspondence,
    source: str,
    *,
    aliases: Mapping[str, str] | None = None,
) -> list[int]:
    """For each of theirs, the position of its parameter among ours.

    Args:
      ours: the parameters.
      theirs: the variables.
      mapping: how they belong together.
      source: what error messages call the other side.
      aliases: last components of names that mean the same: `{"gamma": "scale"}`.

    Raises:
      ValueError: a parameter or a variable that is left over, or that two claim; the message prints both sides.
      TypeError: a mapping that is none of the four kinds.

    Example:
      >>> ours = [Entry("params/dense/bias", (2,)), Entry("params/dense/kernel", (3, 2))]
      >>> theirs = [Entry("sequential/dense/kernel", (3, 2)), Entry("sequential/dense/bias", (2,))]
      >>> match(ours, theirs, None, "model.keras")
      [1, 0]
    """
    if mapping is None:
        ours_by_name, theirs_names = _plain(ours, aliases or {}), _plain(theirs, aliases or {})
    elif isinstance(mapping, Mapping):
        names = {str(path): str(name) for path, name in mapping.items()}
        unknown = names.keys() - {entry.path for entry in ours}
        if unknown:
            raise _unmatched(f"the mapping names {sorted(unknown)}, which params do not have", ours, theirs, source)
        ours_by_name, theirs_names = [names.get(e.path, "") for e in ours], [e.path for e in theirs]
    elif (order := given_order(ours, mapping)) is not None:
        if len(order) != len(theirs):
            raise _unmatched(f"{len(order)} paths are given for {len(theirs)} variables", ours, theirs, source)
        return order
    else:
        raise TypeError(
            'mapping must be None, "order", a sequence of paths or a table {path: name}; '
            f"got {mapping!r} ({type(mapping).__name__})"
        )
    for side, names in (("params", ours_by_name), (source, theirs_names)):
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise _unmatched(f"{twice} in {side} are ambiguous", ours, theirs, source)
    if set(ours_by_name) != set(theirs_names):
        raise _unmatched("names do not tell which is which", ours, theirs, source)
    return [ours_by_name.index(name) for name in theirs_names]


def given_order(ours: Sequence[Entry], mapping: Correspondence) -> list[int] | None:
    """The positions of our parameters in the order that a mapping gives; None where it is a mapping of another kind."""
    if mapping == "order":
        return list(range(len(ours)))
    if mapping is None or isinstance(mapping, str | Mapping) or not isinstance(mapping, Sequence):
        return None
    paths = [entry.path for entry in ours]
    if sorted(mapping) != sorted(paths):
        missing, surplus = sorted(set(paths) - set(mapping)), sorted(set(mapping) - set(paths))
        raise ValueError(
            f"the mapping must name every parameter once; missing: {missing}, unknown: {surplus}, "
            f"{len(mapping)} paths for {len(paths)} parameters"
        )
    return [paths.index(path) for path in mapping]


def check_shapes(ours: Sequence[Entry], theirs: Sequence[Entry], positions: Sequence[int], source: str) -> None:
    """Requires that what belongs together has one shape."""
    for variable, position in zip(theirs, positions, strict=True):
        if variable.shape != ours[position].shape:
            raise ValueError(
                f"{ours[position].path} has shape {ours[position].shape}, and {variable.path} of {source} has "
                f"{variable.shape}"
            )


def both_sides(ours: Sequence[Entry], theirs: Sequence[Entry], source: str) -> str:
    """The two sides as a list of paths and shapes."""
    sides = (("params", ours), (source, theirs))
    return "\n".join(f"{name}:\n" + "".join(f"  {e.path} {e.shape}\n" for e in side) for name, side in sides)


def _unmatched(why: str, ours: Sequence[Entry], theirs: Sequence[Entry], source: str) -> ValueError:
    hint = "Give a mapping: the paths of params in the order of the variables, or a table {path: variable}."
    return ValueError(f"{why}. {hint}\n{both_sides(ours, theirs, source)}")


def _plain(side: Sequence[Entry], aliases: Mapping[str, str]) -> list[str]:
    """The names of a side without what all begin with, and with one word for each meaning."""
    names = [entry.path.split("/") for entry in side]
    while len({name[0] for name in names}) == 1 and all(len(name) > 1 for name in names):
        names = [name[1:] for name in names]
    return ["/".join([*name[:-1], aliases.get(name[-1], name[-1])]) for name in names]
