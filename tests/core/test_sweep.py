"""`sweep`: several members in one program, each as if it had been trained alone."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

MEMBERS = 10
RATES = jnp.logspace(-3, -1, MEMBERS)
DECAYS = jnp.linspace(0.0, 0.5, MEMBERS)
CALLS = 7

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.25, -0.5])}


def build(rate: Any = 0.1, decay: Any = None, **arguments: Any) -> oc.Transformation:
    decay = jnp.array(0.1) if decay is None else decay
    return oc.adamw(rate, decay, global_clipnorm=0.5, gradient_accumulation_steps=3, use_ema=True, **arguments)


def grads_of(number: int) -> Any:
    rng = np.random.default_rng(number)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), PARAMS)


def step_of(tx: oc.Transformation) -> Any:
    return lambda params, state, grads: tx.apply(params, state, grads=grads)


def repeated(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], MEMBERS, axis=0), tree)


def swept(tx: oc.Transformation, **values: Any) -> tuple[Any, Any, Any]:
    """`(step, states, axes)` of all members; the gradients are the same for each."""
    states, axes = oc.sweep(tx.init(PARAMS), **values)
    step = jax.jit(jax.vmap(step_of(tx), in_axes=(0, axes, None), out_axes=(0, axes)))
    return step, states, axes


@pytest.fixture(scope="module")
def finished() -> tuple[Any, Any, Any]:
    tx = build()
    step, states, axes = swept(tx, learning_rate=RATES, weight_decay=DECAYS)
    params = repeated(PARAMS)
    for number in range(CALLS):
        params, states = step(params, states, grads_of(number))
    assert step._cache_size() == 1
    return params, states, axes


@pytest.mark.thorough
@pytest.mark.parametrize("member", range(MEMBERS))
def test_a_member_is_what_a_run_alone_gives(finished: Any, member: int) -> None:
    params, states, axes = finished
    tx = build(float(RATES[member]), DECAYS[member])
    alone, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(step_of(tx))
    for number in range(CALLS):
        alone, state = step(alone, state, grads_of(number))
    mine = jax.tree.map(lambda axis, leaf: leaf if axis is None else leaf[member], axes, states, is_leaf=is_none)
    assert jax.tree.structure(mine) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    for key in PARAMS:
        np.testing.assert_allclose(params[key][member], alone[key], rtol=2e-6, atol=1e-7)


def is_none(node: Any) -> bool:
    return node is None


@pytest.mark.thorough
def test_members_with_gradients_of_their_own_are_runs_alone() -> None:
    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ params["w"] + params["b"]) ** 2)

    tx, x = build(), jnp.array([[0.3, -1.0]])

    def one(params: Any, state: Any) -> tuple[Any, Any]:
        return tx.apply(params, state, grads=jax.grad(loss)(params, x))

    states, axes = oc.sweep(tx.init(PARAMS), learning_rate=RATES, weight_decay=DECAYS)
    step = jax.jit(jax.vmap(one, in_axes=(0, axes), out_axes=(0, axes)))
    params = repeated(PARAMS)
    for _ in range(6):
        params, states = step(params, states)
    for member in (0, 4, 9):
        alone_tx = build(float(RATES[member]), DECAYS[member])
        alone, state = PARAMS, alone_tx.init(PARAMS)
        alone_step = jax.jit(
            lambda params, state, tx=alone_tx: tx.apply(params, state, grads=jax.grad(loss)(params, x))
        )
        for _ in range(6):
            alone, state = alone_step(alone, state)
        for key in PARAMS:
            np.testing.assert_allclose(params[key][member], alone[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "gate",
    [
        oc.skip_nonfinite,
        *(
            pytest.param(gate, marks=pytest.mark.for_release if number else pytest.mark.thorough)
            for number, gate in enumerate(
                (
                    oc.skip_spikes,
                    lambda inner: oc.dynamic_loss_scale(inner, 4.0, 2),
                    lambda inner: oc.accumulate(oc.skip_nonfinite(inner), 2),
                    lambda inner: oc.skip_nonfinite(oc.accumulate(inner, 2)),
                    lambda inner: oc.chain(optax.apply_if_finite(inner, 9)),
                )
            )
        ),
    ],
)
def test_members_whose_gradients_differ_skip_each_for_itself(gate: Any) -> None:
    tx = gate(oc.adamw(0.1))
    rates = jnp.array([0.1, 0.2, 0.3])
    states, axes = oc.sweep(tx.init(PARAMS), learning_rate=rates)
    step = jax.jit(jax.vmap(step_of(tx), in_axes=(0, axes, 0), out_axes=(0, axes)))
    grads = [[grads_of(10 * member + call) for member in range(3)] for call in range(6)]
    for call, member in [(0, 1), (2, 2), (3, 1), (4, 0)]:
        grads[call][member]["w"] = grads[call][member]["w"].at[0, 1].set(jnp.nan)
    params = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], 3, axis=0), PARAMS)
    for call in grads:
        params, states = step(params, states, jax.tree.map(lambda *leaves: jnp.stack(leaves), *call))
    for member in range(3):
        alone, state = PARAMS, oc.set_hyperparams(tx.init(PARAMS), learning_rate=rates[member])
        for call in grads:
            alone, state = tx.apply(alone, state, grads=call[member])
        for key in PARAMS:
            np.testing.assert_allclose(params[key][member], alone[key], rtol=2e-6, atol=1e-7)


# What is compiled ------------------------------------------------------------------------------------------------------


def test_accumulate_stays_a_branch_under_the_sweeps_vmap() -> None:
    step, states, _ = swept(build(), learning_rate=RATES)
    traced = step.trace(repeated(PARAMS), states, grads_of(0))
    assert "cond[" in str(traced.jaxpr)
    assert re.search(r"\bconditional\(", traced.lower().compile().as_text())


@pytest.mark.thorough
def test_a_plain_vmap_over_the_state_would_run_both_branches() -> None:
    tx = build()
    step = jax.jit(jax.vmap(step_of(tx), in_axes=(0, 0, None)))
    compiled = step.lower(repeated(PARAMS), repeated(tx.init(PARAMS)), grads_of(0)).compile()
    assert not re.search(r"\bconditional\(", compiled.as_text())


def test_a_call_that_only_accumulates_leaves_every_member_to_the_bit() -> None:
    step, states, _ = swept(build(), learning_rate=RATES)
    params = repeated(PARAMS)
    after, _ = step(params, states, grads_of(0))
    for key in PARAMS:
        np.testing.assert_array_equal(after[key], params[key])


# What has the axis of members ------------------------------------------------------------------------------------------


def test_counters_stay_single_and_everything_else_gets_the_axis(finished: Any) -> None:
    _, states, axes = finished
    single = []
    fresh = jax.tree_util.tree_leaves_with_path(build().init(PARAMS))
    flat_axes = jax.tree.leaves(axes, is_leaf=is_none)
    for (path, before), leaf, axis in zip(fresh, jax.tree.leaves(states), flat_axes, strict=True):
        if axis is None:
            single.append(path[-1].key)
            assert leaf.shape == before.shape == ()
        else:
            assert leaf.shape == (MEMBERS, *before.shape), path
    assert sorted(set(single)) == ["count", "weight"]
    assert int(states["accumulate"]["count"]) == CALLS % 3


def test_a_parameter_called_count_has_the_axis() -> None:
    params = {"count": jnp.ones(3), "weight": jnp.ones(2)}
    states, axes = oc.sweep(oc.adamw(0.1).init(params), learning_rate=RATES)
    assert states["scale_by_adam"]["mu"]["count"].shape == (MEMBERS, 3)
    assert axes["scale_by_adam"]["mu"] == {"count": 0, "weight": 0}
    assert axes["scale_by_adam"]["count"] is None


def test_metrics_and_hyperparameters_are_each_members(finished: Any) -> None:
    params, states, _ = finished
    metrics, hyperparams = oc.metrics(states), oc.get_hyperparams(states)
    np.testing.assert_array_equal(metrics["learning_rate"], RATES)
    np.testing.assert_array_equal(hyperparams["weight_decay"], DECAYS)
    assert metrics["global_norm"].shape == (MEMBERS,)
    assert np.ptp(np.asarray(params["w"])[:, 0, 0]) > 0.01


def test_a_swept_state_goes_on_after_one_rate_is_set_for_all_or_one_for_each() -> None:
    step, states, _ = swept(build(), learning_rate=RATES)
    params, states = step(repeated(PARAMS), states, grads_of(0))
    states = oc.set_hyperparams(states, learning_rate=0.5)
    params, states = step(params, states, grads_of(0))
    np.testing.assert_array_equal(oc.metrics(states)["learning_rate"], np.full(MEMBERS, 0.5, np.float32))
    states = oc.set_hyperparams(states, learning_rate=RATES)
    params, states = step(params, states, grads_of(0))
    np.testing.assert_array_equal(oc.metrics(states)["learning_rate"], RATES)
    assert step._cache_size() == 1


def test_the_state_that_was_swept_is_left_as_it_was() -> None:
    state = build().init(PARAMS)
    oc.sweep(state, learning_rate=RATES)
    assert oc.get_hyperparams(state)["learning_rate"].shape == ()


def test_a_step_that_donates_leaves_the_callers_values_and_state() -> None:
    tx = oc.sgd(0.1)
    rates, params = jnp.array(RATES), jnp.zeros(2)
    state = tx.init(params)
    states, axes = oc.sweep(state, learning_rate=rates)
    step = jax.vmap(step_of(tx), in_axes=(0, axes, None), out_axes=(0, axes))
    jax.jit(step, donate_argnums=1)(jnp.zeros((MEMBERS, 2)), states, params)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((rates, state)))


def test_a_path_tells_two_rates_apart() -> None:
    tx = oc.chain(("body", oc.sgd(0.1)), ("extra", oc.chain(oc.decay_weights(jnp.array(0.5), learning_rate=0.3))))
    states, _ = oc.sweep(tx.init(PARAMS), {"body/learning_rate": RATES})
    np.testing.assert_array_equal(oc.get_hyperparams(states)["body/learning_rate"], RATES)


@pytest.mark.thorough
def test_members_of_a_state_in_codes_are_what_they_are_alone() -> None:
    params = {
        "kernel": jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64),
        "bias": jnp.ones(3),
        "empty": None,
    }  # bias has no scales
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    tx = oc.compact(oc.adam(0.1))
    states, axes = oc.sweep(tx.init(params), learning_rate=RATES)
    found, _ = jax.jit(jax.vmap(lambda state: tx.apply(params, state, grads=grads), in_axes=(axes,)))(states)
    for i, rate in enumerate(RATES):
        state = oc.set_hyperparams(tx.init(params), learning_rate=float(rate))
        alone, _ = jax.jit(lambda s: tx.apply(params, s, grads=grads))(state)
        for member, one in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(member[i], one)


# What is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "sweep needs the values of at least one hyperparameter"),
        ({"learning_rate": jnp.array(0.1)}, r"one-dimensional arrays of one length; got learning_rate: \(\)"),
        ({"learning_rate": jnp.ones((2, 2))}, r"one-dimensional arrays of one length; got learning_rate: \(2, 2\)"),
        (
            {"learning_rate": jnp.ones(3), "weight_decay": jnp.ones(2)},
            r"of one length; got learning_rate: \(3,\), weight_decay: \(2,\)",
        ),
        ({"beta_1": jnp.ones(2)}, "hyperparameter 'beta_1' is unknown; there are: learning_rate, weight_decay"),
        ({"learning_rate": -RATES}, "learning_rate must be a finite number >= 0"),
        ({"learning_rate": jnp.array([0.1, jnp.nan])}, "learning_rate must be a finite number >= 0; got nan"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_words(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oc.sweep(build().init(PARAMS), **values)


def test_a_scheduled_rate_is_refused() -> None:
    tx = build(oc.schedules.CosineDecay(0.1, 10))
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        oc.sweep(tx.init(PARAMS), learning_rate=RATES)
