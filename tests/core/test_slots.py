"""Slots: whatever mirrors the parameters is found by what declared it, whatever it and the parameters are called."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc
from optchain import Slot
from optchain.core.hyperparams import Hyperparams
from optchain.interop.merging import merge

NAMES = ("hyperparams", "scheduled", "metrics", "count", "mu", "inner")
ODD = {name: {"learning_rate": jnp.float32(2.0), "global_norm": jnp.ones(2)} for name in NAMES}
PLAIN = {f"layer_{i}": {"kernel": jnp.float32(2.0), "bias": jnp.ones(2)} for i in range(len(NAMES))}


def heavy_ball(name: str) -> oc.Transformation:
    """Momentum by `rule`, with a velocity of any name."""

    def step(momentum: Any) -> Any:
        def leaf(g: jax.Array, **old: jax.Array) -> Any:
            v = momentum * old[name] + g
            return v, {name: v}

        return leaf

    return oc.rule(step, slots={name: Slot(decay="momentum")}, hyperparams={"momentum": 0.5})


def undeclared(name: str) -> oc.Transformation:
    """The same by hand, without a word of what the entry is."""

    def update(updates: Any, state: Any, params: Any, *, momentum: Any) -> Any:
        v = jax.tree.map(lambda g, v: momentum * v + g, updates, state[name])
        return v, {name: v}

    def init(params: Any) -> Any:
        return {name: jax.tree.map(jnp.zeros_like, params)}

    return oc.Transformation(init, update, fields=[name], hyperparams=Hyperparams(momentum=0.5), rowwise=True)


every_form = pytest.mark.parametrize("form", [heavy_ball, undeclared])


@every_form
@pytest.mark.parametrize("name", ["velocity", "buffer"])
@pytest.mark.parametrize("tree", ["bare", "dict"])
def test_lazy_rows_takes_the_rows_of_an_entry_of_any_name(form: Any, name: str, tree: str) -> None:
    tx = oc.lazy_rows(oc.chain(form(name), oc.scale_by_learning_rate(1.0)))
    pack = (lambda x: x) if tree == "bare" else (lambda x: {"count": x})
    params = pack(jnp.zeros((3, 1)))
    state = tx.init(params)
    for row in (0, 2):
        grads = pack(oc.RowGradient(jnp.array([row]), jnp.ones((1, 1)), shape=(3, 1)))
        params, state = tx.apply(params, state, grads=grads)
    np.testing.assert_array_equal(jax.tree.leaves(params)[0].ravel(), [-1.0, 0.0, -1.0])


@every_form
def test_an_entry_of_any_name_is_checked_for_the_parameters_shapes(form: Any) -> None:
    tx = form("buffer")
    state = tx.init({"w": jnp.zeros((3, 1))})
    with pytest.raises(ValueError, match=r'state\["buffer"\]\["w"\]: shape \(3, 1\), updates have \(1, 1\)'):
        tx.update({"w": jnp.zeros((1, 1))}, state)


def test_rows_catch_up_in_a_chain_of_any_name() -> None:
    def trained(name: str) -> jax.Array:
        body = oc.chain(oc.apply_momentum(0.5), oc.scale_by_learning_rate(1.0), name=name)
        tx = oc.lazy_rows(oc.skip_nonfinite(body), catch_up=True)
        params = jnp.zeros((2, 1))
        state = tx.init(params)
        for row in (0, 1, 1, 0):
            grads = oc.RowGradient(jnp.array([row]), jnp.ones((1, 1)), shape=(2, 1))
            params, state = tx.apply(params, state, grads=grads)
        return params.ravel()

    # Row 0: 1, then two missed steps, then 1/8 + 1. Row 1: 1, then 1/2 + 1.
    for name in ("body", "metrics"):
        np.testing.assert_array_equal(trained(name), [-2.125, -2.5])


RECIPES = {
    "adamw": lambda: oc.adamw(0.1, use_ema=True, global_clipnorm=1.0, gradient_accumulation_steps=2),
    "sgd": lambda: oc.sgd(jnp.array(0.1), 0.9, global_clipnorm=1.0),
    "lion": lambda: oc.chain(oc.clip_by_global_norm(1.0), oc.scale_by_lion(jnp.array(0.9))),
    "schedule_free": lambda: oc.schedule_free_adamw(0.1, warmup_steps=2),
    "adafactor": lambda: oc.adafactor(0.1),
    "muon": lambda: oc.muon(0.1),
    "ftrl": lambda: oc.ftrl(0.1),
    "adadelta": lambda: oc.adadelta(0.1),
    "loss scale": lambda: oc.dynamic_loss_scale(oc.adam(0.1)),
    "one's own": lambda: oc.chain(oc.clip_by_norm(1.0), heavy_ball("buffer"), oc.scale_by_learning_rate(0.1)),
    "undeclared": lambda: oc.chain(oc.clip_by_norm(1.0), undeclared("buffer"), oc.scale_by_learning_rate(0.1)),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_parameters_may_be_called_as_the_entries_of_a_state_are(recipe: str) -> None:
    tx = RECIPES[recipe]()
    seen = {}
    for which, params in (("odd", ODD), ("plain", PLAIN)):
        state = tx.init(params)
        sizes = {name: jnp.size(x) for name, x in {**oc.metrics(state), **oc.get_hyperparams(state)}.items()}
        rate = {"learning_rate": jnp.array([0.1, 0.2])} if "learning_rate" in oc.get_hyperparams(state) else {}
        axes = len(jax.tree.leaves(oc.sweep(state, **rate)[1])) if rate else 0
        again, report = merge(state, tx.init(params), hyperparams="configured")
        configured = [row.path for row in report.rows if row.fate == "configured"]
        assert jax.tree.structure(oc.finalize(params, again)) == jax.tree.structure(params)
        seen[which] = sizes, axes, configured
    assert seen["odd"] == seen["plain"]


def test_a_key_or_a_counter_beside_an_array_is_taken_for_no_moment() -> None:
    state = oc.add_noise(0.1, seed=0).init(jnp.ones(2))  # its key has two numbers, too
    assert "key" in state
    oc.chain(("key", oc.sgd(0.1)))


def test_no_link_is_called_as_a_slot_is() -> None:
    heavy_ball("buffer_2")
    with pytest.raises(ValueError, match="a link cannot be called 'buffer_2': it is the name of a slot"):
        oc.chain(("buffer_2", oc.sgd(0.1)))


# What is stored in what --------------------------------------------------------------------------------------------

RULES = {
    "scale_by_adam": lambda d: oc.scale_by_adam(moment_dtype=d),
    "scale_by_radam": lambda d: oc.scale_by_radam(moment_dtype=d),
    "scale_by_nadam": lambda d: oc.scale_by_nadam(moment_dtype=d),
    "scale_by_adamax": lambda d: oc.scale_by_adamax(moment_dtype=d),
    "scale_by_rms": lambda d: oc.scale_by_rms(centered=True, moment_dtype=d),
    "adam": lambda d: oc.adam(0.1, moment_dtype=d),
    "adamw": lambda d: oc.adamw(0.1, moment_dtype=d),
    "adamax": lambda d: oc.adamax(0.1, moment_dtype=d),
    "nadam": lambda d: oc.nadam(0.1, moment_dtype=d),
    "lamb": lambda d: oc.lamb(0.1, moment_dtype=d),
    "rmsprop": lambda d: oc.rmsprop(0.1, centered=True, momentum=0.9, moment_dtype=d),
}


def dtypes(tx: oc.Transformation, name: str) -> set[str]:
    state = jax.eval_shape(tx.init, {"w": jnp.zeros(2)})
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {leaf.dtype.name for path, leaf in paths if f"'{name}'" in jax.tree_util.keystr(path)}


@pytest.mark.parametrize("name", RULES)
def test_moments_are_stored_each_in_a_dtype_of_its_own(name: str) -> None:
    tx = RULES[name]({"mu": "bfloat16", "nu": jnp.float32})
    assert dtypes(tx, "mu") == {"bfloat16"}
    assert dtypes(tx, "nu") == {"float32"}
    assert dtypes(RULES[name]({"mu": "bfloat16"}), "nu") == {"float32"}
    assert tx == RULES[name]({"nu": "float32", "mu": "bfloat16"}) != RULES[name]("bfloat16")
    assert oc.from_config(oc.to_config(tx)) == tx
    assert "'mu': 'bfloat16'" in repr(tx)
    assert eval(repr(tx), vars(oc)) == tx


@pytest.mark.parametrize("name", RULES)
def test_a_moment_that_a_rule_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"moment_dtype has 'nuu'; the state has 'mu', 'nu'|the state has 'nu', 'mu'"):
        RULES[name]({"nuu": "bfloat16"})


def test_presets_of_several_rules_know_the_slots_of_all() -> None:
    tx = oc.rmsprop(0.1, momentum=0.9, moment_dtype={"velocity": "bfloat16"})
    assert (dtypes(tx, "velocity"), dtypes(tx, "nu")) == ({"bfloat16"}, {"float32"})
    assert dtypes(oc.sgd(0.1, 0.9, moment_dtype={"velocity": "bfloat16"}), "velocity") == {"bfloat16"}
    assert dtypes(oc.lion(0.1, moment_dtype={"mu": "bfloat16"}), "mu") == {"bfloat16"}
    assert dtypes(oc.muon(0.1, moment_dtype={"mu": "bfloat16"}), "adam_nu") == {"float32"}
    assert dtypes(oc.adadelta(0.1, moment_dtype={"e_g": "bfloat16"}), "e_x") == {"float32"}
    assert dtypes(oc.schedule_free_adamw(0.1, moment_dtype={"nu": "bfloat16"}), "nu") == {"bfloat16"}


NARROW = ["float16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "build",
    [
        *RULES.values(),
        lambda d: oc.scale_by_adam(moment_dtype={"nu": d}),
        lambda d: oc.scale_by_lion(moment_dtype=d),
        lambda d: oc.scale_by_adadelta(moment_dtype=d),
        lambda d: oc.apply_momentum(0.9, moment_dtype=d),
        lambda d: oc.scale_by_muon(moment_dtype=d),
        lambda d: oc.scale_by_soap(moment_dtype=d),
        lambda d: oc.average_params(average_dtype=d),
        lambda d: oc.accumulate(oc.sgd(0.1), 2, accumulator_dtype=d),
    ],
)
def test_a_dtype_that_cannot_hold_the_values_is_refused(build: Any, dtype: str) -> None:
    with pytest.raises(ValueError, match=rf"_dtype.* must have the range of float32.*got {dtype}.*bfloat16"):
        build(dtype)


def test_a_slow_second_moment_is_right_beside_a_narrow_first() -> None:
    """β₂ = 0.999 moves `nu` by less than bfloat16's rounding: stored so it stalls at 0.25, where 1 − 0.999³⁰⁰⁰ is right."""

    def nu(moment_dtype: Any) -> float:
        tx = oc.scale_by_adam(moment_dtype=moment_dtype)
        g = jnp.ones(())
        state, _ = jax.lax.scan(lambda s, _: (tx.update(g, s)[1], None), tx.init(g), length=3000)
        return float(state["nu"])

    right = 1 - 0.999**3000
    assert nu({"mu": "bfloat16", "nu": "float32"}) == pytest.approx(right, rel=1e-4)
    assert nu("bfloat16") == 0.25  # what docs/cost.md says
