"""`masked` and `freeze`: what is left out has no state, no part in a norm or a verdict, and keeps its bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

from .running import as_bits, run_steps

PARAMS = {
    "encoder": {"kernel": jnp.array([[1.0, -0.0], [2.0, 3.0]]), "bias": jnp.array([-0.0, 0.5])},
    "head": jnp.ones(2),
}
GRADS = {"encoder": {"kernel": jnp.full((2, 2), 7.0), "bias": jnp.full(2, -7.0)}, "head": jnp.array([3.0, 4.0])}
BAD = {"encoder": {"kernel": jnp.full((2, 2), jnp.nan), "bias": jnp.full(2, jnp.inf)}, "head": GRADS["head"]}
ENCODER = oc.matching("^encoder/")
HEAD = {"head": PARAMS["head"]}
HEAD_GRADS = {"head": GRADS["head"]}

RECIPES = {
    "gradient": lambda: oc.adamw(0.1, weight_decay=0.5, global_clipnorm=1.0),
    "gate": lambda: oc.skip_nonfinite(oc.adamw(0.1, weight_decay=0.5, gradient_accumulation_steps=2)),
    "parameter": lambda: oc.adamw(0.1, weight_decay=0.5, use_ema=True, ema_overwrite_frequency=2),
    "loss scale": lambda: oc.dynamic_loss_scale(oc.sgd(0.1, 0.9, global_clipnorm=1.0), 4.0, 1),
    "optax": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


@pytest.mark.parametrize("form", ["apply", "update"])
@every_recipe
def test_frozen_leaves_keep_their_bits_and_the_others_do_not_know_of_them(recipe, form):
    """Decay, norms, NaN in frozen gradients: the rest goes the way of a tree that has nothing else."""
    tx = oc.freeze(RECIPES[recipe](), ENCODER)
    params, state = run_steps(tx, PARAMS, BAD, form)
    assert as_bits(params["encoder"]) == as_bits(PARAMS["encoder"])
    alone, alone_state = run_steps(oc.chain(("alone", RECIPES[recipe]())), HEAD, HEAD_GRADS, form)
    assert as_bits(params["head"]) == as_bits(alone["head"])
    assert as_bits(state) == as_bits(alone_state)


@every_recipe
def test_frozen_updates_are_exactly_zero(recipe):
    tx = oc.freeze(RECIPES[recipe](), ENCODER)
    updates, _ = tx.update(BAD, tx.init(PARAMS), PARAMS)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates["encoder"]))


@pytest.mark.parametrize("form", ["apply", "update"])
def test_an_average_around_frozen_leaves_leaves_them_alone_too(form):
    tx = oc.chain(oc.freeze(oc.sgd(0.1, weight_decay=0.5), ENCODER), oc.average_params(0.5))
    params, _ = run_steps(tx, PARAMS, BAD, form, number=3)
    assert as_bits(params["encoder"]) == as_bits(PARAMS["encoder"])


def test_a_frozen_parameter_link_alone_lets_no_gradient_through():
    tx = oc.freeze(oc.average_params(0.5), ENCODER)
    params, state = run_steps(tx, PARAMS, BAD, number=1)
    assert as_bits(params["encoder"]) == as_bits(PARAMS["encoder"])
    np.testing.assert_array_equal(params["head"], [4.0, 5.0])
    np.testing.assert_array_equal(oc.averaged_params(state)["head"], [4.0, 5.0])


@pytest.mark.parametrize("recipe", ["gradient", "gate", "parameter", "optax"])
def test_under_masked_the_others_updates_pass_through(recipe):
    tx = oc.masked(RECIPES[recipe](), ~ENCODER)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert as_bits(updates["encoder"]) == as_bits(GRADS["encoder"])
    params, state = run_steps(tx, PARAMS, GRADS, number=1)
    assert as_bits(params["encoder"]) == as_bits(optax.apply_updates(PARAMS, GRADS)["encoder"])
    alone, alone_state = run_steps(oc.chain(("alone", RECIPES[recipe]())), HEAD, HEAD_GRADS, number=1)
    assert (as_bits(params["head"]), as_bits(state)) == (as_bits(alone["head"]), as_bits(alone_state))


def test_masked_equals_optax_masked():
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    mask = {"encoder": {"kernel": True, "bias": False}, "head": True}
    ours, state = run_steps(oc.masked(inner, mask), PARAMS, GRADS, "update")
    theirs, their_state = run_steps(optax.masked(inner, mask), PARAMS, GRADS, "update")
    assert as_bits(ours) == as_bits(theirs)
    assert as_bits(state) == as_bits(their_state)


@pytest.mark.parametrize(
    "mask",
    [
        ENCODER,
        {"encoder": True, "head": False},
        {"encoder": {"kernel": True, "bias": True}, "head": False},
        lambda params: {"encoder": True, "head": False},
    ],
    ids=["pattern", "prefix", "tree", "callable"],
)
def test_a_mask_may_be_a_pattern_a_tree_a_prefix_or_a_callable(mask):
    params, state = run_steps(oc.freeze(oc.sgd(0.1, 0.9), mask), PARAMS, GRADS)
    assert as_bits(params["encoder"]) == as_bits(PARAMS["encoder"])
    assert jax.tree.map(jnp.shape, state["inner"]["apply_momentum"]["velocity"]) == {
        "encoder": {"kernel": None, "bias": None},
        "head": (2,),
    }


def test_the_rate_of_a_chain_reaches_the_links_within_and_there_is_one():
    body = oc.freeze(oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate(), oc.decay_weights(0.1)), ENCODER)
    tx = oc.chain(body, learning_rate=0.1)
    state = oc.set_hyperparams(tx.init(PARAMS), learning_rate=0.0)
    assert oc.get_hyperparams(state).keys() == {"learning_rate"}
    params, state = tx.apply(PARAMS, state, grads=GRADS)
    assert as_bits(params) == as_bits(PARAMS)
    assert float(oc.metrics(state)["learning_rate"]) == 0.0


def test_hyperparameters_and_metrics_are_found_by_name():
    tx = oc.freeze(oc.adamw(0.5, global_clipnorm=1.0), ENCODER)
    _, state = run_steps(tx, PARAMS, BAD, number=1)
    assert float(oc.get_hyperparams(state)["learning_rate"]) == 0.5
    assert float(oc.metrics(state)["global_norm"]) == 5.0
    state = oc.set_hyperparams(state, learning_rate=0.25)
    assert float(oc.get_hyperparams(state)["learning_rate"]) == 0.25


def test_flush_applies_the_tail_to_what_is_trained():
    tx = oc.freeze(oc.sgd(1.0, gradient_accumulation_steps=4), ENCODER)
    params, state = oc.flush(tx, *run_steps(tx, PARAMS, BAD, number=2))
    assert as_bits(params["encoder"]) == as_bits(PARAMS["encoder"])
    np.testing.assert_array_equal(params["head"], PARAMS["head"] - GRADS["head"])
    assert int(state["inner"]["accumulate"]["count"]) == 0


def test_the_average_has_no_frozen_leaves_and_finalize_takes_them_from_the_parameters():
    params, state = run_steps(oc.freeze(oc.sgd(0.1, use_ema=True, ema_momentum=0.5), ENCODER), PARAMS, GRADS)
    average = oc.averaged_params(state)
    assert average["encoder"] == {"kernel": None, "bias": None}
    final = oc.finalize(params, state)
    assert jax.tree.structure(final) == jax.tree.structure(params)
    assert as_bits(final["encoder"]) == as_bits(PARAMS["encoder"])
    assert as_bits(final["head"]) == as_bits(average["head"])
    with pytest.raises(ValueError, match=r'average\["head"\]: shape \(2,\), params have \(3,\)'):
        oc.finalize({**params, "head": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match=r'average\["head"\] has no counterpart|average\["encoder"\].* is missing'):
        oc.finalize({"encoder": params["encoder"]}, state)


def test_finalize_fills_in_what_optax_masked_left_out_as_a_whole():
    tx = optax.masked(oc.sgd(0.1, use_ema=True), {"encoder": False, "head": True})
    assert as_bits(oc.finalize(PARAMS, tx.init(PARAMS))) == as_bits(PARAMS)


def test_averages_of_different_parameters_are_one_and_of_the_same_are_two():
    first, second = oc.average_params(0.5), oc.average_params(0.25)
    state = oc.chain(oc.masked(first, ENCODER), ("slow", oc.masked(second, ~ENCODER))).init(PARAMS)
    assert as_bits(oc.averaged_params(state)) == as_bits(PARAMS)
    assert as_bits(oc.finalize(PARAMS, state)) == as_bits(PARAMS)
    state = oc.chain(oc.masked(first, ENCODER), ("slow", second)).init(PARAMS)
    for read in (oc.averaged_params, lambda state: oc.finalize(PARAMS, state)):
        with pytest.raises(ValueError, match="2 averages of the parameters, at 'masked/inner', 'slow'"):
            read(state)


def test_a_bare_array_may_be_frozen():
    tx = oc.freeze(oc.adamw(0.1, use_ema=True), lambda params: True)
    params, state = run_steps(tx, jnp.ones(2), jnp.full(2, jnp.nan))
    np.testing.assert_array_equal(params, 1.0)
    np.testing.assert_array_equal(oc.finalize(params, state), 1.0)


def test_parts_of_one_chain_may_each_have_a_learning_rate():
    """Order is checked between links that see the same leaves."""
    tx = oc.chain(oc.masked(oc.sgd(1.0), ENCODER), oc.masked(oc.sgd(0.5), ~ENCODER))
    params, _ = run_steps(tx, PARAMS, GRADS, number=1)
    np.testing.assert_array_equal(params["encoder"]["bias"], PARAMS["encoder"]["bias"] + 7)
    np.testing.assert_array_equal(params["head"], PARAMS["head"] - 0.5 * GRADS["head"])


def groups_of(tx):
    return {row.path: row.group for row in oc.describe(tx, PARAMS).per_parameter}


def test_it_says_what_it_is():
    tx = oc.freeze(oc.adamw(0.1, use_ema=True), ENCODER)
    assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx
    described = oc.describe(tx, jax.eval_shape(lambda: PARAMS))
    assert groups_of(tx) == {"encoder/bias": "frozen", "encoder/kernel": "frozen", "head": ""}
    assert "encoder/bias    frozen" in str(described)
    assert [row.path for row in described.rows][:2] == ["freeze", "freeze/inner"]
    masked = oc.masked(tx, lambda params: {"encoder": True, "head": False})
    assert groups_of(masked) == groups_of(tx)
    assert [row.path for row in oc.describe(masked, PARAMS).per_parameter if row.links] == []
