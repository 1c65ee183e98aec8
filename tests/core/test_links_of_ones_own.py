"""Links and gates that users write: they see plain gradients, their mistakes have names, and no state shares a buffer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain import Slot
from optchain.core import trees
from optchain.core.gates import Gate
from optchain.core.hyperparams import Hyperparams

PARAMS = {"w": jnp.array([1.0, 2.0, -3.0, 4.0])}
GRADS = {"w": jnp.array([0.5, -0.25, 1.0, 2.0])}


def keep_if(inner: Any, decide: Callable[..., Any], **options: Any) -> Gate:
    """A gate with a number of its own state, `seen`."""
    return Gate(inner, lambda params: {"seen": jnp.float32(0)}, decide, **{"fields": ["seen"], **options})


def skip_large(inner: Any, bound: float = 5.0, **options: Any) -> Gate:
    """A gate by a norm that knows nothing of this package."""

    def decide(grads: Any, state: Any, extra: Any) -> Any:
        norm = optax.tree.norm(grads)
        return norm < bound, lambda: grads, {"seen": norm}

    return keep_if(inner, decide, **options)


# What a gate is handed ------------------------------------------------------------------------------------------------

AROUND: dict[str, tuple[Callable[[Any], oc.Transformation], float]] = {
    "nothing": (lambda gate: gate, 1.0),
    "accumulate": (lambda gate: oc.accumulate(gate, 1), 1.0),
    "scale": (lambda gate: oc.chain(oc.scale(0.5), gate), 0.5),
    "clip": (lambda gate: oc.chain(oc.clip_by_global_norm(1.0), gate), 1 / float(optax.tree.norm(GRADS))),
    "its own kind": (lambda gate: skip_large(gate, 1e6), 1.0),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("around", AROUND)
def test_a_gate_sees_the_gradients_as_arrays_whatever_stands_around_it(around: str, jit: bool) -> None:
    wrap, factor = AROUND[around]
    tx = wrap(skip_large(oc.sgd(0.1)))
    step = jax.jit(tx.apply) if jit else tx.apply
    params, state = step(PARAMS, tx.init(PARAMS), grads=GRADS)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.1 * factor * GRADS["w"], rtol=1e-6)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.apply_updates(PARAMS, updates)["w"], params["w"], rtol=1e-6)
    seen = [x for path, x in jax.tree_util.tree_leaves_with_path(state) if path[-1].key == "seen"]
    np.testing.assert_allclose(seen[-1], factor * optax.tree.norm(GRADS), rtol=1e-6)


def test_a_gate_sees_the_dense_gradient_of_a_table() -> None:
    table = {"table": jnp.ones((6, 2))}
    rows = {"table": oc.RowGradient(jnp.array([1, 4, 1]), jnp.ones((3, 2)), shape=(6, 2))}
    dense = jax.tree.map(lambda x: x.dense(), rows, is_leaf=lambda x: isinstance(x, oc.RowGradient))
    tx = skip_large(oc.adam(0.1), bound=5.0)
    by_rows, state = tx.apply(table, tx.init(table), grads=rows)
    by_table, expected = tx.apply(table, tx.init(table), grads=dense)
    np.testing.assert_array_equal(by_rows["table"], by_table["table"])
    np.testing.assert_allclose(state["seen"], expected["seen"])
    np.testing.assert_allclose(state["seen"], np.sqrt(2 * 2**2 + 2 * 1), rtol=1e-6)


def test_a_gate_that_accepts_them_is_handed_scaled_updates() -> None:
    given = list[Any]()

    def decide(grads: Any, state: Any, extra: Any) -> Any:
        given.append(grads)
        return jnp.bool_(True), lambda: grads, state

    for accepts in ((), ("scaled",)):
        tx = oc.chain(oc.scale(0.5), keep_if(oc.sgd(0.1), decide, accepts=accepts))
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    assert [isinstance(grads, trees.Scaled) for grads in given] == [False, True]


def test_the_norm_of_rows_that_are_named_twice_is_that_of_the_dense_gradient() -> None:
    rows = oc.RowGradient(jnp.array([2, 0, 2, -1]), jnp.ones((4, 3)), shape=(3, 3))
    expected = np.linalg.norm(np.asarray(rows.dense()))
    np.testing.assert_allclose(trees.global_norm({"table": rows}), expected, rtol=1e-6)


def test_a_gate_takes_an_optax_transformation() -> None:
    tx = skip_large(optax.sgd(0.1))
    params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.1 * GRADS["w"], rtol=1e-6)


@pytest.mark.parametrize("bound", [5.0, 1.0], ids=["runs", "skips"])
def test_members_of_a_sweep_each_decide_in_a_gate_of_ones_own(bound: float) -> None:
    tx = skip_large(oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate(), learning_rate=0.1), bound)
    rates = jnp.array([0.1, 0.2])
    states, axes = oc.sweep(tx.init(PARAMS), learning_rate=rates)
    scales = jnp.array([1.0, 0.1])  # of the gradients: with the lower bound one member runs and one does not

    def step(params: Any, state: Any, scale: Any) -> Any:
        return tx.apply(params, state, grads=jax.tree.map(lambda g: scale * g, GRADS))

    together = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    members = jax.jit(jax.vmap(step, in_axes=(0, axes, 0), out_axes=(0, axes)))
    for _ in range(3):
        together, states = members(together, states, scales)
    for member in range(2):
        params, state = PARAMS, oc.set_hyperparams(tx.init(PARAMS), learning_rate=rates[member])
        for _ in range(3):
            params, state = step(params, state, scales[member])
        np.testing.assert_allclose(together["w"][member], params["w"], rtol=1e-6)


def test_counts_of_the_packages_own_wrappers_stay_shared() -> None:
    wrapped = {
        "accumulate": oc.accumulate(oc.adam(0.1), 4),
        "compact": oc.compact(oc.adamw(0.1)),
        "compact weights": oc.compact(oc.adamw(0.1), weights=24),
        "masked": oc.freeze(oc.adam(0.1), oc.matching("b")),
        "schedule-free": oc.schedule_free_adamw(0.1),
        "averages": oc.chain(oc.adam(0.1), oc.average_params(0.9)),
    }
    params = {"w": jnp.ones((64, 64), jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    for name, tx in wrapped.items():
        _, axes = oc.sweep(tx.init(params), learning_rate=jnp.array([0.1, 0.2]))
        counts = {path[-1].key: axis for path, axis in _paths(axes) if path[-1].key == "count"}
        assert set(counts.values()) == {None}, name


def _paths(tree: Any) -> Any:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)


# Flushing -------------------------------------------------------------------------------------------------------------


def sum_of_two(inner: Any) -> Gate:
    """Runs at every second call, on the sum of two gradients."""

    def init(params: Any) -> Any:
        return {"waiting": jnp.bool_(False), "waiting_sum": jax.tree.map(jnp.zeros_like, params)}

    def decide(grads: Any, state: Any, extra: Any) -> Any:
        summed = jax.tree.map(jnp.add, grads, state["waiting_sum"])
        kept = jax.tree.map(lambda s: jnp.where(state["waiting"], 0, s), summed)
        return state["waiting"], lambda: summed, {"waiting": ~state["waiting"], "waiting_sum": kept}

    def flush(state: Any) -> Any:
        empty = jax.tree.map(jnp.zeros_like, state["waiting_sum"])
        return state["waiting"], lambda: state["waiting_sum"], {"waiting": jnp.bool_(False), "waiting_sum": empty}

    return Gate(inner, init, decide, fields=["waiting"], slots={"waiting_sum": Slot()}, flush=flush)


def test_flush_runs_a_gate_of_ones_own() -> None:
    tx = sum_of_two(oc.sgd(0.1))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        params, state = tx.apply(params, state, grads=GRADS)
    params, state = oc.flush(tx, params, state)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.3 * GRADS["w"], rtol=1e-6)
    with pytest.raises(ValueError, match="has no accumulate"):
        oc.flush(skip_large(oc.sgd(0.1)), PARAMS, {})


def by_value() -> oc.Transformation:
    def step(value: Any) -> Any:
        return lambda g: (g * value, {})

    return oc.rule(step, slots={})


@pytest.mark.parametrize(
    "nested",
    [
        lambda tx: oc.accumulate(oc.accumulate(tx, 2), 2),
        lambda tx: oc.accumulate(sum_of_two(tx), 2),
        lambda tx: sum_of_two(oc.accumulate(tx, 2)),
        lambda tx: oc.accumulate(oc.chain(oc.clip_by_norm(9.0), ("inside", sum_of_two(tx))), 2),
    ],
    ids=["accumulate", "ours in accumulate", "accumulate in ours", "chain"],
)
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_flush_empties_the_windows_within_a_window(nested: Any, calls: int) -> None:
    """The outer gate handed its tail to the inner one, which waited on."""
    tx = nested(oc.sgd(0.1))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(calls):
        params, state = tx.apply(params, state, grads=GRADS)
    flushed, state = oc.flush(tx, params, state)
    assert not np.array_equal(flushed["w"], PARAMS["w"])
    again, _ = oc.flush(tx, flushed, state)
    np.testing.assert_array_equal(again["w"], flushed["w"])


def test_flush_hands_on_what_links_ask_for() -> None:
    tx = oc.accumulate(oc.chain(by_value(), oc.sgd(0.1)), 4)
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS, value=1.0)
    with pytest.raises(TypeError, match="transformation needs value, and the call did not give it"):
        oc.flush(tx, params, state)
    params, _ = oc.flush(tx, params, state, value=3.0)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.3 * GRADS["w"], rtol=1e-6)


def test_flush_takes_a_whole_module() -> None:
    """A module has leaves that are not trained, such as functions."""
    module = {"w": PARAMS["w"], "activation": jax.nn.relu, "steps": 3}
    grads = {"w": GRADS["w"], "activation": None, "steps": None}
    for wrap in (lambda tx: tx, lambda tx: oc.masked(tx, lambda p: jax.tree.map(lambda leaf: leaf.ndim == 1, p))):
        tx = wrap(oc.accumulate(oc.sgd(0.1), 2))
        params, state = tx.apply(module, tx.init({**grads, "w": PARAMS["w"]}), grads=grads)
        params, state = oc.flush(tx, params, state)
        np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.1 * GRADS["w"], rtol=1e-6)
        assert params["activation"] is jax.nn.relu
        assert params["steps"] == 3


def test_flush_shares_no_buffers() -> None:
    def project(params: Any, state: Any) -> Any:
        return {**params, "b": state["start_kept"]["b"]}, state

    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    reset = oc.ParameterLink(
        project,
        lambda p: {"start_kept": jax.tree.map(jnp.copy, p)},
        slots={"start_kept": Slot(start="params")},
        stage="projection",
    )
    tx = oc.chain(oc.accumulate(oc.sgd(1.0), 2), reset)
    params, state = oc.flush(tx, *tx.apply(params, tx.init(params), grads=params))
    grads = jax.tree.map(jnp.ones_like, params)
    params, _ = jax.jit(tx.apply, donate_argnums=(0, 1))(params, state, grads=grads)
    np.testing.assert_array_equal(params["b"], 1)  # where it is reset to
    np.testing.assert_array_equal(params["w"], 0)  # one waits


def test_flush_asks_for_nothing_that_it_does_not_run() -> None:
    tx = oc.chain(by_value(), oc.accumulate(oc.sgd(0.1), 4))
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS, value=2.0)
    params, _ = oc.flush(tx, params, state)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.2 * GRADS["w"], rtol=1e-6)


# Extra arguments -----------------------------------------------------------------------------------------------------


def divide_by_curvature() -> oc.Transformation:
    def update(updates: Any, state: Any, params: Any, *, curvature: Any) -> Any:
        return jax.tree.map(jnp.divide, updates, curvature), state

    return oc.Transformation(update=update)


SOME: dict[str, Callable[[Any], oc.Transformation]] = {
    "masked": lambda tx: oc.masked(tx, oc.matching("w")),
    "freeze": lambda tx: oc.freeze(tx, oc.matching("b")),
    "groups": lambda tx: oc.multi_optimizer(("body", "w", tx), default=oc.sgd(0.1)),
    "within": lambda tx: oc.accumulate(oc.freeze(oc.multi_optimizer(("body", "w", tx)), oc.matching("b")), 1),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("some", SOME)
def test_a_tree_that_a_call_gives_is_one_of_the_parameters_that_a_link_acts_on(some: str, jit: bool) -> None:
    """It came whole, and its leaves did not fit the gradients."""
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.ones(3)}
    grads, curvature = jax.tree.map(jnp.ones_like, params), jax.tree.map(lambda p: jnp.full(p.shape, 4.0), params)
    tx = SOME[some](oc.chain(divide_by_curvature(), oc.sgd(0.1)))
    step = jax.jit(tx.apply) if jit else tx.apply
    new, _ = step(params, tx.init(params), grads=grads, curvature=curvature)
    np.testing.assert_allclose(new["w"], params["w"] - 0.1 / 4, rtol=1e-6)
    updates, _ = tx.update(grads, tx.init(params), params, curvature=curvature)
    np.testing.assert_allclose(updates["w"], -0.1 / 4, rtol=1e-6)


def clip_to_bounds() -> oc.Transformation:
    def update(updates: Any, state: Any, params: Any, *, bounds: Any) -> Any:
        low, high = jax.tree.leaves(bounds)
        return jax.tree.map(lambda u: jnp.clip(u, low, high), updates), state

    return oc.Transformation(update=update)


@pytest.mark.parametrize("some", SOME)
@pytest.mark.parametrize("numbers", [float, jnp.float32], ids=["Python", "arrays"])
def test_numbers_in_containers_like_the_parameters_come_whole(some: str, numbers: Any) -> None:
    """Two bounds were one, since the parameters were two."""
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.ones(3)}
    grads = {"w": jnp.array([9.0, -9.0]), "b": jnp.ones(3)}
    tx = SOME[some](oc.chain(clip_to_bounds(), oc.sgd(1.0)))
    bounds = {"b": numbers(-1.0), "w": numbers(1.0)}
    new, _ = tx.apply(params, tx.init(params), grads=grads, bounds=bounds)
    np.testing.assert_allclose(new["w"], [0.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize("named", [[5, 3], [5], [0, 1, 2, 3, 4, 5]])
def test_a_tree_that_a_call_gives_is_one_of_the_rows_that_a_gradient_names(named: list[int]) -> None:
    def update(updates: Any, state: Any, params: Any, *, curvature: Any) -> Any:
        return jax.tree.map(jnp.divide, updates, curvature), state

    tx = oc.lazy_rows(oc.chain(oc.Transformation(update=update, rowwise=True), oc.sgd(0.1)))
    table = {"table": jnp.ones((6, 2))}
    curvature = {"table": jnp.arange(1.0, 13.0).reshape(6, 2)}
    rows = {"table": oc.RowGradient(jnp.array(named), jnp.ones((len(named), 2)), shape=(6, 2))}
    new, _ = tx.apply(table, tx.init(table), grads=rows, curvature=curvature)
    expected = np.ones((6, 2))
    expected[named] -= 0.1 / np.asarray(curvature["table"])[named]
    np.testing.assert_allclose(new["table"], expected, rtol=1e-6)


def test_a_projection_with_state_and_hyperparameters_acts_after_a_flush() -> None:
    def project(params: Any, state: Any, *, bound: Any) -> Any:
        return jax.tree.map(lambda p: jnp.minimum(p, bound), params), {"acted": state["acted"] + 1}

    below = oc.ParameterLink(
        project,
        lambda params: {"acted": jnp.int32(0)},
        fields=["acted"],
        hyperparams=Hyperparams(bound=jnp.float32(1.5)),
        stage="projection",
    )
    tx = oc.chain(oc.accumulate(oc.sgd(0.1), 4), below)
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    params, state = oc.flush(tx, params, state)
    np.testing.assert_allclose(params["w"], np.minimum(np.minimum(PARAMS["w"], 1.5) - 0.1 * GRADS["w"], 1.5), rtol=1e-6)
    tx.apply(params, state, grads=GRADS)


# Mistakes in gates ----------------------------------------------------------------------------------------------------


def gate_that_returns(made: Any) -> Gate:
    return keep_if(oc.sgd(0.1), lambda grads, state, extra: made(grads, state))


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (gate_that_returns(lambda g, s: (True, g, s)), r"decide must return \(run, gradient, state\)"),
        (gate_that_returns(lambda g, s: (True, lambda: g)), "transformation: decide must return"),
        (gate_that_returns(lambda g, s: (True, lambda: g, None)), "transformation: decide must return"),
        (gate_that_returns(lambda g, s: (jnp.float32(1), lambda: g, s)), "must return a scalar bool as run; got"),
        (gate_that_returns(lambda g, s: (g["w"] > 0, lambda: g, s)), "must return a scalar bool as run; got"),
        (
            keep_if(oc.sgd(0.1), lambda g, s, extra: (extra["loss"] < 1, lambda: g, s), takes=["loss"]),
            "transformation needs loss, and the call did not give it",
        ),
    ],
)
def test_a_decision_that_is_none_is_named(tx: Gate, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)


def test_what_a_gate_runs_keeps_the_form_of_its_state() -> None:
    def narrowing(updates: Any, state: Any, params: Any) -> Any:
        return updates, {"last": state["last"].astype(jnp.bfloat16)}

    def growing(updates: Any, state: Any, params: Any) -> Any:
        return updates, {"last": {"more": state["last"]}}

    def link(update: Any) -> oc.Transformation:
        return oc.Transformation(lambda params: {"last": jnp.float32(0)}, update, fields=["last"])

    for update, message in (
        (narrowing, r'\["last"\] was float32\[\] and became bfloat16\[\]'),
        (growing, "the state of chain, in transformation must keep its structure"),
    ):
        tx = skip_large(oc.chain(link(update), oc.sgd(0.1)))
        for form in (
            lambda tx=tx: tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS),
            lambda tx=tx: tx.update(GRADS, tx.init(PARAMS), PARAMS),
        ):
            with pytest.raises(TypeError, match=message):
                form()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({}, "the state of transformation must keep its structure"),
        ({"seen": jnp.float32(0), "more": jnp.float32(0)}, "the state of transformation must keep its structure"),
        ({"seen": jnp.int32(0)}, r'state\["seen"\] was float32\[\] and became int32\[\]'),
        ({"seen": jnp.zeros(3)}, r'state\["seen"\] was float32\[\] and became float32\[3\]'),
    ],
    ids=["dropped", "more", "dtype", "shape"],
)
def test_a_gates_own_state_keeps_its_form(made: Any, message: str) -> None:
    """The next call said that the state was another transformation's."""
    tx = gate_that_returns(lambda g, s: (True, lambda: g, made))
    with pytest.raises(TypeError, match=message):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)


