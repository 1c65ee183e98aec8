"""`scale_by_ademamix` against Optax's, and against the paper in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.rules.ademamix import _inverse_log

RNG = np.random.default_rng(0)
GRADS = RNG.normal(size=(40, 5)) + 0.3


def updates_of(tx, dtype=jnp.float32):
    params = jnp.zeros(5, dtype)

    def call(state, g):
        updates, state = tx.update(g, state, params)
        return state, updates

    return jax.jit(lambda g: jax.lax.scan(call, tx.init(params), g)[1])(jnp.asarray(GRADS, dtype))


def schedulers(t, total, beta_1, beta_3, alpha):
    """Equations 1 and 2 of the paper's section 3."""
    if t >= total:
        return alpha, beta_3
    fast, slow, part = np.log(beta_1), np.log(beta_3), t / total
    return part * alpha, min(np.exp(fast * slow / ((1 - part) * slow + part * fast)), beta_3)


def of_the_paper(total=None, beta_1=0.9, beta_2=0.999, beta_3=0.9999, alpha=5.0, epsilon=1e-8):
    m1 = m2 = v = np.zeros(5)
    made = []
    for t, g in enumerate(GRADS, start=1):
        a, b3 = (alpha, beta_3) if total is None else schedulers(t, total, beta_1, beta_3, alpha)
        m1, m2, v = beta_1 * m1 + (1 - beta_1) * g, b3 * m2 + (1 - b3) * g, beta_2 * v + (1 - beta_2) * g**2
        made.append((m1 / (1 - beta_1**t) + a * m2) / (np.sqrt(v / (1 - beta_2**t)) + epsilon))
    return np.array(made)


@pytest.mark.parametrize("total", [None, 1, 30, 1000])
@pytest.mark.parametrize("beta_3", [0.9999, 0.95])
def test_updates_and_both_schedulers_are_those_of_the_paper(total, beta_3):
    with jax.enable_x64(True):
        made = updates_of(oc.scale_by_ademamix(beta_3=beta_3, warmup_steps=total), jnp.float64)
    np.testing.assert_allclose(made, of_the_paper(total, beta_3=beta_3), rtol=1e-10)


@pytest.mark.parametrize("total", [None, pytest.param(1000, marks=pytest.mark.thorough)])
def test_in_float32_the_slow_share_is_not_taken_of_a_rounded_decay(total):
    made = updates_of(oc.scale_by_ademamix(warmup_steps=total))
    np.testing.assert_allclose(made, of_the_paper(total), rtol=2e-5, atol=1e-6)


def test_numbers_and_schedules_are_those_of_optax():
    ours = oc.scale_by_ademamix(0.8, 0.99, lambda step: 0.9 + 0.002 * step, lambda step: 0.1 * step, 1e-3)
    theirs = optax.contrib.scale_by_ademamix(0.8, 0.99, lambda step: 0.9 + 0.002 * step, lambda step: 0.1 * step, 1e-3)
    np.testing.assert_allclose(updates_of(ours), updates_of(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_a_decay_of_zero_has_a_half_life_of_zero():
    assert float(_inverse_log(jnp.array(0.0), jnp.float32)) == _inverse_log(0.0, None) == 0.0
    made = updates_of(oc.scale_by_ademamix(0.0, beta_3=0.0, slow_weight=2.0, warmup_steps=4))
    plain = updates_of(oc.scale_by_ademamix(0.0, slow_weight=0.0))
    grown = 1 + 2.0 * np.minimum(np.arange(1, 41) / 4, 1)
    np.testing.assert_allclose(made, plain * grown[:, None], rtol=1e-5)


@pytest.mark.thorough
def test_without_the_slow_average_it_is_adam():
    adam = updates_of(oc.scale_by_adam(epsilon=1e-8, epsilon_hat=False))
    np.testing.assert_allclose(updates_of(oc.scale_by_ademamix(slow_weight=0.0)), adam, rtol=1e-6)
