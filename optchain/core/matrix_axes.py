"""Which axes of a weight are a matrix's inputs and which its outputs, by patterns of paths."""

import dataclasses
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from optchain.core import trees
from optchain.core.masks import check_patterns, first_match
from optchain.core.trees import Path, Tree

Axes: TypeAlias = int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """Which axes of an array are a matrix's rows, which its columns; the rest count matrices."""

    ins: tuple[int, ...]
    outs: tuple[int, ...]

    def of(self, shape: Sequence[int]) -> tuple[list[int], tuple[int, int, int]]:
        """The order of the axes, and the shape of the stack of matrices."""
        rank = len(shape)
        ins, outs = ([axis % rank for axis in axes] for axes in (self.ins, self.outs))
        batch = [axis for axis in range(rank) if axis not in {*ins, *outs}]
        count, rows, columns = (math.prod(shape[axis] for axis in axes) for axes in (batch, ins, outs))
        return [*batch, *ins, *outs], (count, rows, columns)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape has these axes, each of them once."""
        rank, axes = len(shape), (*self.ins, *self.outs)
        return all(-rank <= axis < rank for axis in axes) and len({axis % rank for axis in axes}) == len(axes)

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Requires an array of this shape to have these axes, each of them once."""
        if not self.fits(shape):
            raise ValueError(
                f"matrices gives {name} the axes {self.ins}, {self.outs}, which are no distinct axes of {tuple(shape)}"
            )


MATRIX = MatrixAxes((0,), (1,))
"""Of two axes: inputs first."""


def forms_of(by_pattern: Mapping[str, MatrixAxes | None] | None, params: Tree, chosen: Tree) -> Tree:
    """For each parameter its form as matrices, False for what is none or is not chosen.

    Args:
      by_pattern: what `axes_by_pattern` made of the argument; None where parameters of two axes are matrices, inputs first.
      params: the parameters, or their updates.
      chosen: for each whether it may be matrices.

    Raises:
      ValueError: a pattern that decides for no parameter, or that names axes which one has not (the message names it).
    """
    if by_pattern is None:
        return jax.tree.map(lambda p, flag: flag and jnp.ndim(p) == 2 and MATRIX, params, chosen)
    found = first_match(
        "matrices", {pattern: form or False for pattern, form in by_pattern.items()}, False, params
    )  # None would be no leaf
    for (path, p), form, flag in zip(
        trees.leaves_with_paths(params), jax.tree.leaves(found), jax.tree.leaves(chosen), strict=True
    ):
        if form and flag:
            form.check(trees.path_string(path) or "the array", jnp.shape(p))
    return jax.tree.map(lambda form, flag: flag and form, found, chosen)


def form_in_state(
    by_pattern: Mapping[str, MatrixAxes | None] | None, path: Path, is_matrix: bool, *, masked: bool
) -> MatrixAxes | bool:
    """The form of a parameter of which the state shows whether it is a matrix, False if not.

    Args:
      by_pattern: as of `forms_of`.
      path: the parameter's.
      is_matrix: whether it was one when the state was made.
      masked: whether a mask had a say then.

    Raises:
      ValueError: the patterns say otherwise (the message names the parameter).
    """
    if by_pattern is None:
        return is_matrix and MATRIX
    name = trees.path_string(path)
    form = next((form for pattern, form in by_pattern.items() if re.search(pattern, name)), None)
    if is_matrix and not form:
        raise ValueError(
            f"the state was made for other matrices: {name or 'the array'} is one there, and by no pattern of matrices here; "
            f"the patterns are: {', '.join(by_pattern)}"
        )
    if form and not is_matrix and not masked:
        raise ValueError(
            f"the state was made for other matrices: {name or 'the array'} is none there, and is one by a pattern of "
            f"matrices here; the patterns are: {', '.join(by_pattern)}"
        )
    return form if is_matrix and form else False


def axes_by_pattern(matrices: Any, *, may_be_none: bool = False, may_be_empty: bool = False) -> dict[str, Any]:
    """The argument `matrices`: for each pattern its axes, or None where that is allowed.

    Raises:
      TypeError: something else than a pair of axes in and axes out, each an axis or a sequence of them.
    """
    check_patterns("matrices", matrices)
    made: dict[str, MatrixAxes | None] = {}
    for pattern, pair in matrices.items():
        if pair is None and may_be_none:
            made[pattern] = None
            continue
        sides = [(side,) if _is_axis(side) else side for side in pair] if isinstance(pair, list | tuple) else []
        if len(sides) != 2 or not all(_are_axes(side) and (side or may_be_empty) for side in sides):
            raise TypeError(
                f"matrices[{pattern!r}] must be (axes in, axes out), such as (-2, -1) or (0, (1, 2))"
                f"{', or None' if may_be_none else ''}; got {pair!r}"
            )
        made[pattern] = MatrixAxes(*(tuple(map(operator.index, side)) for side in sides))
    return made


def _are_axes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_axis, value))


def _is_axis(value: Any) -> bool:
    return hasattr(type(value), "__index__") and not isinstance(value, bool)