def test_a_gate_that_sees_dense_gradients_refuses_to_run_on_rows() -> None:
    """It made the rows dense, and rows that no index named were decayed."""
    lazy = oc.adamw(0.1, lazy=True)
    with pytest.raises(ValueError, match=r'say accepts=\["rows"\]'):
        skip_large(lazy)
    rows = {"table": oc.RowGradient(jnp.array([1, 4]), jnp.ones((2, 2)), shape=(6, 2))}
    table = {"table": jnp.ones((6, 2))}

    def always(grads: Any, state: Any, extra: Any) -> Any:
        return True, lambda: grads, state

    tx = keep_if(lazy, always, accepts=["rows"])
    by_gate, _ = tx.apply(table, tx.init(table), grads=rows)
    alone, _ = lazy.apply(table, lazy.init(table), grads=rows)
    np.testing.assert_array_equal(by_gate["table"], alone["table"])


def agree(inner: Any) -> Gate:
    """Runs where the gradient points as its average does, which is a slot."""

    def decide(grads: Any, state: Any, extra: Any) -> Any:
        average = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["average_of_gate"], grads)
        return optax.tree.vdot(average, grads) > 0, lambda: grads, {"average_of_gate": average}

    def init(params: Any) -> Any:
        return {"average_of_gate": jax.tree.map(jnp.zeros_like, params)}

    return Gate(inner, init, decide, fields=[], slots={"average_of_gate": Slot()})


