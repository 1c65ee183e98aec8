"""Masks: which parameters a transformation applies to."""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
import optax

from optchain.core import arguments, trees
from optchain.core.trees import Tree
from optchain.core.values import freeze, to_code

Mask: TypeAlias = Callable[[Tree], Tree] | Tree
"""A tree of bools, a prefix of the parameters' tree (a single bool is one), or a callable of the parameters that returns one."""


T = TypeVar("T")


class Choice:
    """A mask that is an object: a callable of the parameters that prints as code, is equal by value, and combines.

    `~a` is all other parameters, `a & b` those that both choose, `a | b` those that one of them chooses.
    """

    def __call__(self, params: Tree) -> Tree:
        raise NotImplementedError

    def __invert__(self) -> "Choice":
        return Others(self)

    def __and__(self, other: "Choice") -> "Choice":
        if isinstance(other, Common):  # from left to right, as the code that it prints as is read
            return self & other.first & other.second
        return Common(self, other) if isinstance(other, Choice) else NotImplemented

    def __or__(self, other: "Choice") -> "Choice":
        return ~(~self & ~other) if isinstance(other, Choice) else NotImplemented


@dataclasses.dataclass(frozen=True, repr=False)
class Others(Choice):
    """The parameters that another mask leaves out."""

    mask: Choice

    def __call__(self, params: Tree) -> Tree:
        return invert(self.mask(params))

    def __invert__(self) -> Choice:
        return self.mask

    def __repr__(self) -> str:
        return f"~({self.mask!r})" if isinstance(self.mask, Common) else f"~{self.mask!r}"


@dataclasses.dataclass(frozen=True, repr=False)
class Common(Choice):
    """The parameters that two masks choose."""

    first: Choice
    second: Choice

    def __call__(self, params: Tree) -> Tree:
        return jax.tree.map(lambda a, b: a and b, self.first(params), self.second(params))

    def __repr__(self) -> str:
        return f"{self.first!r} & {self.second!r}"


@dataclasses.dataclass(frozen=True, repr=False)
class Matrices(Choice):
    """The parameters that have exactly two axes."""

    def __call__(self, params: Tree) -> Tree:
        return jax.tree.map(lambda p: np.ndim(p) == 2, params)

    def __repr__(self) -> str:
        return "matrices"


matrices = Matrices()
"""The mask of the parameters that have exactly two axes."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class AsMask(Choice):
    """See :func:`as_mask`."""

    mask: Mask
    name: str = "mask"
    """What error messages call it."""

    def __call__(self, params: Tree) -> Tree:
        return resolve_mask(self.name, self.mask, params)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsMask) and freeze(self.mask) == freeze(other.mask)

    def __hash__(self) -> int:
        return hash((AsMask, freeze(self.mask)))

    def __repr__(self) -> str:
        return f"as_mask({to_code(self.mask)})"


def as_mask(mask: Mask) -> Choice:
    """A mask of any kind as one that combines with others, by `~`, `&` and `|`, as `matching` does.

    Args:
      mask: a tree of bools (or a prefix of one), or a callable of the parameters that returns one.

    Returns:
      A callable of the parameters that returns a tree of bools, prints as code, and is equal to any other of an equal mask.

    Raises:
      TypeError: something that is no mask.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> def large(params):
      ...     return jax.tree.map(lambda p: p.size > 2, params)
      >>> mask = optchain.as_mask(large) & ~optchain.matching("embedding")
      >>> mask({"embedding": jnp.ones(8), "kernel": jnp.ones(8), "bias": jnp.ones(2)})
      {'bias': False, 'embedding': False, 'kernel': True}
    """
    if isinstance(mask, Choice):
        return mask
    check_mask("mask", mask)
    return AsMask(mask)


class Matching(Choice):
    """See :func:`matching`."""

    def __init__(self, patterns: Sequence[str], allow_unmatched: bool = False, inverted: bool = False):
        if isinstance(patterns, str) or not isinstance(patterns, Sequence):
            raise TypeError(f"patterns must be a sequence of strings; got {patterns!r}")
        for pattern in patterns:
            _check_pattern(pattern)
        if not patterns:
            raise ValueError("matching needs at least one pattern")
        self.patterns = tuple(patterns)
        self.allow_unmatched = arguments.check_bool("allow_unmatched", allow_unmatched)
        self.inverted = inverted

    def __call__(self, params: Tree) -> Tree:
        paths = [trees.path_string(path) for path, _ in trees.leaves_with_paths(params)]
        found = [any(re.search(pattern, path) for pattern in self.patterns) for path in paths]
        if paths and not any(found) and not self.allow_unmatched:  # a tree that is masked out whole has no paths
            raise ValueError(
                f"{self!r} matches no parameter; the paths are: {', '.join(paths)}. "
                "If you want that, use matching(…, allow_unmatched=True)."
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
    if isinstance(mask, str) or not (is_function(mask) or jax.tree.leaves(mask)):
        raise TypeError(f"{name} must be a tree of bools or a callable of the parameters (see matching); got {mask!r}")
    if is_function(mask):
        return
    flags = _flags(name, mask)
    if isinstance(flags, bool) and _is_built_by_injection():
        raise TypeError(
            f"{name} must be a tree of bools or a callable of the parameters; got the single bool {flags}, which "
            "optax.inject_hyperparams makes of a callable that it takes for a schedule: name it there, "
            f'static_args=("{name}",), or leave injection out: arrays, schedules and callables are run-time values here'
        )


def _is_built_by_injection() -> bool:
    """Whether `optax.inject_hyperparams` is on the way here. It calls every callable with the count, masks too, and what
    comes back cannot be told from a bool that someone wrote.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == optax.inject_hyperparams.__module__:
            return True
        frame = frame.f_back
    return False


