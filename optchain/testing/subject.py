"""The subject of the checks: a transformation, and its known properties."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from optchain.core.transformation import Transformation
from optchain.testing.trees import PLAIN, Tree, grads_of, params_of


@dataclasses.dataclass(frozen=True)
class Subject:
    name: str
    make: Callable[[], Transformation]
    refuses_complex: bool = False
    """Whether complex leaves are an error."""
    has_code: bool = True
    """Whether `eval(repr(tx))` builds it again, and it pickles: not with an Optax link, which is made of closures."""
    owns_all_state: bool = True
    """Whether its state is its own; an Optax link keeps Optax's tuples."""
    exports: bool = True
    """Whether `jax.export` takes a step: not with a callable that is read on the host."""
    zero_is_fixed_point: bool = True
    """Whether zero gradients leave zero parameters at zero: not with noise."""
    tree: Any = PLAIN
    """The parameters it is tried on: the name of a tree, or a tree of arrays."""

    def params(self, dtype: Any = jnp.float32) -> Tree:
        return params_of(self.tree, dtype)

    def grads(self, step: int = 0, dtype: Any = jnp.float32) -> Tree:
        return grads_of(self.tree, dtype, step)

    def __str__(self) -> str:
        return self.name


Check = Callable[[Subject], None]