def test_the_slots_of_a_gate_may_lie_on_the_host() -> None:
    tx, mesh = agree(oc.adam(0.1)), jax.make_mesh((1,), ("data",))
    loss = lambda params, batch: jnp.sum(params["w"] * batch)  # noqa: E731
    ends = []
    for kind in (None, "pinned_host"):
        params, state = jax.tree.map(jnp.copy, PARAMS), oc.init_sharded(tx, PARAMS, mesh, memory_kind=kind)
        step = oc.make_step(loss, tx, mesh=mesh, memory_kind=kind)
        for _ in range(3):
            params, state, *_ = step(params, state, GRADS["w"])
        ends.append((params, state))
    slot = ends[1][1]["average_of_gate"]["w"]
    assert slot.sharding.memory_kind == "pinned_host"
    np.testing.assert_array_equal(ends[0][0]["w"], ends[1][0]["w"])
    np.testing.assert_array_equal(np.asarray(ends[0][1]["average_of_gate"]["w"]), np.asarray(slot))


def test_a_gate_that_keeps_nothing_but_a_slot_decides_for_each_member() -> None:
    tx = agree(oc.adam(0.1))
    states, axes = oc.sweep(tx.init(PARAMS), learning_rate=[0.1, 0.2])
    step = jax.vmap(lambda p, s, g: tx.apply(p, s, grads=g), in_axes=(0, axes, 0), out_axes=(0, axes))
    together = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    together, states = step(together, states, jax.tree.map(lambda g: jnp.stack([g, 0 * g]), GRADS))
    np.testing.assert_allclose(together["w"][0], PARAMS["w"] - 0.1 * np.sign(GRADS["w"]), rtol=1e-5)
    np.testing.assert_array_equal(together["w"][1], PARAMS["w"])


