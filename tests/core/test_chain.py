"""`chain`: order, names, state, and the learning rate that it owns. What it refuses is in `test_mistakes.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0])}
GRADS = {"w": jnp.array([1.0, 2.0, -2.0])}
ZEROS = {"w": jnp.zeros(3)}


def one_step(tx, params=PARAMS, grads=GRADS, **extra):
    return tx.apply(params, tx.init(params), grads=grads, **extra)


def test_links_run_in_order():
    halve_then_clip = oc.chain(optax.scale(0.5), oc.clip_by_value(1.0))
    clip_then_halve = oc.chain(oc.clip_by_value(1.0), optax.scale(0.5))
    np.testing.assert_allclose(halve_then_clip.update(GRADS, {}, PARAMS)[0]["w"], [0.5, 1.0, -1.0])
    np.testing.assert_allclose(clip_then_halve.update(GRADS, {}, PARAMS)[0]["w"], [0.5, 0.5, -0.5])


def test_the_state_maps_names_to_states_and_stateless_links_have_none():
    tx = oc.chain(
        oc.clip_by_norm(1.0),
        oc.scale_by_adam(),
        oc.scale_by_learning_rate(),
        oc.decay_weights(0.1),
        oc.average_params(),
        learning_rate=0.1,
    )
    state = tx.init(PARAMS)
    assert state.keys() == {"hyperparams", "scale_by_adam", "average_params"}
    assert state["scale_by_adam"].keys() == {"count", "mu", "nu"}
    np.testing.assert_array_equal(state["scale_by_adam"]["mu"]["w"], 0.0)


def test_names_are_made_unique_in_order():
    tx = oc.chain(
        oc.apply_momentum(0.5), oc.apply_momentum(0.5), oc.apply_momentum(0.5), optax.trace(0.5), optax.trace(0.1)
    )
    names = ["apply_momentum", "apply_momentum_2", "apply_momentum_3", "optax", "optax_2"]
    assert [link.name for link in tx.links] == names
    assert list(tx.init(PARAMS)) == names


def test_a_chosen_name_is_kept_and_automatic_ones_make_room():
    tx = oc.chain(oc.apply_momentum(0.5), ("apply_momentum", oc.apply_momentum(0.25)), ("mine", optax.trace(0.5)))
    assert [link.name for link in tx.links] == ["apply_momentum_2", "apply_momentum", "mine"]


def test_the_order_of_the_states_keys_does_not_matter():
    tx = oc.chain(("z", oc.apply_momentum(0.5)), ("a", oc.scale_by_learning_rate(0.1)))
    state = tx.init(PARAMS)
    backwards = dict(reversed(state.items()))
    expected, _ = tx.apply(PARAMS, state, grads=GRADS)
    np.testing.assert_array_equal(tx.apply(PARAMS, backwards, grads=GRADS)[0]["w"], expected["w"])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: oc.chain(oc.clip_by_norm(1.0)), "gradient"),
        (lambda: oc.chain(oc.clip_by_norm(1.0), oc.accumulate(oc.sgd(0.1), 2)), "gate"),
        (lambda: oc.chain(oc.accumulate(oc.sgd(0.1), 2), oc.average_params()), "parameter"),
        (lambda: oc.chain(oc.average_params()), "parameter"),
        (lambda: oc.chain(oc.chain(oc.sgd(0.1), oc.average_params())), "parameter"),
        (lambda: oc.adamw(0.1), "gradient"),
        (lambda: oc.adamw(0.1, gradient_accumulation_steps=2), "gate"),
        (lambda: oc.adamw(0.1, use_ema=True), "parameter"),
    ],
)
def test_the_kind_is_that_of_the_last_gate_or_parameter_link(make, kind):
    assert make().kind == kind


def test_a_chain_of_parameter_links_sees_the_new_parameters():
    tx = oc.chain(oc.average_params(0.5), oc.average_params(0.25), name="averages")
    outer = oc.chain(oc.scale_by_learning_rate(1.0), tx)
    params, state = one_step(outer)
    params, state = outer.apply(params, state, grads=GRADS)
    averages = state["averages"]
    np.testing.assert_allclose(averages["average_params"]["average"]["w"], params["w"] + 0.5 * GRADS["w"])
    np.testing.assert_allclose(averages["average_params_2"]["average"]["w"], params["w"] + 0.25 * GRADS["w"])


def test_chains_nest_without_changing_the_numbers():
    links = [oc.clip_by_global_norm(1.0), oc.scale_by_adam(), oc.scale_by_learning_rate(0.1), oc.average_params(0.5)]
    flat = oc.chain(*links)
    nested = oc.chain(oc.chain(oc.chain(links[0]), links[1], name="rule"), links[2], oc.chain(links[3], name="end"))
    (flat_params, flat_state), (nested_params, nested_state) = one_step(flat), one_step(nested)
    np.testing.assert_array_equal(flat_params["w"], nested_params["w"])
    assert nested_state["rule"]["scale_by_adam"].keys() == flat_state["scale_by_adam"].keys()


# The learning rate ----------------------------------------------------------------------------------------------------


def test_the_rate_reaches_links_in_chains_and_gates_below():
    inner = oc.chain(oc.chain(oc.scale_by_learning_rate()), oc.decay_weights(0.5))
    tx = oc.chain(oc.accumulate(oc.accumulate(inner, 1), 1), learning_rate=0.25)
    params, state = one_step(tx)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.25 * (GRADS["w"] + 0.5 * PARAMS["w"]))
    assert oc.get_hyperparams(state).keys() == {"learning_rate"}


def test_a_link_with_a_rate_of_its_own_keeps_it():
    tx = oc.chain(oc.scale_by_learning_rate(), oc.decay_weights(0.5, learning_rate=1.0), learning_rate=0.25)
    params, state = one_step(tx)
    np.testing.assert_allclose(params["w"], 0.5 * PARAMS["w"] - 0.25 * GRADS["w"])
    values = {key: float(value) for key, value in oc.get_hyperparams(state).items()}
    assert values == {"learning_rate": 0.25, "decay_weights/learning_rate": 1.0}


def test_an_inner_chain_with_a_rate_of_its_own_hides_the_outer_one():
    inner = oc.chain(oc.scale_by_learning_rate(), learning_rate=0.5)
    tx = oc.chain(inner, oc.decay_weights(0.5), learning_rate=0.25)
    params, _ = one_step(tx)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.5 * GRADS["w"] - 0.125 * PARAMS["w"])


def test_the_metrics_have_the_rate_of_the_last_call():
    tx = oc.chain(oc.scale_by_learning_rate(), learning_rate=0.25)
    state = tx.init(PARAMS)
    _, state = tx.apply(PARAMS, oc.set_hyperparams(state, learning_rate=0.5), grads=GRADS)
    assert float(oc.metrics(state)["learning_rate"]) == 0.5


def test_a_rate_can_come_from_the_call_as_optax_passes_extra_arguments():
    tx = oc.chain(oc.scale_by_learning_rate(), oc.decay_weights(0.5))
    params, _ = one_step(tx, learning_rate=0.25)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.25 * (GRADS["w"] + 0.5 * PARAMS["w"]))


# Optax's links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        optax.trace(0.9),
        optax.scale_by_adam(),
        optax.add_noise(0.1, 0.5, key=0),
        optax.centralize(),
        optax.ema(0.9),
        optax.scale_by_schedule(lambda count: 0.5**count),
        optax.masked(optax.trace(0.9), {"w": True}),
        optax.inject_hyperparams(optax.trace)(decay=0.9),
    ],
    ids=lambda link: None,
)
def test_an_optax_link_gives_optaxs_numbers(link):
    ours = oc.chain(link, oc.scale_by_learning_rate(0.1))
    theirs = optax.chain(link, optax.scale(-0.1))
    params, state = PARAMS, ours.init(PARAMS)
    expected, expected_state = PARAMS, theirs.init(PARAMS)
    for _ in range(3):
        params, state = ours.apply(params, state, grads=GRADS)
        updates, expected_state = theirs.update(GRADS, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6)


def test_a_whole_optax_optimizer_is_a_link_and_may_be_gated():
    tx = oc.accumulate(optax.adamw(0.1), 2)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        params, state = tx.apply(params, state, grads=GRADS)
    updates, _ = optax.adamw(0.1).update(GRADS, optax.adamw(0.1).init(PARAMS), PARAMS)
    np.testing.assert_allclose(params["w"], optax.apply_updates(PARAMS, updates)["w"], rtol=1e-6)


def test_extra_arguments_reach_optaxs_links_through_gates():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    tx = oc.accumulate(oc.chain(oc.scale_by_learning_rate(1.0), ("plateau", plateau)), 1)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(4):
        params, state = tx.apply(params, state, grads=ZEROS, value=jnp.array(1.0))
    assert float(state["inner"]["plateau"].scale) < 1.0


def test_updates_reach_an_optax_link_in_the_parameters_dtype():
    """Optax's states take the parameters' dtypes at init; float32 updates in between would change them."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = oc.chain(oc.clip_by_norm(1.0), optax.trace(0.9), oc.scale_by_learning_rate(0.1))
    state = tx.init(params)
    _, new_state = jax.eval_shape(lambda: tx.apply(params, state, grads=GRADS))
    assert jax.tree.map(lambda x: x.dtype, new_state) == jax.tree.map(lambda x: x.dtype, state)


