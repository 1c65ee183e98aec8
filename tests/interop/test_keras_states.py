"""The state of every optimizer of Keras's, there and back; what Keras cannot say; which parameter is which variable."""

from typing import Any

import jax
import keras
import numpy as np
import pytest
from flax import nnx

import optchain
from optchain.interop.keras import from_keras, load_params, load_state, save_state, to_keras

# Keras's own: how it turns a variable into an array when it is asked for a config.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPES = {"dense": {"bias": (2,), "kernel": (3, 2)}, "head": {"kernel": (2, 2)}, "norm": {"scale": (2,)}}
NAMES = ["dense/kernel", "dense/bias", "norm/gamma", "head/kernel"]
"""The variables in Keras's order, which is not the tree's; and `gamma` is `scale` here."""
OURS = ["dense/kernel", "dense/bias", "norm/scale", "head/kernel"]

SHARED = {"weight_decay": 0.1, "use_ema": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Adadelta": ("Adadelta", {"learning_rate": 0.5}),
    "Adafactor": ("Adafactor", {"learning_rate": 0.1}),
    "Adafactor, decay": ("Adafactor", {"learning_rate": 0.1, **SHARED}),
    "Adagrad": ("Adagrad", {"learning_rate": 0.1, "clipnorm": 1.0}),
    "Adam": ("Adam", {"learning_rate": 0.1, "gradient_accumulation_steps": 3, "name": "accumulate"}),
    "Adam, AMSGrad": ("Adam", {"learning_rate": 0.1, "amsgrad": True}),
    "AdamW": ("AdamW", {"learning_rate": 0.1, "gradient_accumulation_steps": 3, **SHARED}),
    "Adamax": ("Adamax", {"learning_rate": 0.1}),
    "Ftrl": ("Ftrl", {"learning_rate": 0.1, "l1_regularization_strength": 0.01, **SHARED}),
    "Lamb": ("Lamb", {"learning_rate": 0.1, "weight_decay": 0.1, "gradient_accumulation_steps": 3}),
    "Lion": ("Lion", {"learning_rate": 0.1}),
    "Muon": ("Muon", {"learning_rate": 0.1, "exclude_layers": ["head"]}),
    "Nadam": ("Nadam", {"learning_rate": 0.1, "gradient_accumulation_steps": 3}),
    "RMSprop": ("RMSprop", {"learning_rate": 0.1, "momentum": 0.9, "centered": True}),
    "RMSprop, plain": ("RMSprop", {"learning_rate": 0.1}),
    "SGD": ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    "SGD, plain": ("SGD", {"learning_rate": 0.1}),
    "ScheduleFreeAdamW": ("ScheduleFreeAdamW", {"learning_rate": 0.1, "warmup_steps": 7, **SHARED}),
}
STEPS = 5


def random(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: rng.normal(size=shape).astype("float32"), SHAPES, is_leaf=is_shape)


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def in_order(tree: Any) -> list[Any]:
    """The leaves in Keras's order."""
    return [tree[layer][name] for layer, name in (path.split("/") for path in OURS)]


def variables(tree: Any) -> list[keras.Variable]:
    made = []
    for path, value in zip(NAMES, in_order(tree), strict=True):
        layer, name = path.split("/")
        with keras.name_scope(layer):
            made.append(keras.Variable(value, name=name))
    return made


def as_tree(theirs: list[keras.Variable]) -> Any:
    tree: dict[str, Any] = {}
    for path, variable in zip(OURS, theirs, strict=True):
        layer, name = path.split("/")
        tree.setdefault(layer, {})[name] = np.array(keras.ops.convert_to_numpy(variable.value))
    return tree


def built(optimizer: keras.optimizers.Optimizer, seed: int = 0) -> tuple[keras.optimizers.Optimizer, list]:
    trained = variables(random(seed))
    optimizer.build(trained)
    return optimizer, trained


def steps(optimizer: keras.optimizers.Optimizer, trained: list, first: int, last: int) -> Any:
    """Steps in Keras, in the form that works for `LossScaleOptimizer` too."""
    if not hasattr(optimizer, "jitted"):
        optimizer.jitted = jax.jit(optimizer.stateless_apply)
    values, state = [v.value for v in trained], [v.value for v in optimizer.variables]
    for step in range(first, last):
        values, state = optimizer.jitted(state, in_order(random(100 + step)), values)
    for variable, value in zip([*trained, *optimizer.variables], [*values, *state], strict=True):
        variable.assign(value)
    return as_tree(trained)