# Mistakes in links ----------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    last: Any


def link(update: Any, init: Any = None, **options: Any) -> oc.Transformation:
    return oc.Transformation(init, update, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: link(lambda u, s, p: u), TypeError, r"transformation: update must return \(updates, state\)"),
        (lambda: link(lambda u, s, p: (u, None)), TypeError, r"transformation: update must return \(updates, state\)"),
        (
            lambda: link(lambda u, s, p: (u, {}), lambda p: {"last": jnp.zeros(())}, fields=["last"]),
            ValueError,
            r"update must return a state with the entries \['last'\]; got \[\]",
        ),
        (lambda: oc.ParameterLink(lambda p, s: p), TypeError, r"project must return \(params, state\)"),
        (lambda: oc.ParameterLink(lambda p, s: (p, None)), TypeError, r"project must return \(params, state\)"),
        (
            lambda: link(lambda u, s, p: (u, s), lambda p: Kept(jnp.zeros(())), fields=["last"]),
            TypeError,
            "init must return a dict of the entries of its state; got Kept",
        ),
    ],
)
def test_a_function_of_a_link_that_returns_something_else_is_named(make: Any, error: Any, message: str) -> None:
    tx = make()
    with pytest.raises(error, match=message):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)


def test_an_update_that_needs_params_and_got_none_says_so() -> None:
    tx = link(lambda u, s, p: (jax.tree.map(lambda u, p: u + p, u, p), s))
    with pytest.raises(ValueError, match="pytree structure error") as raised:
        tx.update(GRADS, tx.init(PARAMS))
    assert "say needs_params=True" in raised.value.__notes__[0]


