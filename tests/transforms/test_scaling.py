"""Factors, penalties and decays by path: what they multiply, and what they leave alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"embed": jnp.array([1.0, -2.0]), "blocks": [{"kernel": jnp.array([3.0])}, {"kernel": jnp.array([-4.0])}]}
GRADS = {"embed": jnp.array([0.5, 0.5]), "blocks": [{"kernel": jnp.array([1.0])}, {"kernel": jnp.array([2.0])}]}
FACTORS = {"blocks/1": 0.5, "kernel": 0.25}


def run(tx: optax.GradientTransformation, steps: int = 3) -> Any:
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(ours: Any, theirs: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, theirs)


def test_multipliers_are_learning_rates_of_their_own() -> None:
    ours = oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate(), oc.scale_by_path(FACTORS), learning_rate=0.1)
    rates = {"embed": 0.1, "blocks/0": 0.025, "blocks/1": 0.05}
    theirs = optax.multi_transform(
        {name: oc.adam(rate) for name, rate in rates.items()},
        {"embed": "embed", "blocks": [{"kernel": "blocks/0"}, {"kernel": "blocks/1"}]},
    )
    assert_close(run(ours), run(theirs))


def test_the_first_pattern_that_is_found_decides() -> None:
    updates, _ = oc.scale_by_path(FACTORS).update(GRADS, {}, PARAMS)
    assert_close(updates, {"embed": [0.5, 0.5], "blocks": [{"kernel": [0.25]}, {"kernel": [1.0]}]})


def test_before_or_after_the_velocity_makes_no_difference() -> None:
    rate, by_path, momentum = oc.scale_by_learning_rate(), oc.scale_by_path(FACTORS), oc.apply_momentum(0.9, True)
    assert_close(
        run(oc.chain(rate, by_path, momentum, learning_rate=0.1)),
        run(oc.chain(rate, momentum, by_path, learning_rate=0.1)),
    )


def test_decay_after_the_multipliers_is_not_scaled_and_before_them_it_is() -> None:
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    decay, by_path = oc.decay_weights(0.1, learning_rate=1.0), oc.scale_by_path({"embed": 0.0})
    for links, expected in (((by_path, decay), [-0.1, 0.2]), ((decay, by_path), [0.0, 0.0])):
        tx = oc.chain(*links)
        assert_close(tx.update(zero, tx.init(PARAMS), PARAMS)[0]["embed"], expected)


def test_a_factor_of_zero_holds_a_parameter_still() -> None:
    tx = oc.chain(oc.adam(0.1), oc.scale_by_path({"embed": 0}))
    np.testing.assert_array_equal(run(tx)["embed"], PARAMS["embed"])


def test_a_schedule_as_factor_multiplies_a_rate_that_can_still_be_set() -> None:
    tx = oc.chain(oc.sgd(0.5), oc.scale(oc.schedules.StepLR(1.0, 1, gamma=0.5)))
    state = oc.set_hyperparams(tx.init(PARAMS), learning_rate=1.0)
    updates, state = tx.update(GRADS, state, PARAMS)
    assert_close(updates["embed"], [-0.5, -0.5])
    updates, state = tx.update(GRADS, state, PARAMS)
    assert_close(updates["embed"], [-0.25, -0.25])


def test_maximize_is_descent_on_the_negated_gradient() -> None:
    torch = oc.presets.torch
    up, down = (torch.adamw(0.1, weight_decay=0.1, maximize=flag) for flag in (True, False))
    negated = jax.tree.map(jnp.negative, GRADS)
    ours = up.apply(PARAMS, up.init(PARAMS), grads=negated)[0]
    assert_close(ours, down.apply(PARAMS, down.init(PARAMS), grads=GRADS)[0])


def test_the_l2_penalty_equals_optax_before_the_rule() -> None:
    ours = oc.chain(oc.add_l2_penalty(0.1), oc.adam(0.1))
    theirs = optax.chain(optax.add_decayed_weights(0.1), oc.adam(0.1))
    assert_close(run(ours), run(theirs))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_clip_sees_the_factor_before_it(scaled: bool) -> None:
    links = [oc.scale(10.0)] * scaled + [oc.clip_by_global_norm(5.0)]
    updates, _ = (tx := oc.chain(*links)).update(GRADS, tx.init(PARAMS), PARAMS)
    norm = float(optax.tree.norm(updates))
    assert norm == pytest.approx(5.0 if scaled else float(optax.tree.norm(GRADS)), rel=1e-6)


def test_the_paths_of_an_nnx_state_are_those_of_its_variables() -> None:
    from flax import nnx

    state = nnx.State({"layers": {0: {"kernel": nnx.Param(jnp.ones(2))}}, "bias": nnx.Param(jnp.ones(2))})
    tx = oc.chain(
        oc.sgd(1.0),
        oc.scale_by_path({r"^layers/0/kernel$": 0.5}),
        oc.decay_by_path({"^bias$": (0.5, 0.0)}, learning_rate=1.0),
    )
    updates, _ = tx.update(state, tx.init(state), state)
    assert_close(updates["layers"][0]["kernel"].get_value(), [-0.5, -0.5])
    assert_close(updates["bias"].get_value(), [-1.5, -1.5])
