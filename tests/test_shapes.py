"""`init` on shapes: under `jax.eval_shape` it gives the shapes of the state, and called as it is says so."""

import jax
import jax.numpy as jnp
import pytest
from contract.table import every_row
from contract.trees import params_of

import optchain as oc


@every_row
def test_eval_shape_gives_the_shapes_of_the_state_and_init_says_so(row):
    tx, params = row.make(), params_of()
    shapes = jax.eval_shape(lambda: params)
    wanted = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tx.init(params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(tx.init, shapes)) == wanted
    with pytest.raises(TypeError) as raised:
        tx.init(shapes)
    assert str(raised.value).startswith('params["dense"]["bias"] is a jax.ShapeDtypeStruct')
    assert "jax.eval_shape(tx.init, params)" in str(raised.value)


def test_a_tree_of_which_some_leaves_are_shapes_names_the_first():
    params = {"a": jnp.ones(2), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(TypeError, match=r'params\["b"\] is a jax.ShapeDtypeStruct'):
        oc.adam(0.1, use_ema=True).init(params)
