"""Equinox's modules: whole ones beside filtered gradients, as masks, in `make_step` and `finalize`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

X = jnp.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]])


class Model(eqx.Module):
    """A callable module with leaves of every kind that Equinox's examples have."""

    mlp: eqx.nn.MLP
    scale: jax.Array
    steps: jax.Array
    name: str = "model"

    def __init__(self):
        self.mlp = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
        self.scale = jnp.ones(1)
        self.steps = jnp.array(3)

    def __call__(self, x):
        return self.scale * self.mlp(x)


def loss_fn(model, x=X):
    return jnp.mean(jax.vmap(model)(x) ** 2)


def arrays(model):
    return eqx.filter(model, eqx.is_inexact_array)


RECIPES = {
    "sgd": (lambda: oc.sgd(0.1), lambda: optax.sgd(0.1)),
    "adam": (
        lambda: oc.chain(oc.scale_by_adam(epsilon=1e-8, epsilon_hat=False), oc.scale_by_learning_rate(0.1)),
        lambda: optax.adam(0.1),
    ),
    "clip": (
        lambda: oc.chain(oc.clip_by_global_norm(0.1), oc.scale_by_learning_rate(0.1)),
        lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    ),
    "a link of Optax's": (lambda: oc.chain(optax.adamw(0.1)), lambda: optax.adamw(0.1)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_whole_module_is_taken_beside_filtered_gradients(recipe):
    ours, theirs = (make() for make in RECIPES[recipe])
    model = expected = fused = Model()
    state, their_state, fused_state = ours.init(arrays(model)), theirs.init(arrays(model)), ours.init(arrays(model))
    for _ in range(2):
        updates, state = ours.update(eqx.filter_grad(loss_fn)(model), state, model)
        model = eqx.apply_updates(model, updates)
        fused, fused_state = ours.apply(fused, fused_state, grads=eqx.filter_grad(loss_fn)(fused))
        updates, their_state = theirs.update(eqx.filter_grad(loss_fn)(expected), their_state, arrays(expected))
        expected = eqx.apply_updates(expected, updates)
    for made in (model, fused):
        assert jax.tree.structure(made) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), arrays(made), arrays(expected))
        assert made.mlp.activation is Model().mlp.activation
        assert int(made.steps) == 3


@pytest.mark.thorough
def test_under_filter_jit_and_in_gates_too():
    tx = oc.skip_nonfinite(oc.adamw(0.1, global_clipnorm=1.0, gradient_accumulation_steps=2))

    @eqx.filter_jit
    def step(model, state):
        updates, state = tx.update(eqx.filter_grad(loss_fn)(model), state, model)
        return eqx.apply_updates(model, updates), state

    model, state = Model(), tx.init(arrays(Model()))
    for _ in range(2):
        model, state = step(model, state)
    assert float(loss_fn(model)) < float(loss_fn(Model()))


def test_what_a_filter_leaves_out_is_left_alone():
    """The frozen half of `eqx.partition`: no state, no gradient, no decay."""
    model = Model()
    spec = eqx.tree_at(lambda m: m.scale, jax.tree.map(lambda _: False, model), True)
    trained, static = eqx.partition(model, spec)
    tx = oc.adamw(0.1, weight_decay=0.1)
    grads = eqx.filter_grad(lambda trained: loss_fn(eqx.combine(trained, static)))(trained)
    updates, _ = tx.update(grads, tx.init(trained), model)
    assert [leaf.shape for leaf in jax.tree.leaves(updates)] == [(1,)]
    new, _ = tx.apply(model, tx.init(trained), grads=grads)
    np.testing.assert_array_equal(new.mlp.layers[0].weight, model.mlp.layers[0].weight)
    assert float(new.scale[0]) != 1.0


