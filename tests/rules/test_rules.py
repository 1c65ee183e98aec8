"""Clips, Adam, momentum, decay, learning rate, unscaling: the formula of each docstring, in NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(3, 2)), "b": RNG.normal(size=4)}
GRADS = [{name: RNG.normal(size=p.shape) for name, p in PARAMS.items()} for _ in range(4)]


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def updates_of(tx, grads=GRADS):
    params = float32(PARAMS)
    state = tx.init(params)
    results = []
    for g in grads:
        updates, state = tx.update(float32(g), state, params)
        results.append(updates)
    return results, state


def assert_updates(tx, expected, rtol=1e-5):
    actual, _ = updates_of(tx)
    for a, b in zip(actual, expected, strict=True):
        for name in PARAMS:
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-6)


def each(function):
    return [{name: function(g[name], PARAMS[name]) for name in PARAMS} for g in GRADS]


def test_clip_by_value():
    assert_updates(oc.clip_by_value(0.5), each(lambda g, p: np.clip(g, -0.5, 0.5)))


def test_clip_by_norm_clips_each_leaf_by_its_own_norm():
    assert_updates(oc.clip_by_norm(0.5), each(lambda g, p: g * 0.5 / max(np.linalg.norm(g), 0.5)))


@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_clip_by_global_norm_clips_all_leaves_by_the_norm_of_them_together(bound):
    expected = []
    for g in GRADS:
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in g.values()))
        expected.append({name: leaf * bound / max(norm, bound) for name, leaf in g.items()})
    assert_updates(oc.clip_by_global_norm(bound), expected)


def test_the_global_norm_in_the_metrics_is_that_before_clipping():
    _, state = updates_of(oc.clip_by_global_norm(0.5))
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in GRADS[-1].values()))
    assert float(oc.metrics(state)["global_norm"]) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_norm_that_is_not_finite_turns_every_leaf_to_nan(bad):
    tx = oc.clip_by_global_norm(1.0)
    updates, state = tx.update({"a": jnp.array([1.0, bad]), "b": jnp.array([1.0])}, tx.init({}), None)
    assert all(np.isnan(leaf).all() for leaf in updates.values())
    assert not np.isfinite(oc.metrics(state)["global_norm"])


def test_a_zero_gradient_passes_every_clip():
    for clip in (oc.clip_by_value, oc.clip_by_norm, oc.clip_by_global_norm):
        tx = clip(1.0)
        updates, _ = tx.update({"a": jnp.zeros(3)}, tx.init({"a": jnp.zeros(3)}))
        np.testing.assert_array_equal(updates["a"], 0.0)


def adam_reference(b1=0.9, b2=0.999, eps=1e-7, *, amsgrad=False, hat=True):
    m, v, largest = (dict.fromkeys(PARAMS, 0.0) for _ in range(3))
    results = []
    for t, g in enumerate(GRADS, start=1):
        update = {}
        for name in PARAMS:
            m[name] = b1 * m[name] + (1 - b1) * g[name]
            v[name] = b2 * v[name] + (1 - b2) * g[name] ** 2
            largest[name] = np.maximum(largest[name], v[name])
            second = largest[name] if amsgrad else v[name]
            if hat:
                update[name] = np.sqrt(1 - b2**t) / (1 - b1**t) * m[name] / (np.sqrt(second) + eps)
            else:
                update[name] = m[name] / (1 - b1**t) / (np.sqrt(second / (1 - b2**t)) + eps)
        results.append(update)
    return results


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("hat", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0), (0.5, 0.1)])
def test_adam(betas, hat, amsgrad):
    tx = oc.scale_by_adam(*betas, 0.01, amsgrad=amsgrad, epsilon_hat=hat)
    assert_updates(tx, adam_reference(*betas, 0.01, amsgrad=amsgrad, hat=hat))


def test_adam_with_run_time_betas_agrees_to_their_rounding():
    tx = oc.scale_by_adam(jnp.array(0.9), lambda step: 0.999, jnp.array(1e-7))
    assert_updates(tx, adam_reference(), rtol=2e-5)  # 1 - 0.999f is off by 1.3e-5


def test_adam_stores_narrow_moments_and_computes_wide():
    tx = oc.scale_by_adam(0.5, 0.5, moment_dtype="bfloat16")
    (first, *_), state = updates_of(tx)
    assert {leaf.dtype for leaf in jax.tree.leaves((state["mu"], state["nu"]))} == {jnp.dtype("bfloat16")}
    exact = adam_reference(0.5, 0.5)[0]
    np.testing.assert_allclose(first["a"], exact["a"], rtol=1e-5)  # the moments of this call are not rounded yet


def test_the_second_moment_of_complex_leaves_is_real_and_of_the_magnitude():
    g = jnp.array([3.0 + 4.0j])
    tx = oc.scale_by_adam(0.0, 0.0, 0.0)
    updates, state = tx.update(g, tx.init(g))
    assert state["nu"].dtype == jnp.float32
    np.testing.assert_allclose(state["nu"], 25.0)
    np.testing.assert_allclose(updates, [0.6 + 0.8j], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov):
    velocity, expected = dict.fromkeys(PARAMS, 0.0), []
    for g in GRADS:
        velocity = {name: 0.9 * velocity[name] + g[name] for name in PARAMS}
        expected.append({name: 0.9 * velocity[name] + g[name] if nesterov else velocity[name] for name in PARAMS})
    assert_updates(oc.apply_momentum(0.9, nesterov), expected)


def test_a_momentum_of_zero_and_of_one_are_allowed():
    assert_updates(oc.apply_momentum(0.0), each(lambda g, p: g))
    assert_updates(oc.apply_momentum(1), [{n: sum(g[n] for g in GRADS[: i + 1]) for n in PARAMS} for i in range(4)])


def test_decay_reads_the_parameters_before_the_step():
    assert_updates(oc.decay_weights(0.5, learning_rate=0.25), each(lambda g, p: g - 0.125 * p))


def test_decay_that_is_not_multiplied_by_the_rate():
    tx = oc.chain(oc.scale_by_learning_rate(), oc.decay_weights(0.5, learning_rate=1.0), learning_rate=0.1)
    assert_updates(tx, each(lambda g, p: -0.1 * g - 0.5 * p))


def test_a_schedule_as_weight_decay_is_the_papers_multiplier():
    tx = oc.decay_weights(lambda step: 0.5 / (step + 1), learning_rate=1.0)
    expected = [{n: g[n] - 0.5 / (i + 1) * PARAMS[n] for n in PARAMS} for i, g in enumerate(GRADS)]
    assert_updates(tx, expected)


def test_the_learning_rate_turns_gradients_into_updates():
    assert_updates(oc.scale_by_learning_rate(0.25), each(lambda g, p: -0.25 * g))


def test_unscaling_divides():
    assert_updates(oc.unscale_gradients(1024.0), each(lambda g, p: g / 1024))


def test_unscaling_keeps_what_float16_cannot_hold():
    """A gradient of 1e-7, scaled by 2**15, survives float16; divided in float16 it would be lost again."""
    tx = oc.chain(oc.unscale_gradients(2.0**15), oc.scale_by_learning_rate(1.0))
    grads = jnp.array([1e-9 * 2**15], jnp.float16)
    params = jnp.zeros(1, jnp.float32)
    new, _ = tx.apply(params, tx.init(params), grads=grads)
    np.testing.assert_allclose(new, -1e-9, rtol=1e-2)


def test_the_loss_is_scaled_by_the_product_of_the_scales_in_float32():
    state = {"a": oc.unscale_gradients(2.0**10).init(1.0), "b": oc.unscale_gradients(lambda step: 2.0**10).init(1.0)}
    scaled = oc.scale_loss(jnp.array(1.0, jnp.float16), state)
    assert scaled.dtype == jnp.float32
    assert float(scaled) == 2.0**20
    loss = jnp.array(2.0, jnp.float16)
    assert oc.scale_loss(loss, oc.sgd(0.1).init(1.0)).dtype == jnp.float16
