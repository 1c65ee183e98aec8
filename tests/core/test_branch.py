"""`run_if`, and the gates that are made of it: what a GPU runs has the numbers and the derivatives of a `cond`."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from jax.interpreters import mlir
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from optchain.core import by_platform
from optchain.core.branch import run_if
from tests.sampling import others_for_release

pytestmark = pytest.mark.each_value

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.5, 0.25])}
GRADS = {"w": jnp.array([[0.3, -0.2], [0.7, 0.1]]), "b": jnp.array([-0.4, 0.6])}


def body() -> oc.Transformation:
    return oc.chain(oc.clip_by_global_norm(0.5), oc.scale_by_adam(epsilon=1e-2), oc.scale_by_learning_rate(0.1))


GATES = {
    "accumulate": lambda: oc.accumulate(body(), 2),
    "skip_nonfinite": lambda: oc.skip_nonfinite(body()),
    "dynamic_loss_scale": lambda: oc.dynamic_loss_scale(body(), 4.0, 2),
    "nested": lambda: oc.dynamic_loss_scale(oc.accumulate(oc.skip_nonfinite(body()), 2), 4.0, 2),
    "in a chain": lambda: oc.chain(
        oc.skip_nonfinite(oc.accumulate(oc.chain(oc.clip_by_global_norm(0.5), oc.scale_by_learning_rate()), 2)),
        oc.average_params(0.9, calls_per_step=2),
        learning_rate=0.1,
    ),
}
every_gate = pytest.mark.parametrize("gate", GATES)


def lower_here(form: Callable) -> None:
    mlir.register_lowering(by_platform.by_platform_p, mlir.lower_fun(form, multiple_results=True), platform="cpu")


@pytest.fixture
def as_on_a_gpu() -> Iterator[Callable[[], None]]:
    """What makes branches that are compiled from then on those of a GPU."""
    yield lambda: lower_here(functools.partial(by_platform.run_form, form="gpu"))
    lower_here(functools.partial(by_platform.run_form, form="cpu"))
    jax.clear_caches()


@pytest.fixture(params=["here", "gpu"])
def form(request: pytest.FixtureRequest, as_on_a_gpu: Callable[[], None]) -> str:
    """The form of a branch that this machine gets, and that of a GPU."""
    if request.param == "gpu":
        as_on_a_gpu()
    return request.param


def grads_of(number: int, like=GRADS):
    scale = np.nan if number % 5 == 3 else 1.0 + number
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), like)


def step_of(tx: oc.Transformation, how: str) -> Callable:
    def apply(params, state, grads):
        return tx.apply(params, state, grads=grads)

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return apply if how == "apply" else update


every_form = pytest.mark.parametrize("how", ["apply", "update"])


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_form
@every_gate
def test_on_a_gpu_every_gate_has_the_numbers_of_a_cond(
    gate: str, how: str, dtype: str, as_on_a_gpu: Callable[[], None]
) -> None:
    """To a few roundings, not to the bit: XLA takes out of a loop what does not depend on its state, such as the products of the
    gradient, and so rounds a product that in a `cond` is part of a fused multiply-add. A `select` is fused with what follows."""
    start, grads = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (PARAMS, GRADS))

    def run():
        tx = GATES[gate]()
        params, state, step = start, tx.init(start), jax.jit(step_of(tx, how))
        states = []
        for number in range(12):
            params, state = step(params, state, grads_of(number, grads))
            states.append((params, state))
        return states

    expected = run()
    as_on_a_gpu()
    for actual, wanted in zip(jax.tree.leaves(run()), jax.tree.leaves(expected), strict=True):
        assert actual.dtype == wanted.dtype
        if actual.dtype == jnp.int32:
            np.testing.assert_array_equal(actual, wanted)
        else:
            wide = np.asarray(actual, np.float32), np.asarray(wanted, np.float32)
            np.testing.assert_allclose(*wide, rtol=4 * float(jnp.finfo(actual.dtype).eps), atol=1e-7)


def after_three_steps(gate: str, how: str):
    """A scalar of the parameters, the gradients and the learning rate."""
    tx = GATES[gate]()

    def loss(params, grads, rate):
        state = oc.set_hyperparams(tx.init(params), learning_rate=rate)
        for number in range(3):
            now = jax.tree.map(lambda g, p: g * (1.0 + number) + 0.1 * p**2, grads, params)  # noqa: B023
            params, state = step_of(tx, how.split()[0])(params, state, now)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(params))

    return loss


@pytest.mark.thorough
@pytest.mark.parametrize(
    "differentiated",
    others_for_release(
        [*itertools.product(GATES, ["apply", "apply on a gpu", "update"]), ("nested", "update on a gpu")],
        *((gate, "apply on a gpu") for gate in GATES if gate != "nested"),
        ("nested", "update"),
    ),
    ids="-".join,
)
def test_derivatives_through_three_steps_are_those_of_finite_differences(
    differentiated: tuple[str, str], as_on_a_gpu: Callable[[], None]
) -> None:
    gate, how = differentiated
    if how.endswith("on a gpu"):
        as_on_a_gpu()
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: np.asarray(x, np.float64), (PARAMS, GRADS, 0.1))
        flat, unravel = jax.flatten_util.ravel_pytree(start)
        loss = jax.jit(lambda x: after_three_steps(gate, how)(*unravel(x)))
        steps = 1e-6 * np.eye(len(flat))
        expected = np.array([(loss(flat + step) - loss(flat - step)) / 2e-6 for step in steps])
        assert np.all(np.abs(expected) > 1e-9)
        np.testing.assert_allclose(jax.grad(loss)(flat), expected, rtol=1e-6, atol=1e-9)
        direction = np.random.default_rng(0).normal(size=len(flat))
        along = jax.jit(lambda x, d: jax.jvp(loss, (x,), (d,))[1])(flat, direction)
        np.testing.assert_allclose(along, expected @ direction, rtol=1e-6)


@pytest.mark.for_release
def test_second_derivatives_are_those_of_finite_differences(form: str) -> None:
    with jax.enable_x64(True):
        loss = jax.jit(
            lambda rate: after_three_steps("skip_nonfinite", "apply")(
                *jax.tree.map(lambda x: x.astype(float), (PARAMS, GRADS)), rate
            )
        )
        slope = jax.jit(jax.grad(loss))
        expected = (slope(0.1 + 1e-6) - slope(0.1 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(slope)(0.1), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.hessian(loss))(0.1), expected, rtol=1e-6)


def step_and_sum(rate, make):
    """A step of `accumulate` around what closes over `rate`."""
    tx = oc.accumulate(make(rate), 1)
    params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "make",
    [lambda rate: optax.sgd(rate), lambda rate: oc.sgd(lambda count: rate * jnp.exp(-count)), oc.sgd],
    ids=["optax", "schedule", "array"],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "checkpoint"])
def test_what_the_inner_transformation_closes_over_has_a_gradient(make, wrap, form: str) -> None:
    expected = -sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(GRADS))
    loss = wrap(functools.partial(step_and_sum, make=make))
    assert jax.grad(loss)(0.1) == pytest.approx(expected, rel=1e-5)
    assert jax.grad(jax.jit(loss))(0.1) == pytest.approx(expected, rel=1e-5)
    assert jax.jvp(loss, (0.1,), (1.0,))[1] == pytest.approx(expected, rel=1e-5)


def count_up(pred, x):
    return run_if(pred, lambda x: ({"n": x["n"] + 1, "x": x["x"] * 2},), x)[0]


def test_a_branch_under_vmap_runs_where_its_predicate_holds(form: str) -> None:
    carry = {"n": jnp.arange(4), "x": jnp.array([1.0, jnp.inf, 3.0, jnp.nan])}
    pred = jnp.array([True, False, False, True])
    out = jax.jit(jax.vmap(count_up))(pred, carry)
    np.testing.assert_array_equal(out["n"], [1, 1, 2, 4])
    np.testing.assert_array_equal(out["x"], [2.0, np.inf, 3.0, np.nan])
    slopes = jax.grad(lambda x: jnp.sum(jax.vmap(count_up)(pred, carry | {"x": x})["x"]))(jnp.ones(4))
    np.testing.assert_array_equal(slopes, [2.0, 1.0, 1.0, 2.0])


def test_replicas_under_vmap_take_one_decision_together(form: str) -> None:
    tx = oc.chain(oc.cross_replica_mean("replica"), oc.skip_nonfinite(oc.sgd(1.0)))
    within = oc.skip_nonfinite(oc.chain(oc.cross_replica_mean("replica"), oc.sgd(1.0)))
    grads = jnp.array([1.0, 3.0])
    for one, how in itertools.product((tx, within), ("apply", "update")):
        take = step_of(one, how)
        step = jax.vmap(
            lambda g, take=take, tx=one: take(jnp.zeros(()), tx.init(jnp.zeros(())), g)[0], axis_name="replica"
        )
        np.testing.assert_array_equal(jax.jit(step)(grads), [-2.0, -2.0])
        slope = jax.jit(jax.grad(lambda g, step=step: step(g)[0]))(grads)
        np.testing.assert_array_equal(slope, [-0.5, -0.5])


@pytest.mark.thorough
def test_a_gate_under_vmap_has_the_gradient_of_each_run_by_itself(form: str) -> None:
    """A gradient through a sweep: each run counts, skips and waits by itself."""
    loss = after_three_steps("nested", "apply")
    rates = jnp.array([0.1, 0.2, 0.4])
    swept = jax.jit(jax.grad(lambda rates: jnp.sum(jax.vmap(functools.partial(loss, PARAMS, GRADS))(rates))))(rates)
    alone = jax.jit(jax.grad(functools.partial(loss, PARAMS, GRADS)))
    np.testing.assert_allclose(swept, [alone(rate) for rate in rates], rtol=1e-5)


def test_a_branch_takes_integers_keys_booleans_and_nothing(form: str) -> None:
    carry = {"n": jnp.int32(1), "key": jax.random.key(0), "flag": jnp.bool_(True), "empty": {}}

    def flip(c):
        return (c | {"n": c["n"] + 1, "flag": ~c["flag"]},)

    (out,) = jax.jit(lambda pred, c: run_if(pred, flip, c))(True, carry)
    assert (int(out["n"]), bool(out["flag"]), out["empty"]) == (2, False, {})
    assert out["key"] == carry["key"]
    assert jax.jit(lambda pred: run_if(pred, lambda *none: none, {}, {}))(True) == ({}, {})


@pytest.mark.thorough
def test_a_branch_holds_under_strict_promotion_debug_nans_and_no_jit(form: str) -> None:
    tx = oc.accumulate(oc.adamw(0.1), 2)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        params, _ = tx.apply(*tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS), grads=GRADS)
        with jax.disable_jit():
            again, _ = tx.apply(*tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS), grads=GRADS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), again, params)


def test_a_callback_within_is_called_when_the_branch_runs_only(form: str) -> None:
    calls = []

    def rate(count):
        return jax.pure_callback(lambda count: calls.append(int(count)) or np.float32(0.1), jnp.float32(0), count)

    tx = oc.accumulate(oc.sgd(rate), 3)
    step = jax.jit(lambda p, s: tx.apply(p, s, grads=GRADS))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(6):
        params, state = step(params, state)
    jax.block_until_ready(params)
    jax.effects_barrier()
    assert sorted(set(calls)) == [0, 1]


@pytest.mark.parametrize("window", [None, 1], ids=["skips", "skips what accumulates"])
@pytest.mark.parametrize("own", [False, True], ids=["one decision", "a decision of each device"])
@every_form
def test_a_branch_in_a_shard_map_keeps_what_varies(how: str, own: bool, window: int | None, form: str) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    inner = oc.adamw(0.1) if window is None else oc.accumulate(oc.adamw(0.1), window)
    tx = oc.skip_nonfinite(inner, axis_name=() if own else "data")

    def step(params, grads):
        return step_of(tx, how)(params, tx.init(params), grads)[0]

    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    params, grads = jnp.arange(8.0), jnp.ones(8).at[3].set(jnp.nan)
    moved = np.asarray(mapped(params, grads) != params)
    np.testing.assert_array_equal(moved, np.arange(8) != 3 if own else np.zeros(8, bool))


@pytest.mark.parametrize("own", ["params", "grads"])
@every_form
def test_updates_vary_over_devices_as_the_inner_transformation_makes_them(how: str, own: str, form: str) -> None:
    """Not as the gradients do: these can be the same on all devices where parameters are not, and the other way round."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rule = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    one = oc.chain(oc.cross_replica_mean("data"), rule) if own == "grads" else rule
    tx = oc.accumulate(oc.skip_nonfinite(one, axis_name="data"), 2)

    def step(own_part):
        params, grads = (own_part, jnp.ones(1)) if own == "params" else (jnp.ones(1), own_part)
        state = tx.init(params)
        for _ in range(2):
            params, state = step_of(tx, how)(params, state, grads)
        return params

    specs = {"in_specs": P("data"), "out_specs": P("data") if own == "params" else P()}
    new = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(jnp.arange(8.0))
    expected = np.arange(8.0) - 0.1 * (1 + 0.5 * np.arange(8.0)) if own == "params" else [1 - 0.1 * (3.5 + 0.5)]
    np.testing.assert_allclose(new, expected, rtol=1e-6)