def make(case: str) -> keras.optimizers.Optimizer:
    if case == "LossScaleOptimizer":
        inner = keras.optimizers.AdamW(0.1, gradient_accumulation_steps=3, **SHARED)
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=3)
    name, given = CASES[case]
    return getattr(keras.optimizers, name)(**given)


def bits(tree: Any) -> list[tuple[Any, str, bytes]]:
    return [
        (path, str(leaf.dtype), np.asarray(leaf).tobytes()) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def kinds(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


def the_optimizer(case: str) -> tuple[keras.optimizers.Optimizer, list]:
    """An optimizer of a case after some steps, with its variables."""
    optimizer, trained = built(make(case))
    steps(optimizer, trained, 0, STEPS)
    return optimizer, trained


def counted(case: str) -> bool:
    """Whether the state has any count: not where nothing depends on it."""
    return not any(case.startswith(name) for name in ("Adadelta", "Adagrad", "Lion", "RMSprop", "SGD"))


def is_read(case: str, variable: keras.Variable) -> bool:
    """Whether Keras ever reads what is in the variable: not Adafactor's `v` of a matrix, which it computes first."""
    return not (case.startswith("Adafactor") and variable.path.endswith("_velocity") and len(variable.shape) > 1)


# There and back -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("case", [*CASES, "LossScaleOptimizer"])
def test_the_state_of_every_class_moves_in_and_out_to_the_bit(case: str) -> None:
    optimizer, trained = the_optimizer(case)
    tx, params = from_keras(optimizer), as_tree(trained)
    state = load_state(tx, params, optimizer)
    assert kinds(state) == kinds(tx.init(params))  # nothing is compiled again

    other, _ = built(make(case), seed=1)
    save_state(tx, params, state, other, calls=None if counted(case) else STEPS)
    for ours, theirs in zip(other.variables, optimizer.variables, strict=True):
        if is_read(case, ours):
            assert keras.ops.convert_to_numpy(ours.value).tobytes() == keras.ops.convert_to_numpy(theirs).tobytes(), (
                ours.path
            )
    assert bits(load_state(tx, params, other)) == bits(state)

    # And both go on alike.
    apply = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
    for step in range(STEPS, 2 * STEPS):
        params, state = apply(params, state, random(100 + step))
    expected = steps(optimizer, trained, STEPS, 2 * STEPS)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) <= 5e-6 * (np.max(np.abs(b)) + 1e-3)

    # A state that our own steps made, within a window where there is one, comes back to the bit.
    save_state(tx, params, state, other, calls=None if counted(case) else 2 * STEPS)
    assert bits(load_state(tx, params, other)) == bits(state)


def test_at_the_end_of_a_window_only_what_nobody_reads_is_forgotten() -> None:
    tx = optchain.adam(0.1, gradient_accumulation_steps=2, use_ema=True)
    apply = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
    params, state = random(0), tx.init(random(0))
    for step in range(4):
        params, state = apply(params, state, random(step))
    optimizer, _ = built(to_keras(tx))
    save_state(tx, params, state, optimizer)
    loaded = load_state(tx, params, optimizer)
    accumulator = loaded["accumulate"]
    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves([accumulator[name] for name in ("count", "weight", "grads")])
    )
    moved, kept = (apply(params, one, random(5)) for one in (loaded, state))
    assert bits(moved) == bits(kept)


def test_parameters_of_a_flax_nnx_model_are_known_by_their_paths() -> None:
    params = nnx.state(nnx.Dict(dense=nnx.Linear(3, 2, rngs=nnx.Rngs(0))), nnx.Param)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    model.compile(keras.optimizers.Lion(0.5), "mse")
    model.optimizer.build(model.trainable_variables)
    params = load_params(params, model)
    assert np.array_equal(params["dense"]["kernel"][...], model.trainable_variables[0].value)
    state = load_state(optchain.lion(), params, model)
    assert jax.tree.structure(state) == jax.tree.structure(optchain.lion().init(params))
