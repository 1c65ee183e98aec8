"""A state is read by names, without the transformation: so a name has one meaning, and whoever would give it a second hears of it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain import Slot
from optchain.core import arguments, slot
from optchain.core.arguments import Range
from optchain.core.gates import Gate
from optchain.core.hyperparams import Hyperparams
from optchain.core.identity import FACTORIES
from optchain.interop.merging import merge

PARAMS = {"w": jnp.ones(3)}


@pytest.fixture(autouse=True)
def names_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test declares is of no other test's business."""
    monkeypatch.setattr(slot, "_declared", {name: set(slots) for name, slots in slot._declared.items()})
    monkeypatch.setattr(slot, "_links", set(slot._links))
    monkeypatch.setattr(slot, "_numbered", set(slot._numbered))
    monkeypatch.setattr(arguments, "_declared", {})
    before = dict(FACTORIES)
    yield
    FACTORIES.clear()
    FACTORIES.update(before)


def rule_with(name: str, kind: Slot | None = None) -> oc.Transformation:
    """A rule that sums up gradients in a slot of any name."""

    def step(t: Any) -> Any:
        def leaf(g: jax.Array, **old: jax.Array) -> Any:
            return g, {name: old[name] + g}

        return leaf

    return oc.rule(step, slots={name: kind or Slot()})


@pytest.mark.parametrize("name", ["average", "iterates"])
def test_a_moment_is_not_called_like_a_copy_of_the_parameters(name: str) -> None:
    """`finalize` would return it as the model's weights, and a restore would begin it as them."""
    with pytest.raises(
        ValueError, match=f"'{name}' and be another kind: one of that name holds copies of the parameters"
    ):
        rule_with(name)
    assert rule_with(name, Slot(start="params")).init(PARAMS)[name]["w"].tolist() == [1, 1, 1]


def test_nor_a_copy_of_the_parameters_like_a_moment() -> None:
    with pytest.raises(ValueError, match="'mu' and be another kind: one of that name holds no copies"):
        rule_with("mu", Slot(start="params"))


def test_nor_does_an_entry_that_is_found_to_mirror_the_parameters() -> None:
    def init(params: Any) -> Any:
        return {"average": jax.tree.map(jnp.zeros_like, params)}

    tx = oc.Transformation(init, lambda u, s, p: (u, s), fields=["average"])
    with pytest.raises(ValueError, match="'average' is the name of a slot that holds copies of the parameters"):
        tx.init(PARAMS)


@pytest.mark.parametrize("build", [lambda tx: oc.chain(("own", tx)), lambda tx: oc.multi_optimizer(("own", "w", tx))])
def test_a_slot_is_not_called_like_a_link_or_a_group(build: Any) -> None:
    """What that link's state holds would be a parameter's from then on: hyperparameters, averages, loss scales."""
    tx = build(oc.sgd(0.1))
    with pytest.raises(ValueError, match="a slot cannot be called 'own': it is the name of a link"):
        rule_with("own")
    assert list(oc.get_hyperparams(tx.init(PARAMS)).values()) == [pytest.approx(0.1)]


@pytest.mark.parametrize("name", ["default", "opt_state", "inner_opt_state", "inner_state", "state", "inner"])
def test_nor_like_what_states_of_links_lie_in(name: str) -> None:
    with pytest.raises(ValueError, match=f"a slot cannot be called '{name}'"):
        rule_with(name)


@pytest.mark.parametrize("name", ["grads", "loss_scale", "skipped_steps", "good_steps", "updates", "weight"])
def test_a_rule_keeps_nothing_by_which_a_gate_is_known(name: str) -> None:
    with pytest.raises(ValueError, match=f"a slot cannot be called '{name}'"):
        rule_with(name)
    with pytest.raises(ValueError, match=f"a scalar cannot be called '{name}'"):
        oc.rule(lambda t: lambda g: (g, {}), slots={}, scalars={name: 0.0})


