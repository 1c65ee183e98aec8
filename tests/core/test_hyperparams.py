"""Run-time values: where they are kept, how a run reads and changes them, and that nothing is compiled again."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import optchain as oc
import optchain.flax
from optchain.core.arguments import Range
from optchain.core.hyperparams import Hyperparams

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0])}
ONES = {"w": jnp.ones(3)}
RATES = [0.5, 0.25, 1.0, 0.125, 2.0]


def loss(params, x):
    return jnp.sum(params["w"] * x)


def plain_step(tx):
    return jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))


class Rate:
    """A callable of no arguments that counts how often it is read, and gives another value each time."""

    def __init__(self, values: Any = None):
        self.reads = 0
        self.values = values

    def __call__(self) -> float:
        self.reads += 1
        return self.values[self.reads - 1] if self.values else float(self.reads)


def read_count(rate, states):
    jax.block_until_ready(states)
    return rate.reads


# No compilation -------------------------------------------------------------------------------------------------------


def test_make_step_compiles_once_for_five_learning_rates():
    tx = oc.sgd(0.1)
    step = oc.make_step(loss, tx)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    expected = np.asarray(PARAMS["w"])
    for rate in RATES:
        state = oc.set_hyperparams(state, learning_rate=rate)
        params, state, metrics = step(params, state, jnp.ones(3))
        expected = expected - rate
        assert float(metrics["learning_rate"]) == rate
    assert step._cache_size() == 1
    np.testing.assert_allclose(params["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("make", [float, np.float64, np.float32, jnp.float32, jnp.bfloat16, int])
def test_a_plain_jit_compiles_once_whatever_kind_of_number_is_set(make):
    tx = oc.adamw(0.1, global_clipnorm=1.0, gradient_accumulation_steps=2)
    step = plain_step(tx)
    params, state = PARAMS, tx.init(PARAMS)
    for rate in (1, 2, 3, 4, 5):
        state = oc.set_hyperparams(state, learning_rate=make(rate))
        params, state = step(params, state, ONES)
        assert float(oc.metrics(state)["learning_rate"]) == rate
    assert step._cache_size() == 1


def test_a_plain_jit_compiles_once_while_a_callable_changes_what_it_returns():
    rate = Rate(RATES)
    tx = oc.chain(oc.scale_by_learning_rate(), learning_rate=rate)
    rate.reads = 0
    step = plain_step(tx)
    params, state = PARAMS, tx.init(PARAMS)
    rate.reads = 0
    expected = np.asarray(PARAMS["w"])
    for value in RATES:
        params, state = step(params, state, ONES)
        expected = expected - value
        np.testing.assert_allclose(params["w"], expected, rtol=1e-6)
        assert float(oc.get_hyperparams(state)["learning_rate"]) == value
    assert step._cache_size() == 1
    assert rate.reads == len(RATES)


def test_make_step_compiles_once_while_a_callable_changes_what_it_returns():
    rate = Rate()
    tx = oc.sgd(rate)
    step = oc.make_step(loss, tx)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    seen = []
    for _ in RATES:
        params, state, metrics = step(params, state, jnp.ones(3))
        seen.append(float(metrics["learning_rate"]))
    assert step._cache_size() == 1
    assert seen == sorted(set(seen)), "a new value at every call"


def test_every_array_valued_hyperparameter_is_set_without_compiling_again():
    tx = oc.adamw(jnp.array(0.1), jnp.array(0.1), jnp.array(0.9), jnp.array(0.99), jnp.array(1e-3), use_ema=True)
    step = plain_step(tx)
    params, state = PARAMS, tx.init(PARAMS)
    settable = {"learning_rate", "weight_decay", "beta_1", "beta_2", "epsilon"}
    assert oc.get_hyperparams(state).keys() == settable
    for number in range(3):
        state = oc.set_hyperparams(state, dict.fromkeys(settable, 0.1 + 0.1 * number))
        params, state = step(params, state, ONES)
    assert step._cache_size() == 1
    assert all(float(value) == pytest.approx(0.3) for value in oc.get_hyperparams(state).values())


def test_a_set_value_is_the_one_used_as_if_built_with_it():
    arrays = oc.adamw(jnp.array(0.1), jnp.array(0.1), jnp.array(0.9), jnp.array(0.99), jnp.array(1e-3))
    wanted = {"learning_rate": 0.5, "weight_decay": 0.2, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25}
    state = oc.set_hyperparams(arrays.init(PARAMS), wanted)
    params, _ = plain_step(arrays)(PARAMS, state, ONES)
    constants = oc.adamw(**wanted)
    expected, _ = plain_step(constants)(PARAMS, constants.init(PARAMS), ONES)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6)


def test_python_numbers_but_the_learning_rate_and_the_loss_scale_are_constants():
    tx = oc.adamw(0.1, weight_decay=0.1, global_clipnorm=1.0, loss_scale_factor=8.0, use_ema=True)
    assert oc.get_hyperparams(tx.init(PARAMS)).keys() == {"learning_rate", "loss_scale"}


# Callables of no arguments --------------------------------------------------------------------------------------------


def test_in_a_scan_of_ten_steps_a_callable_is_read_exactly_ten_times_and_both_links_use_it():
    rate = Rate()
    tx = oc.chain(oc.scale_by_learning_rate(), oc.decay_weights(0.5), learning_rate=rate)
    state = tx.init(PARAMS)
    assert read_count(rate, state) >= 0
    rate.reads = 0

    @jax.jit
    def scanned(params, state):
        def body(carry, _):
            carry = tx.apply(*carry, grads=ONES)
            return carry, oc.get_hyperparams(carry[1])["learning_rate"]

        return jax.lax.scan(body, (params, state), None, length=10)

    (params, state), used = scanned(PARAMS, state)
    assert read_count(rate, (params, state)) == 10
    np.testing.assert_array_equal(used, np.arange(1.0, 11.0))
    expected = np.asarray(PARAMS["w"], np.float64)
    for value in range(1, 11):
        expected = expected - value - value * 0.5 * expected
    np.testing.assert_allclose(params["w"], expected, rtol=1e-4)


def test_under_accumulation_a_callable_is_read_once_a_call_and_not_once_an_update():
    rate = Rate()
    tx = oc.sgd(rate, gradient_accumulation_steps=5)
    state = jax.block_until_ready(tx.init(PARAMS))
    rate.reads = 0

    @jax.jit
    def scanned(params, state):
        body = lambda carry, _: (tx.apply(*carry, grads=ONES), None)  # noqa: E731
        return jax.lax.scan(body, (params, state), None, length=10)[0]

    params, state = scanned(PARAMS, state)
    assert read_count(rate, (params, state)) == 10
    # The fifth and the tenth call make the two updates.
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 5.0 - 10.0, rtol=1e-6)


def test_a_callable_is_read_under_vmap():
    tx = oc.sgd(lambda: 0.5)
    params = {"w": jnp.stack([PARAMS["w"], 2 * PARAMS["w"]])}
    state = jax.vmap(tx.init)(params)
    new, _ = jax.jit(jax.vmap(lambda p, s: tx.apply(p, s, grads=ONES)))(params, state)
    np.testing.assert_allclose(new["w"], params["w"] - 0.5, rtol=1e-6)


def test_two_callables_of_one_chain_keep_their_values_apart():
    tx = oc.chain(oc.scale_by_learning_rate(), oc.decay_weights(lambda: 0.5), learning_rate=lambda: 0.25)
    params, state = plain_step(tx)(PARAMS, tx.init(PARAMS), ONES)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.25 - 0.25 * 0.5 * PARAMS["w"], rtol=1e-6)
    assert {k: float(v) for k, v in oc.get_hyperparams(state).items()} == {"learning_rate": 0.25, "weight_decay": 0.5}


def test_the_kind_of_a_callable_is_told_by_what_it_can_be_called_with():
    class OfStep:
        def __call__(self, step):
            return 0.5 * (step + 1)

    for schedule in (OfStep(), lambda step=0: 0.5 * (step + 1), lambda *args: 0.5 * (args[0] + 1)):
        tx = oc.sgd(schedule)
        params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=ONES)
        params, _ = tx.apply(params, state, grads=ONES)
        np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.5 - 1.0, rtol=1e-6)


# Schedules ------------------------------------------------------------------------------------------------------------


def test_a_schedule_sees_zero_first_and_then_each_call():
    tx = oc.sgd(lambda step: step.astype(float) + 1)
    step, params, state = plain_step(tx), PARAMS, tx.init(PARAMS)
    assert float(oc.get_hyperparams(state)["learning_rate"]) == 1.0, "init fills in step 0's value"
    for expected in (1.0, 2.0, 3.0):
        params, state = step(params, state, ONES)
        assert float(oc.get_hyperparams(state)["learning_rate"]) == expected
    assert step._cache_size() == 1


@pytest.mark.parametrize("steps", [2, 3])
def test_a_schedule_under_accumulation_sees_raw_calls(steps):
    tx = oc.sgd(lambda step: step.astype(float), gradient_accumulation_steps=steps)
    step, params, state = plain_step(tx), PARAMS, tx.init(PARAMS)
    for _ in range(2 * steps):
        params, state = step(params, state, ONES)
    used = (steps - 1) + (2 * steps - 1)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - used, rtol=1e-6)


def test_a_chain_inside_a_gate_counts_updates():
    inner = oc.chain(oc.scale_by_learning_rate(), learning_rate=lambda step: step.astype(float) + 1)
    tx = oc.accumulate(inner, 2)
    step, params, state = plain_step(tx), PARAMS, tx.init(PARAMS)
    for _ in range(4):
        params, state = step(params, state, ONES)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 1.0 - 2.0, rtol=1e-6)
    assert int(state["inner"]["count"]) == 2


def test_decay_and_update_see_the_same_scheduled_rate_through_a_gate():
    tx = oc.adamw(lambda step: 0.1 * (step + 1), weight_decay=1.0, gradient_accumulation_steps=2)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    step, params, state = plain_step(tx), PARAMS, tx.init(PARAMS)
    for _ in range(2):
        params, state = step(params, state, zeros)
    np.testing.assert_allclose(params["w"], 0.8 * PARAMS["w"], rtol=1e-6)


def test_optax_schedules_work():
    tx = oc.sgd(optax.linear_schedule(1.0, 0.0, 4))
    step, params, state = plain_step(tx), PARAMS, tx.init(PARAMS)
    for _ in range(4):
        params, state = step(params, state, ONES)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - (1 + 0.75 + 0.5 + 0.25), rtol=1e-6)


def test_the_learning_rate_stands_in_the_state_once():
    state = oc.adamw(0.1, weight_decay=0.1, gradient_accumulation_steps=2, use_ema=True).init(PARAMS)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert [path for path in paths if "hyperparams" in path] == ["['hyperparams']['learning_rate']"]
    assert [path for path in paths if "learning_rate" in path] == ["['hyperparams']['learning_rate']"]


RATED = {
    "a number": lambda: oc.adamw(0.25),
    "a schedule": lambda: oc.adamw(lambda step: 0.25),
    "a callable": lambda: oc.sgd(lambda: 0.25),
    "a link's own": lambda: oc.scale_by_learning_rate(0.25),
    "through gates": lambda: oc.skip_nonfinite(oc.adamw(0.25, gradient_accumulation_steps=2, use_ema=True)),
    "torch": lambda: oc.presets.torch.adam(0.25, weight_decay=0.1),
    "muon": lambda: oc.muon(0.25),
    "adafactor": lambda: oc.adafactor(0.25),
    "schedule-free": lambda: oc.schedule_free_adamw(0.25),
    "loss scale": lambda: oc.loss_scale_optimizer(oc.lamb(0.25)),
    "lazy": lambda: oc.adam(0.25, lazy=True),
}


@pytest.mark.parametrize("name", RATED)
def test_optax_finds_the_learning_rate_once_and_metrics_have_it(name):
    tx = RATED[name]()
    state = tx.init(PARAMS)
    for _ in range(2):
        assert float(optax.tree.get(state, "learning_rate")) == 0.25
        assert float(oc.metrics(state)["learning_rate"]) == 0.25
        _, state = tx.apply(PARAMS, state, grads=ONES)


def test_optax_sets_a_rate_that_no_schedule_owns():
    tx = oc.sgd(0.5)
    state = optax.tree.set(tx.init(PARAMS), learning_rate=0.25)
    params, _ = tx.apply(PARAMS, state, grads=ONES)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.25, rtol=1e-6)


def test_a_rate_that_a_schedule_owns_is_overwritten_as_the_documents_say_and_refused_by_ours():
    tx = oc.sgd(lambda step: 0.5)
    state = optax.tree.set(tx.init(PARAMS), learning_rate=0.25)
    params, state = tx.apply(PARAMS, state, grads=ONES)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.5, rtol=1e-6)
    assert float(optax.tree.get(state, "learning_rate")) == 0.5
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        oc.set_hyperparams(state, learning_rate=0.25)


def test_metrics_show_the_chains_rate_where_a_decay_has_one_of_its_own():
    tx = oc.chain(oc.scale_by_learning_rate(), oc.decay_weights(0.1, learning_rate=1.0), learning_rate=0.5)
    state = tx.init(PARAMS)
    assert {name: float(value) for name, value in oc.metrics({"opt": state}).items()} == {"learning_rate": 0.5}
    state = oc.set_hyperparams(state, learning_rate=0.25)  # what was set since the last call
    assert float(oc.metrics(state)["learning_rate"]) == 0.25


# Reading and writing in any container ---------------------------------------------------------------------------------


def holders():
    tx = oc.adamw(0.5, weight_decay=0.1)
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    return {
        "ours": tx.init(PARAMS),
        "optax_chain": optax.chain(optax.identity(), tx).init(PARAMS),
        "optax_masked": optax.masked(tx, {"w": True}).init(PARAMS),
        "multi_transform": optax.multi_transform({"all": tx}, {"w": "all"}).init(PARAMS),
        "multi_steps": optax.MultiSteps(tx, 2).init(PARAMS),
        "train_state": train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx),
        "our_train_state": optchain.flax.TrainState.create(apply_fn=None, params=PARAMS, tx=tx),
        "nnx_optimizer": nnx.Optimizer(model, tx, wrt=nnx.Param),
        "our_nnx_optimizer": optchain.flax.Optimizer(model, tx, wrt=nnx.Param),
        "a_dict_of_two": {"generator": tx.init(PARAMS), "other": oc.average_params().init(PARAMS)},
    }


@pytest.mark.parametrize("name", holders())
def test_hyperparameters_are_read_and_set_in(name):
    holder = holders()[name]
    assert {key: float(value) for key, value in oc.get_hyperparams(holder).items()} == {"learning_rate": 0.5}
    changed = oc.set_hyperparams(holder, learning_rate=0.25)
    assert float(oc.get_hyperparams(changed)["learning_rate"]) == 0.25
    assert type(changed) is type(holder)
    assert jax.tree.structure(changed) == jax.tree.structure(holder)
    assert float(oc.get_hyperparams(holder)["learning_rate"]) == 0.5, "the old one is as it was"


def test_a_train_state_goes_on_with_the_value_that_was_set():
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=oc.sgd(0.5))
    step = jax.jit(lambda state: state.apply_gradients(grads=ONES))
    state = step(step(state))  # Flax's own `step` begins as a Python integer
    compiled = step._cache_size()
    state = step(oc.set_hyperparams(state, learning_rate=0.25))
    np.testing.assert_allclose(state.params["w"], PARAMS["w"] - 0.5 - 0.5 - 0.25, rtol=1e-6)
    assert step._cache_size() == compiled


@pytest.mark.parametrize("factory", [nnx.Optimizer, optchain.flax.Optimizer])
def test_an_nnx_optimizer_goes_on_with_the_value_that_was_set(factory):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = factory(model, oc.sgd(0.5), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    before = np.asarray(model.kernel[...])
    optimizer = oc.set_hyperparams(optimizer, learning_rate=0.25)
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.kernel[...], before - 0.25, rtol=1e-6)


def test_hyperparameters_are_read_and_set_inside_jit():
    tx = oc.sgd(1.0)

    @jax.jit
    def step(params, state, rate):
        state = oc.set_hyperparams(state, learning_rate=rate)
        return tx.apply(params, state, grads=ONES), oc.get_hyperparams(state)

    (params, _), read = step(PARAMS, tx.init(PARAMS), 0.25)
    assert float(read["learning_rate"]) == 0.25
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.25, rtol=1e-6)


# Names ----------------------------------------------------------------------------------------------------------------


def two_bodies():
    return {"body": oc.sgd(0.5).init(PARAMS), "head": oc.sgd(0.25).init(PARAMS)}


def test_ambiguous_names_are_keyed_by_path():
    state = two_bodies()
    read = oc.get_hyperparams(state)
    assert {key: float(value) for key, value in read.items()} == {"body/learning_rate": 0.5, "head/learning_rate": 0.25}
    state = oc.set_hyperparams(state, {"head/learning_rate": 1.0})
    read = oc.get_hyperparams(state)
    assert {key: float(value) for key, value in read.items()} == {"body/learning_rate": 0.5, "head/learning_rate": 1.0}


def test_keys_with_multi_transform_name_the_groups():
    groups = {"slow": oc.sgd(0.5), "fast": oc.sgd(1.0)}
    state = optax.multi_transform(groups, {"w": "slow"}).init(PARAMS)
    keys = oc.get_hyperparams(state).keys()
    assert len(keys) == 2
    assert all(any(group in key for key in keys) for group in groups)
    for key in keys:
        assert float(oc.get_hyperparams(oc.set_hyperparams(state, {key: 0.125}))[key]) == 0.125


@pytest.mark.parametrize(
    ("state", "values", "message"),
    [
        (two_bodies, {"learning_rate": 1.0}, r"'learning_rate' is ambiguous; .*body/learning_rate, head/learning_rate"),
        (two_bodies, {"beta_1": 1.0}, r"'beta_1' is unknown; there are: body/learning_rate, head/learning_rate"),
        (
            lambda: oc.clip_by_norm(1.0).init(PARAMS),
            {"learning_rate": 1.0},
            r"'learning_rate' is unknown; there are: none",
        ),
        (lambda: oc.sgd(0.1).init(PARAMS), {"lr": 1.0}, r"'lr' is unknown .*; there are: learning_rate"),
        (
            lambda: oc.adamw(0.1).init(PARAMS),
            {"weight_decay": 1.0},
            r"'weight_decay' is unknown; there are: learning_rate",
        ),
        (lambda: oc.sgd(lambda step: 0.1).init(PARAMS), {"learning_rate": 1.0}, "learning_rate is scheduled"),
        (lambda: oc.sgd(lambda: 0.1).init(PARAMS), {"learning_rate": 1.0}, "learning_rate is scheduled"),
        (
            lambda: oc.sgd(0.1).init(PARAMS),
            {"learning_rate": -1.0},
            r"learning_rate must be a finite number >= 0; got -1\.0",
        ),
        (
            lambda: oc.sgd(0.1).init(PARAMS),
            {"learning_rate": float("nan")},
            r"learning_rate must be a finite number >= 0",
        ),
        (
            lambda: oc.sgd(0.1).init(PARAMS),
            {"learning_rate": jnp.ones(2)},
            r"learning_rate must have shape \(\); .*\(2,\)",
        ),
        (
            lambda: oc.adam(0.1, jnp.array(0.9)).init(PARAMS),
            {"beta_1": 1.0},
            r"beta_1 must be a number in \[0, 1\); got 1\.0",
        ),
    ],
)
def test_a_refused_name_or_value_says_what_there_is(state, values, message):
    with pytest.raises(ValueError, match=message):
        oc.set_hyperparams(state(), values)


@pytest.mark.parametrize("value", ["0.1", None, lambda: 0.1, True, [0.1]])
def test_only_numbers_and_arrays_are_set(value):
    with pytest.raises(TypeError, match="learning_rate must be set to a number or an array; got"):
        oc.set_hyperparams(oc.sgd(0.1).init(PARAMS), learning_rate=value)


def test_a_parameter_called_like_a_hyperparameter_is_left_alone():
    params = {
        "hyperparams": {"learning_rate": jnp.ones(2)},
        "scheduled": {"beta_1": jnp.ones(2)},
        "metrics": {"x": jnp.ones(2)},
    }
    tx = oc.adamw(0.1, use_ema=True, gradient_accumulation_steps=2)
    state = tx.init(params)
    assert oc.get_hyperparams(state).keys() == {"learning_rate"}
    assert oc.metrics(state).keys() == {"learning_rate"}
    state = oc.set_hyperparams(state, learning_rate=0.5)
    np.testing.assert_array_equal(oc.averaged_params(state)["hyperparams"]["learning_rate"], 1.0)


# Dtype and placement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_scalars_stay_float32_beside_narrow_parameters(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = oc.adamw(jnp.array(0.1, dtype), jnp.array(0.1, jnp.float16), use_ema=True)
    state = tx.init(params)
    _, new_state = tx.apply(params, state, grads=params)
    for each in (state, new_state, oc.set_hyperparams(state, learning_rate=jnp.array(0.5, jnp.bfloat16))):
        values = {**oc.get_hyperparams(each), **oc.metrics(each)}
        assert {value.dtype for value in values.values()} == {jnp.dtype("float32")}
        assert not any(value.weak_type for value in values.values())


def test_scalars_are_float64_with_x64_even_beside_float32_parameters():
    with jax.enable_x64(True):
        params = {"w": jnp.ones(3, jnp.float32)}
        for rate in (0.1, np.float32(0.1), lambda step: 0.1, lambda: 0.1):
            tx = oc.sgd(rate)
            _, state = jax.jit(lambda p, s, tx=tx: tx.apply(p, s, grads=p))(params, tx.init(params))
            assert oc.get_hyperparams(state)["learning_rate"].dtype == jnp.float64
        state = oc.set_hyperparams(oc.sgd(0.1).init(params), learning_rate=0.3)
        assert float(oc.get_hyperparams(state)["learning_rate"]) == 0.3


def test_a_new_value_keeps_the_sharding_and_the_committedness_of_the_old():
    device = jax.devices()[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("x",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    loose = oc.sgd(0.1).init(PARAMS)
    for state in (loose, jax.device_put(loose, device), jax.device_put(loose, replicated)):
        old = state["hyperparams"]["learning_rate"]
        for value in (0.5, jnp.array(0.5), jax.device_put(jnp.array(0.5), device)):
            new = oc.set_hyperparams(state, learning_rate=value)["hyperparams"]["learning_rate"]
            assert new.sharding == old.sharding
            assert new.committed == old.committed
            assert (new.dtype, new.weak_type) == (old.dtype, old.weak_type)


def test_every_leaf_but_the_one_that_was_set_is_the_same_object():
    state = oc.adamw(0.1, use_ema=True).init(PARAMS)
    new = oc.set_hyperparams(state, learning_rate=0.5)
    same = jax.tree.map(lambda a, b: a is b, state, new)
    assert not same["hyperparams"].pop("learning_rate")
    assert all(jax.tree.leaves(same))


# Traced values --------------------------------------------------------------------------------------------------------


def test_a_traced_value_given_at_construction_is_used_and_written_at_every_call():
    """As in a learning-rate search, where the transformation is built inside `jit`."""

    @jax.jit
    def two_steps(rate, other):
        tx = oc.sgd(rate)
        params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=ONES)
        first = oc.get_hyperparams(state)
        later = oc.sgd(other)  # built anew with another value, the state carried over
        params, state = later.apply(params, state, grads=ONES)
        return params, first, oc.get_hyperparams(state), oc.metrics(state)

    params, first, second, metrics = two_steps(0.5, 0.25)
    assert float(first["learning_rate"]) == 0.5
    assert float(second["learning_rate"]) == float(metrics["learning_rate"]) == 0.25
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.75, rtol=1e-6)


def test_a_search_over_rates_is_a_vmap_over_construction():
    @jax.jit
    @jax.vmap
    def final(rate, decay):
        tx = oc.adamw(rate, decay)
        params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=ONES)
        return tx.apply(params, state, grads=ONES)[0]["w"]

    rates, decays = jnp.array([0.1, 0.2]), jnp.array([0.0, 0.5])
    for row, rate, decay in zip(final(rates, decays), (0.1, 0.2), (0.0, 0.5), strict=True):
        tx = oc.adamw(rate, decay)
        params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=ONES)
        np.testing.assert_allclose(row, tx.apply(params, state, grads=ONES)[0]["w"], rtol=1e-5)


def test_the_gradient_of_a_run_with_respect_to_its_rate():
    def final(rate):
        tx = oc.sgd(rate)
        return tx.apply(PARAMS, tx.init(PARAMS), grads=ONES)[0]["w"].sum()

    assert float(jax.jit(jax.grad(final))(0.5)) == -3.0


def test_validation_passes_over_traced_values_but_not_over_concrete_arrays():
    jax.jit(lambda rate: oc.sgd(rate).init(PARAMS))(-1.0)
    with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0; got -1"):
        oc.sgd(jnp.array(-1.0))


def test_what_optax_injects_is_set_where_optax_has_it():
    """The preset's own entry of the same name is overwritten at each call: setting it had no effect."""
    tx = optax.inject_hyperparams(oc.adamw)(learning_rate=0.5, weight_decay=0.1)
    state = tx.init(PARAMS)
    assert oc.get_hyperparams(state).keys() >= {"learning_rate", "weight_decay"}
    assert not any("/" in name for name in oc.get_hyperparams(state))
    with pytest.raises(ValueError, match="'inner_state/learning_rate' is unknown"):
        oc.set_hyperparams(state, {"inner_state/learning_rate": 0.25})


