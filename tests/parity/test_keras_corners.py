"""Corners in which Keras's numbers are NaN, and what is there instead; and which parameters Muon makes orthogonal."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import optchain as oc

from .test_keras import run_keras


def both(class_name: str, tx: oc.Transformation, arguments: dict[str, Any], params: Any, grads: list[Any]) -> Any:
    """The parameters after every step, ours and Keras's."""
    state, ours, current = tx.init(params), [], params
    for g in grads:
        current, state = tx.apply(current, state, grads=g)
        ours.append(jax.device_get(current))
    theirs, _, _ = run_keras(getattr(keras.optimizers, class_name)(**arguments), params, grads)
    return ours, theirs


def array(*rows: Any) -> np.ndarray:
    return np.array(rows, np.float32)


def test_adafactor_moves_on_where_a_row_and_a_column_have_no_gradient() -> None:
    """An embedding's unused row and a dead column: the product of two epsilons of 1e-30 is 0 in float32, and 0 / 0 NaN."""
    params = {"w": array([1.0, 2.0], [3.0, 4.0])}
    grads = [{"w": array([1.0, 0.0], [0.0, 0.0])}]
    ours, theirs = both("Adafactor", oc.adafactor(0.1), {"learning_rate": 0.1}, params, grads)
    assert np.isnan(theirs[-1]["w"]).any()
    assert np.isfinite(ours[-1]["w"]).all()
    np.testing.assert_array_equal(ours[-1]["w"][1], params["w"][1])


def test_a_centered_rms_of_one_gradient_is_no_root_of_a_negative_number() -> None:
    arguments = {"learning_rate": 0.1, "rho": 0.01, "centered": True, "epsilon": 1e-12}
    rng = np.random.default_rng(0)
    params = {"w": np.zeros(1000, np.float32)}
    grads = [{"w": rng.uniform(1, 100, 1000).astype(np.float32)}] * 8
    ours, theirs = both("RMSprop", oc.rmsprop(**arguments), arguments, params, grads)
    assert np.isnan(theirs[-1]["w"]).any()
    assert np.isfinite(ours[-1]["w"]).all()


def test_ftrl_stands_still_at_a_learning_rate_of_0() -> None:
    params, grads = {"w": array(1.0, -2.0)}, [{"w": array(0.5, 0.0)}] * 3
    arguments = {"learning_rate": 0.0}
    ours, theirs = both("Ftrl", oc.ftrl(**arguments), arguments, params, grads)
    assert np.isnan(theirs[-1]["w"]).any()
    np.testing.assert_array_equal(ours[-1]["w"], params["w"])


def test_ftrl_stands_still_until_there_is_a_gradient() -> None:
    params, grads = {"w": array(1.0, -2.0)}, [{"w": array(0.0, 0.0)}] * 3
    arguments = {"learning_rate": 0.1, "initial_accumulator_value": 0.0}
    ours, theirs = both("Ftrl", oc.ftrl(**arguments), arguments, params, grads)
    assert np.isnan(theirs[-1]["w"]).all()
    np.testing.assert_array_equal(ours[-1]["w"], params["w"])


def test_schedule_free_with_a_beta_of_0_is_the_inner_rule() -> None:
    params, grads = {"w": array(1.0, -2.0)}, [{"w": array(0.5, 3.0)}] * 3
    arguments = {"learning_rate": 0.1, "beta_1": 0.0}
    ours, theirs = both("ScheduleFreeAdamW", oc.schedule_free_adamw(**arguments), arguments, params, grads)
    assert np.isnan(theirs[-1]["w"]).all()
    np.testing.assert_allclose(ours[-1]["w"], params["w"] - 0.3, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Muon makes matrices orthogonal")  # the kernel of four axes
def test_muon_makes_those_matrices_orthogonal_that_keras_does() -> None:
    """By the path: of a model with an embedding, two layers of which one is excluded, and a kernel of four axes."""
    model = keras.Sequential(
        [
            keras.layers.Embedding(5, 4, name="token_Embedding"),
            keras.layers.Reshape((2, 2, 4)),
            keras.layers.Conv2D(3, 2, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="hidden"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    model.build((None, 4))
    params: dict[str, Any] = {}
    for variable in model.trainable_variables:
        layer, name = variable.path.split("/")[-2:]
        params.setdefault(layer, {})[name] = jnp.asarray(variable.value)
    for embeddings in (True, False):
        optimizer = keras.optimizers.Muon(exclude_layers=["head"], exclude_embeddings=embeddings)
        theirs = {"/".join(v.path.split("/")[-2:]) for v in model.trainable_variables if optimizer._should_use_adamw(v)}
        state = oc.muon(exclude_layers=["head"], exclude_embeddings=embeddings).init(params)
        by_adam = state["scale_by_muon"]["adam_nu"]
        ours = {
            f"{layer}/{name}"
            for layer, leaves in params.items()
            for name, leaf in leaves.items()
            if by_adam[layer][name].shape == leaf.shape
        }
        assert ours == theirs
        assert ("token_Embedding/embeddings" in ours) == embeddings
        assert "hidden/kernel" not in ours