@pytest.mark.parametrize("name", ["weight", "updates", "loss_scale", "good_steps", "skipped_steps"])
def test_nor_does_a_link_of_ones_own_and_no_link_is_called_so(name: str) -> None:
    """A sweep would take the gate's entries for a parameter's."""

    def init(params: Any) -> Any:
        return {name: jax.tree.map(jnp.zeros_like, params)}

    with pytest.raises(ValueError, match=f"a slot cannot be called '{name}'"):
        oc.Transformation(init, lambda u, s, p: (u, s), slots={name: Slot()})
    oc.Transformation(init, lambda u, s, p: (u, s), fields=[name]).init(PARAMS)
    assert name not in slot.slot_names()
    with pytest.raises(ValueError, match=f"a link cannot be called '{name}': it is an entry that the state may have"):
        oc.chain((name, oc.sgd(0.1)))


@pytest.mark.parametrize("name", ["average", "nu"])
def test_a_scalar_is_not_called_like_a_slot(name: str) -> None:
    with pytest.raises(ValueError, match=f"a scalar cannot be called '{name}': it is the name of a slot"):
        oc.rule(lambda t: lambda g: (g, {}), slots={}, scalars={name: 0.0})


@pytest.mark.parametrize("name", ["optax", "transformation", "clip_by_norm_2", "sgdw", "rprop"])
def test_a_slot_is_not_called_like_a_link_that_nobody_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"a slot cannot be called '{name}': it is the name of a link"):
        rule_with(name)


@pytest.mark.parametrize("name", ["weight", "skipped_steps", "good_steps", "other"])
def test_a_hyperparameter_may_be_called_like_an_entry_of_a_gate(name: str) -> None:
    """A sweep took `weight` for a counter, and gave each member all values; `steps_taken` took the others for a gate."""
    tx = oc.chain(scaled_by({}, **{name: jnp.array(0.5)}), oc.scale(-1.0))
    states, axes = oc.sweep(tx.init(PARAMS), {name: jnp.array([0.25, 0.5, 1.0])})
    updates, _ = jax.vmap(tx.update, in_axes=(None, axes), out_axes=(0, axes))(PARAMS, states)
    np.testing.assert_array_equal(updates["w"], [[-4.0] * 3, [-2.0] * 3, [-1.0] * 3])
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    assert int(oc.steps_taken(state)) == 1


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
@pytest.mark.parametrize(
    "tx",
    [
        oc.sgd(0.1),
        oc.multi_optimizer(("body", "w", oc.sgd(0.1))),
        oc.chain(("head", oc.sgd(0.1))),
        oc.chain(oc.sgd(0.1)),
    ],
    ids=["sgd", "group", "named", "chain"],
)
def test_a_rate_that_stands_alone_in_a_state_is_checked_where_it_is_read(tx: oc.Transformation, bad: float) -> None:
    state = tx.init(PARAMS)
    broken = jax.tree.map(lambda x: jnp.full_like(x, bad), state)
    for saved, target in ((broken, state), ({"params": PARAMS, "state": broken}, {"params": PARAMS, "state": state})):
        with pytest.raises(ValueError, match="hyperparams/learning_rate must be a finite number >"):
            merge(saved, target, hyperparams="saved")


@pytest.mark.parametrize("name", ["params", "state", "updates", "grads"])
def test_a_rule_has_no_hyperparameter_that_a_call_has_too(name: str) -> None:
    made: dict[str, Any] = {}
    exec(f"def step({name}):\n    return lambda g: (g, {{}})", made)
    with pytest.raises(ValueError, match=f"a hyperparameter cannot be called '{name}'"):
        oc.rule(made["step"], slots={}, hyperparams={name: 0.5})
    with pytest.raises(TypeError, match=f"step cannot take '{name}': leaf gets the gradient"):
        oc.rule(made["step"], slots={})


@pytest.mark.parametrize("name", ["mu", "average", "torch.velocity"])
def test_nothing_is_registered_under_the_name_of_a_slot(name: str) -> None:
    with pytest.raises(ValueError, match=r"it is the name of a slot; give another, register\(name=…\)"):
        oc.register(lambda rate=0.5: oc.scale(rate), name=name)
    oc.adam(0.1)


@pytest.mark.parametrize(
    ("name", "error"), [(3, TypeError), ("", ValueError), ("a/b", ValueError), ("<lambda>", ValueError)]
)
def test_nor_under_what_is_no_name(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="the registered name must be"):
        oc.register(lambda rate=0.5: oc.scale(rate), name=name)


