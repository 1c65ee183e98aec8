"""`steps_taken`: the number of updates, read from what links count."""

import inspect
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.core.registry import FACTORIES
from optchain.interop.merging import merge

ONES = {"w": jnp.ones(3), "b": jnp.ones(2)}
BAD = {"w": jnp.ones(3), "b": jnp.array([1.0, jnp.nan])}


def after(tx, grads):
    params, state = ONES, tx.init(ONES)
    for g in grads:
        params, state = tx.apply(params, state, grads=g)
    return state


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("make", "grads", "updates"),
    [
        (lambda: oc.adamw(0.1), [ONES] * 3, 3),
        (lambda: oc.sgd(0.1, global_clipnorm=1.0), [ONES] * 3, 3),
        (lambda: oc.sgd(lambda step: 0.1), [ONES] * 3, 3),
        (lambda: oc.adamw(lambda step: 0.1, gradient_accumulation_steps=2, use_ema=True), [ONES] * 5, 2),
        (lambda: oc.skip_nonfinite(oc.adam(0.1)), [ONES, BAD, ONES], 2),
        (lambda: oc.skip_nonfinite(oc.accumulate(oc.adam(0.1), 2)), [ONES, BAD, ONES, ONES, ONES], 2),
        (lambda: oc.accumulate(oc.skip_nonfinite(oc.adam(0.1)), 2), [ONES, BAD, ONES, ONES, ONES], 1),
        (lambda: oc.dynamic_loss_scale(oc.adam(0.1), 8.0), [ONES, BAD, ONES], 2),
        (lambda: oc.accumulate(oc.sgd(0.1), lambda updates: 1 + updates), [ONES] * 4, 2),
        (lambda: oc.freeze(oc.adam(0.1), oc.matching("b")), [ONES] * 3, 3),
        (lambda: oc.schedule_free_adamw(0.1), [ONES] * 3, 3),
        (lambda: oc.chain(optax.adam(0.1)), [ONES] * 3, 3),
        (
            lambda: oc.multi_optimizer(("a", "w", oc.accumulate(oc.adam(0.1), 2)), default=oc.adam(0.1)),
            [ONES] * 5,
            2,
        ),
    ],
)
def test_it_is_the_number_of_updates_and_not_of_calls(make, grads, updates):
    steps = oc.steps_taken(after(make(), grads))
    assert steps.dtype == jnp.int32
    assert int(steps) == updates


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: oc.sgd(0.1), "nothing in the state counts updates"),
        (lambda: oc.skip_nonfinite(oc.sgd(0.1)), "the updates of the gate at its root"),
        (
            lambda: oc.chain(oc.accumulate(oc.scale(2.0), 2), oc.average_params()),
            "the updates of the gate at accumulate",
        ),
    ],
)
def test_where_nothing_counts_updates_it_says_so_and_takes_no_count_of_calls_for_one(make, where):
    with pytest.raises(ValueError, match=where):
        oc.steps_taken(after(make(), [ONES]))


PRESETS = {
    name: factory
    for name, factory in FACTORIES.items()
    if factory.__module__.startswith("optchain.presets")
    and {"lr", "learning_rate"} & inspect.signature(factory).parameters.keys()
}


def built(factory):
    first = next(iter(inspect.signature(factory).parameters.values()))
    return factory(0.1) if first.default is first.empty else factory()  # Optax's rates have no default


def counts(tx):
    try:
        oc.steps_taken(tx.init({"kernel": jnp.ones((2, 2))}))  # Muon takes nothing else
    except ValueError:
        return False
    return True


def test_the_guide_names_the_presets_that_keep_no_count_and_those_that_do():
    guide = (Path(__file__).parents[2] / "docs/guide/hyperparameters.md").read_text()
    counting, others = guide[guide.index("`steps_taken(state)`") :].split("The others")
    made = {name: counts(built(factory)) for name, factory in PRESETS.items()}
    named = set(re.findall(r"`([\w.]+)`", others))
    assert named == {name for name, counting in made.items() if not counting}
    for name, factory in PRESETS.items():
        if not made[name]:
            assert counts(factory(lambda step: 0.1))
            options = {"use_ema": True, "global_clipnorm": 1.0}
            for option in options.keys() & inspect.signature(factory).parameters.keys():
                assert counts(factory(**{option: options[option]})), (name, option)
        elif "." not in name:
            assert f"`{name}`" in counting


def test_a_parameter_called_count_is_no_count():
    params = {"count": jnp.ones(2), "grads": jnp.ones(2)}
    state = oc.adam(0.1).init(params)
    assert int(oc.steps_taken({"opt_state": state, "params": {"count": jnp.array(7)}})) == 0


