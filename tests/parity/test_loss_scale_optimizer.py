"""`loss_scale_optimizer`, and `dynamic_loss_scale` within, against the live `keras.optimizers.LossScaleOptimizer`, with gradients that overflow."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import optchain as oc

from .helpers import BOUNDS, FORMS, Tree, random_grads, random_params, worst_error
from .recipes import preset

STEPS = 200
INNER: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {"learning_rate": 0.01}),
    "adamw": ("AdamW", {"learning_rate": 0.01, "weight_decay": 0.1, "global_clipnorm": 1.0, "amsgrad": True}),
    "sgd": ("SGD", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True}),
    "accumulated": ("SGD", {"learning_rate": 0.01, "momentum": 0.9, "gradient_accumulation_steps": 3}),
}


def keras_run(inner: str, params: Tree, grads: list[Tree], scale: float, growth: int) -> tuple[list, list[float]]:
    """Parameters and scale after every step of the compiled, stateless optimizer."""
    class_name, arguments = INNER[inner]
    optimizer = keras.optimizers.LossScaleOptimizer(
        getattr(keras.optimizers, class_name)(**arguments), initial_scale=scale, dynamic_growth_steps=growth
    )
    leaves, treedef = jax.tree.flatten(params)
    optimizer.build([keras.Variable(leaf) for leaf in leaves])
    index = [id(v) for v in optimizer.variables].index(id(optimizer.dynamic_scale))
    step = jax.jit(lambda values, state, grads: optimizer.stateless_apply(state, grads, values))
    values, state = leaves, [variable.value for variable in optimizer.variables]
    history, scales = [], []
    for g in grads:
        values, state = step(values, state, jax.tree.leaves(g))
        history.append(treedef.unflatten(jax.device_get(values)))
        scales.append(float(state[index]))
    return history, scales


def our_run(
    inner: str, params: Tree, grads: list[Tree], scale: float, growth: int, form: str
) -> tuple[list, list[float]]:
    class_name, arguments = INNER[inner]
    tx = oc.loss_scale_optimizer(preset(class_name)(**arguments), scale, growth)
    step = jax.jit(lambda params, state, grads: FORMS[form](tx, params, state, grads))
    params = jax.device_put(params)
    state, history, scales = tx.init(params), [], []
    for g in grads:
        params, state = step(params, state, g)
        history.append(jax.device_get(params))
        scales.append(float(state["loss_scale"]))
    return history, scales


def with_bad_values(rng: np.random.Generator, grads: list[Tree], share: float) -> list[Tree]:
    """A share of the gradients has one value that is infinite or NaN."""
    for g in grads:
        if rng.uniform() < share:
            leaf = jax.tree.leaves(g)[rng.integers(len(jax.tree.leaves(g)))]
            leaf.flat[rng.integers(leaf.size)] = rng.choice([np.inf, -np.inf, np.nan])
    return grads


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inner", INNER)
def test_it_equals_keras_while_gradients_overflow_at_random(inner: str, form: str, record_error: Callable) -> None:
    rng = np.random.default_rng(7)
    params = random_params(rng, "float32")
    grads = with_bad_values(rng, random_grads(rng, "float32", STEPS, factor=2.0**10), share=0.15)
    assert sum(not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(g)) for g in grads) >= 20
    theirs, their_scales = keras_run(inner, params, grads, 2.0**10, 5)
    ours, our_scales = our_run(inner, params, grads, 2.0**10, 5, form)
    assert our_scales == their_scales
    assert len(set(our_scales)) >= 8  # it has moved up and down
    error = worst_error(ours, theirs)
    record_error(("Keras", f"LossScale({INNER[inner][0]})", "float32", form), error)
    assert error <= BOUNDS["float32"]


@pytest.mark.parametrize("growth_steps", [1, 2, 7])
def test_the_scale_moves_as_keras_does_whatever_the_growth_steps(growth_steps: int) -> None:
    rng = np.random.default_rng(growth_steps)
    params = random_params(rng, "float32")
    grads = with_bad_values(rng, random_grads(rng, "float32", 60), share=0.3)
    _, theirs = keras_run("sgd", params, grads, 256.0, growth_steps)
    _, ours = our_run("sgd", params, grads, 256.0, growth_steps, "apply")
    assert ours == theirs


def test_300_good_steps_take_keras_to_infinity_and_ours_to_its_bound() -> None:
    rng = np.random.default_rng(0)
    params, grads = random_params(rng, "float32"), random_grads(rng, "float32", 300)
    _, theirs = keras_run("sgd", params, grads, 2.0**15, 1)
    ours, scales = our_run("sgd", params, grads, 2.0**15, 1, "apply")
    assert theirs[-1] == np.inf
    assert scales[-1] == max(scales) == 2.0**127
    assert scales[:112] == theirs[:112]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours[-1]))


def test_300_bad_steps_take_keras_to_zero_and_nan_and_ours_to_its_bound() -> None:
    rng = np.random.default_rng(0)
    params, good = random_params(rng, "float32"), random_grads(rng, "float32", 1)
    bad = [jax.tree.map(lambda leaf: np.full_like(leaf, np.inf), good[0])] * 300
    history, theirs = keras_run("sgd", params, [*bad, *good], 2.0**15, 1)
    ours, scales = our_run("sgd", params, [*bad, *good], 2.0**15, 1, "apply")
    assert theirs[-2] == 0
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(history[-1]))
    assert scales[-2] == min(scales) == 2.0**-24
    assert scales[:39] == theirs[:39]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours[-1]))
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(ours[-2]), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's variables and NumPy 2
def test_the_inner_static_scale_is_reset_as_in_keras() -> None:
    keras_inner = keras.optimizers.SGD(0.1, loss_scale_factor=8.0)
    config = keras.optimizers.serialize(keras.optimizers.LossScaleOptimizer(keras_inner, initial_scale=4.0))
    state = oc.from_config(config).init(jnp.zeros(2))
    assert float(oc.scale_loss(jnp.float32(1.0), state)) == 4.0
    ours = oc.loss_scale_optimizer(oc.sgd(0.1, loss_scale_factor=8.0), initial_scale=4.0)
    assert float(oc.scale_loss(jnp.float32(1.0), ours.init(jnp.zeros(2)))) == 4.0


def test_arguments_order_and_defaults_are_keras() -> None:
    theirs = inspect.signature(keras.optimizers.LossScaleOptimizer).parameters.values()
    ours = inspect.signature(oc.loss_scale_optimizer).parameters.values()
    expected = [(p.name, p.default) for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name.replace("inner", "inner_optimizer"), p.default) for p in ours] == expected