def is_function(mask: Any) -> bool:
    """Whether a mask is to be called. A tree of bools is not, though its nodes may be callable, as Equinox's modules are."""
    if isinstance(mask, jax.tree_util.Partial):
        return True
    leaves = jax.tree.leaves(mask)
    return callable(mask) and not (leaves and all(map(_is_flag, leaves)))


def resolve_mask(name: str, mask: Mask | None, params: Tree) -> Tree:
    """The mask as a tree of bools with the structure of `params`; None is all of them."""
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    if _is_placeholder(params):
        return params
    chosen = _flags(name, mask(params) if is_function(mask) else mask)
    if jax.tree.structure(chosen) == jax.tree.structure(params):
        return chosen
    try:
        return jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), chosen, params)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name} does not fit the parameters: {error}") from error


def _is_placeholder(params: Tree) -> bool:
    """Whether this is a node that is no container and has nothing in it: what `optax.tree.map_params` gives to `init` to see
    where the state mirrors the parameters. No mask fits it, and none has anything to choose.
    """
    if params is None or isinstance(params, dict | list | tuple):
        return False
    return jax.tree.structure(params).num_nodes == 1 and not jax.tree.leaves(params)


def select(mask: Tree, tree: Tree | trees.Scaled) -> Any:
    """The leaves that a resolved mask names, in a tree that has None in the others' places: no leaves there.

    None, and not `optax.MaskedNode()`, because a checkpoint that is restored without a template has None there too.
    """
    if isinstance(tree, trees.Scaled):
        return trees.Scaled(select(mask, tree.tree), tree.factor)
    part = jax.tree.map(lambda chosen, leaf: leaf if chosen else None, mask, tree)
    return optax.MaskedNode() if part is None else part  # a bare array left out; None would be "no parameters given"


def select_extra(mask: Tree, extra: Mapping[str, Any], reference: Tree) -> dict[str, Any]:
    """A call's extra arguments: of trees like the reference the chosen leaves."""
    return trees.map_like(lambda tree: select(mask, tree), extra, reference)


def invert(mask: Tree) -> Tree:
    """A resolved mask of all other leaves."""
    return jax.tree.map(lambda chosen: not chosen, mask)


def merge(mask: Tree, chosen: Tree, others: Tree) -> Tree:
    """The tree of which `select` took `chosen` and, with the inverted mask, `others`."""
    return jax.tree.map(lambda flag, a, b: a if flag else b, mask, chosen, others)


def _flags(name: str, mask: Tree) -> Tree:
    """The mask with Python's bools as leaves; NumPy's and JAX's, also as arrays without axes, are as good."""

    def flag(path: trees.Path, leaf: Any) -> bool:
        if not _is_flag(leaf):
            raise TypeError(
                f"{trees.path_code(name, path)} must be True or False; got {leaf!r} ({type(leaf).__name__})"
            )
        if arguments.is_traced(leaf):
            raise TypeError(
                f"{trees.path_code(name, path)} is traced: the chosen parameters must be known before tracing. Give "
                "True or False, or decide by a parameter's path, shape or dtype"
            )
        return bool(leaf)

    return jax.tree_util.tree_map_with_path(flag, mask)


def _is_flag(leaf: Any) -> bool:
    if isinstance(leaf, bool | np.bool_):
        return True
    return arguments.is_array(leaf) and leaf.shape == () and leaf.dtype == bool


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
