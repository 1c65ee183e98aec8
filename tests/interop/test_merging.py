"""A saved state in a chain that has changed since: links by name, nothing guessed, nothing silently dropped."""

import functools
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.interop import orbax
from optchain.interop.merging import merge
from tests.sampling import others_thorough

from .helpers import assert_same, without_types

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}


def stepped(tx: oc.Transformation, params: Any = PARAMS, steps: int = 3) -> Any:
    state = tx.init(params)
    for number in range(steps):
        grads = jax.tree.map(lambda p, size=number + 0.5: jnp.full_like(p, size), params)
        params, state = tx.apply(params, state, grads=grads)
    return state


saved_state = functools.cache(lambda: stepped(oc.adam(0.1)))


def test_an_unchanged_chain_gets_its_state_back_to_the_bit():
    state, report = merge(without_types(saved_state()), oc.adam(0.1).init(PARAMS), hyperparams="saved")
    assert_same(state, saved_state())
    assert all(not leaf.weak_type for leaf in jax.tree.leaves(state))
    assert (report.new, report.gone) == ([], [])


NOISES = {
    "raw key": oc.add_noise(0.1, seed=0),
    "typed key": optax.add_noise(0.1, 0.55, key=jax.random.key(3)),
    "typed key of another generator": optax.add_noise(0.1, 0.55, key=jax.random.key(3, impl="rbg")),
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("shapes_alone", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_keys_of_random_numbers_go_on_where_they_were(name, shapes_alone, on_disk, tmp_path):
    tx = oc.chain(NOISES[name], oc.adam(0.1))
    params = {"w": jnp.ones(3)}
    _, state = tx.apply(params, tx.init(params), grads=params)
    target = jax.eval_shape(tx.init, params) if shapes_alone else tx.init(params)
    if on_disk:
        orbax.save(tmp_path, 1, state)
        restored, report = orbax.restore(tmp_path, target, hyperparams="saved")
    else:
        restored, report = merge(state, target, hyperparams="saved")
    assert (report.new, report.gone) == ([], [])
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)
    ends = [tx.apply(params, each, grads=params)[0]["w"] for each in (restored, state)]
    np.testing.assert_array_equal(*ends)


def test_a_new_link_is_initialized_and_an_old_one_is_reported_gone():
    before = oc.chain(oc.clip_by_global_norm(1.0), oc.sgd(0.1, momentum=0.9), oc.average_params(0.9))
    after = oc.chain(oc.sgd(0.1, momentum=0.9), oc.skip_nonfinite(oc.clip_by_norm(1.0)))
    target = after.init(PARAMS)
    state, report = merge(stepped(before), target, hyperparams="saved")
    assert {path.split("/")[0] for path in report.new} == {"skip_nonfinite"}
    assert {path.split("/")[0] for path in report.gone} == {"clip_by_global_norm", "average_params"}
    assert "average_params/average/dense/kernel" in report.gone
    assert jax.tree.structure(state) == jax.tree.structure(target)
    after.apply(PARAMS, state, grads=PARAMS)


def test_a_link_that_moved_into_a_gate_is_found_by_its_name():
    tx = oc.adam(0.1, gradient_accumulation_steps=2)
    state, report = merge(saved_state(), tx.init(PARAMS), hyperparams="saved")
    assert_same(state["accumulate"]["inner"]["scale_by_adam"], saved_state()["scale_by_adam"])
    assert report.gone == []
    assert "accumulate/grads/dense/kernel" in report.new
    assert "from scale_by_adam/mu" in str(report)


def test_two_links_of_a_name_are_not_guessed_at():
    two = oc.multi_optimizer(("kernels", "kernel", oc.adam(0.2)), default=oc.adam(0.3))
    with pytest.raises(ValueError, match=r"no saved entry has a counterpart: saved are .*scale_by_adam/mu"):
        merge(saved_state(), two.init(PARAMS), hyperparams="saved")


def test_a_layer_that_moved_is_no_link_and_is_not_guessed_at():
    saved = {"model": {"encoder": {"dense": PARAMS["dense"]}}, "state": saved_state()}
    target = {"model": {"decoder": {"dense": PARAMS["dense"]}}, "state": saved_state()}
    _, report = merge(saved, target, hyperparams="saved")
    assert report.new == ["model/decoder/dense/bias", "model/decoder/dense/kernel"]
    assert report.gone == ["model/encoder/dense/bias", "model/encoder/dense/kernel"]


def test_a_run_goes_on_after_a_change_as_it_would_have():
    """Adding a clip that does not bind changes nothing."""
    tx, changed = oc.adam(0.1), oc.adam(0.1, global_clipnorm=1e9)
    state, report = merge(saved_state(), changed.init(PARAMS), hyperparams="saved")
    assert {path.split("/")[0] for path in report.new} == {"clip_by_global_norm"}
    a, _ = tx.apply(PARAMS, saved_state(), grads=PARAMS)
    b, _ = changed.apply(PARAMS, state, grads=PARAMS)
    np.testing.assert_array_equal(a["dense"]["kernel"], b["dense"]["kernel"])


@pytest.mark.parametrize(("choice", "rate"), [("saved", 0.1), ("configured", 0.3)])
def test_which_hyperparameters_a_run_goes_on_with_is_said_and_reported(choice, rate):
    state, report = merge(saved_state(), oc.adam(0.3).init(PARAMS), hyperparams=choice)
    assert oc.get_hyperparams(state)["learning_rate"] == np.float32(rate)
    assert str(report).endswith(f"hyperparameters: {choice}")
    assert ("configured  saved 0.1" in str(report)) == (choice == "configured")


def test_there_is_no_default_for_the_hyperparameters():
    with pytest.raises(TypeError, match="hyperparams"):
        merge(saved_state(), saved_state())  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="hyperparams must be one of 'saved', 'configured'; got 'both'"):
        merge(saved_state(), saved_state(), hyperparams="both")  # pyright: ignore[reportArgumentType]