def test_optax_injection_reads_and_writes_the_injected_value():
    tx = optax.inject_hyperparams(oc.sgd)(learning_rate=0.5)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(ONES, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(PARAMS, tx.init(PARAMS))
    state.hyperparams["learning_rate"] = jnp.array(0.25)
    params, state = step(params, state)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.75, rtol=1e-6)
    assert float(oc.get_hyperparams(state.inner_state)["learning_rate"]) == 0.25


def test_readers_and_writers_are_documented_with_what_they_raise():
    assert "scheduled" in inspect.getdoc(oc.get_hyperparams) or "schedule" in inspect.getdoc(oc.get_hyperparams)
    assert "Raises" in inspect.getdoc(oc.set_hyperparams)


# What callables return -------------------------------------------------------------------------------------------------

WRONG_RATES = [float("nan"), float("inf"), -1, 1e39, None, 1j, "0.1", True, np.ones(3), [0.1], np.array(1j)]


def step_of(tx):
    """A jitted step that reads the rate, compiled before it is wrong."""
    return jax.jit(lambda params, state: tx.apply(params, state, grads=ONES))


@pytest.mark.parametrize("wrong", WRONG_RATES, ids=repr)
def test_what_a_callable_returns_is_checked_where_it_is_read_and_named(wrong):
    box = [0.1]

    def rate_of_the_day():
        return box[0]

    tx = oc.sgd(rate_of_the_day)
    state, step = tx.init(PARAMS), step_of(tx)
    params, state = step(PARAMS, state)
    box[0] = wrong
    with pytest.raises(
        Exception, match="ValueError: learning_rate must be a finite number >= 0; the callable"
    ) as raised:
        jax.block_until_ready(step(params, state))
    assert f"rate_of_the_day at {hex(id(rate_of_the_day))}> returned {wrong!r}" in str(raised.value)
    with pytest.raises(Exception, match="learning_rate must be a finite number >= 0; the callable"):
        tx.init(PARAMS)


