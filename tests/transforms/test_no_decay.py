"""A decay of 0 reads no parameters, and so `update` needs none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

GRADS = {"w": jnp.array([0.5, -1.0])}
TORCH = oc.presets.torch
PRESETS = {
    "torch.adam": TORCH.adam,
    "torch.adamw": TORCH.adamw,
    "torch.sgd": TORCH.sgd,
    "torch.rmsprop": TORCH.rmsprop,
    "adamw": oc.adamw,
    "sgd": oc.sgd,
}


@pytest.mark.parametrize("zero", [0.0, 0, np.array(0.0), jnp.array(0.0)], ids=["float", "int", "numpy", "jax"])
@pytest.mark.parametrize("preset", PRESETS)
def test_with_a_decay_of_zero_update_needs_no_parameters(preset, zero):
    tx = PRESETS[preset](0.1, weight_decay=zero)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    with_params = tx.update(GRADS, state, params)[0]["w"]
    for update in (tx.update, jax.jit(tx.update)):
        np.testing.assert_allclose(update(GRADS, state)[0]["w"], with_params, rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_decay_that_was_set_later_is_not_left_out_in_silence(preset):
    tx = PRESETS[preset](0.1, weight_decay=jnp.array(0.0))
    params = {"w": jnp.ones(2)}
    state = oc.set_hyperparams(tx.init(params), weight_decay=0.5)
    with pytest.raises(ValueError, match=r"a weight_decay of 0.5 needs the parameters, and update\(\) got none"):
        tx.update(GRADS, state)
    assert np.isnan(jax.jit(tx.update)(GRADS, state)[0]["w"]).all()
    decayed = PRESETS[preset](0.1, weight_decay=0.5)
    np.testing.assert_allclose(
        tx.update(GRADS, state, params)[0]["w"], decayed.update(GRADS, decayed.init(params), params)[0]["w"], rtol=1e-6
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_any_other_decay_needs_them(preset):
    for decay in (0.1, jnp.array(0.1), lambda step: 0.0):
        tx = PRESETS[preset](0.1, weight_decay=decay)
        with pytest.raises(ValueError, match="needs the parameters, and update"):
            tx.update(GRADS, tx.init(GRADS))