def test_a_schedule_in_place_of_a_number_says_that_its_count_is_new():
    tx = oc.adam(oc.schedules.CosineDecay(0.1, 100))
    state, report = merge(saved_state(), tx.init(PARAMS), hyperparams="saved")
    assert report.new == ["count", "scheduled/learning_rate"]
    assert report.gone == ["hyperparams/learning_rate"]
    assert state["scale_by_adam"]["count"] == 3


def test_a_schedule_goes_on_where_it_was():
    tx = oc.sgd(oc.schedules.CosineDecay(0.1, 100))
    state, _ = merge(without_types(stepped(tx)), tx.init(PARAMS), hyperparams="configured")
    assert state["count"] == 3


def test_moments_of_another_dtype_are_converted_and_said():
    narrow = oc.adam(0.1, moment_dtype="bfloat16")
    state, report = merge(saved_state(), narrow.init(PARAMS), hyperparams="saved")
    assert state["scale_by_adam"]["mu"]["dense"]["bias"].dtype == jnp.bfloat16
    assert "float32 to bfloat16" in str(report)


def test_frozen_parameters_come_and_go_with_their_moments():
    frozen = oc.freeze(oc.adam(0.1), oc.matching("bias"))
    thawed, report = merge(stepped(frozen)["inner"], oc.adam(0.1).init(PARAMS), hyperparams="saved")
    assert report.new == ["scale_by_adam/mu/dense/bias", "scale_by_adam/nu/dense/bias"]
    _, report = merge(saved_state(), frozen.init(PARAMS)["inner"], hyperparams="saved")
    assert report.gone == ["scale_by_adam/mu/dense/bias", "scale_by_adam/nu/dense/bias"]
    assert thawed["scale_by_adam"]["count"] == 3


def test_the_state_of_another_model_is_refused_with_both_sides():
    other = {"conv": {"kernel": jnp.ones((3, 2))}}
    with pytest.raises(
        ValueError,
        match="scale_by_adam/mu is that of another model: expected and not saved are conv/kernel; saved and not expected are dense/",
    ):
        merge(saved_state(), oc.adam(0.1).init(other), hyperparams="saved")
    with pytest.raises(ValueError, match=r"params is that of another model: expected and not saved are w; .* nothing"):
        merge({"params": PARAMS}, {"params": {**PARAMS, "w": jnp.ones(1)}}, hyperparams="saved")