@every_form
def test_a_branch_keeps_explicit_shardings(how: str, form: str) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("data")))
        tx = oc.skip_nonfinite(oc.adamw(0.1))
        new, _ = jax.jit(lambda p: step_of(tx, how)(p, tx.init(p), p))(params)
    assert new.sharding.spec == P("data", None)


def test_an_exported_step_runs_on_the_platforms_that_it_was_made_for() -> None:
    tx = oc.accumulate(oc.adamw(0.1), 2)
    state = tx.init(PARAMS)
    step = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(PARAMS, state, GRADS)
    expected, actual = step(PARAMS, state, GRADS), exported.call(PARAMS, state, GRADS)
    expected, actual = step(*expected, GRADS), exported.call(*actual, GRADS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), actual, expected)


@every_form
@pytest.mark.parametrize(("platform", "loops"), [("cpu", 0), ("tpu", 0), ("cuda", 3), ("rocm", 3)])
def test_a_gate_is_a_loop_on_a_gpu_and_a_condition_elsewhere(platform: str, loops: int, how: str) -> None:
    tx = oc.dynamic_loss_scale(oc.skip_nonfinite(oc.accumulate(oc.adamw(0.1), 2)))
    traced = jax.jit(step_of(tx, how)).trace(PARAMS, tx.init(PARAMS), GRADS)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") == loops
    looks = 2 if platform == "cpu" else 0  # there a gradient is looked through again where its norm leaves it open
    assert text.count("stablehlo.case") == 3 - loops + looks


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_updates_that_are_skipped_rarely_are_selected_on_a_gpu(platform: str) -> None:
    tx = oc.dynamic_loss_scale(oc.skip_nonfinite(oc.adamw(0.1)))
    traced = jax.jit(step_of(tx, "update")).trace(PARAMS, tx.init(PARAMS), GRADS)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    gates_and_looks = 0 if platform == "cuda" else 2 + 2
    assert (text.count("stablehlo.while"), text.count("stablehlo.case")) == (0, gates_and_looks)


