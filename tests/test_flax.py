"""`optchain.flax`: Flax's training objects in the `apply` form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import optchain as oc
from optchain.flax import ModelAndOptimizer, Optimizer, TrainState

PARAMS = {"w": jnp.array([1.0, 2.0])}
GRADS = {"w": jnp.array([0.5, -0.5])}


def linear_model():
    return nnx.Linear(2, 1, rngs=nnx.Rngs(0))


def gradients(model):
    return nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2))) ** 2))(model)


def test_train_state_is_flaxs_with_the_same_fields():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=oc.sgd(0.1))
    assert isinstance(state, train_state.TrainState)
    assert set(vars(state)) == {"step", "apply_fn", "params", "tx", "opt_state"}


def test_train_state_leaves_the_parameters_alone_while_it_accumulates():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=oc.sgd(0.1, gradient_accumulation_steps=2))
    first = state.apply_gradients(grads=GRADS)
    np.testing.assert_array_equal(first.params["w"], PARAMS["w"])
    second = first.apply_gradients(grads=GRADS)
    np.testing.assert_allclose(second.params["w"], [0.95, 2.05], rtol=1e-6)
    assert int(second.step) == 2


def test_train_state_takes_an_optax_transformation():
    ours = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.adam(0.1)).apply_gradients(grads=GRADS)
    theirs = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=optax.adam(0.1)).apply_gradients(
        grads=GRADS
    )
    np.testing.assert_array_equal(ours.params["w"], theirs.params["w"])
    assert jax.tree.structure(ours.opt_state) == jax.tree.structure(theirs.opt_state)


def test_train_state_replaces_other_fields():
    class WithRate(TrainState):
        epoch: int = 0

    state = WithRate.create(apply_fn=None, params=PARAMS, tx=oc.sgd(0.1)).apply_gradients(grads=GRADS, epoch=3)
    assert state.epoch == 3


@pytest.mark.parametrize("factory", [train_state.TrainState, TrainState])
def test_parameters_overwritten_by_their_gradient_are_handled_as_flax_does(factory):
    params = {"params": PARAMS, OVERWRITE_WITH_GRADIENT: {"scale": jnp.array(1.0)}}
    grads = {"params": GRADS, OVERWRITE_WITH_GRADIENT: {"scale": jnp.array(7.0)}}
    state = factory.create(apply_fn=None, params=params, tx=oc.sgd(0.1)).apply_gradients(grads=grads)
    assert float(state.params[OVERWRITE_WITH_GRADIENT]["scale"]) == 7.0
    np.testing.assert_allclose(state.params["params"]["w"], [0.95, 2.05], rtol=1e-6)


def test_train_state_trains_a_linen_model_and_compiles_once():
    model = nn.Dense(1)
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    y = x @ jnp.array([[1.0], [-2.0]])
    variables = model.init(jax.random.key(0), x)
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=oc.adam(0.1, use_ema=True))

    @jax.jit
    def step(state):
        def loss(params):
            return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    losses = []
    for _ in range(60):
        state, value = step(state)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 50
    assert step._cache_size() == 2  # Flax's `step` begins as a Python integer, and returns as an array
    assert oc.averaged_params(state)["kernel"].shape == (2, 1)


def test_a_donated_train_state_goes_on():
    state = TrainState.create(apply_fn=None, params=jax.tree.map(jnp.copy, PARAMS), tx=oc.adamw(0.1, use_ema=True))
    step = jax.jit(lambda state: state.apply_gradients(grads=GRADS), donate_argnums=0)
    for _ in range(3):
        state = step(state)
    assert int(state.step) == 3
    assert np.isfinite(state.params["w"]).all()


def test_a_misspelt_loss_is_named_by_the_link_that_asks_for_it():
    tx = oc.chain(oc.sgd(0.5), ("plateau", optax.contrib.reduce_on_plateau()))
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    words = r"plateau \(Optax's reduce_on_plateau\) needs value, .* but valeu, which may be a misspelling"
    with pytest.raises(TypeError, match=words):
        state.apply_gradients(grads=GRADS, valeu=1.0)
    assert int(state.apply_gradients(grads=GRADS, value=1.0).step) == 1


def test_readers_find_what_is_in_a_train_state_and_an_optimizer():
    tx = oc.sgd(0.5, global_clipnorm=1.0, use_ema=True)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx).apply_gradients(grads=GRADS)
    assert {"learning_rate", "global_norm"} <= oc.metrics(state).keys()
    np.testing.assert_array_equal(oc.averaged_params(state)["w"], state.params["w"])
    np.testing.assert_array_equal(oc.finalize(state.params, state)["w"], state.params["w"])

    model = linear_model()
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, gradients(model))
    assert float(oc.metrics(optimizer)["learning_rate"]) == 0.5
    assert float(oc.scale_loss(jnp.array(1.0), optimizer)) == 1.0


@pytest.mark.parametrize("factory", [nnx.Optimizer, Optimizer])
def test_optimizer_updates_the_model_in_place(factory):
    model = linear_model()
    optimizer = factory(model, oc.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    before, grads = nnx.to_pure_dict(nnx.state(model)), gradients(model)
    optimizer.update(model, grads)
    for name in ("kernel", "bias"):
        expected = before[name] - 0.1 * grads[name][...]
        np.testing.assert_allclose(getattr(model, name)[...], expected, rtol=1e-6)


def test_optimizer_sees_only_the_parameters_it_was_made_for():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))
            self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    model = Model()
    optimizer = Optimizer(model, oc.adamw(0.1), wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model.w[...] ** 2), argnums=nnx.DiffState(0, nnx.Param))(model)
    optimizer.update(model, grads)
    assert model.calls.dtype == jnp.int32
    assert float(model.w[0]) < 1.0


def test_optimizer_leaves_the_parameters_alone_while_it_accumulates():
    model = linear_model()
    optimizer = Optimizer(model, oc.sgd(0.1, gradient_accumulation_steps=2), wrt=nnx.Param)
    before = np.asarray(model.kernel[...])
    optimizer.update(model, gradients(model))
    np.testing.assert_array_equal(model.kernel[...], before)
    optimizer.update(model, gradients(model))
    assert np.abs(np.asarray(model.kernel[...]) - before).max() > 0


def test_optimizer_passes_on_what_links_ask_for_by_name():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append(value)
        return updates, state

    ask = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    model = linear_model()
    Optimizer(model, oc.chain(ask, oc.scale_by_learning_rate(0.1)), wrt=nnx.Param).update(
        model, gradients(model), value=jnp.array(3.0)
    )
    assert float(seen[0]) == 3.0


def test_train_state_and_optimizer_pass_optax_wrappers_through():
    tx = optax.chain(optax.clip_by_global_norm(1.0), oc.adamw(0.1))
    model = linear_model()
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, gradients(model))
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx).apply_gradients(grads=GRADS)
    for holder in (optimizer, state):
        assert float(oc.get_hyperparams(holder)["learning_rate"]) == pytest.approx(0.1)


# What a step is told --------------------------------------------------------------------------------------------------


def test_train_state_passes_weights_on():
    tx = oc.sgd(1.0, gradient_accumulation_steps=2)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    for grads, weight in (({"w": jnp.array([1.0, 1.0])}, 3.0), ({"w": jnp.array([5.0, 5.0])}, 1.0)):
        state = state.apply_gradients(grads=grads, weight=weight)
    np.testing.assert_allclose(state.params["w"], PARAMS["w"] - 2.0)  # (3 · 1 + 1 · 5) / 4


def test_train_state_passes_the_loss_on():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    tx = oc.chain(oc.scale_by_learning_rate(0.0), ("plateau", plateau))
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    for _ in range(5):
        state = state.apply_gradients(grads=GRADS, value=jnp.array(1.0))
    assert float(state.opt_state["plateau"].scale) < 1.0


def test_train_state_passes_on_what_a_link_names_with_fields_that_are_replaced():
    class WithEpoch(TrainState):
        epoch: int = 0

    asks = oc.Transformation(update=lambda u, s, p, *, factor: (jax.tree.map(lambda x: factor * x, u), s))
    params = {"params": PARAMS, OVERWRITE_WITH_GRADIENT: {"scale": jnp.array(1.0)}}
    grads = {"params": GRADS, OVERWRITE_WITH_GRADIENT: {"scale": jnp.array(7.0)}}
    state = WithEpoch.create(apply_fn=None, params=params, tx=oc.chain(("asks", asks)))
    state = state.apply_gradients(grads=grads, epoch=3, factor=2.0)
    assert state.epoch == 3
    np.testing.assert_allclose(state.params["params"]["w"], [2.0, 1.0])


def test_train_state_refuses_a_keyword_that_nothing_takes():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=oc.sgd(0.1))
    with pytest.raises(
        TypeError, match=r"apply_gradients got epoc: no field of TrainState, and nothing that sgd takes"
    ):
        state.apply_gradients(grads=GRADS, epoc=3)
    with pytest.raises(TypeError, match="the call gave a weight, and nothing in sgd would use it"):
        state.apply_gradients(grads=GRADS, weight=3.0)


def test_train_state_and_optimizer_take_multi_steps():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.MultiSteps(optax.sgd(0.1), 2))
    first = state.apply_gradients(grads=GRADS)
    np.testing.assert_array_equal(first.params["w"], PARAMS["w"])
    np.testing.assert_allclose(first.apply_gradients(grads=GRADS).params["w"], [0.95, 2.05], rtol=1e-6)
    model = linear_model()
    optimizer, grads = Optimizer(model, optax.MultiSteps(optax.sgd(0.1), 1), wrt=nnx.Param), gradients(model)
    before = np.asarray(model.kernel[...])
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.kernel[...], before - 0.1 * grads["kernel"][...], rtol=1e-6)


# Flax's containers ----------------------------------------------------------------------------------------------------


class Deep(nnx.Module):
    """Parameters in a list, and besides them statistics, keys and counters."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.norm(self.layers[0](x)))


