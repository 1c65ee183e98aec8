"""`rule`: the math of one leaf is enough, in every dtype and under every transform."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from optchain import Slot
from optchain.core.precision import enable_x64
from optchain.core.slot import declare, slot_names
from optchain.core.slot_paths import SlotPaths
from tests import programs

PARAMS = {"a": jnp.arange(6.0).reshape(3, 2), "b": [jnp.ones(2), -jnp.ones(2)], "c": jnp.float32(3.0)}
RULES = {
    "adam": lambda: oc.scale_by_adam(amsgrad=True),
    "nadam": lambda: oc.scale_by_nadam(),
    "radam": lambda: oc.scale_by_radam(0.5, 0.9),
    "rms": lambda: oc.scale_by_rms(0.5, 0.1, centered=True, bias_correction=True),
    "rss": lambda: oc.scale_by_rss(),
    "adadelta": lambda: oc.scale_by_adadelta(epsilon=1e-2),
    "adamax": lambda: oc.scale_by_adamax(),
    "lion": lambda: oc.scale_by_lion(),
    "momentum": lambda: oc.apply_momentum(0.9, True, dampening=0.5),
    "ftrl": lambda: oc.chain(oc.apply_ftrl(l1_regularization_strength=0.01), learning_rate=0.5),
}
every_rule = pytest.mark.parametrize("name", RULES)


def counting(calls: list[tuple[int, ...]], **options: Any) -> oc.Transformation:
    def step(t: Any, rate: Any) -> Any:
        def leaf(g: jax.Array, m: jax.Array) -> Any:
            calls.append(g.shape)
            return rate * g + m / t, {"m": m + g}

        return leaf

    return oc.rule(step, slots={"m": Slot()}, hyperparams={"rate": 0.5}, **options)


@pytest.fixture(autouse=True)
def ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(oc.core.arguments.RANGES, "rate", oc.core.arguments.NON_NEGATIVE)


def steps(tx: oc.Transformation, params: Any, grads: list[Any]) -> Any:
    state = tx.init(params)
    for g in grads:
        params, state = tx.apply(params, state, grads=g)
    return params


def close(actual: jax.Array, expected: jax.Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def grads_of(params: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


def test_leaves_of_one_shape_are_traced_once() -> None:
    calls: list[tuple[int, ...]] = []
    tx = counting(calls)
    jax.jit(tx.update).trace(PARAMS, tx.init(PARAMS))
    assert sorted(calls) == [(), (2,), (3, 2)]


def test_without_jit_a_second_step_compiles_nothing() -> None:
    tx = counting([])
    vmapped = jax.vmap(lambda g, s: tx.update(g, s)[0], in_axes=(0, None))
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = tx.update(PARAMS, state)
        vmapped(batch, state)
    with programs.compilations() as compiled:
        _, state = tx.update(PARAMS, state)
        vmapped(batch, state)
    assert compiled == []


@pytest.mark.thorough
@every_rule
def test_gradients_through_steps_are_finite_differences(name: str) -> None:
    with enable_x64():
        params = {"a": jnp.array([[0.3, -0.7]]), "b": jnp.array([[1.1, 0.2]]), "c": jnp.array(0.4)}
        tx, rest = RULES[name](), [grads_of(params, seed) for seed in (1, 2)]

        @jax.jit
        def loss(g: Any) -> jax.Array:
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(steps(tx, params, [g, *rest])))

        g, direction = grads_of(params, 0), grads_of(params, 3)
        _, forward = jax.jvp(loss, (g,), (direction,))
        backward = sum(
            jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (jax.grad(loss)(g), direction)), strict=True)
        )
        h = 1e-6
        ahead, behind = (loss(jax.tree.map(lambda x, d, s=s: x + s * h * d, g, direction)) for s in (1, -1))
        assert float(forward) == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-5, abs=1e-8)
        assert float(backward) == pytest.approx(float(forward), rel=1e-9, abs=1e-12)


@every_rule
def test_a_rule_runs_on_a_mesh_of_explicit_axes(name: str) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Explicit,))
    params = {"w": jnp.linspace(-1.0, 1.0, 8 * jax.device_count()).reshape(-1, 4), "b": jnp.ones(4)}
    spread = {"w": P("d", None), "b": P(None)}
    tx, g = RULES[name](), grads_of(params)
    expected = jax.jit(lambda p, g: steps(tx, p, [g, g]))(params, g)
    with jax.set_mesh(mesh):
        put = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), (params, g), (spread, spread))
        actual = jax.jit(lambda p, g: steps(tx, p, [g, g]))(*put)
        assert jax.tree.map(lambda x: jax.typeof(x).sharding.spec, actual) == spread
    jax.tree.map(close, actual, expected)


@every_rule
def test_a_rule_runs_inside_shard_map(name: str) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Auto,))
    params = {"w": jnp.linspace(-1.0, 1.0, 8 * jax.device_count()).reshape(-1, 4)}
    tx, g = RULES[name](), grads_of(params)
    run = jax.shard_map(lambda p, g: steps(tx, p, [g, g]), mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    expected = jax.jit(lambda p, g: steps(tx, p, [g, g]))(params, g)
    jax.tree.map(close, jax.jit(run)(params, g), expected)


@every_rule
def test_zero_gradients_make_no_nan(name: str) -> None:
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.block_until_ready(jax.jit(lambda p, g: steps(RULES[name](), p, [g, g]))(PARAMS, zeros))


def test_the_rule_sees_wide_leaves_and_slots_keep_their_dtypes() -> None:
    seen = {}

    def step(t: Any) -> Any:
        def leaf(g: jax.Array, m: jax.Array, size: jax.Array) -> Any:
            seen[g.dtype.name] = (t.dtype.name, m.dtype.name, size.dtype.name)
            return g * t, {"m": m + g, "size": size + jnp.abs(g)}

        return leaf

    tx = oc.rule(step, slots={"m": Slot(dtype="bfloat16"), "size": Slot(real=True, start=1.0)})
    params = {"n": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(2), "z": jnp.ones(2, jnp.complex64)}
    state = tx.init(params)
    u, new = jax.jit(tx.update)(params, state)
    assert seen == {"float32": ("float32",) * 3, "complex64": ("float32", "complex64", "float32")}
    assert jax.tree.map(lambda x: x.dtype.name, u) == {"n": "bfloat16", "f": "float32", "z": "complex64"}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    np.testing.assert_array_equal(new["size"]["z"], [2.0, 2.0])


def test_a_rule_may_read_parameters_scalars_and_extra_arguments() -> None:
    def step(learning_rate: Any, total: Any, loss: Any) -> Any:
        def leaf(g: jax.Array, p: jax.Array) -> Any:
            return -learning_rate * (g + p) * total, {}

        return leaf, {"total": total + loss}

    tx = oc.chain(oc.rule(step, slots={}, scalars={"total": 1.0}, needs_params=True), learning_rate=0.5)
    p = jnp.array([2.0])
    p, state = tx.apply(p, tx.init(p), grads=jnp.array([1.0]), loss=3.0)
    p, state = tx.apply(p, state, grads=jnp.array([0.0]), loss=3.0)
    np.testing.assert_allclose(p, [0.5 - 0.5 * 0.5 * 4.0])
    with pytest.raises(TypeError, match="needs loss, and the call did not give it"):
        tx.apply(p, state, grads=p)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(p, state, loss=1.0)


def test_a_hyperparameter_that_the_rule_does_not_take_is_refused() -> None:
    with pytest.raises(TypeError, match="step takes no 'beta_1', which is among the rule's own; it takes t, rate"):
        oc.rule(lambda t, rate: None, slots={}, hyperparams={"rate": 0.5, "beta_1": 0.9})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("slot", name) for name in ("g", "p", "t", "count", "hyperparams", "scheduled", "metrics", "same")),
        *(("scalar", name) for name in ("t", "count", "hyperparams", "scheduled", "metrics", "same")),
        *(("hyperparameter", name) for name in ("t", "same")),
    ],
)
def test_a_name_that_is_taken_is_refused_when_the_rule_is_built(kind: str, name: str) -> None:
    given: dict[str, Any] = {"slots": {}, "scalars": {}, "hyperparams": {}}
    given |= {"slots": {"same": Slot()}} if kind != "slot" else {"scalars": {"same": 1.0}}
    given[{"slot": "slots", "scalar": "scalars", "hyperparameter": "hyperparams"}[kind]] |= {
        name: Slot() if kind == "slot" else 0.5
    }

    def step(t: Any, **values: Any) -> Any:
        raise AssertionError

    step.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY)
            for each in sorted({"t", *given["scalars"], *given["hyperparams"]})
        ]
    )
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        oc.rule(step, needs_params=True, **given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"real": 1}, TypeError, "real must be True or False; got 1 "),
        ({"full": "no"}, TypeError, "full must be True or False; got 'no'"),
        ({"start": "zeros"}, TypeError, "start must be a finite number or \"params\"; got 'zeros'"),
        ({"start": True}, TypeError, 'start must be a finite number or "params"; got True'),
        ({"start": float("nan")}, TypeError, 'start must be a finite number or "params"; got nan'),
        ({"decay": 0.9}, TypeError, "decay must be a string; got 0.9"),
        ({"decay": "beta 1"}, ValueError, "decay must be an identifier .*; got 'beta 1'"),
        ({"dtype": "int8"}, (TypeError, ValueError), "dtype must be .*int8"),
        ({"dtype": 3}, (TypeError, ValueError), "dtype must be .*3"),
    ],
)
def test_what_no_slot_can_be_is_refused_where_it_is_written(arguments: dict, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Slot(**arguments)


@pytest.mark.parametrize(
    ("slots", "error", "message"),
    [
        ({"m": 0.0}, TypeError, r"slots\['m'\] must be a Slot; got 0.0 \(float\)"),
        ({"m/v": Slot()}, ValueError, "the name of a slot must be an identifier .*; got 'm/v'"),
        ({"m": Slot(decay="beta")}, ValueError, r"slots\['m'\] decays by 'beta'; the hyperparameters are 'rate'"),
    ],
)
def test_slots_that_no_rule_can_have_are_refused_when_it_is_built(slots: dict, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        oc.rule(lambda rate: None, slots=slots, hyperparams={"rate": 0.5})


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (lambda: lambda g, mu: (g, {}), ValueError, "leaf must return the slots 'mu'; got none"),
        (lambda: lambda g, mu: (g, {"mu_": mu}), ValueError, "leaf must return the slots 'mu'; got 'mu_'"),
        (lambda: lambda g, mu: (g, {"mu": mu, "m": mu}), ValueError, "leaf must return the slots 'mu'; got 'mu', 'm'"),
        (lambda: lambda g, mu: None, TypeError, r"leaf must return \(update, \{slot: new value\}\); got None"),
        (lambda: lambda g, mu: g, TypeError, r"leaf must return \(update, \{slot: new value\}\); got "),
        (lambda: lambda g, mu: (g, mu), TypeError, r"leaf must return \(update, \{slot: new value\}\); got "),
        (
            lambda: lambda g, mu: (g, {"mu": None}),
            ValueError,
            r"leaf must return 'mu' as an array of the shape \(2,\); got None",
        ),
        (
            lambda: lambda g, mu: (g, {"mu": 1.0}),
            ValueError,
            r"leaf must return 'mu' as an array of the shape \(2,\); got 1.0",
        ),
        (
            lambda: lambda g, mu: (g, {"mu": g[:1]}),
            ValueError,
            r"leaf must return 'mu' as an array of the shape \(2,\); got shape \(1,\)",
        ),
        (lambda: lambda g, mu: (g, {"mu": g * 1j}), TypeError, "leaf must return real numbers for the slot 'mu'"),
        (lambda: None, TypeError, "step must return leaf, a function, or .*; got None"),
    ],
)
def test_what_a_rule_returns_is_checked_and_named(step: Any, error: Any, message: str) -> None:
    tx = oc.rule(step, slots={"mu": Slot()})
    params = jnp.ones(2)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(error, match=message):
            update(params, tx.init(params))


@pytest.mark.parametrize("new", [{}, {"s": jnp.ones(2)}, {"s": 3}, {"s": True}, {"s": 1.0, "z": 1.0}, None])
def test_scalars_that_a_step_returns_are_real_scalars_and_all_of_them(new: Any) -> None:
    def step(s: Any) -> Any:
        leaf = lambda g: (g * s, {})  # noqa: E731
        return leaf if new is None else (leaf, new)

    tx = oc.rule(step, slots={}, scalars={"s": 1.0})
    with pytest.raises(ValueError, match=r"step must return .*scalar"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_what_a_call_gives_a_rule_is_handed_on_as_it_is_unless_it_is_a_real_scalar() -> None:
    seen: dict[str, Any] = {}

    def step(rate: Any = None, key: Any = None, index: Any = None, flag: Any = None, table: Any = None) -> Any:
        seen.update(rate=rate, key=key, index=index, flag=flag, table=table)
        return lambda g: (g, {})

    tx = oc.rule(step, slots={})
    state = tx.init(jnp.ones(2))
    given = {"key": jax.random.key(0), "index": jnp.int32(2**24 + 1), "flag": jnp.bool_(True), "table": {"a": 1}}
    tx.update(jnp.ones(2), state, rate=jnp.bfloat16(0.5), **given)
    assert seen["rate"].dtype == jnp.float32
    assert {name: seen[name] is value for name, value in given.items()} == dict.fromkeys(given, True)
    tx.update(jnp.ones(2), state, rate=None)
    assert seen["rate"] is None


@pytest.mark.parametrize("name", ["inner", "scale_by_adam", "adamw"])
def test_a_slot_cannot_have_the_name_of_a_part_or_a_link(name: str) -> None:
    for build in (
        lambda: oc.rule(lambda: None, slots={name: Slot()}),
        lambda: oc.Transformation(update=lambda u, s, p: (u, s), slots={name: Slot()}),
        lambda: oc.ParameterLink(lambda p, s: (p, s), slots={name: Slot()}),
    ):
        with pytest.raises(ValueError, match=f"a slot cannot be called '{name}'"):
            build()
    assert name not in slot_names()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"slots": {"mu": 1}}, TypeError, r"slots\['mu'\] must be a Slot; got 1"),
        ({"slots": ["mu"]}, TypeError, r"slots must be a mapping of names to Slot\(…\); got \['mu'\]"),
        ({"slots": {"mu": Slot(decay="momentun")}}, ValueError, "decays by 'momentun'; the hyperparameters are none"),
        ({"hyperparams": {"m": 1.0}}, TypeError, r"hyperparams must be Hyperparams\(name=value, …\); got \{'m': 1.0\}"),
        ({"fields": "count"}, TypeError, "fields must be a sequence of names; got the string 'count'"),
    ],
)
def test_what_a_link_written_by_hand_cannot_have_is_refused(arguments: dict, error: Any, message: str) -> None:
    for build in (
        lambda: oc.Transformation(update=lambda u, s, p: (u, s), **arguments),
        lambda: oc.ParameterLink(lambda p, s: (p, s), **arguments),
    ):
        with pytest.raises(error, match=message):
            build()


def test_slots_of_a_rule_are_full_and_real_ones_start_from_numbers() -> None:
    with pytest.raises(ValueError, match=r"slots\['m'\] of a rule must be full"):
        oc.rule(lambda: None, slots={"m": Slot(full=False)})
    with pytest.raises(ValueError, match='real slots cannot start from "params"'):
        Slot(real=True, start="params")


def test_a_slot_may_be_called_p_where_the_rule_gets_no_parameter() -> None:
    tx = oc.rule(lambda: lambda g, p: (g + p, {"p": g}), slots={"p": Slot()})
    np.testing.assert_array_equal(tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0], 1.0)


def test_a_slot_name_is_known_where_a_state_is_read() -> None:
    names = ("link", "a_name_of_one's_own", "w")
    assert not SlotPaths({names: 0.0}).lies_in_slot(names)
    declare(**{"a_name_of_one's_own": Slot()})
    assert SlotPaths({names: 0.0}).lies_in_slot(names)
