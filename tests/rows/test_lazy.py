"""Lazy updates against a loop over rows in NumPy, in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

from .tables import BATCHES, HEIGHT, WIDTH, batches, dense, named, params

RATE, DECAY = 0.1, 0.2


def adam(g, s, t):
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["v"] = 0.99 * s["v"] + 0.01 * g**2
    return RATE * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * s["m"] / (np.sqrt(s["v"]) + 1e-3)


def momentum(g, s, t):
    s["m"] = 0.9 * s["m"] + RATE * g
    return s["m"]


def rmsprop(g, s, t):
    s["v"] = 0.9 * s["v"] + 0.1 * g**2
    return RATE * g / np.sqrt(s["v"] + 1e-3)


def adagrad(g, s, t):
    s["v"] = s["v"] + g**2
    return RATE * g / np.sqrt(s["v"] + 1e-3)


RULES = {
    "adam": (adam, lambda **more: oc.adam(RATE, 0.9, 0.99, 1e-3, **more), {"m": 0.9, "v": 0.99}, 0.0),
    "sgd": (momentum, lambda **more: oc.sgd(RATE, 0.9, **more), {"m": 0.9, "v": 1.0}, 0.0),
    "rmsprop": (rmsprop, lambda **more: oc.rmsprop(RATE, 0.9, epsilon=1e-3, **more), {"m": 1.0, "v": 0.9}, 0.0),
    "adagrad": (adagrad, lambda **more: oc.adagrad(RATE, 0.1, 1e-3, **more), {"m": 1.0, "v": 1.0}, 0.1),
}


def loop(rule, decays, start, *, weight_decay=0.0, max_norm=np.inf, ema=None, catch_up=False):
    """The parameters and their average after every step: each named row by itself, each other parameter as a whole."""
    parts = {("bias", None): params()["head"]["bias"], **{("row", i): row for i, row in enumerate(params()["table"])}}
    parts = {key: p.copy() for key, p in parts.items()}
    states = {key: {"m": np.zeros_like(p), "v": np.full_like(p, start), "last": 0} for key, p in parts.items()}
    average = {key: p.copy() for key, p in parts.items()}
    history = []
    for t, batch in enumerate(batches(), start=1):
        whole = dense(batch)
        seen = {i for i in batch[0] if 0 <= i < HEIGHT}
        grads = {("bias", None): whole["head"]["bias"], **{("row", i): whole["table"][i] for i in seen}}
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        for key, g in grads.items():
            s, p = states[key], parts[key]
            for name in ("m", "v") if catch_up else ():
                s[name] = s[name] * decays[name] ** (t - 1 - s["last"])
            s["last"] = t
            parts[key] = p - rule(g * min(1, max_norm / norm), s, t) - RATE * weight_decay * p
            if ema is not None:
                m = 0 if t == 1 else ema
                average[key] = m * average[key] + (1 - m) * parts[key]
        history.append(
            [np.concatenate([x["bias", None], *(x["row", i] for i in range(HEIGHT))]) for x in (parts, average)]
        )
    return history


def flat(tree):
    return np.concatenate([tree["head"]["bias"], np.ravel(tree["table"])])


@jax.jit
def apply(tx, params, state, grads):
    return tx.apply(params, state, grads=grads)


@jax.jit
def update(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def check(tx, expected, step=apply, *, averages=False):
    carry = jax.device_put(params()), tx.init(jax.device_put(params()))
    for batch, (theirs, average) in zip(batches(), expected, strict=True):
        carry = step(tx, *carry, named(batch))
        np.testing.assert_allclose(flat(carry[0]), theirs, rtol=1e-12, atol=1e-12)
        if averages:
            np.testing.assert_allclose(flat(oc.averaged_params(carry[1])), average, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_lazy_presets_equal_the_loop(name):
    rule, preset, decays, start = RULES[name]
    with jax.enable_x64(True):
        tx = preset(lazy=True, global_clipnorm=0.5, weight_decay=DECAY, use_ema=True, ema_momentum=0.7)
        check(tx, loop(rule, decays, start, weight_decay=DECAY, max_norm=0.5, ema=0.7), averages=True)


@pytest.mark.parametrize("name", RULES)
def test_catching_up_decays_moments_by_the_missed_steps(name):
    rule, preset, decays, start = RULES[name]
    with jax.enable_x64(True):
        check(oc.lazy_rows(preset(), catch_up=True), loop(rule, decays, start, catch_up=True))


def test_the_update_form_is_the_same():
    rule, preset, decays, start = RULES["adam"]
    with jax.enable_x64(True):
        check(preset(lazy=True, weight_decay=DECAY), loop(rule, decays, start, weight_decay=DECAY), update)


def test_gates_go_inside_and_outside():
    rule, preset, decays, start = RULES["adam"]
    expected = loop(rule, decays, start)
    with jax.enable_x64(True):
        check(oc.skip_nonfinite(preset(lazy=True)), expected)
        check(oc.lazy_rows(oc.chain(oc.skip_nonfinite(preset()))), expected)
        check(oc.multi_optimizer(("tables", "table", preset(lazy=True)), default=preset()), expected)
        check(oc.lazy_rows(oc.masked(preset(), oc.matching("table", "bias"))), expected)


def test_rows_that_are_not_named_keep_every_bit_of_parameters_moments_and_average():
    tx = oc.adamw(0.1, lazy=True, use_ema=True)
    before = jax.device_put(params(np.float32))
    first = tx.init(before)
    after, state = tx.apply(before, first, grads=named(batches(np.float32)[0]))
    others = [i for i in range(HEIGHT) if i not in BATCHES[0]]
    for old, new in zip(jax.tree.leaves((before, first)), jax.tree.leaves((after, state)), strict=True):
        if np.shape(old) == (HEIGHT, WIDTH):
            np.testing.assert_array_equal(np.asarray(new)[others], np.asarray(old)[others])


def test_a_dense_gradient_updates_the_whole_table():
    tx = oc.adamw(0.1)
    carry = jax.device_put(params(np.float32))
    grads = dense(batches(np.float32)[0])
    whole, _ = tx.apply(carry, tx.init(carry), grads=grads)
    lazy = oc.lazy_rows(tx)
    also, _ = lazy.apply(carry, lazy.init(carry), grads=grads)
    jax.tree.map(np.testing.assert_array_equal, whole, also)


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: oc.adam(gradient_accumulation_steps=2, lazy=True), "accumulate"),
        (lambda: oc.adafactor(lazy=True), "scale_by_factored_rms"),
        (lambda: oc.lamb(lazy=True), "scale_by_trust_ratio"),
        (lambda: oc.muon(lazy=True), "scale_by_muon"),
        (lambda: oc.soap(lazy=True), "scale_by_soap"),
        (lambda: oc.muon_adamw(lazy=True), "scale_by_muon"),
        (lambda: oc.lazy_rows(oc.chain(oc.sgd(0.1), oc.project_max_norm(1.0))), "project_max_norm"),
        (lambda: oc.lazy_rows(oc.chain(("yogi", optax.scale_by_yogi()))), "yogi"),
        (lambda: oc.lazy_rows(oc.lazy_rows(oc.sgd(0.1))), "lazy_rows"),
    ],
)
def test_a_link_that_mixes_rows_is_refused_by_name(make, culprit):
    with pytest.raises(ValueError, match=f"lazy_rows cannot run {culprit} on some rows"):
        make()


def test_what_would_make_it_dense_is_refused():
    with pytest.raises(ValueError, match=r"accumulate cannot run lazy_rows"):
        oc.accumulate(oc.adam(lazy=True), 2)
    with pytest.raises(ValueError, match=r"sgd stands after clip_by_value, and cannot: .* dense gradients"):
        oc.chain(oc.clip_by_value(1.0), oc.sgd(lazy=True))
    with pytest.raises(TypeError, match="lazy must be True or False; got 1"):
        oc.sgd(lazy=1)


def test_a_projection_of_rows_acts_on_named_rows():
    tx = oc.lazy_rows(oc.chain(oc.sgd(1.0), oc.project_max_norm(1.0, axis=1)))
    table = jnp.full((3, 4), 2.0)
    table, _ = tx.apply(table, tx.init(table), grads=oc.RowGradient(jnp.array([1]), jnp.zeros((1, 4)), (3, 4)))
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), [4, 1, 4], rtol=1e-6)


def test_hyperparameters_metrics_and_configs_are_as_everywhere():
    tx = oc.adam(0.1, global_clipnorm=1.0, lazy=True)
    assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx
    assert "lazy=True" in repr(tx)
    state = oc.set_hyperparams(tx.init(params(np.float32)), learning_rate=0.0)
    after, state = tx.apply(jax.device_put(params(np.float32)), state, grads=named(batches(np.float32)[0]))
    np.testing.assert_array_equal(after["table"], params(np.float32)["table"])
    whole = oc.adam(0.1, global_clipnorm=1.0)
    _, other = whole.apply(params(np.float32), whole.init(params(np.float32)), grads=dense(batches(np.float32)[0]))
    np.testing.assert_allclose(oc.metrics(state)["global_norm"], oc.metrics(other)["global_norm"], rtol=1e-6)
