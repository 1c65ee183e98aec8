"""Keras 3 on its JAX backend: the same arguments, `stateless_apply`."""

import importlib
import os
from typing import Any

import jax
import jax.numpy as jnp

from optchain.cli.bench import recipes
from optchain.cli.bench.contenders.steps import StepFunctions, UnavailableError
from optchain.cli.bench.recipes import Recipe
from optchain.core.trees import Tree


def step_functions(recipe: Recipe) -> StepFunctions:
    if recipe.skip_nonfinite:
        raise UnavailableError("Keras has no argument that skips non-finite gradients")
    keras = _keras()
    optimizer = _optimizer(keras, recipe)

    def init(params: Tree) -> list[jax.Array]:
        variables = [keras.Variable(jnp.zeros(leaf.shape, leaf.dtype)) for leaf in jax.tree.leaves(params)]
        optimizer.build(variables)
        return [variable.value.copy() for variable in optimizer.variables]

    def step(params: Tree, state: list[jax.Array], grads: Tree) -> tuple[Tree, list[jax.Array]]:
        leaves, treedef = jax.tree.flatten(params)
        leaves, state = optimizer.stateless_apply(state, jax.tree.leaves(grads), leaves)
        return treedef.unflatten(leaves), state

    return StepFunctions(init, step)


def _keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported
    keras = importlib.import_module("keras")
    if keras.backend.backend() != "jax":
        raise UnavailableError(f"Keras runs on {keras.backend.backend()} here: set KERAS_BACKEND=jax")
    return keras


def _optimizer(keras: Any, recipe: Recipe) -> Any:
    if recipe.rule == "sgd":
        return keras.optimizers.SGD(recipes.LEARNING_RATE, recipes.SGD_MOMENTUM, **recipe.keras_arguments)
    return keras.optimizers.AdamW(
        recipes.LEARNING_RATE, recipes.WEIGHT_DECAY, epsilon=recipes.EPSILON, **recipe.keras_arguments
    )