def rule_of(leaf: Any, **options: Any) -> oc.Transformation:
    return oc.rule(lambda: leaf, **{"slots": {"mu": Slot()}, **options})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: rule_of(lambda g, velo: (g, {"mu": velo})),
            TypeError,
            r"leaf must be leaf\(g, mu\); it is leaf\(g, velo\)",
        ),
        (lambda: rule_of(lambda g: (g, {})), TypeError, r"leaf must be leaf\(g, mu\); it is leaf\(g\)"),
        (
            lambda: rule_of(lambda g, mu: (g, {"mu": mu}), needs_params=True),
            TypeError,
            r"leaf must be leaf\(g, p, mu\)",
        ),
        (lambda: oc.rule(lambda *a: lambda g: (g, {}), slots={}), TypeError, r"cannot take \*a; name what it takes"),
        (lambda: oc.rule(lambda **k: lambda g: (g, {}), slots={}), TypeError, r"cannot take \*\*k; name what it takes"),
        (
            lambda: oc.rule(lambda m, /: lambda g: (g, {}), slots={}, hyperparams={"m": 0.1}),
            TypeError,
            "cannot take m; name what it takes",
        ),
        *(
            (
                lambda start=start: oc.rule(lambda k: (lambda g: (g, {}), {"k": k}), slots={}, scalars={"k": start}),
                (TypeError, ValueError),
                r"scalars\['k'\] must be",
            )
            for start in ("a", 1j, None, [1.0], np.ones(2), float("nan"))
        ),
    ],
)
def test_a_rule_whose_functions_do_not_fit_is_named(make: Any, error: Any, message: str) -> None:
    def use() -> Any:
        tx = make()
        return tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)

    with pytest.raises(error, match=message):
        use()


