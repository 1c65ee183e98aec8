"""A run moves from Optax to optchain in the middle, or back, and ends where an uninterrupted one does."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.interop import optax as interop

from .helpers import without_types

torch = oc.presets.torch
PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(3, 2) / 6, "bias": jnp.ones(2)}}
RNG = np.random.default_rng(0)
GRADS = [jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS) for _ in range(12)]
BOUND = 5e-6
"""Of the largest number of a leaf."""


def falling(count: Any) -> Any:
    return 0.1 / (1 + count)


def growing(updates: Any) -> Any:
    """A window of one call, then windows of three."""
    return jnp.where(updates < 1, 1, 3)


def chain_adamw(rate: Any, decay: Any = 1e-4, **rule: Any) -> oc.Transformation:
    adam = oc.scale_by_adam(**({"epsilon": 1e-8} | rule), epsilon_hat=False)
    return oc.chain(adam, oc.scale_by_learning_rate(), oc.decay_weights(decay), learning_rate=rate)


def injected(optimizer: Any, *args: Any, **options: Any) -> Any:
    return optax.inject_hyperparams(optimizer)(*args, **options)


@dataclasses.dataclass(frozen=True)
class Case:
    theirs: Callable[[], Any]
    ours: Callable[[], oc.Transformation]
    has_twin: bool = True
    """Whether `to_optax` of ours is theirs."""


CASES = {
    "adamw": Case(lambda: optax.adamw(0.1), lambda: chain_adamw(0.1)),
    "adamw_schedule": Case(lambda: optax.adamw(falling, weight_decay=0.1), lambda: chain_adamw(falling, 0.1)),
    "adam": Case(lambda: optax.adam(0.1, b1=0.8), lambda: torch.adam(0.1, (0.8, 0.999))),
    "sgd": Case(lambda: optax.sgd(0.1), lambda: torch.sgd(0.1)),
    "sgd_nesterov": Case(
        lambda: optax.sgd(falling, momentum=0.9, nesterov=True), lambda: torch.sgd(falling, 0.9, nesterov=True)
    ),
    "injected_adamw": Case(
        lambda: injected(optax.adamw, 0.1),
        lambda: chain_adamw(0.1, jnp.array(1e-4), beta_1=jnp.array(0.9), beta_2=jnp.array(0.999)),
        has_twin=False,
    ),
    "injected_sgd_schedule": Case(
        lambda: injected(optax.sgd, falling, momentum=0.9), lambda: torch.sgd(falling, 0.9), has_twin=False
    ),
    "multi_steps_adamw": Case(
        lambda: optax.MultiSteps(optax.adamw(0.1), 3), lambda: oc.accumulate(chain_adamw(0.1), 3)
    ),
    "multi_steps_injected": Case(
        lambda: optax.MultiSteps(injected(optax.sgd, falling, momentum=0.9), 3),
        lambda: oc.accumulate(torch.sgd(falling, 0.9), 3),
        has_twin=False,
    ),
    "injected_multi_steps": Case(
        lambda: injected(lambda learning_rate: optax.MultiSteps(optax.sgd(learning_rate, 0.9), 3), falling),
        lambda: oc.chain(
            oc.accumulate(oc.chain(oc.apply_momentum(0.9), oc.scale_by_learning_rate()), 3), learning_rate=falling
        ),
        has_twin=False,
    ),
    "multi_steps_growing": Case(
        lambda: optax.MultiSteps(optax.sgd(0.1, 0.9), growing), lambda: oc.accumulate(torch.sgd(0.1, 0.9), growing)
    ),
    "masked_decay": Case(
        lambda: optax.adamw(0.1, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        lambda: oc.chain(
            oc.scale_by_adam(epsilon=1e-8, epsilon_hat=False),
            oc.scale_by_learning_rate(),
            oc.decay_weights(0.1, mask=oc.matching("kernel")),
            learning_rate=0.1,
        ),
    ),
    "partition": Case(
        lambda: optax.partition(
            {"a": optax.adam(0.1), "b": optax.adam(falling)}, {"dense": {"kernel": "a", "bias": "b"}}
        ),
        lambda: oc.multi_optimizer(("a", "kernel", torch.adam(0.1)), ("b", "bias", torch.adam(falling))),
        has_twin=False,
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def optax_run(tx: Any, params: Any, state: Any, grads: list[Any]) -> tuple[Any, Any]:
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@jax.jit
def our_step(tx: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    return tx.apply(params, state, grads=grads)


def our_run(tx: Any, params: Any, state: Any, grads: list[Any]) -> tuple[Any, Any]:
    for g in grads:
        params, state = our_step(tx, params, state, g)
    return params, state


def error(actual: Any, expected: Any) -> float:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.thorough
@every_case
def test_a_run_moves_in_and_out_at_any_place_of_a_window(case: Case, request, record_error):
    name = request.node.callspec.id
    theirs, ours = case.theirs(), case.ours()
    expected, end = optax_run(theirs, PARAMS, theirs.init(PARAMS), GRADS)
    for moment in (4, 5):  # in the middle of a window of three, or before the last call of one
        params, optax_state = optax_run(theirs, PARAMS, theirs.init(PARAMS), GRADS[:moment])
        state = interop.from_optax_state(ours, params, optax_state)
        assert jax.tree.structure(state) == jax.tree.structure(ours.init(params))
        moved, _ = our_run(ours, params, state, GRADS[moment:])
        record_error(("Optax", f"{name} moved in", "float32", "apply"), error(moved, expected))
        assert error(moved, expected) <= BOUND

        params, state = our_run(ours, PARAMS, ours.init(PARAMS), GRADS[:moment])
        optax_state = interop.to_optax_state(ours, params, state, theirs, step=moment // 3)
        assert jax.tree.structure(optax_state) == jax.tree.structure(end)
        moved, state = optax_run(theirs, params, optax_state, GRADS[moment:])
        record_error(("Optax", f"{name} moved out", "float32", "update"), error(moved, expected))
        assert error(moved, expected) <= BOUND


@every_case
def test_a_state_that_lost_its_named_tuples_moves_too(case: Case):
    theirs, ours = case.theirs(), case.ours()
    params, optax_state = optax_run(theirs, PARAMS, theirs.init(PARAMS), GRADS[:5])
    expected = interop.from_optax_state(ours, params, optax_state)
    state = interop.from_optax_state(ours, params, without_types(optax_state))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.has_twin], ids=[k for k, c in CASES.items() if c.has_twin]
)
def test_a_recipe_of_ours_is_one_of_optax(case: Case):
    theirs, ours = case.theirs(), case.ours()
    twin = interop.to_optax(ours)
    a, state = optax_run(theirs, PARAMS, theirs.init(PARAMS), GRADS[:4])
    b, twin_state = optax_run(twin, PARAMS, twin.init(PARAMS), GRADS[:4])
    assert jax.tree.structure(state) == jax.tree.structure(twin_state)
    assert error(a, b) <= BOUND


def test_the_accumulator_is_the_running_mean_times_the_count():
    theirs, ours = optax.MultiSteps(optax.sgd(0.1), 4), oc.accumulate(torch.sgd(0.1), 4)
    params, optax_state = optax_run(theirs, PARAMS, theirs.init(PARAMS), GRADS[:3])
    state = interop.from_optax_state(ours, params, optax_state)
    assert (state["count"], state["weight"]) == (3, 3)
    total = sum(np.asarray(g["dense"]["kernel"], np.float64) for g in GRADS[:3])
    np.testing.assert_allclose(state["grads"]["dense"]["kernel"], total, rtol=1e-6, atol=1e-6)
    back = interop.to_optax_state(ours, params, state, theirs, step=0)
    for mean, original in zip(*map(jax.tree.leaves, (back.acc_grads, optax_state.acc_grads)), strict=True):
        np.testing.assert_array_max_ulp(mean, original, maxulp=1)
    assert back.mini_step == 3


def test_the_rate_that_optax_keeps_is_saved_or_configured_as_chosen():
    theirs = injected(optax.sgd, 0.25)
    state = theirs.init(PARAMS)
    ours = torch.sgd(0.5)
    for choice, rate in (("saved", 0.25), ("configured", 0.5)):
        moved = interop.from_optax_state(ours, PARAMS, state, hyperparams=choice)
        assert oc.get_hyperparams(moved)["learning_rate"] == rate
    back = interop.to_optax_state(ours, PARAMS, oc.set_hyperparams(ours.init(PARAMS), learning_rate=0.125), theirs)
    assert back.hyperparams["learning_rate"] == 0.125


def test_each_group_has_the_rate_that_its_own_part_keeps():
    labels = {"dense": {"kernel": "a", "bias": "b"}}
    theirs = optax.partition({"a": injected(optax.sgd, 0.25), "b": injected(optax.sgd, 0.125)}, labels)
    ours = oc.multi_optimizer(("a", "kernel", torch.sgd(0.5)), ("b", "bias", torch.sgd(0.5)))
    state = interop.from_optax_state(ours, PARAMS, theirs.init(PARAMS))
    assert oc.get_hyperparams(state) == {"a/learning_rate": 0.25, "b/learning_rate": 0.125}


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (
            lambda: optax.novograd(0.1),
            lambda: torch.rmsprop(0.1),
            "0 is ScaleByNovogradState, which has no counterpart",
        ),
        (
            lambda: optax.adabelief(0.1),
            lambda: oc.lion(0.1),
            "which has no counterpart here: there is one for optax.adam, adamw, nadam",
        ),
        (
            lambda: optax.amsgrad(0.1),
            lambda: torch.adam(0.1, amsgrad=True),
            "ScaleByAmsgradState, which has no counterpart",
        ),
        (
            lambda: optax.rmsprop(0.1, centered=True),
            lambda: oc.presets.optax.rmsprop(0.1),
            "only one of rms at 0 and scale_by_rms keeps mu",
        ),
        (lambda: optax.adam(0.1), lambda: torch.sgd(0.1, 0.9), "Optax has adam at 0, and tx has nothing"),
        (
            lambda: optax.sgd(0.1),
            lambda: torch.sgd(0.1, 0.9),
            "Optax has nothing, and tx has apply_momentum at apply_momentum",
        ),
        (
            lambda: optax.sgd(0.1, 0.9),
            lambda: oc.sgd(0.1, 0.9),
            "its velocity has the rate in it, and Optax's trace has not",
        ),
        (lambda: optax.sgd(0.1, 0.9), lambda: torch.sgd(0.1, 0.9, 0.5), "has dampening, and Optax's trace has none"),
        (lambda: optax.sgd(falling), lambda: torch.sgd(0.1), "counts the steps of a schedule, and tx has none"),
        (lambda: optax.sgd(0.1), lambda: torch.sgd(falling), "has a schedule that counts calls, .* give step="),
        (
            lambda: optax.MultiSteps(optax.sgd(falling), 2),
            lambda: oc.chain(oc.accumulate(oc.scale_by_learning_rate(), 2), learning_rate=falling),
            "has a schedule that counts calls, .* give step=",
        ),
        (
            lambda: injected(optax.adam, 0.1, b1=0.5),
            lambda: torch.adam(0.1),
            r'b1 0.5, and beta_1 of scale_by_adam is 0.9\. Build tx with the saved ones, or choose hyperparams="configured"',
        ),
        (
            lambda: injected(optax.adamw, 0.1),
            lambda: torch.adam(0.1),
            "weight_decay 1e-04|weight_decay 0.0001, for which tx has no link",
        ),
    ],
)
def test_a_state_without_counterpart_is_refused_and_both_sides_are_said(theirs, ours, said):
    with pytest.raises(ValueError, match=said):
        interop.from_optax_state(ours(), PARAMS, theirs().init(PARAMS))


def test_the_state_of_another_model_is_refused():
    with pytest.raises(
        ValueError, match="mu of adam at 0 is of other parameters: only there are w; only here are dense/bias"
    ):
        interop.from_optax_state(torch.adam(0.1), PARAMS, optax.adam(0.1).init({"w": jnp.ones(1)}))
    other = {"dense": {"kernel": PARAMS["dense"]["kernel"], "bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match=r"scale_by_adam/mu/dense/bias: saved with shape \(3,\), expected \(2,\)"):
        interop.from_optax_state(torch.adam(0.1), PARAMS, optax.adam(0.1).init(other))


def test_what_optax_has_no_place_for_is_not_left_behind_silently():
    tx = oc.chain(torch.adam(0.1), oc.average_params(0.9))
    with pytest.raises(ValueError, match="no place for average_params/"):
        interop.to_optax_state(tx, PARAMS, tx.init(PARAMS), optax.adam(0.1))
    assert interop.to_optax_state(tx, PARAMS, tx.init(PARAMS), optax.adam(0.1), lossy=True)[0].count == 0
    gate = oc.accumulate(torch.sgd(0.1), 2)
    _, state = gate.apply(PARAMS, gate.init(PARAMS), grads=PARAMS, weight=5.0)
    with pytest.raises(ValueError, match="1 gradients of weight 5; MultiSteps knows no weights"):
        interop.to_optax_state(gate, PARAMS, state, optax.MultiSteps(optax.sgd(0.1), 2))


def test_a_recipe_without_counterpart_in_optax_says_which_link():
    with pytest.raises(ValueError, match="no optimizer of Optax has these links: clip_by_norm, scale_by_adam"):
        interop.to_optax(oc.chain(oc.clip_by_norm(1.0), oc.scale_by_adam(), oc.scale_by_learning_rate(0.1)))
    with pytest.raises(ValueError, match="Optax's adam has its epsilon inside the bias correction"):
        interop.to_optax(oc.adam(0.1))
