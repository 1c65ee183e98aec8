"""Paths, checks, dtypes, norms: what every transformation stands on."""

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optchain.core import trees


def paths(tree):
    return [trees.path_string(path) for path, _ in trees.leaves_with_paths(tree)]


def codes(tree):
    return [trees.path_code("grads", path) for path, _ in trees.leaves_with_paths(tree)]


def test_paths_are_keys_joined_by_slashes_on_every_container():
    leaf = np.zeros(1)
    assert paths({"a": [leaf, {"b": leaf}], "c": (leaf,)}) == ["a/0", "a/1/b", "c/0"]
    assert paths(flax.core.freeze({"a": {"b": leaf}})) == ["a/b"]
    assert paths(nnx.State({"a": {0: nnx.Param(jnp.asarray(leaf))}})) == ["a/0"]


def test_the_code_of_a_path_reaches_the_leaf():
    tree = {"dense": {"bias": np.zeros(1)}, "list": [np.zeros(1)]}
    assert codes(tree) == ['grads["dense"]["bias"]', 'grads["list"][0]']
    for (path, leaf), code in zip(trees.leaves_with_paths(tree), codes(tree), strict=True):
        assert eval(code, {"grads": tree}) is leaf, path
    assert codes({1: np.zeros(1), 2: np.zeros(1)}) == ["grads[1]", "grads[2]"]
    assert codes(np.zeros(1)) == ["grads"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_narrow_leaves_are_widened_to_float32_and_others_are_not_touched(dtype):
    assert trees.wide(jnp.ones(2, dtype)).dtype == jnp.float32
    x = jnp.ones(2)
    assert trees.wide(x) is x
    assert trees.wide(jnp.ones(2, jnp.complex64)).dtype == jnp.complex64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_norms_are_those_of_numpy_in_float64(dtype):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(40, 3)), rng.normal(size=7), np.zeros((0, 2))]
    tree = [jnp.asarray(v * (1 + 1j) if dtype == "complex64" else v, dtype) for v in values]
    exact = np.concatenate([np.asarray(leaf).astype(np.complex128).ravel() for leaf in tree])
    norm = jax.jit(trees.global_norm)(tree)
    assert float(norm) == pytest.approx(np.linalg.norm(exact), rel=1e-6)
    assert norm.dtype == jnp.float32
    assert float(jax.jit(trees.norm)(tree[0])) == pytest.approx(
        np.linalg.norm(np.asarray(tree[0]).astype(np.complex128)), rel=1e-6
    )


def test_the_norm_of_large_float16_numbers_is_finite():
    assert float(trees.global_norm([jnp.full(3, 6e4, jnp.float16)])) == pytest.approx(6e4 * 3**0.5, rel=1e-3)


def test_the_norm_of_no_leaves_is_zero():
    assert float(trees.global_norm({"frozen": None})) == 0.0


def test_the_root_has_derivative_zero_at_zero_and_passes_nan_through():
    value, slope = jax.value_and_grad(trees.root)(jnp.array(0.0))
    assert (float(value), float(slope)) == (0.0, 0.0)
    assert float(jax.grad(trees.root)(jnp.array(4.0))) == 0.25
    assert np.isnan(trees.root(jnp.array(jnp.nan)))
    assert float(trees.root(jnp.array(jnp.inf))) == jnp.inf


def test_parameters_and_updates_are_added_wide_and_rounded_once():
    p, u = jnp.array([1.0], jnp.bfloat16), jnp.array([2.0**-9 * 1.25])
    assert float(trees.add(p, u)[0]) == 1.0
    assert trees.add(p, u).dtype == jnp.bfloat16
    # 1 + 2**-8 + 2**-9: rounding the update first would fall below the tie.
    u = jnp.array([2.0**-8 * (1 + 2.0**-9)])
    assert float(trees.add(p, u)[0]) == 1 + 2.0**-7


def test_a_float64_scalar_never_widens_a_float32_leaf():
    with jax.enable_x64(True):
        x = jnp.ones(2, jnp.float32)
        assert (x * trees.cast(jnp.array(0.1, jnp.float64), x)).dtype == jnp.float32
        assert trees.default_float() == jnp.float64
    assert trees.default_float() == jnp.float32


def test_a_counter_stays_at_its_largest_value():
    largest = jnp.iinfo(jnp.int32).max
    assert int(trees.increment(jnp.array(largest, jnp.int32))) == largest
    assert trees.increment(jnp.array(0, jnp.int32)).dtype == jnp.int32