def test_a_shape_that_differs_is_refused_and_the_target_is_as_it_was():
    target = oc.adam(0.1).init({"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}})
    before = jax.tree.map(np.array, target)
    with pytest.raises(
        ValueError, match=r"scale_by_adam/mu/dense/kernel: saved with shape \(3, 2\), expected \(4, 2\)"
    ):
        merge(saved_state(), target, hyperparams="saved")
    with pytest.raises(ValueError, match=r"count: saved as float32, expected int32"):
        merge(
            {**saved_state(), "scale_by_adam": {**saved_state()["scale_by_adam"], "count": jnp.ones(())}},
            saved_state(),
            hyperparams="saved",
        )
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(target), strict=True):
        np.testing.assert_array_equal(a, b)


def test_something_else_altogether_is_refused():
    with pytest.raises(
        ValueError, match="no saved entry has a counterpart: saved are weights; expected are hyperparams"
    ):
        merge({"weights": np.ones(3)}, oc.sgd(0.1).init(PARAMS), hyperparams="saved")


def test_the_result_shares_no_buffer_and_may_be_donated():
    target = oc.adam(0.1).init(PARAMS)
    state, _ = merge(saved_state(), target, hyperparams="saved")
    taken = {id(leaf) for leaf in jax.tree.leaves((saved_state(), target))}
    assert taken.isdisjoint(id(leaf) for leaf in jax.tree.leaves(state))
    jax.tree.map(lambda leaf: leaf.delete(), state)
    jax.block_until_ready((saved_state(), target))
    np.asarray(saved_state()["scale_by_adam"]["mu"]["dense"]["bias"])


def test_flax_serialization_round_trips_and_what_it_drops_is_named():
    data = flax.serialization.to_bytes(stepped(oc.adam(0.1, use_ema=True)))
    silently = flax.serialization.from_bytes(oc.adam(0.1, use_ema=True).init(PARAMS), data)
    assert_same(jax.tree.map(jnp.asarray, silently), stepped(oc.adam(0.1, use_ema=True)))
    assert "average_params" not in flax.serialization.from_bytes(oc.adam(0.1).init(PARAMS), data)  # without a word
    state, report = merge(flax.serialization.msgpack_restore(data), oc.adam(0.1).init(PARAMS), hyperparams="saved")
    assert_same(state, saved_state())
    assert {path.split("/")[0] for path in report.gone} == {"average_params"}


def test_optax_links_within_a_chain_move_too():
    tx = oc.chain(("adam", optax.scale_by_adam()), oc.scale_by_learning_rate(), learning_rate=0.1)
    saved = stepped(tx)
    state, report = merge(without_types(saved), tx.init(PARAMS), hyperparams="saved")
    assert jax.tree.structure(state) == jax.tree.structure(saved)
    assert state["adam"].count == 3
    assert (report.new, report.gone) == ([], [])


def test_a_layer_list_that_lost_its_integers_is_found():
    params = {"layers": [jnp.ones(2), {0: jnp.ones(3)}]}
    tx = oc.adam(0.1)
    state, report = merge(without_types(stepped(tx, params)), tx.init(params), hyperparams="saved")
    assert_same(state, stepped(tx, params))
    assert report.gone == []


def test_a_shape_struct_stands_for_what_was_saved_and_for_nothing_else():
    abstract = jax.eval_shape(oc.adam(0.1).init, PARAMS)
    assert_same(merge(saved_state(), abstract, hyperparams="saved")[0], saved_state())
    abstract = jax.eval_shape(oc.adam(0.1, use_ema=True).init, PARAMS)
    with pytest.raises(
        ValueError, match="average_params/average/dense/bias was not saved, and the target has no value"
    ):
        merge(saved_state(), abstract, hyperparams="saved")


# What moves with its links ---------------------------------------------------------------------------------------------

WARMUP = oc.schedules.LinearWarmupDecay(1.0, 10, 100)
MOVES = {
    "into a gate, with a schedule": (oc.adamw(WARMUP), oc.skip_nonfinite(oc.adamw(WARMUP))),
    "into a gate, with a number": (oc.adamw(0.005), oc.skip_nonfinite(oc.adamw(0.003))),
    "into one that has a count of its own": (oc.adamw(WARMUP), oc.accumulate(oc.adamw(WARMUP), 1)),
    "into a chain": (oc.adamw(0.005), oc.chain(oc.adamw(0.003), oc.monitor())),
    "a gate into a gate": (
        oc.accumulate(oc.adamw(WARMUP), 1),
        oc.skip_nonfinite(oc.accumulate(oc.adamw(WARMUP), 1)),
    ),
    "a bare rule": (oc.scale_by_adam(), oc.skip_nonfinite(oc.scale_by_adam())),
    "a chain without states": (oc.sgd(WARMUP), oc.skip_nonfinite(oc.sgd(WARMUP))),
    "into a group": (oc.adamw(WARMUP), oc.multi_optimizer(("all", ".*", oc.adamw(WARMUP)))),
}


@pytest.mark.parametrize("out", [False, True], ids=["in", "out"])
@pytest.mark.parametrize("move", others_thorough(MOVES, "into a gate, with a schedule", "into a group"))
def test_a_recipe_that_moves_goes_on_with_its_counts_its_rate_and_its_schedule(move, out):
    old, new = MOVES[move][:: -1 if out else 1]
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, -2.0, 3.0])}

    def trained(tx, params, state, steps):
        for _ in range(steps):
            params, state = tx.apply(params, state, grads=grads)
        return params, state

    half, state = trained(old, params, old.init(params), 4)
    state, report = merge(state, new.init(params), hyperparams="saved")
    of_the_window = {"count"} if out and move == "into one that has a count of its own" else set()
    assert {path for path in report.gone if "count" in path.split("/")} == of_the_window
    np.testing.assert_allclose(
        trained(new, half, state, 4)[0]["w"], trained(old, params, old.init(params), 8)[0]["w"], rtol=1e-6
    )


