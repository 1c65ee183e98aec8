"""`make_step`: one compiled step, in place, that returns its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

X = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]])
Y = X @ jnp.array([1.0, -2.0])


def fresh():
    return {"w": jnp.zeros(2), "b": jnp.zeros(())}


def mse(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def by_hand(tx, params, state, *batch, loss_fn=mse):
    loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
    params, state = tx.apply(params, state, grads=grads)
    return params, state, loss


def test_a_step_is_the_gradient_and_apply():
    tx = oc.adamw(0.1, global_clipnorm=1.0)
    step = oc.make_step(mse, tx)
    params, state = fresh(), tx.init(fresh())
    expected, expected_state = fresh(), tx.init(fresh())
    for _ in range(5):
        params, state, metrics = step(params, state, X, Y)
        expected, expected_state, loss = by_hand(tx, expected, expected_state, X, Y)
        np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert metrics.keys() == {"loss", *oc.metrics(state)}
    assert {"learning_rate", "global_norm"} < metrics.keys()
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)


def test_training_lowers_the_loss_and_compiles_once():
    tx = oc.adam(0.1)
    step = oc.make_step(mse, tx)
    params, state = fresh(), tx.init(fresh())
    losses = []
    for _ in range(100):
        params, state, metrics = step(params, state, X, Y)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 1e-2 * losses[0]
    assert step._cache_size() == 1


def test_parameters_and_state_are_donated_and_the_batch_is_not():
    tx = oc.adamw(0.1, use_ema=True)
    step = oc.make_step(mse, tx)
    params, state = fresh(), tx.init(fresh())
    new_params, new_state, _ = step(params, state, X, Y)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert state["scale_by_adam"]["mu"]["w"].is_deleted()
    assert not X.is_deleted()
    step(new_params, new_state, X, Y)


def test_the_scale_of_the_loss_cancels_and_the_loss_that_is_told_is_not_scaled():
    results = []
    for scale in (None, 2.0**10):
        tx = oc.sgd(0.1, loss_scale_factor=scale)
        step = oc.make_step(mse, tx)
        params, _, metrics = step(fresh(), tx.init(fresh()), X, Y)
        results.append((params["w"], metrics["loss"]))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    assert float(results[0][1]) == float(results[1][1])


def test_a_loss_scale_saves_gradients_that_float16_loses():
    def tiny(params, x, y):
        return (params["w"].astype(jnp.float16) * x * y).sum()

    small = jnp.full(2, 1e-4, jnp.float16)
    lost, kept = [
        oc.make_step(tiny, tx)(fresh(), tx.init(fresh()), small, small)[0]["w"]
        for tx in (oc.sgd(1.0), oc.sgd(1.0, loss_scale_factor=2.0**12))
    ]
    np.testing.assert_array_equal(lost, 0.0)
    np.testing.assert_allclose(kept, -1e-8, rtol=0.01)


def test_aux_comes_back_beside_the_loss():
    def with_aux(params, x, y):
        return mse(params, x, y), {"predictions": x @ params["w"]}

    tx = oc.sgd(0.1)
    _, _, metrics = oc.make_step(with_aux, tx, has_aux=True)(fresh(), tx.init(fresh()), X, Y)
    assert metrics["aux"]["predictions"].shape == (4,)
    assert "aux" not in oc.make_step(mse, tx)(fresh(), tx.init(fresh()), X, Y)[2]


def test_the_batch_may_be_any_number_of_pytrees():
    def loss(params, batch, factor):
        return factor * mse(params, batch["x"], batch["y"])

    tx = oc.sgd(0.1)
    params, _, _ = oc.make_step(loss, tx)(fresh(), tx.init(fresh()), {"x": X, "y": Y}, 2.0)
    expected, _, _ = oc.make_step(mse, oc.sgd(0.2))(fresh(), oc.sgd(0.2).init(fresh()), X, Y)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6)


def test_the_loss_is_handed_to_links_that_ask_for_it():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    tx = oc.chain(oc.scale_by_learning_rate(0.0), ("plateau", plateau))
    step = oc.make_step(mse, tx)
    params, state = fresh(), tx.init(fresh())
    for _ in range(5):
        params, state, _ = step(params, state, X, Y)
    assert float(state["plateau"].scale) < 1.0


def test_an_optax_transformation_is_stepped_too():
    tx = optax.adam(0.1)
    params, _, metrics = oc.make_step(mse, tx)(fresh(), tx.init(fresh()), X, Y)
    updates, _ = tx.update(jax.grad(mse)(fresh(), X, Y), tx.init(fresh()), fresh())
    np.testing.assert_allclose(params["w"], updates["w"], rtol=1e-6)
    assert metrics.keys() == {"loss"}


def test_four_accumulated_steps_are_one_step_on_the_whole_batch():
    whole, parts = oc.adamw(0.1), oc.adamw(0.1, gradient_accumulation_steps=4)
    expected, _, _ = oc.make_step(mse, whole)(fresh(), whole.init(fresh()), X, Y)
    step, params, state = oc.make_step(mse, parts), fresh(), parts.init(fresh())
    for row in range(4):
        params, state, _ = step(params, state, X[row : row + 1], Y[row : row + 1])
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)
    assert step._cache_size() == 1


def test_a_step_runs_in_a_scan_and_under_vmap():
    tx = oc.adamw(0.1, use_ema=True)
    step = oc.make_step(mse, tx)

    @jax.jit
    def many(params):
        def body(carry, _):
            *carry, metrics = step(*carry, X, Y)
            return tuple(carry), metrics["loss"]

        return jax.lax.scan(body, (params, tx.init(params)), length=4)

    _, losses = many(fresh())
    assert losses.shape == (4,)
    assert (np.diff(losses) < 0).all()
    both = jax.tree.map(lambda p: jnp.stack([p, p + 1.0]), fresh())
    states = jax.vmap(tx.init)(both)
    stepped, _, _ = jax.vmap(lambda p, s: step(p, s, X, Y))(both, states)
    single, _, _ = step(fresh(), tx.init(fresh()), X, Y)
    np.testing.assert_allclose(stepped["w"][0], single["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "has_aux"),
    [
        (lambda params, x, y: (mse(params, x, y), 1.0), False),
        (mse, True),
        (lambda params, x, y: x @ params["w"] - y, False),
    ],
    ids=["aux_not_declared", "no_aux", "not_a_scalar"],
)
def test_a_loss_of_another_kind_than_declared_is_a_type_error(loss_fn, has_aux):
    tx = oc.sgd(0.1)
    with pytest.raises(TypeError):
        oc.make_step(loss_fn, tx, has_aux=has_aux)(fresh(), tx.init(fresh()), X, Y)


def test_a_step_takes_the_weight_of_its_batch():
    tx = oc.sgd(0.1, gradient_accumulation_steps=2)
    step = oc.make_step(mse, tx)
    params, state = fresh(), tx.init(fresh())
    for rows in (slice(0, 3), slice(3, 4)):
        params, state, _ = step(params, state, X[rows], Y[rows], weight=jnp.array(float(len(X[rows]))))
    whole = oc.sgd(0.1)
    expected, _, _ = oc.make_step(mse, whole)(fresh(), whole.init(fresh()), X, Y)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


def test_a_weight_that_no_link_takes_is_an_error():
    tx = oc.sgd(0.1)
    with pytest.raises(TypeError, match="the call gave a weight, and nothing in sgd would use it"):
        oc.make_step(mse, tx)(fresh(), tx.init(fresh()), X, Y, weight=2.0)


def test_a_step_over_a_mesh_takes_the_weight_too():
    tx, mesh = oc.sgd(0.1, gradient_accumulation_steps=2), jax.make_mesh((1,), ("data",))
    step = oc.make_step(mse, tx, mesh=mesh)
    params, state = fresh(), tx.init(fresh())
    for weight in (3.0, 1.0):
        params, state, _ = step(params, state, X, Y, weight=weight)
    expected, _, _ = oc.make_step(mse, oc.sgd(0.1))(fresh(), oc.sgd(0.1).init(fresh()), X, Y)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


def test_optax_multi_steps_are_stepped_too():
    tx = optax.MultiSteps(optax.adam(0.1), 2)
    step = oc.make_step(mse, tx)
    params, state = fresh(), tx.init(fresh())
    for _ in range(2):
        params, state, _ = step(params, state, X, Y)
    expected, _, _ = oc.make_step(mse, optax.adam(0.1))(fresh(), optax.adam(0.1).init(fresh()), X, Y)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)
