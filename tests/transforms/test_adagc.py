"""`adagc`: each leaf is clipped by the norms that it had, after a warmup in which all are clipped together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optchain as oc

DIRECTIONS = {"a": np.array([0.6, 0.0, -0.8]), "b": np.array([[1.0]])}
CALLS = 40


def of_the_paper(norms, threshold=1.05, decay=0.98, warmup=10, bound=1.0):
    """Algorithm 1 in float64: the norms after clipping, and the averages. `norms` has a row for each call."""
    made, gamma = [], None
    for call, norm in enumerate(norms):
        if call < warmup:
            clipped = norm * min(1.0, bound / np.sqrt(np.sum(norm**2)))
            gamma = clipped if gamma is None else np.minimum(gamma, clipped)
        else:
            clipped = np.minimum(norm, threshold * gamma)
            gamma = decay * gamma + (1 - decay) * clipped
        made.append(clipped)
    return np.array(made), gamma


@jax.jit
def run(norms, threshold, bound):
    """The norm of each leaf after each call, and the last state, with ten calls of warmup."""
    tx = oc.adagc(threshold, warmup_steps=10, max_norm=bound)

    def call(state, norm):
        grads = {name: jnp.asarray(d, jnp.float32) * n for (name, d), n in zip(DIRECTIONS.items(), norm, strict=True)}
        # XLA would square the constants and the norms apart: 0 · ∞.
        updates, state = tx.update(jax.lax.optimization_barrier(grads), state)
        lengths = [jnp.sum(updates[name] * jnp.asarray(d, jnp.float32)) for name, d in DIRECTIONS.items()]
        return state, jnp.stack(lengths)

    state, lengths = jax.lax.scan(call, tx.init(jax.tree.map(jnp.zeros_like, DIRECTIONS)), norms)
    return lengths, state


@given(
    norms=st.lists(st.tuples(*[st.floats(0.01, 1e4)] * 2), min_size=CALLS, max_size=CALLS),
    threshold=st.floats(0.5, 4.0),
    bound=st.floats(0.1, 1e3),
)
@settings(max_examples=20)
def test_norms_and_averages_are_those_of_the_paper(norms, threshold, bound):
    norms, threshold, bound = np.array(norms, np.float32), np.float32(threshold), np.float32(bound)
    lengths, state = run(norms, threshold, bound)
    expected, gamma = of_the_paper(norms.astype(float), threshold=threshold, bound=bound)
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)
    np.testing.assert_allclose([state["usual_norm"][name] for name in DIRECTIONS], gamma, rtol=1e-5)


ORDINARY = np.tile(np.float32([0.5, 0.1]), (CALLS, 1))


def test_a_spike_of_one_leaf_is_clipped_and_the_other_leaf_is_left_alone():
    norms = ORDINARY.copy()
    norms[[30, -1], 0] *= 1000
    lengths, state = run(norms, 1.05, 1.0)
    np.testing.assert_allclose(lengths[30], [0.525, 0.1], rtol=1e-5)
    assert float(oc.metrics(state)["clipped_leaves"]) == 0.5
    assert float(oc.metrics(state)["global_norm"]) == pytest.approx(500, rel=1e-5)
    norms[-1, 0] = 0.5
    assert float(oc.metrics(run(norms, 1.05, 1.0)[1])["clipped_leaves"]) == 0.0


def test_a_leaf_without_a_gradient_during_the_warmup_is_not_held_at_zero():
    norms = ORDINARY.copy()
    norms[:12, 1] = 0.0
    norms[-1, 1] = 3.0
    lengths, _ = run(norms, 1.05, 1.0)
    np.testing.assert_allclose(lengths[:, 1], [*[0.0] * 12, *[0.1] * 27, 0.105], rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1e15, 1e30])
def test_what_is_clipped_does_not_depend_on_the_units(unit):
    norms = np.random.default_rng(0).lognormal(0.0, 0.5, (CALLS, 2)).astype(np.float32)
    norms[[5, 20, 21]] *= 300
    lengths, _ = run(norms * np.float32(unit), 1.05, np.float32(unit))
    np.testing.assert_allclose(np.asarray(lengths) / np.float32(unit), run(norms, 1.05, 1.0)[0], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_turns_its_leaf_to_nan_and_is_not_learned_from(bad):
    norms = ORDINARY.copy()
    norms[[5, 30], 0] = bad
    lengths, state = run(norms, 1.05, 1.0)
    assert np.isnan(lengths[5]).all()  # in the warmup all leaves are clipped together
    np.testing.assert_array_equal(np.isnan(lengths[30]), [True, False])
    assert np.isfinite(np.delete(lengths, [5, 30], axis=0)).all()
    np.testing.assert_allclose(state["usual_norm"]["a"], 0.5, rtol=1e-5)


@pytest.mark.thorough
def test_it_clips_under_a_loss_scale_as_without_one():
    def lengths(scale):
        tx = oc.chain(oc.unscale_gradients(scale), oc.adagc(warmup_steps=1))

        def call(state, norm):
            updates, state = tx.update(jnp.array([0.6, 0.8]) * norm * scale, state)
            return state, updates

        return jax.lax.scan(call, tx.init(jnp.zeros(2)), jnp.array([0.5, 40.0, 0.6]))[1]

    np.testing.assert_array_equal(lengths(1024.0), lengths(1.0))
