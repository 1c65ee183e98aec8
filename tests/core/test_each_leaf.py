"""`each_leaf`: what a step and a leaf see, and what comes back."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optchain.core.each_leaf import each_leaf

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64]


# No link puts complex values beside real ones.
PAIRS = [(a, b) for a, b in itertools.product(DTYPES, DTYPES) if a == jnp.complex64 or b != jnp.complex64]


@pytest.mark.parametrize(("dtype", "other"), PAIRS)
def test_all_that_meets_a_leaf_has_its_wide_dtype_or_its_real_parts(dtype, other):
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32

    def step(rate, constant):
        assert rate.dtype == jnp.float32
        assert constant == 0.5
        assert isinstance(constant, float)

        def leaf(g, x, flag):
            assert g.dtype == wide
            assert x.dtype == (jnp.complex64 if other == jnp.complex64 else jnp.float32)
            assert flag is True
            return g + rate * constant * x

        return leaf

    rate = jnp.asarray(3.0, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        (result,) = each_leaf(step, [jnp.ones(2, dtype)], [jnp.full(2, 2, other)], [True], rate=rate, constant=0.5)
    assert result.dtype == wide
    np.testing.assert_array_equal(result, [4, 4])


def test_a_step_runs_once_for_each_dtype_of_arithmetic():
    seen = Counter()

    def step(rate):
        seen[rate.dtype] += 1
        return lambda g: rate * g

    updates = {str(i): jnp.ones(2, dtype) for i, dtype in enumerate(DTYPES * 2)}
    each_leaf(step, updates, rate=jnp.float32(1))
    assert seen == {jnp.dtype(jnp.float32): 1}
    with jax.enable_x64(True):
        each_leaf(step, updates | {"wide": jnp.ones(2, jnp.float64)}, rate=jnp.float32(1))
    assert seen == {jnp.dtype(jnp.float32): 2, jnp.dtype(jnp.float64): 1}


def test_several_outputs_are_as_many_trees():
    tree = {"a": jnp.arange(3.0), "b": [jnp.ones(())]}
    double, negative = each_leaf(lambda: lambda g: (2 * g, -g), tree, outputs=2)
    assert jax.tree.structure(double) == jax.tree.structure(negative) == jax.tree.structure(tree)
    for g, d, n in zip(*map(jax.tree.leaves, (tree, double, negative)), strict=True):
        np.testing.assert_array_equal(d, 2 * g)
        np.testing.assert_array_equal(n, -g)


def test_what_lies_beside_a_leaf_may_be_a_tuple():
    tree, pairs = [jnp.ones(1), jnp.ones(1)], [(1.0, 2.0), (3.0, 4.0)]
    result = each_leaf(lambda: lambda g, pair: g * pair[0] + pair[1], tree, pairs)
    assert list(itertools.chain(*map(np.asarray, result))) == [3.0, 7.0]