def test_between_our_links_narrow_updates_travel_in_float32():
    """Rounding 1 + 2**-10 to bfloat16 in between would lose what the second factor brings back."""
    g = {"w": jnp.array([1.0], jnp.bfloat16)}
    tx = oc.chain(oc.unscale_gradients(1 / (1 + 2.0**-10)), oc.apply_momentum(1.0), oc.scale_by_learning_rate(1.0))
    params = {"w": jnp.array([1.0], jnp.bfloat16)}
    new, state = tx.apply(params, tx.init(params), grads=g)
    assert state["apply_momentum"]["velocity"]["w"].dtype == jnp.float32
    assert float(state["apply_momentum"]["velocity"]["w"][0]) == pytest.approx(1 + 2.0**-10, rel=1e-6)
    assert float(new["w"][0]) == pytest.approx(-(2.0**-10), rel=1e-2), "added in float32, rounded once"


# Orders that can be meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "links",
    [
        lambda: [oc.scale_by_learning_rate(0.1), oc.apply_momentum(0.9)],
        lambda: [oc.apply_momentum(0.9), oc.scale_by_learning_rate(0.1)],
        lambda: [oc.clip_by_value(1.0), oc.clip_by_norm(1.0), oc.scale_by_learning_rate(0.1)],
        lambda: [oc.scale_by_adam(), oc.clip_by_norm(1.0), oc.scale_by_learning_rate(0.1)],
        lambda: [oc.scale_by_learning_rate(0.1), oc.clip_by_norm(1.0)],
        lambda: [oc.unscale_gradients(2.0), oc.accumulate(oc.adamw(0.1), 2), oc.average_params()],
        lambda: [oc.accumulate(oc.chain(oc.sgd(0.1), oc.average_params()), 2), oc.average_params()],
        lambda: [oc.average_params(0.9), oc.average_params(0.99)],
    ],
)
def test_orders_that_can_be_meant_are_accepted(links):
    tx = oc.chain(*links())
    params, _ = one_step(tx)
    assert np.isfinite(params["w"]).all()
