"""Optax: the chain closest to the recipe, with an average of the weights written by hand."""

from typing import Any

import jax
import optax

from optchain.cli.bench import recipes
from optchain.cli.bench.contenders.steps import StepFunctions
from optchain.cli.bench.recipes import Recipe
from optchain.core.trees import Tree

NEVER_LET_THROUGH = 2**30
"""`apply_if_finite` applies a bad update after so many in a row."""


def step_functions(recipe: Recipe) -> StepFunctions:
    tx = transformation(recipe)

    def step(params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return _averaged(tx, step) if recipe.average else StepFunctions(tx.init, step)


def transformation(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    if recipe.rule == "sgd":
        rule = optax.sgd(recipes.LEARNING_RATE, momentum=recipes.SGD_MOMENTUM)
    else:
        rule = optax.adamw(recipes.LEARNING_RATE, eps=recipes.EPSILON, weight_decay=recipes.WEIGHT_DECAY)
    # Optax clips a leaf by its root mean square, not by its norm: the same work.
    clips = [optax.clip_by_global_norm(recipes.MAX_NORM)] * recipe.global_clip
    clips += [optax.clip_by_block_rms(recipes.MAX_NORM)] * recipe.clip_by_norm
    tx = optax.chain(*clips, rule) if clips else rule
    if recipe.skip_nonfinite:
        tx = optax.apply_if_finite(tx, NEVER_LET_THROUGH)
    if recipe.accumulate > 1:
        tx = optax.MultiSteps(tx, recipe.accumulate).gradient_transformation()
    return optax.with_extra_args_support(tx)


def _averaged(tx: optax.GradientTransformation, step: Any) -> StepFunctions:
    def init(params: Tree) -> dict[str, Any]:
        return {"optax": tx.init(params), "average": jax.tree.map(lambda p: p.copy(), params)}

    def step_and_average(params: Tree, state: dict[str, Any], grads: Tree) -> tuple[Tree, dict[str, Any]]:
        params, tx_state = step(params, state["optax"], grads)
        m = recipes.AVERAGE_MOMENTUM
        average = jax.tree.map(lambda a, p: m * a + (1 - m) * p, state["average"], params)
        return params, {"optax": tx_state, "average": average}

    return StepFunctions(init, step_and_average)
