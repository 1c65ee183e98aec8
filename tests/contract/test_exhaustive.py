"""The full product of rows, trees, dtypes and JAX transforms: `pytest --tier exhaustive`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .steps import apply_step, assert_close, avals, run, update_step
from .table import every_row
from .trees import TREES, grads_of, params_of

every_tree = pytest.mark.parametrize("tree", TREES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "complex64", "complex128"])
STEPS = 3


def eagerly(tx, tree, dtype):
    params = params_of(tree, dtype)
    state = tx.init(params)
    for number in range(STEPS):
        params, state = tx.apply(params, state, grads=grads_of(tree, dtype, number))
    return params, state


def in_update_form(tx, tree, dtype):
    return run(tx, tree, dtype, steps=STEPS, step=update_step)


def in_a_scan(tx, tree, dtype):
    params = params_of(tree, dtype)
    grads = jax.tree.map(lambda *g: jnp.stack(g), *(grads_of(tree, dtype, number) for number in range(STEPS)))

    @jax.jit
    def scanned(params, state, grads):
        return jax.lax.scan(lambda c, g: (tx.apply(*c, grads=g), None), (params, state), grads, length=STEPS)[0]

    return scanned(params, tx.init(params), grads)


def vmapped(tx, tree, dtype):
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params_of(tree, dtype))
    state = jax.vmap(tx.init, axis_size=2)(params)
    for number in range(STEPS):
        grads = grads_of(tree, dtype, number)
        params, state = jax.jit(jax.vmap(lambda p, s, g=grads: tx.apply(p, s, grads=g), axis_size=2))(params, state)
    return jax.tree.map(lambda x: x[0], (params, state))


def under_strict_promotion(tx, tree, dtype):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return run(tx, tree, dtype, steps=STEPS)


def under_debug_nans(tx, tree, dtype):
    with jax.debug_nans(True):
        return run(tx, tree, dtype, steps=STEPS)


def donated(tx, tree, dtype):
    params = params_of(tree, dtype)
    state = tx.init(params)
    step = jax.jit(apply_step.__wrapped__, donate_argnums=(1, 2))
    for number in range(STEPS):
        params, state = step(tx, params, state, grads_of(tree, dtype, number))
    return params, state


WAYS = [eagerly, in_update_form, in_a_scan, vmapped, under_strict_promotion, under_debug_nans, donated]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@every_dtype
@every_tree
@every_row
def test_every_way_of_running_gives_the_same_numbers(row, tree, dtype, way):
    if dtype.startswith("complex") and row.refuses_complex:
        pytest.skip("refuses complex leaves")
    if way is under_strict_promotion and not row.owns_all_state:
        pytest.skip("Optax's own links promote")
    with jax.enable_x64(dtype in ("float64", "complex128")):
        tx = row.make()
        expected = run(tx, tree, dtype, steps=STEPS)
        actual = way(tx, tree, dtype)
        assert avals(expected) == avals((params := params_of(tree, dtype), tx.init(params)))
        assert_close(actual, expected, dtype, roundings=64)


@every_dtype
@every_tree
@every_row
def test_the_gradient_through_two_steps_is_no_nan_at_zero(row, tree, dtype):
    if dtype.startswith("complex") and row.refuses_complex:
        pytest.skip("refuses complex leaves")
    if not row.owns_all_state:
        pytest.skip("Optax's own Adam has no derivative at zero")
    with jax.enable_x64(dtype in ("float64", "complex128")):
        tx = row.make()
        zeros = jax.tree.map(jnp.zeros_like, params_of(tree, dtype))

        @jax.jit
        @jax.grad
        def gradient(inputs):
            params, grads = inputs
            carry = tx.apply(params, tx.init(zeros), grads=grads)
            params, _ = tx.apply(*carry, grads=grads)
            total = sum((jnp.sum(jnp.real(leaf)).astype(float) for leaf in jax.tree.leaves(params)), jnp.zeros(()))
            return total.astype(float)

        for leaf in jax.tree.leaves(gradient((zeros, zeros))):
            # Adam's own slope at zero, the rate over epsilon, is more than float16 can hold.
            assert not np.isnan(np.asarray(leaf).astype(np.complex128)).any()