def test_a_branch_that_changes_the_structure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"structure|arity|keys"):
        run_if(jnp.bool_(True), lambda x: ({"other": x["x"]},), {"x": jnp.ones(2)})


# What JAX does with a branch of its own ---------------------------------------------------------------------------------

FORMS_OF_A_STEP = {
    "apply": lambda tx: lambda params, state, grads: tx.apply(params, state, grads=grads),
    "update": lambda tx: lambda params, state, grads: tx.update(grads, state, params),
}
every_form = pytest.mark.parametrize("form", FORMS_OF_A_STEP.values(), ids=FORMS_OF_A_STEP)
SMALL = {"b": jnp.ones(2)}


@every_form
def test_checkify_sees_a_nan_that_is_made_within_a_gate(form: Any) -> None:
    logarithm = optax.stateless(lambda updates, params: jax.tree.map(lambda x: jnp.log(-jnp.abs(x)), updates))
    tx = oc.skip_nonfinite(logarithm)
    step = checkify.checkify(form(tx), errors=checkify.float_checks)
    error, _ = step(SMALL, tx.init(SMALL), SMALL)
    assert "nan generated by primitive: log" in str(error.get())


@every_form
def test_a_check_within_a_gate_is_one_of_the_step(form: Any) -> None:
    def rate(count: jax.Array) -> float:
        checkify.check(count < 1, "the count is {count}", count=count)
        return 0.1

    tx = oc.accumulate(optax.sgd(rate), 1)
    step = jax.jit(checkify.checkify(form(tx)))
    error, (_, state) = step(SMALL, tx.init(SMALL), SMALL)
    assert error.get() is None
    error, _ = step(SMALL, state, SMALL)
    assert "the count is 1" in str(error.get())


