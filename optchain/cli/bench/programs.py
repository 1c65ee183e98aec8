"""A contender, a recipe and a tree made ready: a call runs one step and waits."""

from collections.abc import Callable
from typing import Protocol

import jax

from optchain.cli.bench import counts
from optchain.cli.bench.contenders import keras_optimizer, optax_chain, ours
from optchain.cli.bench.contenders.steps import StepFunctions
from optchain.cli.bench.contenders.torch_optimizer import TorchProgram
from optchain.cli.bench.counts import Counts
from optchain.cli.bench.names import ContenderName
from optchain.cli.bench.recipes import Recipe
from optchain.core.trees import Tree


class Program(Protocol):
    def call(self) -> None:
        """Runs one step, and waits until it is done."""
        ...

    def counts(self) -> Counts:
        """What was counted; to be asked after the first steps."""
        ...


class JaxProgram:
    """A step compiled with its parameters and state donated, and the arrays that it goes on with."""

    def __init__(self, functions: StepFunctions, params: Tree, grads: Tree):
        self._params, self._state = jax.tree.map(lambda p: p.copy(), params), functions.init(params)
        self._grads = grads
        self._step, self._counts = counts.compile_step(functions, self._params, self._state, grads)

    def call(self) -> None:
        self._params, self._state = self._step(self._params, self._state, self._grads)
        jax.block_until_ready((self._params, self._state))

    def counts(self) -> Counts:
        return self._counts


_ON_JAX: dict[ContenderName, Callable[[Recipe], StepFunctions]] = {
    ContenderName.APPLY: ours.apply_form,
    ContenderName.UPDATE: ours.update_form,
    ContenderName.OPTAX: optax_chain.step_functions,
    ContenderName.KERAS: keras_optimizer.step_functions,
}


def prepare(contender: ContenderName, recipe: Recipe, params: Tree, grads: Tree) -> Program:
    """Builds and compiles.

    Raises:
      UnavailableError: the contender has no form of the recipe, or no device here.
      ModuleNotFoundError: its library is not installed.
    """
    if contender in _ON_JAX:
        return JaxProgram(_ON_JAX[contender](recipe), params, grads)
    return TorchProgram(recipe, contender.removeprefix("torch-"), params, grads)