@pytest.mark.parametrize("right", [0, 2, np.float16(0.5), np.array(0.25), jnp.array(0.25)], ids=repr)
def test_every_real_number_and_scalar_array_may_be_returned(right):
    tx = oc.sgd(lambda: right)
    params, _ = step_of(tx)(PARAMS, tx.init(PARAMS))
    np.testing.assert_allclose(params["w"], PARAMS["w"] - float(right), rtol=1e-6)


def test_each_hyperparameter_has_its_own_range_where_a_callable_gives_it():
    tx = oc.scale_by_adam(beta_1=lambda: 1.0)
    with pytest.raises(Exception, match=r"beta_1 must be a number in \[0, 1\); the callable .* returned 1.0"):
        tx.init(PARAMS)
    # Below 1 in double precision, and 1 in the float32 in which it is used.
    with pytest.raises(Exception, match=r"beta_1 must be a number in \[0, 1\)"):
        oc.scale_by_adam(beta_1=lambda: 1 - 1e-9).init(PARAMS)


def test_an_error_inside_a_donated_step_leaves_no_parameters_as_the_guide_says():
    box = [0.1]
    tx = oc.sgd(lambda: box[0])
    step = oc.make_step(lambda params: params["w"].sum(), tx)
    params = {"w": jnp.ones(3)}
    state, box[0] = tx.init(params), -1.0
    with pytest.raises(Exception, match="learning_rate must be"):
        jax.block_until_ready(step(params, state))
    assert params["w"].is_deleted()


