"""A link on parameters hands them on in their own dtypes, whatever it computes in."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optchain as oc


def halves(dtype):
    return oc.chain(oc.sgd(0.1), oc.ParameterLink(lambda p, s: (jax.tree.map(lambda x: x.astype(dtype) / 2, p), s)))


@pytest.mark.parametrize(("dtype", "own"), [("float32", "bfloat16"), ("float16", "float32")])
def test_parameters_keep_their_dtypes_in_both_forms(dtype, own):
    tx, params = halves(dtype), {"w": jnp.full(2, 3, own)}
    state = tx.init(params)
    applied, _ = tx.apply(params, state, grads=params)
    updates, _ = tx.update(params, state, params)
    assert applied["w"].dtype == optax.apply_updates(params, updates)["w"].dtype == own
    assert jnp.allclose(applied["w"], optax.apply_updates(params, updates)["w"], rtol=1e-2)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda x: (10 * x).astype(int), r"returned params\[\"w\"\] has dtype int32"),
        (lambda x: x * 1j, r"is complex \(complex64\), its parameter is real \(float32\)"),
    ],
)
def test_what_parameters_cannot_be_is_refused(convert, message):
    tx = oc.chain(oc.sgd(0.1), oc.ParameterLink(lambda p, s: (jax.tree.map(convert, p), s)))
    params = {"w": jnp.ones(2)}
    for form in (
        lambda: tx.apply(params, tx.init(params), grads=params),
        lambda: tx.update(params, tx.init(params), params),
    ):
        with pytest.raises(TypeError, match=message):
            form()