# Containers, and what Optax's tuples hold -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda rate: oc.sgd(rate), lambda rate: oc.adam(rate, beta_1=jnp.array(0.5))])
@pytest.mark.parametrize("names", [("policy", "v"), ("mu", "nu"), ("average", "other"), ("grads", "z"), ("v",)])
def test_containers_of_the_users_own_may_be_called_like_slots(names: Any, make: Any) -> None:
    """`{"policy": state, "v": state}`: what is in `v` was no hyperparameter, no count and no link."""
    tx = make(0.1)
    states = {}
    for calls, name in enumerate(names, 1):
        params, states[name] = PARAMS, tx.init(PARAMS)
        for _ in range(calls):
            params, states[name] = tx.apply(params, states[name], grads=PARAMS)
    rates = {name: f"{name}/learning_rate" if len(names) > 1 else "learning_rate" for name in names}
    assert {rates[name] for name in names} <= oc.get_hyperparams(states).keys() & oc.metrics(states).keys()
    changed = oc.set_hyperparams(states, {rates[name]: 0.5 for name in names})
    assert [float(changed[name]["hyperparams"]["learning_rate"]) for name in names] == [0.5] * len(names)
    other = {name: make(0.3).init(PARAMS) for name in names}
    merged, _ = merge(states, other, hyperparams="configured")
    assert [round(float(merged[name]["hyperparams"]["learning_rate"]), 6) for name in names] == [0.3] * len(names)
    swept, axes = oc.sweep(states, {rates[names[-1]]: jnp.array([0.25, 0.5])})
    assert swept[names[-1]]["hyperparams"]["learning_rate"].tolist() == [0.25, 0.5]
    if "scale_by_adam" in states[names[0]]:
        assert int(oc.steps_taken(states)) == 1
        assert axes[names[-1]]["scale_by_adam"]["count"] is None
        broken = jax.tree.map(lambda x: x - 1, states)
        with pytest.raises(ValueError, match="must be"):
            merge(broken, states, hyperparams="saved")


ODD = {
    "weight": jnp.ones(2),
    "grads": jnp.ones(2),
    "count": jnp.ones(()),
    "metrics": {"global_norm": jnp.ones(())},
    "hyperparams": {"learning_rate": jnp.ones(())},
    "scheduled": {"learning_rate": jnp.ones(())},
    "skipped_steps": jnp.ones(2),
    "consecutive": jnp.ones(2),
}


@pytest.mark.parametrize("link", [optax.trace(0.9), optax.ema(0.9), optax.scale_by_rss(), optax.scale_by_adadelta()])
def test_parameters_of_optax_links_may_be_called_like_entries(link: Any) -> None:
    tx = oc.chain(link, oc.scale_by_adam(), oc.scale_by_learning_rate(), learning_rate=0.1)
    state = tx.init(ODD)
    params, state = tx.apply(ODD, state, grads=ODD)
    assert oc.get_hyperparams(state).keys() == oc.metrics(state).keys() == {"learning_rate"}
    assert int(oc.steps_taken(state)) == 1
    states, axes = oc.sweep(state, learning_rate=jnp.array([0.1, 0.2]))
    step = jax.vmap(lambda p, s: tx.apply(p, s, grads=ODD), in_axes=(None, axes), out_axes=(0, axes))
    swept, _ = step(params, states)
    alone, _ = tx.apply(params, oc.set_hyperparams(state, learning_rate=0.2), grads=ODD)
    jax.tree.map(lambda new, one: np.testing.assert_array_equal(new[1], one), swept, alone)
    merged, report = merge(state, tx.init(ODD), hyperparams="configured")
    configured = {"/".join(row.path) for row in report.rows if row.fate == "configured"}
    assert configured == {"hyperparams/learning_rate"}
    np.testing.assert_equal(jax.tree.map(np.asarray, merged), jax.tree.map(np.asarray, state))


class Kept(NamedTuple):
    """The state of somebody's transformation, and of somebody's training loop."""

    moment: Any
    step: Any


