"""A gradient that names rows gives the numbers of the dense gradient with zeros elsewhere (in float64, to 1e-12)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

from .tables import batches, dense, named, params

RECIPES = {
    "adamw": lambda: oc.adamw(0.1, weight_decay=0.1, amsgrad=True, use_ema=True),
    "adam_clipnorm": lambda: oc.adam(0.1, clipnorm=0.5),
    "sgd_momentum_clipvalue": lambda: oc.sgd(0.1, 0.9, nesterov=True, clipvalue=0.5),
    "rmsprop_global_clipnorm": lambda: oc.rmsprop(0.1, momentum=0.5, centered=True, global_clipnorm=0.5),
    "accumulate": lambda: oc.adamw(
        0.1, global_clipnorm=0.5, use_ema=True, loss_scale_factor=8.0, gradient_accumulation_steps=3
    ),
    "gates": lambda: oc.dynamic_loss_scale(oc.skip_nonfinite(oc.accumulate(oc.adam(0.1), 2)), 8.0, 2),
    "optax": lambda: oc.chain(oc.clip_by_norm(0.5), ("adam", optax.adam(0.1))),
    "parts": lambda: oc.multi_optimizer(
        ("tables", "table", oc.adam(0.1, clipnorm=0.5)),
        default=oc.freeze(oc.sgd(0.1), oc.matching("bias", allow_unmatched=True)),
    ),
    "masked": lambda: oc.masked(oc.chain(oc.clip_by_block_rms(0.3), oc.adafactor(0.1)), oc.matching("table")),
}


def run(tx, gradients, step):
    """The parameters after every step, and the last state."""
    history, carry = [], (jax.device_put(params()), tx.init(jax.device_put(params())))
    for batch in batches():
        carry = step(tx, *carry, gradients(batch))
        history.append(carry[0])
    return history, carry[1]


@jax.jit
def apply(tx, params, state, grads):
    return tx.apply(params, state, grads=grads)


@jax.jit
def update(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def assert_equal_to_1e_12(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), actual, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("step", [apply, update], ids=["apply", "update"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_give_the_numbers_of_the_dense_gradient(recipe, step):
    with jax.enable_x64(True):
        tx = RECIPES[recipe]()
        assert_equal_to_1e_12(run(tx, named, step), run(tx, dense, apply))


def test_rows_that_are_not_named_decay_and_move():
    """What TensorFlow and Keras write of their sparse Adam: it is the dense one."""
    tx, table = oc.adam(0.1), jnp.zeros((2, 1))
    state, moved = tx.init(table), []
    for row in (0, 1):
        grad = oc.RowGradient(jnp.array([row]), jnp.ones((1, 1)), (2, 1))
        table, state = tx.apply(table, state, grads=grad)
        moved.append(float(table[0, 0]))
    assert moved[1] < moved[0] < 0


def test_a_bad_row_is_skipped_and_bad_padding_is_not():
    tx = oc.skip_nonfinite(oc.sgd(1.0))
    table = jnp.zeros((2, 1))
    bad = jnp.array([[jnp.nan], [1.0]])
    for indices, skipped in (([0, 1], 1), ([-1, 1], 0)):
        _, state = tx.apply(table, tx.init(table), grads=oc.RowGradient(jnp.array(indices), bad, (2, 1)))
        assert int(state["skipped_steps"]) == skipped


@pytest.mark.thorough
def test_narrow_rows_are_added_up_in_float32():
    indices, rows = jnp.zeros(512, jnp.int32), jnp.ones((512, 1), jnp.bfloat16)
    tx = oc.sgd(1.0)
    table = jnp.zeros((1, 1))
    table, _ = tx.apply(table, tx.init(table), grads=oc.RowGradient(indices, rows, (1, 1)))
    assert float(table[0, 0]) == -512  # in bfloat16 the sum stops at 256


def test_an_accumulating_call_makes_no_array_of_the_tables_size():
    height, width = 4096, 64
    tx, table = oc.accumulate(oc.sgd(0.1), 4), jax.ShapeDtypeStruct((height, width), jnp.float32)
    grad = oc.RowGradient(*jax.eval_shape(lambda: (jnp.zeros(16, jnp.int32), jnp.zeros((16, width)))), (height, width))

    def step(params, state, grad):
        return tx.apply(params, state, grads=grad)

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(table, jax.eval_shape(tx.init, table), grad).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * height * width * 4


@pytest.mark.for_release
@pytest.mark.parametrize("indices", [[[0, 1], [1, 2]], [[0, 0], [-1, 0]]])
def test_replicas_gather_their_rows(indices):
    tx = oc.chain(oc.cross_replica_mean("batch"), oc.sgd(1.0, global_clipnorm=1.0))
    rows = jnp.arange(1.0, 5.0).reshape(2, 2, 1)
    table = jnp.zeros((3, 1))

    def step(indices, rows):
        grad = oc.RowGradient(indices, rows, (3, 1))
        named, _ = tx.apply(table, tx.init(table), grads=grad)
        dense, _ = tx.apply(table, tx.init(table), grads=grad.dense())
        return named, dense

    named, dense = jax.vmap(step, axis_name="batch")(jnp.array(indices), rows)
    np.testing.assert_allclose(named, dense, rtol=1e-6)
    assert np.abs(named).max() > 0
