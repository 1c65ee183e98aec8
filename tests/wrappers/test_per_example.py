"""`per_example`: the gradients of single examples enter a chain whose first link reduces them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optchain as oc

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]]), "bias": jnp.array([1.0, 0.0])}
GRADS = jax.tree.map(lambda p: jnp.cos(jnp.arange(4.0 * p.size)).reshape(4, *p.shape), PARAMS)


def private():
    return optax.contrib.differentially_private_aggregate(l2_norm_clip=0.5, noise_multiplier=1.1, key=7)


@pytest.mark.parametrize(
    "chain",
    [
        lambda: oc.chain(oc.per_example(private()), ("adam", optax.adam(0.1))),
        lambda: oc.chain(oc.chain(("private", oc.per_example(private()))), ("adam", optax.adam(0.1))),
        lambda: oc.chain(oc.per_example(private()), oc.skip_nonfinite(optax.adam(0.1))),
    ],
    ids=["first", "in a chain", "a gate after it"],
)
def test_a_private_aggregate_has_the_numbers_of_optax(chain):
    ours, theirs = chain(), optax.chain(private(), optax.adam(0.1))
    params, state, in_updates, update_state = PARAMS, ours.init(PARAMS), PARAMS, ours.init(PARAMS)
    expected, their_state = PARAMS, theirs.init(PARAMS)
    for _ in range(3):
        params, state = ours.apply(params, state, grads=GRADS)
        updates, update_state = ours.update(GRADS, update_state, in_updates)
        in_updates = optax.apply_updates(in_updates, updates)
        updates, their_state = theirs.update(GRADS, their_state, expected)
        expected = optax.apply_updates(expected, updates)
    for made in (params, in_updates):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), made, expected)


def test_the_update_form_needs_no_parameters():
    tx = oc.chain(oc.per_example(private()), oc.scale_by_learning_rate(0.1))
    updates, _ = tx.update(GRADS, tx.init(PARAMS))
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)


def apply(tx, grads):
    return tx.apply(PARAMS, tx.init(PARAMS), grads=grads)


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (PARAMS, r'grads\["bias"\]: shape \(2,\), params have \(2,\), and the gradients an axis of 2 examples before'),
        ({**GRADS, "kernel": GRADS["kernel"][:3]}, r'grads\["kernel"\]: shape \(3, 3, 2\), .* an axis of 4 examples'),
        ({**GRADS, "kernel": GRADS["kernel"][:, :1]}, r'grads\["kernel"\]: shape \(4, 1, 2\), params have \(3, 2\)'),
        ({"kernel": GRADS["kernel"]}, r'grads\["bias"\] is missing'),
    ],
    ids=["of the whole batch", "fewer examples", "another shape", "a missing leaf"],
)
def test_gradients_of_another_shape_name_the_leaf(grads, message):
    with pytest.raises(ValueError, match=message):
        apply(oc.chain(oc.per_example(private()), oc.sgd(0.1)), grads)


def test_without_the_mark_they_are_an_error():
    with pytest.raises(ValueError, match=r'grads\["bias"\]: shape \(4, 2\), params have \(2,\)'):
        apply(oc.chain(("private", private()), oc.sgd(0.1)), GRADS)


def test_a_link_that_does_not_reduce_them_is_named():
    with pytest.raises(ValueError, match=r'kept returned updates\["bias"\]: shape \(4, 2\), params have \(2,\)'):
        apply(oc.chain(("kept", oc.per_example(optax.clip(1.0))), oc.sgd(0.1)), GRADS)
    with pytest.raises(ValueError, match=r'kept returned updates\["bias"\]: shape \(4, 2\), updates have \(2,\)'):
        oc.chain(("kept", oc.per_example(optax.clip(1.0)))).update(GRADS, {})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda link: oc.chain(oc.clip_by_norm(1.0), link),
        lambda link: oc.chain(oc.chain(oc.clip_by_norm(1.0)), oc.chain(link)),
        lambda link: oc.accumulate(oc.chain(link, oc.sgd(0.1)), 2),
        lambda link: oc.skip_nonfinite(link),
        lambda link: oc.masked(link, oc.matching("kernel")),
        lambda link: oc.multi_optimizer(("all", "", link)),
    ],
    ids=["second", "in the second chain", "accumulate", "gate", "masked", "group"],
)
def test_it_stands_first_and_in_nothing_but_chains(wrong):
    with pytest.raises(
        ValueError, match=r"(per_example|all) takes the gradients of single examples: it must be the first"
    ):
        wrong(oc.per_example(private()))


def test_a_chain_is_marked_at_its_first_link():
    with pytest.raises(ValueError, match="mark its first link"):
        oc.per_example(oc.chain(("private", private()), oc.sgd(0.1)))
