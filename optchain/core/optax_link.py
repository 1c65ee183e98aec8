"""Optax's transformations as links of ours."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from optchain.core import memory, trees
from optchain.core.calls import not_given
from optchain.core.restored import ConvertedState, may_be_restored
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree

MISSING = re.compile(r"(?P<owner>\S+)\(\) missing \d+ required keyword-only arguments?: '(?P<name>\w+)'")
"""What Python says of a call that lacks an argument."""


class OptaxLink(Transformation):
    """An Optax transformation as a link of ours: its state is its own, and so are the dtypes that it sees."""

    source: optax.GradientTransformation | optax.MultiSteps
    inner: optax.GradientTransformationExtraArgs

    def __new__(cls, source: optax.GradientTransformation | optax.MultiSteps, name: str = "optax") -> Self:
        functions: Any = (source.init, source.update)
        # What MultiSteps.gradient_transformation() returns would not hand on extra arguments.
        inner = optax.GradientTransformationExtraArgs(*functions) if isinstance(source, optax.MultiSteps) else source
        open_ended = isinstance(inner, optax.GradientTransformationExtraArgs)
        link = cls._link(
            source=source,
            inner=optax.with_extra_args_support(inner),
            _takes=frozenset({"learning_rate"} if open_ended else ()),  # nobody can know which it takes
        )
        return link.renamed(name)

    @property
    def open_ended(self) -> bool:
        return isinstance(self.source, optax.GradientTransformationExtraArgs | optax.MultiSteps)

    def run_init(self, params: Tree) -> State:
        state = self.inner.init(jax.tree.map(lambda p: trees.astype(p, trees.dtype_of(p)), params))
        return {} if state == optax.EmptyState() else trees.with_own_buffers(state, params)

    def run_update(
        self, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, State]:
        updates = trees.force(updates)
        # Optax's states take the dtypes of the parameters at init; updates in another dtype would change them.
        if params is not None:
            updates = trees.cast_tree(updates, params)
        state, in_original_containers = self._in_its_containers(state, updates if params is None else params)
        try:
            made, state = memory.streamed(lambda state: self.inner.update(updates, state, params, **extra), state)
        except TypeError as error:
            missing = MISSING.search(str(error))
            if missing is None or missing["name"] in extra:
                raise
            owner = f"{self.name} (Optax's {missing['owner'].split('.')[0]})"
            raise TypeError(not_given(owner, missing["name"], extra)) from error
        self._check_made(made, updates, params)
        return made, in_original_containers(state)

    def _in_its_containers(self, state: State, params: Tree) -> tuple[State, Callable[[State], State]]:
        """The state as Optax's `init` makes it, whatever a checkpoint made of it, and the way back."""
        if not may_be_restored(state):
            return state, lambda new_state: new_state
        structs = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), trees.dtype_of(p)), params)
        template = jax.eval_shape(self.inner.init, structs)
        if isinstance(state, dict) and not state and jax.tree.leaves(template):
            raise ValueError(f"the state has no entry {self.name!r}: it is another transformation's")
        rebuilt = ConvertedState(self.name, template, state)
        return rebuilt.state, rebuilt.in_original_containers

    @functools.cached_property
    def _key(self) -> Any:
        return ("optax", self.source, self.name) if self._factory is None else super()._key

    def __repr__(self) -> str:
        return f"optax({self.name})" if self._factory is None else super().__repr__()

    def __reduce__(self) -> tuple[Any, ...]:
        return (OptaxLink, (self.source, self.name)) if self._factory is None else super().__reduce__()


def is_transformation(tx: Any) -> bool:
    """Whether `as_transformation` takes it."""
    return isinstance(tx, optax.GradientTransformation | optax.MultiSteps)


def as_transformation(tx: Any, name: str | None = None) -> Transformation:
    """A `Transformation` as it is, an Optax transformation as a link of this name; an error has it for the argument's."""
    if isinstance(tx, Transformation):
        return tx
    if is_transformation(tx):
        return OptaxLink(tx, name or "optax")
    raise TypeError(f"{name or 'tx'} must be an optchain or Optax transformation; got {tx!r} ({type(tx).__name__})")
