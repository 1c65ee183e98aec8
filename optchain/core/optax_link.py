"""Optax's transformations as links of ours."""

import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import optax

from optchain.core import trees
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree


class OptaxLink(Transformation):
    """An Optax transformation as a link of ours: its state is its own, and so are the dtypes that it sees."""

    inner: optax.GradientTransformationExtraArgs

    def __new__(cls, inner: optax.GradientTransformation, name: str = "optax") -> Self:
        link = Transformation(update=lambda updates, state, params, **extra: (updates, state), name=name)
        open_ended = isinstance(inner, optax.GradientTransformationExtraArgs)
        return cls._build(
            vars(link)
            | {
                "inner": optax.with_extra_args_support(inner),
                "takes": frozenset({"learning_rate"} if open_ended else ()),  # nobody can know which it takes
            }
        )

    def run_init(self, params: Tree) -> State:
        state = self.inner.init(jax.tree.map(lambda p: trees.astype(p, trees.dtype_of(p)), params))
        return {} if state == optax.EmptyState() else state

    def run_update(
        self, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, State]:
        if isinstance(state, dict) and not state:
            self._check_stateless(params)
            state = optax.EmptyState()
        updates = trees.force(updates)
        # Optax's states take the dtypes of the parameters at init; updates in another dtype would change them.
        if params is not None:
            updates = trees.cast_tree(updates, params)
        updates, state = self.inner.update(updates, state, params, **extra)
        return updates, {} if isinstance(state, optax.EmptyState) else state

    def _check_stateless(self, params: Tree | None) -> None:
        if params is not None and jax.tree.leaves(jax.eval_shape(self.inner.init, params)):
            raise ValueError(f"the state has no entry {self.name!r}: it is another transformation's")

    @functools.cached_property
    def _key(self) -> Any:
        return ("optax", self.inner, self.name) if self._factory is None else super()._key

    def __repr__(self) -> str:
        return f"optax({self.name})" if self._factory is None else super().__repr__()

    def __reduce__(self) -> tuple[Any, ...]:
        return (OptaxLink, (self.inner, self.name)) if self._factory is None else super().__reduce__()


jax.tree_util.register_static(OptaxLink)


def as_transformation(tx: optax.GradientTransformation, name: str = "optax") -> Transformation:
    """A `Transformation` as it is, an Optax transformation as a link."""
    if isinstance(tx, Transformation):
        return tx
    if isinstance(tx, optax.GradientTransformation):
        return OptaxLink(tx, name)
    raise TypeError(f"{name} must be an optchain or Optax transformation; got {tx!r} ({type(tx).__name__})")