def test_a_slot_may_become_a_numpy_array() -> None:
    tx = rule_of(lambda g, mu: (g, {"mu": np.zeros(mu.shape, np.float32)}))
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    np.testing.assert_array_equal(state["mu"]["w"], 0)


# Buffers --------------------------------------------------------------------------------------------------------------


def last_gradients() -> oc.Transformation:
    slots = {"gradient_kept": Slot(), "gradient_again": Slot()}
    return rule_of(lambda g, gradient_kept, gradient_again: (g, {"gradient_kept": g, "gradient_again": g}), slots=slots)


def last_parameters() -> oc.Transformation:
    return rule_of(
        lambda g, p, parameter_kept: (g, {"parameter_kept": p}), slots={"parameter_kept": Slot()}, needs_params=True
    )


def same_twice() -> oc.Transformation:
    def leaf(g: Any, mean_kept: Any, mean_again: Any) -> Any:
        mean = (mean_kept + g) / 2
        return g, {"mean_kept": mean, "mean_again": mean}

    return rule_of(leaf, slots={"mean_kept": Slot(), "mean_again": Slot()})


def started_at_params() -> oc.Transformation:
    return link(
        lambda u, s, p: (u, s),
        lambda p: {"mean_kept": p, "mean_again": p},
        slots={"mean_kept": Slot(), "mean_again": Slot()},
    )


