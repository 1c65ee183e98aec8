"""`decay_first`: the decay that a rule sees, and what comes out where it makes no difference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"kernel": jnp.array([[3.0, -4.0], [0.5, 2.0]]), "bias": jnp.array([1.0, -2.0])}
GRADS = {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": jnp.array([0.3, 0.1])}
NOT_BIAS = ~oc.matching("bias")


def lamb_rule() -> oc.Transformation:
    return oc.chain(oc.scale_by_adam(), oc.scale_by_trust_ratio(), oc.scale_by_learning_rate())


def close(actual, expected, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


def test_it_is_the_rule_run_from_the_decayed_parameters():
    tx = oc.chain(oc.decay_first(lamb_rule(), 0.5, mask=NOT_BIAS), learning_rate=0.1)
    params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    decayed = PARAMS | {"kernel": PARAMS["kernel"] * (1 - 0.1 * 0.5)}
    plain = oc.chain(lamb_rule(), learning_rate=0.1)
    expected, _ = plain.apply(decayed, plain.init(decayed), grads=GRADS)
    close(params, expected)


def test_it_is_another_number_than_decay_afterwards_for_a_rule_that_reads():
    first = oc.chain(oc.decay_first(lamb_rule(), 0.5), learning_rate=0.5)
    after = oc.chain(lamb_rule(), oc.decay_weights(0.5), learning_rate=0.5)
    a, b = (tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)[0]["kernel"] for tx in (first, after))
    assert float(jnp.abs(a - b).max()) > 0.1


def test_it_is_decay_weights_for_a_rule_that_does_not_read():
    adam = oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate())
    first = oc.chain(oc.decay_first(adam, 0.5, mask=NOT_BIAS), learning_rate=0.1)
    after = oc.chain(adam, oc.decay_weights(0.5, mask=NOT_BIAS), learning_rate=0.1)
    close(*(tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)[0] for tx in (first, after)))


def test_a_rate_of_its_own_is_the_decays_and_the_rule_gets_the_chains():
    tx = oc.chain(oc.decay_first(oc.scale_by_learning_rate(), 0.25, learning_rate=1.0), learning_rate=0.5)
    params, _ = tx.apply(jnp.array([4.0]), tx.init(jnp.zeros(1)), grads=jnp.array([1.0]))
    assert float(params[0]) == 4.0 - 1.0 - 0.5


def test_the_rate_of_the_chain_is_the_decays_and_the_rules_at_the_same_step():
    schedule = oc.schedules.PiecewiseConstantDecay([0], [1.0, 0.5])
    tx = oc.chain(oc.decay_first(oc.scale_by_learning_rate(), 0.5), learning_rate=schedule)
    params, state = tx.apply(jnp.array([8.0]), tx.init(jnp.zeros(1)), grads=jnp.array([1.0]))
    assert float(params[0]) == 8.0 - 4.0 - 1.0
    params, state = tx.apply(params, state, grads=jnp.array([1.0]))
    assert float(params[0]) == 3.0 - 0.75 - 0.5


@pytest.mark.parametrize("form", ["apply", "update"])
def test_a_parameter_that_the_rule_makes_zero_is_zero(form):
    """Ftrl's l1 makes parameters exactly 0, whatever the decay."""
    tx = oc.ftrl(0.1, l1_regularization_strength=100.0, weight_decay=0.3)
    params = {"w": jnp.linspace(-2.0, 2.0, 101)}
    grads = {"w": jnp.cos(jnp.arange(101.0))}
    if form == "apply":
        params, _ = tx.apply(params, tx.init(params), grads=grads)
    else:
        params = optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
    assert not params["w"].any()


@pytest.mark.thorough
def test_a_rule_of_optax_keeps_the_dtypes_of_its_state():
    tx = oc.chain(oc.decay_first(optax.lamb(0.1), 0.1, learning_rate=1.0))
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = tx.init(params)
    new_params, new_state = tx.apply(params, state, grads=params)
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (params, state, new_params, new_state)]
    assert dtypes[:2] == dtypes[2:]


def test_a_preset_decays_first_only_where_its_rule_reads_the_parameters():
    def names(tx):
        return [link.name for link in tx.links]

    assert names(oc.lamb(weight_decay=0.1)) == ["decay_first"]
    assert names(oc.lamb()) == ["scale_by_adam", "scale_by_trust_ratio", "scale_by_learning_rate"]
    assert names(oc.adam(weight_decay=0.1)) == ["scale_by_adam", "scale_by_learning_rate", "decay_weights"]


def test_describe_shows_the_rule_and_the_decay_with_their_state():
    shown = oc.describe(oc.lamb(0.1, weight_decay=jnp.array(0.1)), PARAMS)
    assert [row.path for row in shown.rows] == [
        "lamb",
        "lamb/decay_first",
        "lamb/decay_first/inner",
        "lamb/decay_first/inner/scale_by_adam",
        "lamb/decay_first/inner/scale_by_trust_ratio",
        "lamb/decay_first/inner/scale_by_learning_rate",
        "lamb/decay_first/decay_weights",
    ]