def test_so_may_those_of_anybodys_transformation_and_tuples_of_states_are_none() -> None:
    params = {"metrics": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    theirs = optax.GradientTransformation(
        lambda p: Kept(p, jnp.int32(0)), lambda u, s, p=None: (u, Kept(u, s.step + 1))
    )
    tx = oc.chain(theirs, oc.scale_by_learning_rate(), learning_rate=0.1)
    assert oc.metrics(tx.init(params)).keys() == {"learning_rate"}
    for tx in (oc.sgd(0.1), oc.adam(0.1), oc.chain(oc.apply_momentum(0.9), oc.monitor())):
        state = tx.init(params)
        carry = Kept(state, jnp.int32(3))
        assert oc.metrics(carry).keys() == oc.metrics(state).keys()
        assert oc.get_hyperparams(carry).keys() == oc.get_hyperparams(state).keys()


def test_a_state_in_optaxs_wrappers_is_found() -> None:
    inner = oc.adam(0.1)
    multi = optax.MultiSteps(inner, 2).gradient_transformation()
    for tx in (
        multi,
        optax.apply_if_finite(inner, 2),
        optax.masked(inner, {"w": True}),
        optax.named_chain(("v", inner)),
    ):
        state = oc.set_hyperparams(tx.init(PARAMS), learning_rate=0.5)
        assert float(oc.get_hyperparams(state)["learning_rate"]) == 0.5
        assert int(oc.steps_taken(state)) == 0
    state = optax.lookahead(inner, 2, 0.5).init(optax.LookaheadParams(PARAMS, PARAMS))
    assert float(oc.get_hyperparams(oc.set_hyperparams(state, learning_rate=0.5))["learning_rate"]) == 0.5


# Entries of links of one's own ----------------------------------------------------------------------------------------


def link_with(**entries: Any) -> oc.Transformation:
    """A link that adds the sum of the first update to each of its entries."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        return updates, jax.tree.map(lambda x: x + updates["w"].sum(), state)

    return oc.Transformation(lambda params: dict(entries), update, fields=list(entries))


@pytest.mark.parametrize("name", ["weight", "updates", "loss_scale", "good_steps", "skipped_steps", "consecutive"])
def test_an_entry_of_ones_own_may_be_called_like_one_of_a_gate(name: str) -> None:
    """A sweep took `weight` for a counter that all members share; `steps_taken` missed the gate of a `good_steps`."""
    tx = oc.chain(link_with(**{name: jnp.zeros(())}), oc.scale_by_adam(), oc.scale_by_learning_rate(0.1))
    states, axes = oc.sweep(tx.init(PARAMS), learning_rate=jnp.array([0.1, 0.2]))
    grads = {"w": jnp.array([[1.0] * 3, [2.0] * 3])}
    _, states = jax.vmap(tx.update, in_axes=(0, axes), out_axes=(0, axes))(grads, states)
    assert states["transformation"][name].tolist() == [3, 6]
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    assert int(oc.steps_taken(state)) == 1


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: tx,
        oc.skip_nonfinite,
        lambda tx: oc.multi_optimizer(("body", "w", tx)),
        lambda tx: oc.chain(("mine", tx)),
    ],
    ids=["chain", "gate", "group", "named"],
)
def test_an_average_of_ones_own_is_the_models_weights(around: Any) -> None:
    """It was found beside a `count` only, and `finalize` gave the parameters."""

    def project(params: Any, state: Any) -> Any:
        return params, {"average": jax.tree.map(lambda a, p: (a + p) / 2, state["average"], params)}

    slots = {"average": Slot(start="params")}
    own = oc.ParameterLink(project, lambda params: {"average": jax.tree.map(jnp.copy, params)}, slots=slots)
    tx = around(oc.chain(oc.sgd(0.1), own))
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    np.testing.assert_allclose(oc.finalize(params, state)["w"], 0.95)
    np.testing.assert_allclose(oc.averaged_params(state)["w"], 0.95)


def test_what_a_gate_of_ones_own_counts_is_no_update() -> None:
    def every_other(inner: oc.Transformation) -> Gate:
        def decide(grads: Any, state: Any, extra: Any) -> Any:
            return state["count"] % 2 == 1, lambda: grads, {"count": state["count"] + 1}

        return Gate(inner, lambda params: {"count": jnp.int32(0)}, decide, fields=["count"])

    for inner, updates in ((oc.sgd(0.1), None), (oc.adam(0.1), 3)):
        tx = every_other(inner)
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(6):
            params, state = tx.apply(params, state, grads=PARAMS)
        if updates is None:
            with pytest.raises(ValueError, match="nothing in the state counts updates"):
                oc.steps_taken(state)
        else:
            assert int(oc.steps_taken(state)) == updates


def test_an_undeclared_entry_is_not_called_like_a_slot_that_is_never_negative() -> None:
    """It was accepted, trained, and refused when it was restored."""
    with pytest.raises(ValueError, match="'v' is the name of a slot that is nonnegative: declare it, or rename it"):
        link_with(v={"w": jnp.zeros(3)}).init(PARAMS)


def falling(name: str, **others: Any) -> oc.Transformation:
    made: dict[str, Any] = {}
    exec(f"def step({name}):\n    return (lambda g: (g, {{}})), {{{name!r}: {name} - 1}}", made)
    return oc.rule(made["step"], slots={}, scalars={name: 0.0}, **others)


@pytest.mark.parametrize("name", ["eta", "mu_product", "energy"])
def test_a_scalar_of_ones_own_may_be_called_as_others_are_and_is_restored(name: str) -> None:
    tx = oc.chain(("mine", falling(name)), oc.scale_by_learning_rate(0.1))
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    restored, _ = merge(state, tx.init(PARAMS), hyperparams="saved")
    assert float(restored["mine"][name]) == -1


@pytest.mark.parametrize(("make", "name"), [(oc.scale_by_asgd, "eta"), (oc.scale_by_nadam, "mu_product")])
def test_those_of_the_package_are_looked_at_whatever_their_link_is_called(make: Any, name: str) -> None:
    for tx in (make(), oc.chain(("mine", make()))):
        state = tx.init(PARAMS)
        broken = jax.tree_util.tree_map_with_path(
            lambda path, x: x - 2 if name in jax.tree_util.keystr(path) else x, state
        )
        with pytest.raises(ValueError, match=f"{name} must be"):
            merge(broken, state, hyperparams="saved")


def test_a_link_of_scalars_alone_is_found_in_a_gate() -> None:
    tx = oc.chain(("mine", falling("energy")), oc.scale_by_adam(), oc.scale_by_learning_rate(0.1))
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    restored, report = merge(state, oc.skip_nonfinite(tx).init(PARAMS), hyperparams="saved")
    assert float(restored["inner"]["mine"]["energy"]) == -1
    assert report.gone == []


@pytest.mark.parametrize(
    "place", [lambda tx: tx, lambda tx: oc.chain(("head", tx)), lambda tx: oc.chain(("head", tx), oc.scale(-0.1))]
)
@pytest.mark.parametrize("bad", [-1.0, jnp.nan])
def test_a_slot_that_stands_alone_is_looked_at(place: Any, bad: float) -> None:
    rule = oc.rule(lambda: lambda g, second: (g, {"second": second + g * g}), slots={"second": Slot(nonnegative=True)})
    state = place(rule).init(PARAMS)
    broken = jax.tree.map(lambda x: jnp.full_like(x, bad), state)
    for saved, target in ((broken, state), ({"params": PARAMS, "state": broken}, {"params": PARAMS, "state": state})):
        with pytest.raises(ValueError, match=r"second/w must be (>= 0|finite)"):
            merge(saved, target, hyperparams="saved")


def test_a_parameter_may_be_called_like_a_slot_in_a_module_that_is_called_like_a_group() -> None:
    model = {"body": {"v": jnp.array([-1.0, 2.0])}, "head": {"mu": jnp.array([-1.0, 2.0])}}
    tx = oc.multi_optimizer(("body", "^body", oc.adam(0.1)), ("head", "^head", oc.sgd(0.1)))
    tree = {"model": model, "opt": tx.init(model)}
    later = jax.tree.map(lambda x: -x if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim else x, tree)
    merged, _ = merge(later, tree, hyperparams="saved")
    np.testing.assert_array_equal(merged["model"]["body"]["v"], [1.0, -2.0])


def test_what_is_refused_reserves_no_name() -> None:
    with pytest.raises(ValueError, match="scale_by_adam"):
        oc.chain(("speed", oc.sgd(0.1)), oc.scale_by_adam())
    rule_with("speed")


def test_a_number_after_a_name_of_ones_own_is_free() -> None:
    oc.chain(("m", oc.sgd(0.1)))
    rule_with("m_1")
    with pytest.raises(ValueError, match="a slot cannot be called 'm': it is the name of a link"):
        rule_with("m")


# Ranges ---------------------------------------------------------------------------------------------------------------


def scaled_by(ranges: dict[str, Any], **hyperparams: Any) -> oc.Transformation:
    made: dict[str, Any] = {}
    (name,) = hyperparams
    exec(f"def step(t, {name}):\n    return lambda g: (g / {name}, {{}})", made)
    return oc.rule(made["step"], slots={}, hyperparams=Hyperparams(ranges, **hyperparams))


def test_a_range_of_ones_own_holds_in_states_too() -> None:
    tx = scaled_by({"temperature": Range(0.0, 2.0, low_open=True)}, temperature=jnp.array(0.5))
    state = tx.init(PARAMS)
    for bad in (0.0, -5.0, 3.0):
        with pytest.raises(ValueError, match=r"temperature must be a number in \(0, 2\]"):
            oc.set_hyperparams(state, temperature=bad)
    with pytest.raises(ValueError, match=r"temperature must be a number in \(0, 2\]"):
        oc.sweep(state, temperature=jnp.array([0.5, 0.0]))
    broken = {**state, "hyperparams": {"temperature": jnp.float32(0.0)}}
    with pytest.raises(ValueError, match=r"temperature must be a number in \(0, 2\]"):
        merge(broken, state, hyperparams="saved")
    assert float(oc.get_hyperparams(oc.set_hyperparams(state, temperature=2.0))["temperature"]) == 2.0


def test_of_two_links_states_hold_what_either_may_have() -> None:
    low = scaled_by({"heat": Range(0.0, 1.0, low_open=True)}, heat=jnp.array(0.5))
    high = scaled_by({"heat": Range(1.0, 5.0)}, heat=jnp.array(5.0))
    for tx, value in ((low, 0.1), (high, 4.0)):
        oc.set_hyperparams(tx.init(PARAMS), heat=value)
    for bad in (0.0, 5.1):
        with pytest.raises(ValueError, match=r"heat must be a number in \(0, 1\] or a number in \[1, 5\]"):
            oc.set_hyperparams(high.init(PARAMS), heat=bad)


def test_and_nothing_in_between() -> None:
    scaled_by({"heat": Range(0.0, 1.0)}, heat=0.5)
    high = scaled_by({"heat": Range(4.0, 6.0)}, heat=jnp.array(5.0))
    scaled_by({"heat": Range(0.25, 0.5)}, heat=0.5)
    with pytest.raises(ValueError, match=r"heat must be a number in \[0, 1\] or a number in \[4, 6\]; got 2.0"):
        oc.set_hyperparams(high.init(PARAMS), heat=2.0)


def test_a_link_that_declares_no_range_may_have_any_number_whoever_else_declares_one() -> None:
    free = scaled_by({}, heat=jnp.array(-5.0))
    scaled_by({"heat": Range(0.0, 1.0)}, heat=0.5)
    state = oc.set_hyperparams(free.init(PARAMS), heat=-6.0)
    assert float(oc.get_hyperparams(state)["heat"]) == -6.0
    assert scaled_by({}, heat=-7.0).hyperparams.constants == {"heat": -7.0}


def test_what_was_refused_declares_nothing() -> None:
    with pytest.raises(ValueError, match=r"heat must be a number in \[0, 1\]"):
        scaled_by({"heat": Range(0.0, 1.0)}, heat=5.0)
    assert arguments.range_of("heat") == arguments.FINITE


def test_an_upper_end_that_is_apart_is_so_in_states() -> None:
    tx = scaled_by({"keep": Range(0.0, 1.0, high_apart=True)}, keep=jnp.array(0.5))
    with pytest.raises(ValueError, match="keep must be"):
        oc.set_hyperparams(tx.init(PARAMS), keep=1 - 1e-9)


@pytest.mark.parametrize(
    "ends",
    [
        {"low": 5, "high": 1},
        {"low": float("nan")},
        {"low": 1, "high": float("nan")},
        {"low": 1, "high": 1, "high_open": True},
    ],
)
def test_a_range_with_no_number_in_it_is_refused(ends):
    with pytest.raises(ValueError, match=r"low must be below high, got Range\(.*which has no number in it"):
        Range(**ends)
    assert 1 in Range(1, 1)


@pytest.mark.parametrize("allowed", [Range(0.0, 10.0), Range(-1.0, 0.5), Range(0.0)])
def test_a_name_that_the_package_knows_has_no_wider_range(allowed: Range) -> None:
    """A checkpoint with such a value would be refused."""
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\] everywhere"):
        scaled_by({"momentum": allowed}, momentum=0.5)
    assert scaled_by({"momentum": Range(0.0, 0.9, low_open=True)}, momentum=0.5)


def test_a_range_belongs_to_a_hyperparameter_and_is_a_range() -> None:
    with pytest.raises(ValueError, match="a range is given for 'temperatur'; the hyperparameters are 'temperature'"):
        scaled_by({"temperatur": Range(0.0)}, temperature=0.0)
    with pytest.raises(TypeError, match=r"the range of heat must be a Range; got \(0, 1\)"):
        scaled_by({"heat": (0, 1)}, heat=0.5)


# Slots ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nonnegative": True, "start": -1.0}, "start must be >= 0, since the slot is nonnegative; got -1.0"),
        ({"nonnegative": True, "start": "params"}, 'nonnegative slots cannot start from "params"'),
        ({"start": 1e39}, "got 1e[+]39, which overflows in float32"),
        ({"start": 7e4, "dtype": "float16"}, "got 70000.0, which overflows in float16"),
    ],
)
def test_a_start_is_one_that_the_slot_can_have(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Slot(**arguments)


def test_a_rule_keeps_the_slots_that_it_was_given() -> None:
    slots = {"kept": Slot()}
    tx = oc.rule(lambda: lambda g, kept: (g, {"kept": kept}), slots=slots)
    slots.clear()
    assert tx.init(PARAMS).keys() == {"kept"}


@pytest.mark.parametrize("name", ["v", "nu", "usual_norm"])
def test_a_signed_slot_is_not_called_like_one_that_is_never_negative(name: str) -> None:
    """Its states could not be restored; or, were it allowed, nobody's would be looked at any more."""
    with pytest.raises(ValueError, match=f"'{name}' and be another kind: one of that name is nonnegative"):
        rule_with(name)
    rule_with(name, Slot(nonnegative=True))
    state = oc.adam(0.1).init(PARAMS)
    broken = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[0].set(jnp.nan) if "nu" in jax.tree_util.keystr(path) else x, state
    )
    with pytest.raises(ValueError, match="nu/w must be finite"):
        merge(broken, state, hyperparams="saved")


@pytest.mark.parametrize("name", ["signed", "swinging"])
def test_any_other_signed_slot_is_restored(name: str) -> None:
    tx = oc.chain(rule_with(name), oc.scale_by_learning_rate(0.1))
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads={"w": jnp.array([-1.0, 2.0, -3.0])})
    restored, _ = merge(state, tx.init(PARAMS), hyperparams="saved")
    np.testing.assert_equal(jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, state))


@pytest.mark.parametrize("bad", [-1.0, jnp.nan, jnp.inf])
def test_one_that_is_never_negative_is_looked_at_whatever_it_is_called(bad: float) -> None:
    tx = oc.chain(rule_with("second", Slot(nonnegative=True)), oc.scale_by_learning_rate(0.1))
    state = tx.init(PARAMS)
    broken = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[0].set(bad) if "second" in jax.tree_util.keystr(path) else x, state
    )
    with pytest.raises(ValueError, match=r"second/w must be (>= 0|finite)"):
        merge(broken, state, hyperparams="saved")