def test_a_gradient_that_is_missing_for_a_parameter_with_state_names_it():
    model, tx = Model(), oc.adam(0.1)
    grads = eqx.tree_at(lambda m: m.scale, eqx.filter_grad(loss_fn)(model), None)
    with pytest.raises(ValueError, match=r"updates\.scale is missing, params have an array of shape \(1,\)"):
        tx.update(grads, tx.init(arrays(model)), model)
    with pytest.raises(ValueError, match=r'grads\["w"\] is missing'):
        oc.sgd(0.1).apply({"w": jnp.ones(2)}, oc.sgd(0.1).init({"w": jnp.ones(2)}), grads={"w": None})


# Masks ----------------------------------------------------------------------------------------------------------------


def matrices(model):
    """A mask that is a module, and so can be called."""
    return jax.tree.map(lambda leaf: eqx.is_array(leaf) and leaf.ndim == 2, model)


USES = {
    "masked": lambda mask: oc.masked(oc.scale(0.5), mask),
    "freeze": lambda mask: oc.freeze(oc.adam(0.1), mask),
    "exclude_from_weight_decay": lambda mask: oc.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=mask),
    "decay_weights": lambda mask: oc.decay_weights(0.5, learning_rate=1.0, mask=mask),
    "add_l2_penalty": lambda mask: oc.add_l2_penalty(0.5, mask=mask),
    "multi_optimizer": lambda mask: oc.multi_optimizer(("chosen", mask, oc.sgd(0.1)), default=oc.adam(0.1)),
    "muon": lambda mask: oc.chain(oc.scale_by_muon(mask=mask), oc.scale_by_learning_rate(0.1)),
}


@pytest.mark.parametrize("use", USES)
def test_a_mask_that_is_a_module_is_a_tree_and_not_a_function(use):
    model = Model()
    by_tree, by_function = USES[use](matrices(model)), USES[use](lambda params: matrices(params))
    assert callable(matrices(model))
    grads = eqx.filter_grad(loss_fn)(model)
    made, expected = (
        eqx.filter_jit(tx.update)(grads, tx.init(arrays(model)), model)[0] for tx in (by_tree, by_function)
    )
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def test_a_function_with_bools_bound_to_it_is_a_function():
    mask = jax.tree_util.Partial(lambda flag, params: jax.tree.map(lambda _: flag, params), True)
    params = {"w": jnp.ones(2)}
    updates, _ = oc.masked(oc.scale(0.5), mask).update(params, {}, params)
    np.testing.assert_array_equal(updates["w"], 0.5)


# Steps and evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mesh": jax.make_mesh((1,), ("data",))}], ids=["one device", "mesh"])
def test_make_step_names_the_leaf_of_a_module_that_is_no_array(options):
    tx = oc.adam(0.1)
    step = oc.make_step(loss_fn, tx, **options)
    with pytest.raises(TypeError, match=r"params\.mlp\.activation is .*parameters must be floating-point or complex"):
        step(Model(), tx.init(arrays(Model())), X)
    integers = eqx.filter(Model(), eqx.is_array)
    with pytest.raises(TypeError, match=r"params\.steps has dtype int32"):
        step(integers, tx.init(arrays(Model())), X)


def test_make_step_trains_the_arrays_of_a_module():
    params, static = eqx.partition(Model(), eqx.is_inexact_array)
    tx = oc.adam(0.1)
    step = oc.make_step(lambda params, x: loss_fn(eqx.combine(params, static), x), tx)
    state, losses = tx.init(params), []
    for _ in range(5):
        params, state, metrics = step(params, state, X)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


def test_finalize_takes_a_whole_module_or_its_arrays():
    model, tx = Model(), oc.sgd(0.1, use_ema=True, ema_momentum=0.5)
    state = tx.init(arrays(model))
    for _ in range(2):
        model, state = tx.apply(model, state, grads=eqx.filter_grad(loss_fn)(model))
    average = oc.averaged_params(state)
    for made in (oc.finalize(model, state), oc.finalize(arrays(model), state)):
        jax.tree.map(np.testing.assert_array_equal, arrays(made), arrays(average))
    assert oc.finalize(model, state).mlp.activation is model.mlp.activation
    assert float(jnp.abs(average.scale - model.scale)[0]) > 0
