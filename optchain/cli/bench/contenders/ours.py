"""optchain, in its two forms."""

from typing import Any

import optax

import optchain
from optchain.cli.bench import recipes
from optchain.cli.bench.contenders.steps import StepFunctions
from optchain.cli.bench.recipes import Recipe
from optchain.core.trees import Tree


def apply_form(recipe: Recipe) -> StepFunctions:
    return applying(transformation(recipe))


def update_form(recipe: Recipe) -> StepFunctions:
    return updating(transformation(recipe))


def applying(tx: optchain.Transformation) -> StepFunctions:
    return StepFunctions(tx.init, lambda params, state, grads: tx.apply(params, state, grads=grads))


def updating(tx: optax.GradientTransformation) -> StepFunctions:
    def step(params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return StepFunctions(tx.init, step)


def transformation(recipe: Recipe) -> optchain.Transformation:
    """The preset, or the chain that it is with `skip_nonfinite` within."""
    if not recipe.skip_nonfinite:
        return _preset(recipe)
    assert recipe.rule == "adamw"
    body = optchain.chain(
        *[optchain.clip_by_global_norm(recipes.MAX_NORM)] * recipe.global_clip,
        optchain.scale_by_adam(epsilon=recipes.EPSILON),
        optchain.scale_by_learning_rate(),
        optchain.decay_weights(recipes.WEIGHT_DECAY),
    )
    gate = optchain.skip_nonfinite(body)
    if recipe.accumulate > 1:
        gate = optchain.accumulate(gate, recipe.accumulate)
    average = [optchain.average_params(recipes.AVERAGE_MOMENTUM, calls_per_step=recipe.accumulate)] * recipe.average
    return optchain.chain(gate, *average, learning_rate=recipes.LEARNING_RATE)


def _preset(recipe: Recipe) -> optchain.Transformation:
    if recipe.rule == "sgd":
        return optchain.sgd(recipes.LEARNING_RATE, recipes.SGD_MOMENTUM, **recipe.keras_arguments)
    return optchain.adamw(
        recipes.LEARNING_RATE, recipes.WEIGHT_DECAY, epsilon=recipes.EPSILON, **recipe.keras_arguments
    )