def new_parameters() -> oc.Transformation:
    def project(params: Any, state: Any) -> Any:
        return params, {"parameter_after": params}

    return oc.ParameterLink(project, lambda p: {"parameter_after": p}, slots={"parameter_after": Slot()})


@pytest.mark.parametrize(
    "around", [lambda tx: tx, oc.skip_nonfinite, lambda tx: oc.accumulate(tx, 1)], ids=["", "gate", "sum"]
)
@pytest.mark.parametrize(
    "make",
    [last_gradients, last_parameters, same_twice, started_at_params, new_parameters],
    ids=lambda make: make.__name__,
)
def test_a_state_shares_no_buffer_with_what_the_caller_has(make: Any, around: Any) -> None:
    """A step that donates it would delete the caller's arrays, or fail since one is donated twice."""
    tx = around(oc.chain(oc.sgd(0.1), make()) if make is new_parameters else oc.chain(make(), oc.sgd(0.1)))
    params, grads = jax.tree.map(jnp.copy, (PARAMS, GRADS))
    donating = jax.jit(tx.apply, donate_argnums=(0, 1))
    jax.block_until_ready(donating(jax.tree.map(jnp.copy, params), tx.init(params), grads=grads))
    new, state = tx.apply(params, tx.init(params), grads=grads)
    jax.block_until_ready(donating(new, state, grads=grads))
    _, state = tx.update(grads, tx.init(params), params)
    jax.block_until_ready(donating(jax.tree.map(jnp.copy, params), state, grads=grads))
    np.testing.assert_array_equal(params["w"], PARAMS["w"])
    np.testing.assert_array_equal(grads["w"], GRADS["w"])


def test_what_a_rule_is_built_with_is_not_donated() -> None:
    start = jnp.float32(2.0)
    tx = oc.rule(lambda k: (lambda g: (g, {}), {"k": k + 1}), slots={}, scalars={"k": start})
    state = tx.init(PARAMS)
    jax.block_until_ready(jax.jit(tx.apply, donate_argnums=1)(PARAMS, state, grads=GRADS))
    np.testing.assert_array_equal(tx.init(PARAMS)["k"], start)