@pytest.mark.parametrize("new", [oc.adamw(0.1, use_ema=True), oc.schedule_free(oc.sgd(0.1))])
def test_what_is_new_and_begins_as_the_parameters_begins_as_those_that_were_restored(new):
    trained, fresh = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([-5.0, 7.0])}
    saved = {"params": trained, "state": oc.adamw(0.1).init(trained)}
    made, _ = merge(saved, {"params": fresh, "state": new.init(fresh)}, hyperparams="saved")
    evaluated = oc.schedule_free_params if "iterates" in new.init(trained) else oc.finalize
    np.testing.assert_allclose(evaluated(made["params"], made["state"])["w"], trained["w"], rtol=1e-6)


# What has moved with its surroundings -----------------------------------------------------------------------------------

LATE = {"body": jnp.ones((2, 2)), "head": jnp.ones(2)}


def of_groups(rate: float = 0.1) -> oc.Transformation:
    return oc.multi_optimizer(("body", "body", oc.adamw(rate)), ("head", "head", oc.adam(2 * rate)))


WRAPPED = {
    "gate": lambda tx: oc.skip_nonfinite(tx),
    "accumulate": lambda tx: oc.accumulate(tx, 2),
    "clip": lambda tx: oc.chain(oc.clip_by_value(1.0), tx),
    "both": lambda tx: oc.skip_nonfinite(oc.chain(oc.clip_by_value(1.0), tx)),
}


@pytest.mark.parametrize("around", WRAPPED)
@pytest.mark.parametrize("outward", [False, True])
def test_the_links_of_groups_move_with_them(around, outward):
    """Both have a `scale_by_adam`: the rates moved, and the moments began anew."""
    plain, wrapped = of_groups(), WRAPPED[around](of_groups())
    before, now = (wrapped, plain) if outward else (plain, wrapped)
    saved = stepped(before, LATE, steps=4)
    merged, report = merge(saved, now.init(LATE), hyperparams="saved")
    arrays = [path for path in report.new if "scale_by_adam" in path or "learning_rate" in path]
    assert arrays == []
    assert int(oc.steps_taken(merged)) == int(oc.steps_taken(saved)) > 0


def schedule(step: Any) -> Any:
    return 0.1 / (1 + step)


@pytest.mark.parametrize("rate", [0.05, schedule], ids=["number", "schedule"])
@pytest.mark.parametrize(
    ("before", "now"),
    [
        (lambda rate: oc.chain(oc.adamw(rate), oc.average_params()), lambda rate: oc.adamw(rate, use_ema=True)),
        (lambda rate: oc.adamw(rate, use_ema=True), lambda rate: oc.chain(oc.adamw(rate), oc.average_params())),
        (lambda rate: oc.sgd(rate), lambda rate: oc.chain(oc.clip_by_value(1.0), oc.sgd(rate))),
        (
            lambda rate: oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate(rate)),
            lambda rate: oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate(), learning_rate=rate),
        ),
    ],
    ids=["into the preset", "out of it", "clip", "of a link"],
)
def test_a_rate_goes_on_where_its_links_stand_now(before, now, rate):
    saved = stepped(before(rate), steps=4)
    target = now(0.3 if rate == 0.05 else lambda step: 0.3 / (1 + step))
    merged, report = merge(saved, target.init(PARAMS), hyperparams="saved")
    (found,), (expected,) = oc.get_hyperparams(merged).values(), oc.get_hyperparams(saved).values()
    assert float(found) == float(expected)
    assert not any("learning_rate" in path for path in report.new + report.gone)
    if rate is schedule:
        assert int(oc.steps_taken(merged)) == 4


def test_of_two_rates_none_is_taken_for_another():
    saved, target = (
        {"params": LATE, "state": state} for state in (stepped(of_groups(), LATE), oc.adamw(0.3).init(LATE))
    )
    merged, report = merge(saved, target, hyperparams="saved")
    assert float(oc.get_hyperparams(merged)["learning_rate"]) == pytest.approx(0.3)
    assert "state/hyperparams/learning_rate" in report.new


