"""`rows_of` and `value_and_grad`: JAX's gradient, in rows where the loss does nothing but look up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

HEIGHT, WIDTH = 6, 2
IDS = jnp.array([[4, 1], [4, -1], [0, HEIGHT]])


def params():
    rng = np.random.default_rng(0)
    return {"table": jnp.asarray(rng.normal(size=(HEIGHT, WIDTH))), "head": jnp.asarray(rng.normal(size=WIDTH))}


def loss_of(look_up):
    """A loss from the rows of `look_up(table)`."""
    return lambda params: jnp.sum(jnp.tanh(look_up(params["table"]) @ params["head"]) ** 2)


def checked(loss_fn, *args, has_aux=False):
    """The gradients, which are JAX's as arrays."""
    value, grads = oc.value_and_grad(loss_fn, has_aux=has_aux)(params(), *args)
    expected_value, expected = jax.value_and_grad(loss_fn, has_aux=has_aux)(params(), *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), value, expected_value)
    for name, grad in grads.items():
        array = grad.dense() if isinstance(grad, oc.RowGradient) else grad
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    return grads


def twice(table):
    return jnp.concatenate([oc.rows_of(table, IDS[0]), oc.rows_of(table, IDS[1])])


NAMED = {
    "a batch": (lambda table: oc.rows_of(table, IDS), 6),
    "one row": (lambda table: oc.rows_of(table, jnp.int8(3)), 1),
    "several lookups": (twice, 4),
    "under jit": (jax.jit(lambda table: oc.rows_of(table, IDS)), 6),
    "under vmap": (lambda table: jax.vmap(lambda i: oc.rows_of(table, i))(IDS), 6),
    "indices that depend on rows": (
        lambda table: oc.rows_of(table, jnp.argmax(oc.rows_of(table, IDS[0]), axis=-1)),
        4,
    ),
    "no index": (lambda table: oc.rows_of(table, IDS[:0]), 0),
}
DENSE = {
    "tied": lambda table: oc.rows_of(table, IDS) @ table.T @ table,
    "cast": lambda table: oc.rows_of(table.astype(jnp.float16), IDS).astype(jnp.float32),
    "plain": lambda table: table[jnp.array([0, 3])],
    "scan": lambda table: jax.lax.map(lambda i: oc.rows_of(table, i), IDS),
    "checkpoint": jax.checkpoint(lambda table: oc.rows_of(table, IDS)),
    "tied under jit": jax.jit(lambda table: oc.rows_of(table, IDS) + table.sum()),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", NAMED)
def test_a_table_that_is_only_looked_up_in_gets_a_gradient_that_names_rows(case):
    look_up, n = NAMED[case]
    grads = checked(loss_of(look_up))
    assert isinstance(grads["table"], oc.RowGradient)
    assert grads["table"].rows.shape == (n, WIDTH)
    assert not isinstance(grads["head"], oc.RowGradient)


@pytest.mark.parametrize("case", DENSE)
def test_a_table_that_is_used_otherwise_gets_the_dense_gradient(case):
    assert not isinstance(checked(loss_of(DENSE[case]))["table"], oc.RowGradient)


def test_an_auxiliary_result_comes_along():
    loss = loss_of(lambda table: oc.rows_of(table, IDS))
    grads = checked(lambda params, offset: (loss(params) + offset, {"offset": offset, "none": None}), 3.0, has_aux=True)
    assert isinstance(grads["table"], oc.RowGradient)


def test_custom_derivatives_within_the_loss_are_kept():
    @jax.custom_vjp
    def double(x):
        return x

    double.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))
    loss = loss_of(lambda table: double(jax.nn.relu(oc.rows_of(table, IDS))))
    assert isinstance(checked(loss)["table"], oc.RowGradient)


def test_the_loss_is_traced_once():
    traced = []

    def loss_fn(params):
        traced.append(1)
        return loss_of(lambda table: oc.rows_of(table, IDS))(params)

    jax.jit(oc.value_and_grad(loss_fn))(params())
    assert len(traced) == 1


def test_rows_of_refuses_what_is_no_lookup():
    with pytest.raises(TypeError, match="indices must be integers; got dtype float32"):
        oc.rows_of(jnp.ones((2, 2)), jnp.zeros(1))
    with pytest.raises(ValueError, match="table must have an axis of rows"):
        oc.rows_of(jnp.ones(()), jnp.zeros(1, int))


def test_make_step_names_rows_and_scales_the_loss():
    tx = oc.chain(oc.unscale_gradients(1024.0), oc.lazy_rows(oc.sgd(0.1, momentum=0.5)))
    loss_fn = loss_of(lambda table: oc.rows_of(table, IDS))
    before = params()
    step, state = oc.make_step(loss_fn, tx), tx.init(params())
    after, _, metrics = step(params(), state)
    expected = jax.grad(loss_fn)(before)
    for name in before:
        np.testing.assert_allclose(after[name], before[name] - 0.1 * expected[name], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss_fn(before), rtol=1e-6)
