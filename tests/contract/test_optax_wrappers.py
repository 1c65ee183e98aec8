"""Every transformation is an Optax transformation: it works inside Optax's combinators."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import optchain as oc
from optchain.testing import Subject, wrappers
from optchain.testing.wrappers import update_like

from .steps import STEPS, assert_close, assert_same, avals, run, update_step
from .table import every_row, rows_where
from .trees import PLAIN, TREES, grads_of, params_of

pytestmark = pytest.mark.each_value(of="the contract")


def run_wrapped(tx, tree=PLAIN, steps=STEPS):
    return wrappers.run_wrapped(tx, Subject("wrapped", lambda: tx, tree=tree), steps)


def check_scan_carry(tx, tree=PLAIN):
    """A wrapped transformation is a stable carry too."""
    params = params_of(tree)
    state = tx.init(params)
    assert avals(update_like(tx)(params, state, grads_of(tree))) == avals((params, state))


@every_row
def test_it_works_under_optax_masked(row):
    """Only what the mask names is seen: the norms, and the state, are those of the smaller tree."""
    tx = row.make()
    mask = {"dense": {"kernel": True, "bias": False}, "head": {"kernel": True}}
    params, state = run_wrapped(optax.masked(tx, mask))

    def only_masked(tree):
        return {"dense": {"kernel": tree["dense"]["kernel"]}, "head": tree["head"]}

    expected = only_masked(params_of())
    expected_state = tx.init(expected)
    for number in range(STEPS):
        expected, expected_state = update_step(tx, expected, expected_state, only_masked(grads_of(step=number)))
    assert_close(only_masked(params), expected)
    assert_close(jax.tree.leaves(state), jax.tree.leaves(expected_state))


@every_row
def test_it_works_under_optax_multi_transform(row):
    tx = row.make()
    labels = {"dense": "ours", "head": "frozen"}
    params, state = run_wrapped(optax.multi_transform({"ours": tx, "frozen": optax.set_to_zero()}, labels))
    expected = {"dense": params_of()["dense"]}
    expected_state = tx.init(expected)
    for number in range(STEPS):
        expected, expected_state = update_step(tx, expected, expected_state, {"dense": grads_of(step=number)["dense"]})
    assert_close({"dense": params["dense"]}, expected)
    assert_same(params["head"], params_of()["head"])
    assert_close(jax.tree.leaves(state.inner_states["ours"]), jax.tree.leaves(expected_state))


INJECTED = {
    "adamw": (oc.adamw, {"learning_rate": 0.1, "weight_decay": 0.1, "beta_1": 0.8, "epsilon": 1e-3}),
    "adamw_features": (
        oc.adamw,
        {"learning_rate": 0.1, "global_clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.9, "loss_scale_factor": 2.0},
    ),
    "adam": (oc.adam, {"learning_rate": 0.1, "clipnorm": 0.5}),
    "sgd": (oc.sgd, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "clipvalue": 0.5}),
    "clip_by_value": (oc.clip_by_value, {"max_value": 0.5}),
    "clip_by_norm": (oc.clip_by_norm, {"max_norm": 0.5}),
    "clip_by_global_norm": (oc.clip_by_global_norm, {"max_norm": 0.5}),
    "scale_by_adam": (oc.scale_by_adam, {"beta_2": 0.5}),
    "apply_momentum": (oc.apply_momentum, {"momentum": 0.5}),
    "scale_by_learning_rate": (oc.scale_by_learning_rate, {"learning_rate": 0.5}),
    "decay_weights": (oc.decay_weights, {"weight_decay": 0.5, "learning_rate": 0.5}),
    "average_params": (oc.average_params, {"momentum": 0.5}),
    "unscale_gradients": (oc.unscale_gradients, {"loss_scale": 4.0}),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", INJECTED)
def test_it_works_under_inject_hyperparams_in_jit(name):
    """What Optax injects is traced: it passes validation, is used, and is written to the state at every call."""
    factory, arguments = INJECTED[name]
    # Optax takes every number for a hyperparameter; `calls_per_step` is an integer of the program.
    static = {"calls_per_step"} & inspect.signature(factory).parameters.keys()
    injected = optax.inject_hyperparams(factory, static_args=static)(**arguments)
    params, state = run_wrapped(injected)
    expected = run(factory(**arguments), step=update_step)
    # A rate that is an array is rounded to float32 where a constant is not: SEMANTICS allows a run-time beta 2e-5.
    assert_close(params, expected[0], roundings=2e-5 / 2**-23)
    check_scan_carry(injected)

    changed = {key: 0.25 for key in arguments if isinstance(arguments[key], float)}
    state.hyperparams.update({key: jnp.asarray(value) for key, value in changed.items()})
    before = params
    params, state = update_like(injected)(params, state, grads_of())
    inner = factory(**{**arguments, **changed})
    own = oc.get_hyperparams(state.inner_state)
    assert all(float(value) == pytest.approx(0.25) for key, value in own.items() if key in changed)
    assert jax.tree.structure(params) == jax.tree.structure(before)
    assert inner.name == factory.__name__


def test_inject_hyperparams_names_the_integers_that_must_be_static():
    injected = optax.inject_hyperparams(oc.accumulate, static_args="inner")(inner=oc.sgd(0.1), steps=3)
    with pytest.raises(TypeError, match=r'steps must be a Python integer.*static_args=\("steps",\)'):
        jax.jit(injected.init)(params_of())


@pytest.mark.parametrize("tree", TREES)
def test_a_preset_works_in_multi_transform_on_every_tree(tree):
    params = params_of(tree)
    labels = jax.tree.map(lambda _: "all", params)
    tx = oc.adamw(0.1, weight_decay=0.1, global_clipnorm=1.0, use_ema=True)
    wrapped, _ = run_wrapped(optax.multi_transform({"all": tx}, labels), tree, steps=2)
    expected, _ = run(tx, tree, steps=2, step=update_step)
    assert_close(wrapped, expected)


MASKED = {
    "masked": lambda mask: oc.masked(oc.adam(0.1), mask),
    "freeze": lambda mask: oc.freeze(oc.adam(0.1, gradient_accumulation_steps=2), mask),
    "adamw": lambda mask: oc.adamw(0.1, exclude_from_weight_decay=mask),
    "lamb": lambda mask: oc.lamb(0.1, weight_decay=0.1, exclude_from_weight_decay=mask),
    "muon": lambda mask: oc.muon(0.1, exclude_from_weight_decay=mask),
    "decay_weights": lambda mask: oc.chain(oc.decay_weights(0.1, learning_rate=0.1, mask=mask), oc.monitor()),
    "multi_optimizer": lambda mask: oc.multi_optimizer(("group", mask, oc.adam(0.1)), default=oc.sgd(0.1, 0.9)),
}
PARTS = {
    "a tree": {"dense": {"kernel": True, "bias": False}, "head": {"kernel": True}},
    "a prefix": {"dense": True, "head": False},
    "a bool": True,
    "a pattern": oc.matching("kernel"),
    "a callable": lambda params: {"dense": {"kernel": params["dense"]["kernel"].ndim > 1, "bias": False}, "head": True},
}


def mapped(tx, state):
    """Which leaves of a state Optax takes for copies of the parameters."""
    return optax.tree.map_params(tx, lambda leaf: "parameter", state, transform_non_params=lambda leaf: "other")


@pytest.mark.parametrize("mask", PARTS)
@pytest.mark.parametrize("taker", MASKED)
def test_map_params_sees_through_masks_of_every_kind(taker, mask):
    tx, params = MASKED[taker](PARTS[mask]), params_of()
    state = tx.init(params)
    # No parameter is a scalar here, and no other entry is anything else.
    expected = jax.tree.map(lambda leaf: "parameter" if jnp.shape(leaf) else "other", state)
    assert mapped(tx, state) == expected


@pytest.mark.parametrize("mask", ["a tree", "a pattern"])
@pytest.mark.parametrize("taker", MASKED)
def test_map_params_gives_each_copy_of_a_parameter_its_spec_where_none_is_a_leaf(taker, mask):
    tx, params = MASKED[taker](PARTS[mask]), params_of()
    specs = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    state = tx.init(params)
    mapped = optax.tree.map_params(
        tx, lambda x, spec: None if x is None else spec, state, specs, is_leaf=lambda x: x is None
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    given = [(path, spec) for path, spec in jax.tree_util.tree_leaves_with_path(mapped) if isinstance(spec, str)]
    assert all(jax.tree_util.keystr(path).endswith(spec) for path, spec in given)
    assert bool(given) == (taker != "decay_weights")


@rows_where(lambda row: row.name != "monitor")  # what it is called by subtree, nobody knows without the parameters
def test_map_params_takes_every_state(row):
    tx, params = row.make(), params_of()
    state = tx.init(params)
    assert jax.tree.structure(mapped(tx, state)) == jax.tree.structure(state)
