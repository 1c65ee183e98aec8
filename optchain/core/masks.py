"""Masks: which parameters a transformation applies to."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
import optax

from optchain.core import trees
from optchain.core.trees import Tree

Mask: TypeAlias = Callable[[Tree], Tree] | Tree
"""A tree of bools, a prefix of the parameters' tree, or a callable of the parameters that returns one."""


T = TypeVar("T")


class Matching:
    """See :func:`matching`."""

    def __init__(self, patterns: Sequence[str], allow_unmatched: bool = False, inverted: bool = False):
        if isinstance(patterns, str) or not isinstance(patterns, Sequence):
            raise TypeError(f"patterns must be a sequence of strings; got {patterns!r}")
        for pattern in patterns:
            _check_pattern(pattern)
        if not patterns:
            raise ValueError("matching needs at least one pattern")
        self.patterns = tuple(patterns)
        self.allow_unmatched = allow_unmatched
        self.inverted = inverted

    def __call__(self, params: Tree) -> Tree:
        paths = [trees.path_string(path) for path, _ in trees.leaves_with_paths(params)]
        found = [any(re.search(pattern, path) for pattern in self.patterns) for path in paths]
        if paths and not any(found) and not self.allow_unmatched:  # a tree that is masked out whole has no paths
            raise ValueError(
                f"{self!r} matches no parameter; the paths are: {', '.join(paths)}. "
                "If that is meant, use matching(…, allow_unmatched=True)."
            )
        return jax.tree.unflatten(jax.tree.structure(params), [flag != self.inverted for flag in found])

    def __invert__(self) -> "Matching":
        """The mask of all other parameters."""
        return Matching(self.patterns, self.allow_unmatched, not self.inverted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Matching) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((Matching, self.patterns, self.allow_unmatched, self.inverted))

    def __repr__(self) -> str:
        options = ", allow_unmatched=True" if self.allow_unmatched else ""
        return f"{'~' if self.inverted else ''}matching({', '.join(map(repr, self.patterns))}{options})"


def matching(*patterns: str, allow_unmatched: bool = False) -> Matching:
    """The parameters whose path a regular expression finds: a mask that works on any tree.

    A path is the keys joined by slashes, `layers/0/bias`, the same for dicts, lists, dataclasses, `FrozenDict` and
    `nnx.State`. A pattern is searched anywhere in it (`re.search`), so anchor it where that matters: `"bias$"`.

    Args:
      *patterns: regular expressions; a parameter is chosen if one of them is found.
      allow_unmatched: whether it may be that no pattern matches any parameter, which otherwise is an error, since it is
        how a typo shows. A tree in which every leaf is masked out has no parameters, and nothing is checked.

    Returns:
      A callable of the parameters that returns a tree of bools; `~matching(…)` is the other parameters.

    Raises:
      TypeError, ValueError: a pattern that is not a string or not a regular expression; when called, no pattern
        that matches any parameter (the message lists the paths).

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> mask = optchain.matching("bias$", "norm")
      >>> mask({"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}})
      {'dense': {'bias': True, 'kernel': False}, 'norm': {'scale': True}}
    """
    return Matching(patterns, allow_unmatched)


def check_mask(name: str, mask: Any) -> None:
    """Refuses at construction what cannot be a mask: a pattern that was meant for `matching`, a number."""
    # A single bool is what optax.inject_hyperparams makes of a callable that it takes for a schedule.
    if isinstance(mask, str | bool | np.bool_) or not (is_function(mask) or jax.tree.leaves(mask)):
        raise TypeError(f"{name} must be a tree of bools or a callable of the parameters (see matching); got {mask!r}")
    if not is_function(mask):
        _check_bools(name, mask)


def is_function(mask: Any) -> bool:
    """Whether a mask is to be called. A tree of bools is not, though its nodes may be callable, as Equinox's modules are."""
    if isinstance(mask, jax.tree_util.Partial):
        return True
    leaves = jax.tree.leaves(mask)
    return callable(mask) and not (leaves and all(isinstance(leaf, bool | np.bool_) for leaf in leaves))


def resolve_mask(name: str, mask: Mask | None, params: Tree) -> Tree:
    """The mask as a tree of bools with the structure of `params`; None is all of them."""
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    chosen: Any = mask(params) if is_function(mask) else mask  # pyright: ignore[reportCallIssue]
    _check_bools(name, chosen)
    if jax.tree.structure(chosen) == jax.tree.structure(params):
        return chosen
    try:
        return jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), chosen, params)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name} does not fit the parameters: {error}") from error


def select(mask: Tree, tree: Tree | trees.Scaled) -> Any:
    """The leaves that a resolved mask names, in a tree that has None in the others' places: no leaves there.

    None, and not `optax.MaskedNode()`, because a checkpoint that is restored without a template has None there too.
    """
    if isinstance(tree, trees.Scaled):
        return trees.Scaled(select(mask, tree.tree), tree.factor)
    part = jax.tree.map(lambda chosen, leaf: leaf if chosen else None, mask, tree)
    return optax.MaskedNode() if part is None else part  # a bare array left out; None would be "no parameters given"


def invert(mask: Tree) -> Tree:
    """A resolved mask of all other leaves."""
    return jax.tree.map(lambda chosen: not chosen, mask)


def merge(mask: Tree, chosen: Tree, others: Tree) -> Tree:
    """The tree of which `select` took `chosen` and, with the inverted mask, `others`."""
    return jax.tree.map(lambda flag, a, b: a if flag else b, mask, chosen, others)


def _check_bools(name: str, mask: Tree) -> None:
    for path, leaf in trees.leaves_with_paths(mask):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(
                f"{trees.path_code(name, path)} must be True or False; got {leaf!r} ({type(leaf).__name__})"
            )


# Values by path ------------------------------------------------------------------------------------------------------


def check_patterns(name: str, table: Any) -> None:
    """Requires a mapping whose keys are regular expressions, with at least one."""
    if not isinstance(table, Mapping):
        raise TypeError(f"{name} must be a mapping of patterns (see matching); got {table!r} ({type(table).__name__})")
    if not table:
        raise ValueError(f"{name} needs at least one pattern")
    for pattern in table:
        _check_pattern(pattern)


def first_match(name: str, table: Mapping[str, T], default: T, params: Tree) -> Tree:
    """For each parameter the value of the first pattern that is found in its path, else the default.

    A pattern that decides for no parameter is an error, since it is how a typo shows.
    """
    paths = [trees.path_string(path) for path, _ in trees.leaves_with_paths(params)]
    chosen = [next((pattern for pattern in table if re.search(pattern, path)), None) for path in paths]
    for pattern in table:
        if paths and pattern not in chosen:  # a tree that is masked out whole has no paths
            found = any(re.search(pattern, path) for path in paths)
            why = "every parameter that it matches is taken by a pattern before it" if found else "it matches none"
            raise ValueError(
                f"{name}: pattern {pattern!r} decides for no parameter: {why}; the paths are: {', '.join(paths)}"
            )
    values = [default if pattern is None else table[pattern] for pattern in chosen]
    return jax.tree.unflatten(jax.tree.structure(params), values)


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern must be a string; got {pattern!r} ({type(pattern).__name__})")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