@pytest.mark.parametrize("wrong", [None, 1j, True, "0.1", np.ones(3)], ids=repr)
def test_a_schedule_that_gives_no_real_scalar_is_named(wrong):
    with pytest.raises(TypeError, match=r"learning_rate must be a real scalar at every step; its schedule .* gave"):
        oc.sgd(lambda step: wrong).init(PARAMS)


# A link of one's own ---------------------------------------------------------------------------------------------------


def test_a_hyperparameter_of_a_name_that_is_not_known_may_be_any_finite_number():
    assert Hyperparams(temperature=-0.5).constants == {"temperature": -0.5}
    assert Hyperparams(temperature=jnp.array(2.0)).settable == {"temperature": 2.0}
    for wrong in (float("nan"), float("inf"), jnp.array(float("nan"))):
        with pytest.raises(ValueError, match="temperature must be a finite number; got"):
            Hyperparams(temperature=wrong)
    with pytest.raises(TypeError, match="temperature must be a finite number, a scalar array, a schedule"):
        Hyperparams(temperature="hot")


def test_a_link_of_ones_own_declares_its_own_range():
    ranges = {"temperature": Range(0.0, 2.0, low_open=True), "momentum": Range(0.0, 0.5)}
    assert Hyperparams(ranges, temperature=0.5, momentum=0.5).names == {"temperature", "momentum"}
    with pytest.raises(ValueError, match=r"temperature must be a number in \(0, 2\]; got 0.0"):
        Hyperparams(ranges, temperature=0.0, momentum=0.5)
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 0.5\]; got 0.6"):
        Hyperparams(ranges, temperature=0.5, momentum=0.6)