def test_a_state_shares_no_buffer_with_an_extra_argument() -> None:
    def update(updates: Any, state: Any, params: Any, *, value: Any) -> Any:
        return updates, {"loss_kept": value}

    tx = oc.chain(link(update, lambda p: {"loss_kept": jnp.float32(0)}, fields=["loss_kept"]), oc.sgd(0.1))
    value = jnp.float32(1.0)
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS, value=value)
    step = jax.jit(lambda s, v: tx.apply(PARAMS, s, grads=GRADS, value=v), donate_argnums=(0, 1))
    params, state = step(state, value)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.1 * GRADS["w"], rtol=1e-6)
    assert float(jax.tree.leaves(state)[-1]) == 1.0


# Python's numbers ---------------------------------------------------------------------------------------------------------


def test_a_count_that_begins_as_pythons_is_one() -> None:
    def update(updates: Any, state: Any, params: Any) -> Any:
        return updates, {"count": state["count"] + 1}

    tx = link(update, lambda params: {"count": 0}, fields=["count"])
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert state["count"].dtype == jnp.int32
    assert int(oc.steps_taken(state)) == 1


@pytest.mark.parametrize(
    "make", [oc.sgd, oc.adamw, lambda rate: oc.accumulate(oc.adam(rate), 2)], ids=["", "adamw", "sum"]
)
@pytest.mark.parametrize("kind", [lambda x: x, lambda x: np.asarray(x)[()]], ids=["Python", "NumPy"])
def test_a_state_with_pythons_numbers_is_taken(make: Any, kind: Any) -> None:
    """NumPy's have 64 bits."""
    tx = make(0.1)
    state = tx.init(PARAMS)
    plain = jax.tree.map(lambda x: kind(x.item()) if x.ndim == 0 else x, state)
    for form in (lambda s: tx.apply(PARAMS, s, grads=GRADS)[0], lambda s: tx.update(GRADS, s, PARAMS)[0]):
        np.testing.assert_array_equal(form(plain)["w"], form(state)["w"])
    states, _ = oc.sweep(plain, learning_rate=[0.1, 0.2])
    np.testing.assert_allclose(oc.get_hyperparams(states)["learning_rate"], [0.1, 0.2], rtol=1e-6)


# Hyperparameters are single numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [oc.sgd, oc.adam], ids=["sgd", "adam"])
@pytest.mark.parametrize("shape", [(2,), (4, 2), ()])
def test_a_rate_with_an_axis_is_not_broadcast_over_the_parameters(make: Any, shape: tuple[int, ...]) -> None:
    """Each column was trained at the rate of another member."""
    tx, params = make(0.1), jnp.ones(shape)
    states, _ = oc.sweep(tx.init(params), learning_rate=[0.1, 0.2])
    with pytest.raises(ValueError, match=r'state\["hyperparams"\]\["learning_rate"\] must have shape \(\); got \(2,\)'):
        tx.apply(params, states, grads=params)


def test_a_sweep_is_not_swept_again() -> None:
    def with_two(rate: float) -> oc.Transformation:
        hyperparams = Hyperparams(factor=jnp.float32(1.0))

        def update(updates: Any, state: Any, params: Any, *, factor: Any) -> Any:
            return jax.tree.map(lambda u: u * factor, updates), state

        return oc.chain(oc.Transformation(update=update, hyperparams=hyperparams), oc.sgd(rate))

    states, _ = oc.sweep(with_two(0.1).init(PARAMS), learning_rate=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"learning_rate has shape \(2,\): give all that differs to one sweep"):
        oc.sweep(states, factor=[1.0, 2.0])


@pytest.mark.parametrize("values", [[True, False], [0.1 + 1j, 0.2], [None, 0.1]], ids=str)
def test_a_sweep_takes_real_numbers(values: list[Any]) -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        oc.sweep(oc.sgd(0.1).init(PARAMS), learning_rate=values)


@pytest.mark.parametrize("value", [np.complex64(0.1 + 1j), np.array(True), True, 1j], ids=str)
def test_a_hyperparameter_is_set_to_a_real_number(value: Any) -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        oc.set_hyperparams(oc.sgd(0.1).init(PARAMS), learning_rate=value)


def test_a_link_may_keep_a_typed_key() -> None:
    def init(params: Any) -> Mapping[str, Any]:
        return {"rng": jax.random.key(0)}

    tx = oc.chain(link(lambda u, s, p: (u, s), init, fields=["rng"]), oc.sgd(0.1))
    assert "1 × key<fry>" in str(oc.describe(tx, PARAMS))
