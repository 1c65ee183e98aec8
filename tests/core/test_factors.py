"""`Factor`: scalars that go beyond float32, and meet leaves as float64 would have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optchain.core.factors import Factor

TINY, MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
NORMAL = st.tuples(st.floats(-126, 127.9), st.sampled_from([-1.0, 1.0])).map(
    lambda drawn: float(np.float32(drawn[1] * 2.0 ** drawn[0]))
)


@jax.jit
def chained(a, b, c, x):
    factor = Factor.of(a) * Factor.of(b) / Factor.of(c)
    return factor.times(x), factor.value


def rounded(exact):
    """A float64 number as float32 has it, where subnormal numbers are 0."""
    with np.errstate(over="ignore", under="ignore"):
        value = np.float32(exact)
    return np.float32(0.0) if abs(value) < TINY else value


@given(a=NORMAL, b=NORMAL, c=NORMAL, x=NORMAL)
def test_products_and_quotients_meet_a_leaf_as_in_float64_however_far_they_go_on_the_way(a, b, c, x):
    leaf, value = chained(*map(jnp.float32, (a, b, c, x)))
    for actual, exact in ((leaf, np.float64(a) * b / c * x), (value, np.float64(a) * b / c)):
        if abs(exact) < 2 * TINY:
            assert abs(float(actual)) <= 4 * TINY
        else:
            np.testing.assert_allclose(actual, rounded(exact), rtol=5e-7)


@given(a=NORMAL, b=NORMAL)
def test_an_ordinary_factor_is_the_bits_of_a_plain_product(a, b):
    product = np.float32(a) * np.float32(b) if 2**-120 < abs(a * b) < 2**127 else None
    if product is not None:
        assert float(chained(jnp.float32(a), jnp.float32(1), jnp.float32(1), jnp.float32(b))[0]) == product


@given(a=NORMAL.map(abs), b=NORMAL.map(abs))
def test_factors_are_compared_as_numbers_are(a, b):
    first, second = Factor.of(jnp.float32(a)), Factor.of(jnp.float32(b))
    assert bool(first.above(second)) == (a > b)
    assert float(first.at_least(second).value) == max(a, b)


def test_zero_infinity_and_nan_come_through():
    for special in (0.0, np.inf, -np.inf, np.nan):
        factor = Factor.of(jnp.float32(special))
        np.testing.assert_array_equal(factor.value, np.float32(special))
        np.testing.assert_array_equal((factor * Factor.of(jnp.float32(2.0))).times(jnp.float32(3.0)), 6 * special)
    assert float(Factor.of(jnp.float32(1.0)).at_least(Factor.of(jnp.float32(0.0))).value) == 1.0
    assert np.isnan(Factor.of(jnp.float32(np.nan)).at_least(Factor.of(jnp.float32(1.0))).value)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_derivatives_are_those_of_the_numbers(dtype):
    def product(a, b, x):
        return jnp.real((Factor.of(a) / Factor.of(b)).times(x.astype(dtype)))

    slopes = jax.grad(product, argnums=(0, 1, 2))(jnp.float32(3.0), jnp.float32(2.0**100), jnp.float32(2.0**101))
    np.testing.assert_allclose(slopes, [2.0, -6 * 2.0**-100, 3 * 2.0**-100], rtol=1e-6)
