"""`RowGradient`: what it stands for, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

from .tables import HEIGHT, WIDTH, batches, dense, named

GRADS = [(named(batch)["table"], dense(batch)["table"]) for batch in batches(np.float32)]


@pytest.mark.parametrize(("rows", "expected"), GRADS)
def test_dense_adds_duplicates_and_drops_padding(rows, expected):
    np.testing.assert_allclose(rows.dense(), expected, rtol=1e-6)


@pytest.mark.parametrize(("rows", "expected"), GRADS)
def test_merged_it_names_every_row_once_in_order_and_what_it_drops_is_zero(rows, expected):
    merged = rows.merge()
    assert merged.rows.shape == rows.rows.shape
    indices = np.asarray(merged.indices)
    assert (np.diff(indices) > 0).all()
    assert set(indices[indices < HEIGHT]) == {i for i in np.asarray(rows.indices) if 0 <= i < HEIGHT}
    np.testing.assert_array_equal(merged.rows[indices >= HEIGHT], 0)
    np.testing.assert_allclose(merged.dense(), expected, rtol=1e-6)


@pytest.mark.thorough
def test_what_padding_holds_does_not_matter():
    rows = jnp.array([[1.0], [jnp.nan], [jnp.inf]])
    grad = oc.RowGradient(jnp.array([0, -1, 2]), rows, (2, 1))
    np.testing.assert_array_equal(grad.dense(), [[1.0], [0.0]])
    assert np.isfinite(grad.merge().rows).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
def test_indices_of_any_integer_dtype_name_rows_of_a_long_table(dtype):
    grad = oc.RowGradient(jnp.array([100, 3, 3], dtype), jnp.ones(3), (1000,))
    np.testing.assert_array_equal(np.nonzero(grad.merge().dense())[0], [3, 100])
    np.testing.assert_array_equal(np.nonzero(grad.dense())[0], [3, 100])


def test_no_index_names_no_row():
    grad = oc.RowGradient(jnp.zeros(0, jnp.int32), jnp.zeros((0, WIDTH)), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(grad.merge().dense(), np.zeros((HEIGHT, WIDTH)))


def test_it_passes_through_jit_and_tells_its_leaves_by_name():
    grad = GRADS[0][0]
    np.testing.assert_array_equal(jax.jit(lambda g: g)(grad).rows, grad.rows)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(grad)[0]]
    assert paths == [".indices", ".rows"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="indices must be integers; got dtype float32"):
        oc.RowGradient(jnp.zeros(2), jnp.zeros((2, 3)), (5, 3))
    for indices, rows, shape in [
        ((2,), (3, 3), (5, 3)),
        ((2,), (2, 4), (5, 3)),
        ((2, 1), (2, 3), (5, 3)),
        ((2,), (2,), ()),
    ]:
        with pytest.raises(ValueError, match=r"a table of shape .* needs indices of shape \(n,\)"):
            oc.RowGradient(jnp.zeros(indices, jnp.int32), jnp.zeros(rows), shape)


def test_a_gradient_of_another_tables_shape_is_refused_by_path():
    tx, params = oc.sgd(0.1), {"table": jnp.zeros((4, 3))}
    grads = {"table": oc.RowGradient(jnp.zeros(1, jnp.int32), jnp.zeros((1, 3)), (5, 3))}
    with pytest.raises(ValueError, match=r'grads\["table"\]: shape \(5, 3\), params have \(4, 3\)'):
        tx.apply(params, tx.init(params), grads=grads)