@every_form
def test_a_ref_is_written_where_the_gate_runs(form: Any) -> None:
    seen = jax.new_ref(jnp.int32(0))

    def rate(count: jax.Array) -> float:
        seen[...] = count
        return 0.1

    tx = oc.skip_nonfinite(oc.sgd(rate))
    step, state = jax.jit(form(tx)), tx.init(SMALL)
    seen[...] = -1
    _, state = step(SMALL, state, {"b": jnp.full(2, jnp.nan)})
    assert seen[...] == -1
    step(SMALL, state, SMALL)
    assert seen[...] == 0


@pytest.mark.parametrize(
    "build", [oc.skip_nonfinite, lambda inner: oc.accumulate(inner, 2)], ids=["skip", "accumulate"]
)
def test_updates_are_split_as_the_parameters_are_where_the_gradients_are_not(build: Any) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((4, 4)), NamedSharding(mesh, P("data")))
        grads = jax.device_put(jnp.ones((4, 4)), NamedSharding(mesh, P()))
        tx = build(oc.adamw(0.1))
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        assert jax.typeof(updates).sharding.spec == P("data", None)


@pytest.mark.parametrize(("steps", "transposed"), [(1, -0.1), (2, 0.0)], ids=["a call that runs", "a call that waits"])
def test_a_linear_update_has_a_transpose(steps: int, transposed: float) -> None:
    tx = oc.accumulate(oc.sgd(0.1), steps)
    state = tx.init(SMALL)
    (cotangent,) = jax.linear_transpose(lambda grads: tx.update(grads, state, SMALL)[0], SMALL)(SMALL)
    np.testing.assert_allclose(cotangent["b"], np.full(2, transposed), rtol=1e-6)


@pytest.mark.thorough
@every_form
@pytest.mark.parametrize("steps", [1, 2])
def test_without_jit_a_gate_runs_operation_by_operation(form: Any, steps: int) -> None:
    def rate(count: Any) -> float:
        return 0.1 if count < 3 else 0.01  # needs a number, not a tracer

    tx = oc.accumulate(oc.sgd(rate), steps)
    with jax.disable_jit():
        out, _ = form(tx)(SMALL, tx.init(SMALL), SMALL)
    compiled = oc.accumulate(oc.sgd(0.1), steps)
    expected, _ = form(compiled)(SMALL, compiled.init(SMALL), SMALL)
    assert out["b"].dtype == expected["b"].dtype
    np.testing.assert_array_equal(out["b"], expected["b"])