@pytest.mark.parametrize("clip", [oc.clip_by_global_norm(1.0), oc.adagc(), oc.zclip()])
@pytest.mark.parametrize("accumulates", [False, True])
def test_what_is_added_in_mid_run_does_not_begin_the_count_anew(accumulates, clip):
    def recipe(**added):
        rule = oc.chain(
            *added.get("first", ()), oc.scale_by_adam(), oc.scale_by_learning_rate(0.1), *added.get("last", ())
        )
        return oc.accumulate(rule, 2) if accumulates else rule

    state = after(recipe(), [ONES] * 6)
    longer = recipe(first=[clip], last=[oc.average_params(0.9)])
    merged, _ = merge(state, longer.init(ONES), hyperparams="saved")
    assert int(oc.steps_taken(merged)) == int(oc.steps_taken(state)) == (3 if accumulates else 6)


AROUND = {
    "average": (
        lambda: oc.adamw(0.1, gradient_accumulation_steps=2),
        lambda: oc.adamw(0.1, gradient_accumulation_steps=2, use_ema=True),
    ),
    "clip": (
        lambda: oc.skip_nonfinite(oc.adamw(0.1)),
        lambda: oc.chain(oc.clip_by_global_norm(1.0), oc.skip_nonfinite(oc.adamw(0.1))),
    ),
    "schedule": (lambda: oc.adamw(0.1), lambda: oc.adamw(lambda step: 0.1)),
    "rows": (lambda: oc.adamw(0.1), lambda: oc.lazy_rows(oc.adamw(0.1), catch_up=True)),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_is_added_around_what_counts_does_not_either(case):
    before, now = (make() for make in AROUND[case])
    state = after(before, [ONES] * 6)
    merged, _ = merge(state, now.init(ONES), hyperparams="configured")
    steps = int(oc.steps_taken(state))
    assert int(oc.steps_taken(merged)) == steps
    params = ONES
    for _ in range(4):
        params, merged = now.apply(params, merged, grads=ONES)
    assert int(oc.steps_taken(merged)) == steps + (2 if case == "average" else 4)


@pytest.mark.parametrize("options", [{"learning_rate": lambda step: 0.1}, {"learning_rate": 0.1, "use_ema": True}])
def test_where_accumulation_ends_what_was_around_it_counted_calls(options):
    state = after(oc.adamw(**options, gradient_accumulation_steps=4), [ONES] * 8)
    now = oc.adamw(**options)
    merged, _ = merge(state, now.init(ONES), hyperparams="saved")
    assert int(oc.steps_taken(merged)) == 2
    _, merged = now.apply(ONES, merged, grads=ONES)
    assert int(oc.steps_taken(merged)) == 3


def by_optax(tx, grads):
    state = tx.init(ONES)
    for g in grads:
        _, state = tx.update(g, state, ONES, value=1.0)
    return state


OF_OPTAX = {
    "plateau": (lambda: optax.chain(oc.adamw(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2)), 9),
    "plateau as a link": (
        lambda: oc.chain(oc.scale_by_adam(), optax.contrib.reduce_on_plateau(patience=2), oc.scale(-0.1)),
        9,
    ),
    "apply_every": (lambda: optax.chain(oc.adamw(0.1), optax.apply_every(4)), 9),
    "windows": (
        lambda: optax.chain(
            optax.MultiSteps(oc.adamw(0.1), 2).gradient_transformation(), optax.scale_by_schedule(lambda step: 1.0)
        ),
        4,
    ),
    "windows of what counts nothing": (lambda: optax.MultiSteps(oc.sgd(0.1), 2).gradient_transformation(), 4),
    "finite": (lambda: optax.apply_if_finite(oc.adamw(0.1), 3), 9),
}


@pytest.mark.parametrize("case", OF_OPTAX)
def test_counters_of_optax_that_are_none_of_updates_are_not_read_and_its_gates_are_seen(case):
    make, steps = OF_OPTAX[case]
    tx = make() if hasattr(make(), "apply") else optax.with_extra_args_support(make())
    assert int(oc.steps_taken(by_optax(tx, [ONES] * 9))) == steps


def test_the_count_of_statistics_in_a_container_of_ones_own_is_none_of_updates():
    carry = {"opt": after(oc.adamw(0.1), [ONES] * 3), "obs_rms": {"mean": jnp.ones(2), "count": jnp.array(0)}}
    assert int(oc.steps_taken(carry)) == 3


def test_a_count_of_ones_own_beside_the_state_is_none_either():
    assert int(oc.steps_taken({"count": jnp.array(1), "opt": after(oc.adamw(0.1), [ONES] * 3)})) == 3


def test_of_several_states_it_is_that_of_the_one_with_the_fewest():
    states = {"generator": after(oc.adamw(0.1), [ONES] * 5), "discriminator": after(oc.adam(0.1), [ONES] * 2)}
    assert int(oc.steps_taken(states)) == 2


def test_optax_finds_the_one_count():
    state = after(oc.adamw(0.1), [ONES] * 3)
    np.testing.assert_array_equal(optax.tree.get(state, "count"), oc.steps_taken(state))