def test_a_schedule_does_not_go_on_with_a_count_of_something_else():
    """Of 8 calls or 2 updates: the rate was 0 from then on, or began anew."""
    around = oc.adamw(schedule, gradient_accumulation_steps=4)
    within = oc.accumulate(oc.adamw(schedule), 4)
    for before, now, words in (
        (around, within, "inner/count: saved is a number of calls, expected one of updates, .* within accumulate now"),
        (within, around, "count: saved is a number of updates, expected one of calls, .* around accumulate now"),
    ):
        saved = stepped(before, steps=8)
        with pytest.raises(ValueError, match=words):
            merge(saved, now.init(PARAMS), hyperparams="saved")
        merge(before.init(PARAMS), now.init(PARAMS), hyperparams="saved")  # there it is 0 of both
    merged, _ = merge(stepped(oc.adamw(schedule), steps=3), within.init(PARAMS), hyperparams="saved")
    assert int(merged["inner"]["count"]) == 3  # each call was an update


@pytest.mark.parametrize("bad", [jnp.nan, -1.0])
def test_a_rate_that_is_not_taken_over_may_be_any(bad):
    saved = stepped(oc.adam(0.1))
    saved["hyperparams"]["learning_rate"] = jnp.float32(bad)
    merged, _ = merge(saved, oc.adam(0.3).init(PARAMS), hyperparams="configured")
    assert float(oc.get_hyperparams(merged)["learning_rate"]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="hyperparams/learning_rate must be"):
        merge(saved, oc.adam(0.3).init(PARAMS), hyperparams="saved")


def test_a_parameter_called_count_is_no_count_wherever_parameters_lie():
    model = {"mlp": {"count": jnp.array(0.5), "average": jnp.ones(3), "weight": jnp.ones(2)}}
    tree = {"model": model, "state": oc.adamw(0.1, use_ema=True).init(model)}
    merged, _ = merge(tree, tree, hyperparams="saved")
    assert float(merged["model"]["mlp"]["count"]) == 0.5


GATES = {
    "accumulate": lambda tx: oc.accumulate(tx, 4),
    "skip_nonfinite": oc.skip_nonfinite,
    "dynamic_loss_scale": lambda tx: oc.dynamic_loss_scale(tx, 8.0, growth_steps=2),
}
NO_PAIR = {("skip_nonfinite", "dynamic_loss_scale")}
WITHIN = GATES | {"clip": lambda tx: oc.chain(oc.clip_by_value(1e6), tx)}


@pytest.mark.parametrize(
    # Which of two accumulations is the one that stayed nothing says; and a loss scale is not built within what skips.
    ("outer", "inner"),
    [(outer, inner) for outer in GATES for inner in WITHIN if (outer, inner) not in NO_PAIR and outer != inner],
)
@pytest.mark.parametrize("outward", [False, True])
@pytest.mark.parametrize(
    "around", [lambda tx: tx, lambda tx: oc.chain(tx, oc.average_params())], ids=["alone", "average"]
)
def test_a_gate_that_stays_keeps_what_it_has_whatever_comes_within(outer, inner, outward, around):
    """Half a window of gradients was thrown away, and a loss scale began anew."""
    plain, gated = oc.adamw(0.1), WITHIN[inner](oc.adamw(0.1))
    before, now = (around(GATES[outer](tx)) for tx in ((gated, plain) if outward else (plain, gated)))
    saved = stepped(before, steps=6)
    merged, report = merge(saved, now.init(PARAMS), hyperparams="saved")
    assert not set(report.new) & set(report.gone)
    assert not any("scale_by_adam" in path for path in report.new)
    own_before, own_now = (state.get("accumulate", state.get(outer, state)) for state in (saved, merged))
    for name in ("grads", "weight", "count", "loss_scale", "good_steps"):
        if name in own_before:
            assert_same(own_now[name], own_before[name])


def test_groups_of_other_parameters_are_no_other_model():
    before = oc.multi_optimizer(("body", "body", oc.adamw(0.1)), default=oc.adam(0.1))
    now = oc.multi_optimizer(("head", "head", oc.adamw(0.1)), default=oc.adam(0.1))
    saved = {"params": LATE, "state": stepped(before, LATE)}
    _, report = merge(saved, {"params": LATE, "state": now.init(LATE)}, hyperparams="saved")
    assert {"state/default/scale_by_adam/mu/body", "state/head/scale_by_adam/mu/head"} <= set(report.new)
    with pytest.raises(ValueError, match="default/scale_by_adam/mu is that of another model"):
        merge(saved["state"], now.init(LATE), hyperparams="saved")
