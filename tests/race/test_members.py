"""Groups of members: each as if it had been trained alone, and all of them one program."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.race import Entrant, Program, StoppedError, Task, compare, constant, cosine, unfinished
from optchain.race.entrant import evaluated
from optchain.race.group import bounded
from optchain.race.rates import best_place, next_places
from tests.race.toys import line
from tests.sampling import others_for_release

SEEDS, FACTORS = [0, 1, 5, 0], [1.0, 1.0, 1.0, 3.0]


def alone(task: Task, tx: Any, seed: int, factor: float, base: float, shape: Any = None) -> Any:
    """The run of one member, written out, in Optax's form."""
    key = jax.random.key(seed)
    params = task.init(jax.random.fold_in(key, 0))
    state, shape = tx.init(params), shape or cosine(task.steps)
    update = jax.jit(tx.update)
    for step in range(task.steps):
        batch = task.batch(jax.random.fold_in(jax.random.fold_in(key, 1), step))
        state = oc.set_hyperparams(state, learning_rate=base * factor * shape(jnp.array(step)))
        updates, state = update(jax.grad(task.loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tx", "base"),
    [
        (oc.adamw(0.02, global_clipnorm=1.0, use_ema=True), 0.02),
        (optax.inject_hyperparams(optax.adamw)(learning_rate=0.02), 0.02),
    ],
    ids=["adamw", "optax"],
)
def test_a_member_is_what_a_run_alone_gives(tx: Any, base: float):
    task = line(12, 3)
    program = Program(task, Entrant("it", tx), len(SEEDS), cosine(task.steps))
    group = program.run(SEEDS, FACTORS)
    for member, (seed, factor) in enumerate(zip(SEEDS, FACTORS, strict=True)):
        loss = float(task.held_out_loss(evaluated(*alone(task, tx, seed, factor, base))))
        assert group.held_out[member][-1] == pytest.approx(loss, rel=1e-5)
    assert group.steps == [0, 4, 8, 12]
    assert group.held_out[0][0] == group.held_out[3][0]  # the same seed begins at the same place
    assert len(set(group.weights)) == len(SEEDS)


def cosine_decay() -> oc.schedules.Schedule:
    return oc.schedules.CosineDecay(0.02, 30)


SCHEDULED = {
    "preset": lambda: oc.adamw(cosine_decay()),
    "preset_in_parts": lambda: oc.adamw(cosine_decay(), gradient_accumulation_steps=2),
    "inside_an_accumulation": lambda: oc.accumulate(oc.adamw(cosine_decay()), 2),
    "in_a_chain": lambda: oc.chain(oc.clip_by_norm(1.0), oc.scale_by_adam(), oc.scale_by_learning_rate(cosine_decay())),
    "in_a_gate": lambda: oc.skip_nonfinite(oc.adamw(cosine_decay(), use_ema=True)),
    "in_groups": lambda: oc.multi_optimizer(
        ("biases", oc.matching("bias"), oc.sgd(cosine_decay())), default=oc.adamw(0.01)
    ),
    "made_by_the_preset": lambda: oc.presets.keras_adamw.adamw(0.02, total_iterations=24, use_cosine_annealing=True),
    "frozen": lambda: oc.freeze(oc.adamw(cosine_decay()), oc.matching("bias")),
    "masked": lambda: oc.masked(oc.adamw(cosine_decay()), oc.matching("kernel")),
    "decay_first": lambda: oc.chain(oc.decay_first(oc.apply_ftrl(), 0.01), learning_rate=cosine_decay()),
    "schedule_free": lambda: oc.schedule_free(oc.scale_by_learning_rate(cosine_decay()), 0.9),
    "compact": lambda: oc.compact(oc.adamw(cosine_decay()), moments="bfloat16"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", others_for_release(SCHEDULED, "made_by_the_preset", "preset_in_parts"))
def test_a_recipe_with_a_schedule_keeps_it_times_the_members_factor(name: str):
    task, tx = line(12, 3), SCHEDULED[name]()
    entrant = Entrant("it", tx)
    group = Program(task, entrant, 2, constant(task.steps)).run([0, 0], [1.0, 3.0])

    def alone(times: oc.Transformation) -> float:
        key = jax.random.key(0)
        params = task.init(jax.random.fold_in(key, 0))
        state, apply = times.init(params), jax.jit(times.apply)
        for step in range(task.steps):
            batch = task.batch(jax.random.fold_in(jax.random.fold_in(key, 1), step))
            parts = jax.tree.map(lambda leaf: jnp.split(leaf, entrant.calls), batch)
            for part in zip(*parts, strict=True):
                params, state = apply(params, state, grads=jax.grad(task.loss)(params, part))
        return float(task.held_out_loss(evaluated(params, state)))

    def thrice(name: str, schedule: Any) -> Any:
        return (lambda step: 3 * schedule(step)) if name == "learning_rate" else schedule

    assert group.held_out[0][-1] == pytest.approx(alone(tx), rel=1e-5)
    if name == "made_by_the_preset":  # its schedule is a factor on a rate that can be set
        thrice_built = oc.presets.keras_adamw.adamw(0.06, total_iterations=24, use_cosine_annealing=True)
        assert group.held_out[1][-1] == pytest.approx(alone(thrice_built), rel=1e-4)
    elif name != "in_groups":  # there the rate of the others is multiplied too
        assert group.held_out[1][-1] == pytest.approx(alone(tx.with_schedules(thrice)), rel=1e-4)
    assert group.held_out[0][-1] != group.held_out[1][-1]


@pytest.mark.thorough
@pytest.mark.parametrize("weights", others_for_release([24, "stochastic", None], 24))
def test_weights_of_bfloat16_are_trained_as_alone_and_evaluated_with_their_low_bits(weights: Any):
    toy = line(12, 3)
    wide = jax.random.normal(jax.random.key(1), (64, 64))
    task = dataclasses.replace(toy, init=lambda key: {**toy.init(key), "wide": wide})
    task = dataclasses.replace(task, loss=lambda p, b: toy.loss(p, b) + jnp.mean((p["wide"] - 0.5).astype(float) ** 2))
    task = dataclasses.replace(task, held_out_loss=lambda p: task.loss(p, toy.batch(jax.random.key(2))))
    tx = oc.adamw(0.01) if weights is None else oc.compact(oc.adamw(0.01), weights=weights)
    group = Program(task, Entrant("it", tx, narrow=weights is None), 2, constant(12)).run([0, 1], [1.0, 1.0])
    for member in (0, 1):
        key = jax.random.key(member)
        params = task.init(jax.random.fold_in(key, 0))
        params, state = oc.narrow(params), tx.init(params)
        assert params["wide"].dtype == jnp.bfloat16
        step = oc.make_step(task.loss, tx)
        for number in range(12):
            state = oc.set_hyperparams(state, learning_rate=0.01 * constant(12)(jnp.int32(number)))
            params, state, _ = step(params, state, task.batch(jax.random.fold_in(jax.random.fold_in(key, 1), number)))
        loss = float(task.held_out_loss(oc.wide_params(params, state)))
        # Without low bits a last bit of float32 decides now and then to which bfloat16 a weight is rounded.
        assert group.held_out[member][-1] == pytest.approx(loss, rel=1e-5 if weights else 2e-4)


@pytest.mark.thorough
def test_a_schedule_times_a_factor_is_the_schedule_that_is_built_so():
    schedule, params = cosine_decay(), {"kernel": jnp.ones(3), "bias": jnp.zeros(())}
    built = oc.adamw(schedule * 3.0, global_clipnorm=1.0)
    changed = oc.adamw(schedule, global_clipnorm=1.0).with_schedules(lambda _, own: lambda step: 3.0 * own(step))
    results = []
    for tx in (built, changed):
        now, state = params, tx.init(params)
        for _ in range(3):
            now, state = tx.apply(now, state, grads=jax.tree.map(jnp.ones_like, now))
        results.append((now, oc.get_hyperparams(state)))
    np.testing.assert_allclose(results[0][0]["kernel"], results[1][0]["kernel"], rtol=1e-6)
    assert results[0][1]["learning_rate"] == pytest.approx(results[1][1]["learning_rate"])
    assert changed != built
    assert changed != oc.adamw(schedule, global_clipnorm=1.0)  # or a compiled step of one would serve the other


def test_the_rate_of_a_schedule_is_its_highest_in_the_run():
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    warmup = oc.schedules.CosineDecay(0.1, 100, warmup_target=0.5, warmup_steps=20)
    assert Entrant("it", oc.sgd(warmup)).rates(params, 100) == {"learning_rate": pytest.approx(0.5)}
    assert Entrant("it", oc.sgd(warmup)).rates(params, 11) == {"learning_rate": pytest.approx(0.3)}
    # A call a part, and ten parts an update; inside the accumulation an update is a call.
    parts = oc.sgd(warmup, gradient_accumulation_steps=10)
    assert Entrant("it", parts).rates(params, 10) == {"learning_rate": pytest.approx(0.5)}
    inside = oc.accumulate(oc.sgd(warmup), 10)
    assert Entrant("it", inside).rates(params, 11) == {"learning_rate": pytest.approx(0.3)}
    assert Entrant("it", oc.sgd(warmup), rate=1.0).factor({"learning_rate": 0.5}) == 2.0
    with pytest.raises(ValueError, match="its learning rate is 0"):
        Entrant("it", oc.sgd(0.0)).factor({"learning_rate": 0.0})


@pytest.mark.thorough
@pytest.mark.parametrize("gate", [oc.skip_nonfinite, lambda inner: oc.dynamic_loss_scale(inner, 4.0, 2)])
@pytest.mark.parametrize("calls", [1, 2])
def test_members_of_a_gate_that_looks_at_gradients_are_runs_alone(gate: Any, calls: int):
    """Some batches of some seeds have a gradient that is not finite: members skip at different steps."""
    toy = line(8, 2)

    def loss(params: Any, examples: Any) -> jax.Array:
        return toy.loss(params, examples) / jnp.where(examples[1].max() > 1.5, 0.0, 1.0)

    task = dataclasses.replace(toy, loss=loss)
    tx = gate(oc.adamw(0.02, gradient_accumulation_steps=None if calls == 1 else calls))
    entrant = Entrant("it", tx)
    group = Program(task, entrant, 3, constant(8)).run([0, 1, 2], [1.0] * 3)
    skipped = []
    for member, seed in enumerate((0, 1, 2)):
        key = jax.random.key(seed)
        params = task.init(jax.random.fold_in(key, 0))
        state, step = tx.init(params), oc.make_step(task.loss, tx)
        bad = 0
        for number in range(8):
            batch = task.batch(jax.random.fold_in(jax.random.fold_in(key, 1), number))
            state = oc.set_hyperparams(state, learning_rate=0.02 * constant(8)(jnp.int32(number)))
            for part in zip(*(jnp.split(leaf, calls) for leaf in batch), strict=True):
                bad += int(part[1].max() > 1.5)
                params, state, _ = step(params, state, part)
        skipped.append(bad)
        assert group.held_out[member][-1] == pytest.approx(float(task.held_out_loss(params)), rel=1e-4)
    assert len(set(skipped)) > 1, skipped


@pytest.mark.thorough
def test_a_quarter_batch_accumulated_four_times_is_the_whole_batch():
    task = line(12, 3)
    whole = Program(task, Entrant("whole", oc.adamw(0.02)), 4, cosine(12)).run(SEEDS, FACTORS)
    entrant = Entrant("parts", oc.adamw(0.02, gradient_accumulation_steps=4))
    assert entrant.calls == 4
    parts = Program(task, entrant, 4, cosine(12)).run(SEEDS, FACTORS)
    np.testing.assert_allclose(parts.held_out, whole.held_out, rtol=2e-5)


@pytest.mark.parametrize("tx", [oc.adamw(0.02, gradient_accumulation_steps=2), oc.soap(0.02)], ids=["adamw", "soap"])
def test_what_waits_for_a_count_stays_a_branch_of_the_one_program(tx: Any):
    task = line(4, 1)
    program = Program(task, Entrant("it", tx), 8, cosine(4))
    arrays = program._begin(program._put(jax.vmap(jax.random.key)(jnp.arange(8))))
    step = jax.vmap(program._member(), in_axes=(0, program._axes, 0, 0, None), out_axes=(0, program._axes))
    program_text = str(jax.make_jaxpr(step)(*arrays, jax.vmap(jax.random.key)(jnp.arange(8)), jnp.ones(8), 0))
    assert "cond[" in program_text


@pytest.mark.thorough
def test_rates_and_seeds_are_one_program(monkeypatch: pytest.MonkeyPatch):
    task, compiled = line(4, 1), []
    program = Program(task, Entrant("it", oc.sgd(0.1)), 8, cosine(4))
    program.run([0] * 8, [0.1 * n for n in range(1, 9)])
    compiled.append(program._compiled)
    program.run(list(range(8)), [1.0] * 8)
    program.run([3], [2.0])  # fewer are padded
    assert compiled == [program._compiled]


@pytest.mark.for_release
def test_members_do_not_depend_on_the_devices_they_are_split_over():
    task = line(12, 3)
    groups = [
        Program(task, Entrant("it", oc.adamw(0.02)), 8, cosine(12), jax.devices()[:count]).run(
            list(range(8)), [1.0] * 8
        )
        for count in (1, 4, 8)
    ]
    for group in groups[1:]:
        np.testing.assert_allclose(group.held_out, groups[0].held_out, rtol=1e-5)


@pytest.mark.thorough
def test_every_device_has_its_members_and_asks_no_other():
    task = line(4, 1)
    program = Program(task, Entrant("it", oc.adamw(0.02, global_clipnorm=1.0)), 8, cosine(4))
    program.run(list(range(8)), [1.0] * 8)
    assert program._compiled is not None
    text = program._compiled[0].as_text()  # pyright: ignore[reportFunctionMemberAccess]
    for collective in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert collective not in text
    assert program.mesh.size == 8


@pytest.mark.thorough
def test_a_group_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unfinished, "SAVE_EVERY", 0.0)
    task = line(40, 4)
    program = Program(task, Entrant("it", oc.adamw(0.02, use_ema=True)), 8, cosine(40))
    whole = program.run(list(range(8)), [1.0] * 8)
    seen: list[int] = []
    with pytest.raises(StoppedError):
        program.run(
            list(range(8)),
            [1.0] * 8,
            folder=tmp_path / "group",
            advance=lambda step, loss: seen.append(step),
            stop=lambda: len(seen) == 2,
        )
    assert seen == [10, 20]
    other = Program(task, Entrant("it", oc.adamw(0.02, use_ema=True)), 8, cosine(40))  # another process, as it were
    resumed = other.run(list(range(8)), [1.0] * 8, folder=tmp_path / "group", advance=lambda step, _: seen.append(step))
    assert seen == [10, 20, 30, 40]
    for field in ("held_out", "weights", "seeds", "factors", "steps"):
        assert getattr(resumed, field) == getattr(whole, field)


@pytest.mark.thorough
@pytest.mark.parametrize("devices", others_for_release([(1, 4), (4, 1), (8, 2)], (4, 1)))
def test_a_group_goes_on_where_there_are_more_or_fewer_devices(
    devices: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before, after = devices
    monkeypatch.setattr(unfinished, "SAVE_EVERY", 0.0)
    task, entrant = line(40, 4), Entrant("it", oc.adamw(0.02, use_ema=True, gradient_accumulation_steps=2))

    def program(devices: int) -> Program:
        return Program(task, entrant, 3, cosine(40), jax.devices()[:devices])

    whole = program(1).run([0, 1, 2], [1.0, 1.0, 2.0])
    seen: list[int] = []
    options: Any = {"folder": tmp_path / "group", "advance": lambda step, _: seen.append(step)}
    with pytest.raises(StoppedError):
        program(before).run([0, 1, 2], [1.0, 1.0, 2.0], stop=lambda: len(seen) == 2, **options)
    resumed = program(after).run([0, 1, 2], [1.0, 1.0, 2.0], **options)
    assert seen == [10, 20, 30, 40]
    np.testing.assert_allclose(resumed.held_out, whole.held_out, rtol=1e-5)
    assert len(resumed.weights) == 3


@pytest.mark.thorough
def test_what_another_group_left_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unfinished, "SAVE_EVERY", 0.0)
    task = line(20, 4)
    program = Program(task, Entrant("it", oc.sgd(0.1)), 8, cosine(20))
    program.run([0, 1], [1.0, 1.0], folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds another group, \{'seeds': \[0, 1\], 'factors': \[1.0, 1.0\]"):
        program.run([2, 3], [1.0, 1.0], folder=tmp_path)


# What is measured ------------------------------------------------------------------------------------------------------


def test_the_weights_that_are_evaluated_are_the_averages():
    params = {"w": jnp.ones(2)}
    for tx, schedule_free in [
        (oc.sgd(1.0, use_ema=True, ema_momentum=0.5), False),
        (oc.schedule_free(oc.scale_by_learning_rate(1.0), 0.5), True),
        (optax.contrib.schedule_free(optax.sgd(1.0), 1.0, b1=0.5), True),
    ]:
        moving, state = params, tx.init(params)
        for _ in range(2):
            updates, state = tx.update({"w": jnp.ones(2)}, state, moving)
            moving = optax.apply_updates(moving, updates)
        # The iterates are 0 and −1.
        np.testing.assert_allclose(evaluated(moving, state)["w"], -0.5, atol=1e-6)
        assert Entrant("it", tx).is_schedule_free(params) == schedule_free


@pytest.mark.thorough
def test_a_run_that_is_lost_counts_as_one_that_never_began():
    curves = np.array([[2.0, 1.0, np.nan], [3.0, np.inf, 4.0], [4.0, 2.0, 1.0]])
    np.testing.assert_array_equal(bounded(curves), [[2.0, 1.0, 2.0], [3.0, 3.0, 3.0], [4.0, 2.0, 1.0]])
    group = Program(line(8, 2), Entrant("it", oc.sgd(0.1)), 2, cosine(8)).run([0, 1], [1.0, 1e9])
    assert group.held_out[1][-1] is None or group.held_out[1][-1] > group.held_out[1][0]
    assert group.final[1] == group.held_out[1][0]


def test_a_recipes_learning_rates_are_found_all_of_them():
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    groups = oc.multi_optimizer(("biases", oc.matching("bias"), oc.sgd(0.1)), default=oc.adamw(0.01))
    assert sorted(Entrant("it", groups).rates(params, 10).values()) == pytest.approx([0.01, 0.1])
    assert Entrant("it", optax.adam(1e-3)).rates(params, 10) == {}


def test_the_search_goes_on_until_the_best_rate_is_inside():
    def best(place: int) -> float:
        return abs(place - 4.2)

    losses: dict[int, list[float]] = {}
    rounds = 0
    while places := next_places(losses):
        losses |= {place: [best(place), best(place)] for place in places}
        rounds += 1
    assert (best_place(losses), rounds) == (4, 2)
    losses = {place: [-float(place)] for place in range(-1, 9)}
    assert next_places(losses) == []  # not for ever


def test_in_a_flat_valley_the_lowest_rate_is_taken_and_a_cliff_beside_the_best_does_not_move_it():
    flat = {0: [0.13, 0.14], 1: [0.082, 0.080], 2: [0.078, 0.080], 3: [0.070, 0.086], 4: [2.0, 9.0]}
    assert best_place(flat) == 1
    cliff = {0: [1.20, 1.18], 1: [0.96, 0.95], 2: [0.88, 0.89], 3: [15.0, 4.0]}
    assert best_place(cliff) == 2
    assert best_place({0: [2.0], 1: [1.0], 2: [1.5]}) == 1  # one seed says nothing of the noise


def test_the_noise_that_counts_is_that_of_the_difference_from_the_best_rate():
    # Rates that have not trained: their seeds differ by where they began.
    assert best_place({2: [1.69, 0.23], 3: [0.171, 6.7e-5], 4: [1.5e-5, 2.8e-6], 5: [3.7e-6, 2.1e-6]}) == 5
    assert best_place({-1: [9.1, 4.0], 0: [3.0, 0.7], 1: [0.687, 0.228], 2: [3e-12, 1.1e-9], 3: [12.0, 4.0]}) == 2
    # Seeds that differ in level: both say that the lower rate is worse.
    assert best_place({1: [15.66, 11.94], 2: [14.68, 10.92], 3: [13.45, 9.77], 4: [13.49, 9.78]}) == 3
    # With many seeds, one that is not worse by luck does not suffice.
    assert best_place({0: [1.2, 1.3, 1.1, 0.99], 1: [1.0, 1.0, 1.0, 1.0]}) == 1


def test_a_rate_at_which_runs_are_lost_is_the_best_only_if_there_is_no_other():
    lost = float("inf")
    assert best_place({-1: [6.78, 5.28], 0: [6.10, 5.15], 1: [lost, 1.87], 2: [lost, lost]}) == 0
    assert next_places({-1: [6.78, 5.28], 0: [6.10, 5.15], 1: [lost, 1.87], 2: [lost, lost]}) == []
    assert best_place({0: [lost, 3.0], 1: [lost, 2.0], 2: [lost, lost]}) == 1
    assert next_places({-1: [lost], 0: [lost], 1: [lost], 2: [lost]}) == [
        -5,
        -4,
        -3,
        -2,
    ]  # downwards, where all diverge


@pytest.mark.parametrize("shape", [cosine, constant])
@pytest.mark.parametrize("steps", [1, 7, 300])
def test_a_schedule_rises_over_a_tenth_and_is_never_zero_while_it_runs(shape: Any, steps: int):
    shares = np.array([float(shape(steps)(jnp.array(step))) for step in range(steps)])
    assert np.all((shares > 0) & (shares <= 1))
    assert shares.argmax() <= max(1, steps // 10)
    assert shares.max() == pytest.approx(1, abs=1e-6)


# Mistakes ----------------------------------------------------------------------------------------------------------------


def test_a_task_that_cannot_be_run_is_refused():
    with pytest.raises(ValueError, match="steps must be a multiple of evaluations, 3; got 10"):
        line(10, 3)
    with pytest.raises(ValueError, match="name must be"):
        dataclasses.replace(line(), name="../line")
    for target in (float("inf"), np.float32(np.nan), "low", True):
        with pytest.raises(ValueError, match="target must be a finite number or None; got"):
            dataclasses.replace(line(), target=target)
    numbers = dataclasses.replace(line(), steps=np.int64(80), target=np.float32(0.5))
    assert [type(value) for value in (numbers.steps, numbers.target)] == [int, float]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"held_out_loss": lambda params: jnp.zeros(1)},
            r"held_out_loss must return a real scalar; it returned .*\(1,\)|shape=\(1,\)",
        ),
        ({"held_out_loss": lambda params: jnp.zeros((), complex)}, "held_out_loss must return a real scalar"),
        ({"loss": lambda params, batch: jnp.zeros((), int)}, "loss must return a real scalar"),
        ({"loss": lambda params, batch: (jnp.zeros(()), 1)}, "loss must return a real scalar"),
    ],
)
def test_a_loss_that_is_no_number_is_refused_before_anything_runs(change: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Program(dataclasses.replace(line(), **change), Entrant("it", oc.sgd(0.1)), 2, cosine(40))


def test_the_digest_of_a_task_is_another_where_a_number_is():
    task, digests = line(), {line().digest()}
    wanted = jnp.zeros(8).at[3].set(1e-6)
    others: list[Any] = [
        line(steps=80),
        line(noise=0.51),
        dataclasses.replace(task, target=1.0),
        dataclasses.replace(task, loss=lambda params, batch: 2 * task.loss(params, batch)),
        dataclasses.replace(task, held_out_loss=lambda params: task.held_out_loss(params) + params["kernel"] @ wanted),
    ]
    assert line().digest() in digests
    for other in others:
        assert other.digest() not in digests
        digests.add(other.digest())


@pytest.mark.thorough
def test_a_group_of_another_recipe_task_or_schedule_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unfinished, "SAVE_EVERY", 0.0)
    task, tx = line(20, 4), oc.adam(0.1)

    def program(task: Task = task, tx: Any = tx, shape: Any = cosine) -> Program:
        return Program(task, Entrant("it", tx), 2, shape(task.steps))

    seen: list[int] = []
    with pytest.raises(StoppedError):
        program().run([0, 1], [1.0, 1.0], folder=tmp_path, stop=lambda: bool(seen.append(1)) or len(seen) == 2)
    assert len(seen) == 2  # it is asked once an evaluation
    others = [
        program(tx=oc.adam(0.1, beta_2=0.9)),
        program(line(40, 4)),
        program(line(20, 4, noise=0.6)),
        program(shape=constant),
    ]
    for other in others:
        with pytest.raises(ValueError, match="holds another group"):
            other.run([0, 1], [1.0, 1.0], folder=tmp_path)
    with pytest.raises(ValueError, match="holds another group"):
        program().run([0, 1], [1.0, 2.0], folder=tmp_path)
    resumed = program().run([0, 1], [1.0, 1.0], folder=tmp_path)
    assert resumed.held_out == program().run([0, 1], [1.0, 1.0]).held_out


@pytest.mark.thorough
def test_a_stop_that_is_asked_for_is_saved_whenever_it_comes(tmp_path: Path):
    program = Program(line(20, 4), Entrant("it", oc.sgd(0.1)), 1, cosine(20))
    for number in (1, 2, 3):
        answers, folder = iter([*[False] * (number - 1), True]), tmp_path / str(number)
        with pytest.raises(StoppedError):
            program.run([0], [1.0], folder=folder, stop=functools.partial(next, answers))
        assert [path.name for path in folder.iterdir() if path.name.isdecimal()] == [str(number)]


@pytest.mark.parametrize(
    "tx",
    [
        optax.MultiSteps(optax.adam(0.03), 4).gradient_transformation(),
        optax.chain(optax.clip(1.0), oc.accumulate(oc.sgd(0.1), 4)),
        optax.apply_if_finite(oc.accumulate(oc.adam(0.1), 4), 3),
        optax.chain(optax.sgd(0.1), optax.apply_every(4)),
    ],
)
def test_an_accumulation_inside_of_an_optax_transformation_is_refused(tx: Any):
    with pytest.raises(ValueError, match="accumulates gradients inside of an Optax transformation"):
        Program(line(4, 1), Entrant("it", tx), 1, cosine(4))


def test_a_rate_that_optax_schedules_is_none_that_can_be_set():
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=optax.cosine_decay_schedule(0.03, 20), b1=0.8)
    params = {"w": jnp.ones(2)}
    entrant = Entrant("it", tx)
    assert entrant.rates(params, 20) == {}
    assert entrant.factor({}) == 1.0
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        oc.set_hyperparams(tx.init(params), learning_rate=0.1)
    assert float(oc.set_hyperparams(tx.init(params), b1=0.5).hyperparams["b1"]) == 0.5


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda program: program.run([0], [0.0]), "a factor must be a finite number > 0; got 0.0"),
        (lambda program: program.run([0], [float("nan")]), "a factor must be a finite number > 0; got nan"),
        (lambda program: program.run([-1], [1.0]), "a seed must be an integer >= 0; got -1"),
        (lambda program: program.run([2**32], [1.0]), "a seed must be an integer <= 4294967295"),
        (lambda program: program.run([0.5], [1.0]), "a seed must be an integer >= 0; got 0.5"),
        (lambda program: Entrant("it", oc.sgd(0.1), rate=-1.0), "rate must be a finite number > 0; got -1.0"),
        (lambda program: Entrant("it", oc.sgd(0.1), rate=True), "rate must be a finite number > 0; got True"),
        (lambda program: program.task.shortened(0), "times must be an integer >= 1; got 0"),
        (
            lambda program: Program(
                dataclasses.replace(line(), init=lambda key: {}, loss=lambda p, b: jnp.zeros(())),
                Entrant("it", oc.sgd(0.1)),
                1,
                cosine(40),
            ),
            "init must return a pytree with arrays; it returned {}",
        ),
    ],
)
def test_what_is_out_of_range_is_named(run: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        run(Program(line(4, 1), Entrant("it", oc.sgd(0.1)), 1, cosine(4)))


def test_a_batch_with_a_number_beside_the_examples_is_not_split():
    toy = line(4, 1)
    task = dataclasses.replace(
        toy, batch=lambda key: (*toy.batch(key), 0.5), loss=lambda params, batch: toy.loss(params, batch[:2])
    )
    with pytest.raises(ValueError, match="halves takes a batch in 2 parts, and an array of it has no axis of examples"):
        Program(task, Entrant("halves", oc.sgd(0.1, gradient_accumulation_steps=2)), 2, cosine(4)).run([0], [1.0])
    Program(task, Entrant("whole", oc.sgd(0.1)), 2, cosine(4)).run([0], [1.0])


def test_a_batch_that_does_not_divide_is_refused_by_name():
    entrant = Entrant("thirds", oc.sgd(0.1, gradient_accumulation_steps=3))
    with pytest.raises(ValueError, match="thirds takes a batch in 3 parts, and it has 8 examples"):
        Program(line(4, 1), entrant, 2, cosine(4)).run([0, 1], [1.0, 1.0])


# Must it be believed? ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_recipe_against_itself_is_called_real_in_few_of_200_comparisons():
    """Both sides have seeds of their own, so that nothing but luck tells them apart: 200 comparisons of eight and eight."""
    task, comparisons, seeds = line(20, 1), 200, 8
    program = Program(task, Entrant("it", oc.adamw(0.05)), 2 * comparisons * seeds, cosine(20))
    final = program.run(range(program.width), [1.0] * program.width).final.reshape(comparisons, 2, seeds)
    verdicts = [compare(a, [b])[0].verdict for a, b in final]
    assert sum(verdict != "no difference seen" for verdict in verdicts) <= 0.05 * comparisons
    at_five = sum(compare(a, [b], 0.05)[0].p <= 0.05 for a, b in final)
    assert 1 <= at_five <= 20  # 10 ± 3: the p-values are what they say, neither timid nor bold