def trained(tx, factory=Optimizer):
    model = Deep()
    optimizer = factory(model, tx, wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(
            model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 2))) ** 2 + model.norm.bias[...]))(model)
        )
    return model, optimizer


def leaves_by_path(tree):
    found = jax.tree_util.tree_flatten_with_path(
        nnx.to_pure_dict(nnx.state(tree)) if isinstance(tree, nnx.Module) else tree
    )
    return {oc.core.trees.path_string(path): np.asarray(leaf) for path, leaf in found[0] if "dropout" not in str(path)}


CONTAINERS = {
    "module": lambda model: model,
    "nnx.state": lambda model: nnx.state(model, nnx.Param),
    "nnx.state of everything": lambda model: nnx.state(model),
    "pure dict": lambda model: nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    "as_pure": lambda model: nnx.as_pure(nnx.state(model, nnx.Param)),
}
STATES = {
    "optimizer": lambda optimizer: optimizer,
    "opt_state": lambda optimizer: optimizer.opt_state,
    "nnx.state": nnx.state,
    "pure dict": lambda optimizer: nnx.to_pure_dict(nnx.state(optimizer)),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_weights_to_evaluate_come_in_every_container_of_nnx(container, state):
    ema = oc.sgd(0.1, use_ema=True, ema_momentum=0.5)
    free = oc.schedule_free(oc.scale_by_learning_rate(0.1))
    for tx, read in ((ema, oc.finalize), (free, oc.schedule_free_params)):
        model, optimizer = trained(tx)
        own = nnx.as_pure(optimizer.opt_state)
        before = leaves_by_path(model)
        made = read(CONTAINERS[container](model), STATES[state](optimizer))
        assert type(made) is type(CONTAINERS[container](model))
        if read is oc.finalize:
            expected = leaves_by_path(own["average_params"]["average"])
        else:
            expected = {path: (before[path] - 0.1 * z) / 0.9 for path, z in leaves_by_path(own["iterates"]).items()}
        assert np.abs(expected["layers/1/bias"] - before["layers/1/bias"]).max() > 1e-3
        for path, leaf in leaves_by_path(made).items():
            np.testing.assert_allclose(leaf, expected.get(path, before[path]), rtol=1e-6, atol=1e-7)
        for path, leaf in leaves_by_path(model).items():
            np.testing.assert_array_equal(leaf, before[path])


def test_a_finalized_module_runs_and_is_a_new_one():
    model, optimizer = trained(oc.sgd(0.1, use_ema=True, ema_momentum=0.5))
    averaged = oc.finalize(model, optimizer)
    model.eval(), averaged.eval()
    assert float(jnp.abs(averaged(jnp.ones((1, 2))) - model(jnp.ones((1, 2)))).max()) > 0


@pytest.mark.thorough
def test_model_and_optimizer_is_flaxs_in_the_apply_form():
    ours = ModelAndOptimizer(linear_model(), oc.sgd(0.1, momentum=0.9, gradient_accumulation_steps=2))
    assert isinstance(ours, nnx.Optimizer)
    theirs = nnx.ModelAndOptimizer(linear_model(), optax.MultiSteps(optax.sgd(0.1, 0.9), 2))
    for _ in range(4):
        for optimizer in (ours, theirs):
            optimizer.update(gradients(optimizer.model))
    np.testing.assert_allclose(ours.model.kernel[...], theirs.model.kernel[...], rtol=1e-6)
    assert int(ours.step[...]) == 4
    averaging = ModelAndOptimizer(linear_model(), oc.sgd(0.1, use_ema=True))
    averaging.update(gradients(averaging.model), value=jnp.array(1.0))
    assert type(oc.finalize(averaging.model, averaging)) is nnx.Linear


def test_optimizer_update_returns_nothing_where_flaxs_returns_the_updates():
    for factory, returns in ((Optimizer, False), (nnx.Optimizer, True)):
        model = linear_model()
        made = factory(model, oc.sgd(0.1), wrt=nnx.Param).update(model, gradients(model))
        assert (made is not None) == returns
    assert "None, and not the updates" in Optimizer.update.__doc__


class Tied(nnx.Module):
    """One parameter, one layer and one table that each stand in two places."""

    def __init__(self, rngs):
        self.z = self.a = nnx.Param(jnp.ones(2))
        self.layers = nnx.List([layer := nnx.Linear(2, 2, rngs=rngs), layer])
        self.embed = nnx.Embed(3, 2, rngs=rngs)
        self.head = self.embed.embedding

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return (self.embed(jnp.array([0, 2])) @ (x * self.a[...] + self.z[...])) @ self.head[...][:2, :1]


@pytest.mark.parametrize(
    ("tx", "weights"),
    [(oc.sgd(0.1, use_ema=True), oc.finalize), (oc.schedule_free_adamw(0.1), oc.schedule_free_params)],
    ids=["average", "schedule-free"],
)
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model}], ids=["module", "in a dict"])
def test_what_a_module_ties_stays_tied_in_the_weights_to_evaluate(tx, weights, wrap):
    def new():
        return wrap(Tied(nnx.Rngs(0)))

    def inside(tree):
        return tree if isinstance(tree, Tied) else tree["model"]

    model = new()
    params = nnx.as_pure(nnx.state(model))
    grads = jax.tree.map(jnp.ones_like, params)
    state = tx.init(params)
    for _ in range(2):
        params, state = tx.apply(params, state, grads=grads)
    nnx.update(model, params)

    made = inside(weights(model, state))
    assert made.a is made.z
    assert made.layers[0] is made.layers[1]
    assert made.head is made.embed.embedding
    expected = nnx.as_pure(nnx.state(inside(nnx.merge(nnx.graphdef(model), weights(nnx.state(model), state)))))
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(nnx.state(made)), expected)
    assert inside(model).a is not made.a  # it is a new one
    assert float(abs(made.a[...] - inside(model).a[...]).max()) > 0
