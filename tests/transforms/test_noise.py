"""`add_noise`: the same call gives the same bits, and the noise has the size that it should."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

ZEROS = {"a": jnp.zeros(40_000), "b": jnp.zeros(40_000)}


def draws(tx, calls, zeros=ZEROS):
    state, drawn = tx.init(zeros), []
    for _ in range(calls):
        noise, state = tx.update(zeros, state)
        drawn.append(noise)
    return drawn


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (1.0, 0.0), (0.3, 2.0)])
def test_the_variance_fades_as_the_paper_and_optax_have_it(eta, gamma):
    ours, theirs = draws(oc.add_noise(eta, gamma), 4), draws(optax.add_noise(eta, gamma, key=0), 4)
    for t, (noise, other) in enumerate(zip(ours, theirs, strict=True)):
        for leaf in ("a", "b"):
            # 40,000 normal numbers: the deviation is known to 0.35 %, the mean to 0.5 % of it.
            expected = (eta / (1 + t) ** gamma) ** 0.5
            np.testing.assert_allclose(np.std(noise[leaf]), expected, rtol=0.02)
            np.testing.assert_allclose(np.std(noise[leaf]), np.std(other[leaf]), rtol=0.03)
            assert abs(np.mean(noise[leaf])) < 0.03 * expected


def test_calls_leaves_and_seeds_differ_and_nothing_else_does():
    first, again, other = (draws(oc.add_noise(1.0, seed=seed), 2) for seed in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    columns = np.stack([noise[leaf] for drawn in (first, other) for noise in drawn for leaf in ("a", "b")])
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 0.03


def test_the_noise_is_added_and_jit_does_not_change_it():
    tx = oc.add_noise(0.5)
    state = tx.init(ZEROS)
    noise, _ = tx.update(ZEROS, state)
    noisy, _ = jax.jit(tx.update)(jax.tree.map(lambda z: z + 1, ZEROS), state)
    np.testing.assert_allclose(noisy["a"], 1 + noise["a"], rtol=0, atol=1e-6)


def test_the_key_is_plain_data_and_a_run_that_goes_on_from_it_has_the_same_noise():
    tx = oc.add_noise(1.0, seed=7)
    state = tx.init(ZEROS)
    assert (state["key"].dtype, state["key"].shape) == (jnp.uint32, (2,))
    _, state = tx.update(ZEROS, state)
    restored = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
    np.testing.assert_array_equal(tx.update(ZEROS, restored)[0]["b"], draws(tx, 2)[1]["b"])


def test_a_generator_chosen_for_jax_does_not_change_the_noise():
    expected = draws(oc.add_noise(1.0), 1)[0]["a"]
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(draws(oc.add_noise(1.0), 1)[0]["a"], expected)


def test_both_parts_of_a_complex_gradient_get_half_of_the_variance():
    noise = draws(oc.add_noise(1.0), 1, jnp.zeros(40_000, jnp.complex64))[0]
    np.testing.assert_allclose([np.std(noise.real), np.std(noise.imag)], 0.5**0.5, rtol=0.02)


# Seeds, keys, members ---------------------------------------------------------------------------------------------------

SMALL = jnp.zeros(5)


def first_draw(tx, state=None):
    return np.asarray(tx.update(SMALL, tx.init(SMALL) if state is None else state)[0])


@pytest.mark.parametrize(
    "seed",
    [
        jax.random.key(3, impl="threefry2x32"),
        jax.random.PRNGKey(3),
        np.asarray(jax.random.PRNGKey(3)),
        jnp.array(3),
        np.int64(3),
    ],
    ids=["typed", "raw", "raw on the host", "an array", "numpy"],
)
def test_a_key_is_as_good_as_the_integer_that_it_was_made_of(seed):
    tx = oc.add_noise(1.0, seed=seed)
    np.testing.assert_array_equal(first_draw(tx), first_draw(oc.add_noise(1.0, seed=3)))
    assert tx == oc.add_noise(1.0, seed=seed)
    assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx
    assert eval(repr(tx), {"add_noise": oc.add_noise, "jnp": jnp}) == tx
    assert pickle.loads(pickle.dumps(tx)) == tx


def test_a_key_of_another_generator_gives_noise_of_its_own():
    draws = [first_draw(oc.add_noise(1.0, seed=jax.random.key(seed, impl="rbg"))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.isclose(draws[0], draws[2]).any()


SEEDS = {
    "integers": lambda: jnp.arange(4),
    "typed keys": lambda: jax.random.split(jax.random.key(7, impl="threefry2x32"), 4),
    "raw keys": lambda: jax.random.split(jax.random.PRNGKey(7), 4),
}


@pytest.mark.parametrize("kind", SEEDS)
def test_each_member_of_a_sweep_has_the_noise_of_its_seed(kind):
    seeds, tx = SEEDS[kind](), oc.chain(oc.add_noise(1.0), oc.sgd(0.5))
    states, axes = oc.sweep(tx.init(SMALL), seed=seeds, learning_rate=jnp.full(4, 0.5))
    step = jax.vmap(lambda state: tx.update(SMALL, state), in_axes=(axes,), out_axes=(0, axes))
    updates, states = step(states)
    for seed, update in zip(seeds, updates, strict=True):
        np.testing.assert_allclose(update, -0.5 * first_draw(oc.add_noise(1.0, seed=seed)), rtol=1e-6)
    assert np.unique(updates[:, 0]).size == 4
    assert np.shape(states["add_noise"]["count"]) == ()


def test_without_seeds_the_members_of_a_sweep_have_the_noise_of_a_run_alone():
    tx = oc.chain(oc.add_noise(1.0, seed=5), oc.sgd(0.5))
    states, axes = oc.sweep(tx.init(SMALL), learning_rate=jnp.full(3, 0.5))
    updates = jax.vmap(lambda state: tx.update(SMALL, state)[0], in_axes=(axes,))(states)
    for update in updates:
        np.testing.assert_allclose(update, -0.5 * first_draw(oc.add_noise(1.0, seed=5)), rtol=1e-6)


@pytest.mark.parametrize("kind", SEEDS)
def test_a_vmapped_init_takes_a_seed_for_each_member(kind):
    seeds = SEEDS[kind]()
    states = jax.vmap(lambda seed: oc.add_noise(1.0, seed=seed).init(SMALL))(seeds)
    drawn = jax.vmap(lambda state: oc.add_noise(1.0).update(SMALL, state)[0])(states)
    for seed, noise in zip(seeds, drawn, strict=True):
        np.testing.assert_allclose(noise, first_draw(oc.add_noise(1.0, seed=seed)), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oc.add_noise(1.0, seed=-1), "seed must be an integer >= 0; got -1"),
        (lambda: oc.add_noise(1.0, seed=1.5), "seed must be an integer >= 0; got 1.5"),
        (
            lambda: oc.add_noise(1.0, seed=jnp.ones(3)),
            r"seed must be an integer or a key; got an array of shape \(3,\)",
        ),
        (
            lambda: oc.add_noise(1.0, seed=SEEDS["typed keys"]()),
            r"seed must be one key; got an array of them, of shape",
        ),
        (
            lambda: jax.jit(lambda s: oc.add_noise(1.0, seed=s).init(SMALL))(0.5),
            "seed must be an integer or a key; got a tr",
        ),
        (lambda: oc.sweep(oc.sgd(0.1).init(SMALL), seed=jnp.arange(2)), "no add_noise that would draw from them"),
        (
            lambda: oc.sweep(oc.add_noise(1.0).init(SMALL), seed=jnp.array([0, -1])),
            "seeds must be integers >= 0 or keys",
        ),
        (lambda: oc.sweep(oc.add_noise(1.0).init(SMALL), seed=3), "sweep needs one seed a member"),
        (
            lambda: oc.sweep(
                oc.chain(oc.add_noise(1.0), oc.sgd(0.1)).init(SMALL), seed=jnp.arange(2), learning_rate=jnp.ones(3)
            ),
            r"arrays of one length; got learning_rate: \(3,\), seed: \(2, 2\)",
        ),
    ],
)
def test_what_is_no_seed_says_what_one_is(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
