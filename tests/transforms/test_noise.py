"""`add_noise`: the same call gives the same bits, and the noise has the size that it should."""

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
