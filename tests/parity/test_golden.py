"""Presets against the recorded runs of `golden/`: twelve steps of Keras's legacy optimizers, `decay` included.

Files of a class that is not here yet (those of keras_adamw) are not recorded in this folder either: `RECORDINGS` is all
there is.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .helpers import FORMS
from .recipes import preset

GOLDEN = Path(__file__).parent.parent / "golden"

# As |a − b| / (|b| + 0.01). TensorFlow computes Adam's 1 − β and its powers in float32.
TOLERANCES = {
    "Adadelta": 2e-5,
    "Adagrad": 2e-5,
    "Adam": 1e-4,
    "Adamax": 2e-5,
    "Ftrl": 2e-5,
    "RMSprop": 2e-5,
    "SGD": 2e-5,
}
RECORDINGS = [
    "tf_keras_adadelta_1",
    "tf_keras_adagrad_1",
    "tf_keras_adam_1",
    "tf_keras_adam_2",
    "tf_keras_adamax_1",
    "tf_keras_ftrl_1",
    "tf_keras_rmsprop_1",
    "tf_keras_sgd_1",
    "tf_keras_sgd_2",
]


def load(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tree(values: dict[str, Any], dtype: str) -> dict[str, jax.Array]:
    return {name: jnp.array(value, dtype) for name, value in values.items()}


def test_every_recorded_file_is_run() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == RECORDINGS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", RECORDINGS)
def test_a_preset_reproduces_the_recorded_run(name: str, form: str) -> None:
    recorded = load(name)
    tx = preset(recorded["class"])(**recorded["kwargs"])
    params = tree(recorded["params"], recorded["dtype"])
    state = tx.init(params)
    step = jax.jit(lambda params, state, grads: FORMS[form](tx, params, state, grads))
    worst = 0.0
    for grads, expected in zip(recorded["grads"], recorded["expected"], strict=True):
        params, state = step(params, state, tree(grads, recorded["dtype"]))
        for key, value in expected.items():
            b = np.array(value)
            worst = max(worst, float(np.max(np.abs(np.asarray(params[key]) - b) / (np.abs(b) + 0.01))))
    assert worst <= TOLERANCES[recorded["class"]]


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in RECORDINGS if "decay" in load(name)["kwargs"]])
def test_the_recorded_decay_is_what_makes_the_numbers(name: str) -> None:
    recorded = load(name)
    tx = preset(recorded["class"])(**(recorded["kwargs"] | {"decay": None}))
    params = tree(recorded["params"], recorded["dtype"])
    state = tx.init(params)
    for grads in recorded["grads"]:
        params, state = tx.apply(params, state, grads=tree(grads, recorded["dtype"]))
    last = recorded["expected"][-1]
    assert max(float(np.abs(np.asarray(params[key]) - np.array(value)).max()) for key, value in last.items()) > 0.01
