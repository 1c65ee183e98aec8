"""What a contender on JAX is: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

from optchain.core.trees import Tree


class UnavailableError(Exception):
    """Why a contender cannot run a recipe here."""


class StepFunctions(NamedTuple):
    """`init(params) -> state` and `step(params, state, grads) -> (params, state)`.

    Parameters stand before state, in and out, for every contender: donated buffers are paired by position.
    """

    init: Callable[[Tree], Any]
    step: Callable[[Tree, Any, Tree], tuple[Tree, Any]]