def test_a_set_value_of_an_unknown_name_must_be_finite():
    state = {"hyperparams": {"unheard_of": jnp.array(0.5)}}
    assert float(oc.set_hyperparams(state, unheard_of=-3.0)["hyperparams"]["unheard_of"]) == -3.0
    with pytest.raises(ValueError, match="unheard_of must be a finite number; got nan"):
        oc.set_hyperparams(state, unheard_of=float("nan"))


# Metrics --------------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_last_call():
    tx = oc.sgd(lambda step: 0.5 * (step + 1), global_clipnorm=1.0)
    params = {"w": jnp.zeros(2)}
    state = tx.init(params)
    for number in (1, 2):
        _, state = tx.apply(params, state, grads={"w": number * jnp.array([3.0, 4.0])})
        values = {key: float(value) for key, value in oc.metrics(state).items()}
        assert (values["global_norm"], values["learning_rate"]) == (5.0 * number, 0.5 * number)


def test_metrics_with_equal_names_are_keyed_by_path():
    state = {"a": oc.sgd(0.5).init(PARAMS), "b": oc.sgd(0.25).init(PARAMS)}
    assert {key: float(value) for key, value in oc.metrics(state).items()} == {
        "a/learning_rate": 0.5,
        "b/learning_rate": 0.25,
    }


BY_SCHEDULE = r"learning_rate must be a finite number >= 0; got .* by its schedule"


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -1.0, -1, 1e39, 10**400, np.float64("nan"), np.array(-1.0)], ids=str
)
def test_a_plain_number_that_a_schedule_gives_must_be_in_range(value, transform):
    with pytest.raises(ValueError, match=BY_SCHEDULE):
        transform(oc.sgd(lambda step: value).init)(PARAMS)
    with pytest.raises(ValueError, match=r"beta_1 must be a number in \[0, 1\).* by its schedule"):
        transform(oc.adam(0.1, beta_1=lambda step: value).init)(PARAMS)


def test_an_array_that_a_schedule_gives_is_checked_outside_of_jit():
    tx = oc.sgd(lambda step: 1.0 - 2.0 * step)
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    with pytest.raises(ValueError, match=BY_SCHEDULE):
        tx.apply(params, state, grads=PARAMS)
