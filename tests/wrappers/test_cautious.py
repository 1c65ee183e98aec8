"""`cautious`, and decay that is cautious or falls with the square of the rate, against the papers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import optchain as oc

RNG = np.random.default_rng(0)
START = RNG.normal(size=8)
GRADS = RNG.normal(size=(30, 8)) + 0.2


def trained(tx, grads=GRADS, dtype=jnp.float32):
    params = jnp.asarray(START, dtype)

    def call(carry, g):
        params, state = carry
        carry = tx.apply(params, state, grads=g)
        return carry, carry[0]

    return jax.jit(lambda g: jax.lax.scan(call, (params, tx.init(params)), g)[1])(jnp.asarray(grads, dtype))


def adam(epsilon=1e-8, rate=None):
    """Adam's updates one after the other, of gradients that are sent to it."""
    m = v = np.zeros(8)
    t, u = 0, None
    while True:
        g = yield u
        t += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + epsilon)


def of_the_papers(rate=lambda t: 0.1, *, masked=False, decay=lambda t, u, p: 0.0):
    rule, p, made = adam(), START.copy(), []
    next(rule)
    for t, g in enumerate(GRADS):
        u = rule.send(g)
        if masked:
            mask = (u * g > 0).astype(float)
            u = u * mask / max(mask.mean(), 1e-3)
        p = p - rate(t) * (u + decay(t, u, p) * p)
        made.append(p)
    return np.array(made)


def recipe(rule=None, rate=0.1, **decay):
    rule = oc.scale_by_adam(epsilon=1e-8, epsilon_hat=False) if rule is None else rule
    return oc.chain(rule, oc.scale_by_learning_rate(), oc.decay_weights(0.5, **decay), learning_rate=rate)


def check(tx, expected):
    with jax.enable_x64(True):
        np.testing.assert_allclose(trained(tx, dtype=jnp.float64), expected, rtol=1e-10)
    np.testing.assert_allclose(trained(tx), expected, rtol=1e-4, atol=1e-5)


ADAM = oc.scale_by_adam(epsilon=1e-8, epsilon_hat=False)


def test_cautious_adamw_is_the_authors():
    check(recipe(oc.cautious(ADAM)), of_the_papers(masked=True, decay=lambda t, u, p: 0.5))


def test_cautious_weight_decay_is_the_papers():
    check(recipe(cautious=True), of_the_papers(decay=lambda t, u, p: 0.5 * (u * p >= 0)))


def test_the_corrected_decay_of_adamc_is_the_papers():
    rate = oc.schedules.CosineDecay(0.2, 40)

    def cosine(t):
        return 0.1 * (1 + np.cos(np.pi * t / 40))

    expected = of_the_papers(cosine, decay=lambda t, u, p: 0.5 * cosine(t) / 0.2)
    check(recipe(rate=rate, max_learning_rate=0.2), expected)


@pytest.mark.thorough
def test_both_kinds_of_caution_go_together():
    both = recipe(oc.cautious(ADAM), cautious=True, max_learning_rate=0.4)
    check(both, of_the_papers(masked=True, decay=lambda t, u, p: 0.5 * (u * p >= 0) / 4))


def test_what_does_not_decay_does_not_decay_cautiously_either():
    tx = oc.decay_weights(0.5, learning_rate=1.0, mask={"a": True, "b": False}, cautious=True)
    params = {"a": jnp.array([1.0, -1.0, 1.0]), "b": jnp.ones(3)}
    updates, _ = tx.update({"a": jnp.array([0.1, 0.1, 0.0]), "b": jnp.ones(3)}, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], [0.1, 0.6, -0.5], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 1.0)


@pytest.mark.parametrize("momentum_last", [False, True])
def test_a_rule_with_its_learning_rate_is_judged_by_the_other_sign(momentum_last):
    links = [oc.apply_momentum(0.9), oc.scale_by_learning_rate(0.1)]
    inside = trained(oc.cautious(oc.chain(*(reversed(links) if momentum_last else links))))
    outside = trained(oc.chain(oc.cautious(links[0]), links[1]))
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-6)


def test_a_rule_of_optax_is_wrapped_too():
    ours = trained(oc.chain(oc.cautious(oc.apply_momentum(0.9)), oc.scale_by_learning_rate(0.1)))
    theirs = trained(oc.chain(oc.cautious(optax.trace(0.9)), oc.scale_by_learning_rate(0.1)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@jax.jit
def masked(momentum, g):
    tx = oc.cautious(oc.apply_momentum(1.0))
    return tx.update(g, {"inner": {"velocity": momentum}})[0]


floats = arrays.arrays(np.float32, 6, elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False))


@given(momentum=floats, g=floats)
@settings(max_examples=60)
def test_no_number_goes_against_the_gradient_and_the_others_share_what_was_left_out(momentum, g):
    u, made = np.float64(np.float32(momentum + g)), np.asarray(masked(momentum, g), float)
    agrees = (np.sign(u) == np.sign(g)) & (u != 0)
    np.testing.assert_array_equal(made[~agrees], 0)
    np.testing.assert_allclose(made[agrees], u[agrees] * 6 / max(agrees.sum(), 1), rtol=1e-6)


def test_signs_agree_where_the_product_would_underflow():
    np.testing.assert_allclose(masked(jnp.full(6, 1e-30), jnp.full(6, 1e-30)), 2e-30, rtol=1e-6)


@pytest.mark.thorough
def test_of_complex_numbers_what_is_within_a_right_angle_agrees():
    tx = oc.cautious(oc.apply_momentum(1.0))
    g = jnp.array([1.0 + 0j, 1j, -1.0 + 0j, 1.0 - 1j])
    made = tx.update(g, {"inner": {"velocity": jnp.array([1j, -3j, 0j, -0.5 + 0j])}})[0]
    np.testing.assert_allclose(made, np.array([1 + 1j, 0, -1, 0.5 - 1j]) * 4 / 3, rtol=1e-6)


def test_nan_stays_nan_and_an_empty_leaf_empty():
    tx = oc.cautious(oc.apply_momentum(0.5))
    grads = {"a": jnp.array([jnp.nan, 1.0]), "empty": jnp.zeros((0, 3)), "none": None}
    made, _ = jax.jit(lambda grads: tx.update(grads, tx.init(grads)))(grads)
    np.testing.assert_array_equal(np.isnan(made["a"]), [True, False])
    assert made["empty"].shape == (0, 3)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: oc.adamw(0.1), "rule must not decay weights, and decay_weights does: put it after cautious"),
        (lambda: oc.lamb(0.1, weight_decay=0.1), "rule must not decay weights, and decay_weights does"),
        (lambda: oc.accumulate(oc.adam(0.1), 2), "rule must act on gradients; accumulate is a gate transformation"),
        (
            lambda: optax.adam(0.1),
            "rule must keep the gradient's sign where it is Optax's, and rule turns it or makes 0 of it",
        ),
        (lambda: oc.presets.torch.sgd(0.1, maximize=True), "rule must go down the gradient, and sgd goes up"),
        (lambda: oc.scale(-1.0), "rule must go down the gradient, and scale goes up"),
        (lambda: oc.chain(oc.clip_by_value(1.0), optax.sgd(lambda count: 0.1 * count)), "take optax.scale_by_adam"),
        (lambda: oc.average_params(), "rule must act on gradients; average_params is a parameter transformation"),
        (lambda: oc.lazy_rows(oc.scale_by_adam()), "rule must act on gradients; lazy_rows is a gate transformation"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_with_the_place_where_it_goes(rule, message):
    with pytest.raises(ValueError, match=message):
        oc.cautious(rule())
