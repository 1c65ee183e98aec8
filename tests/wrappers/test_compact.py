"""`compact`: the state in fewer bytes, the weights with low bits, and the same run to within what roundings make of it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import optchain as oc
from optchain.core import storage
from tests.sampling import others_thorough

from .running import as_bits, run_steps

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "hidden": {"kernel": jax.random.normal(KEYS[0], (64, 128)), "bias": jnp.zeros(128)},
    "out": jax.random.normal(KEYS[1], (96, 64)),
}
GRADS = jax.tree.map(lambda p: 0.1 * p + jax.random.normal(KEYS[2], p.shape), PARAMS)
NARROW_GRADS = jax.tree.map(lambda g: g.astype(jnp.bfloat16), GRADS)

RULES = {
    "adam": oc.scale_by_adam(),
    "amsgrad": oc.scale_by_adam(amsgrad=True),
    "nadam": oc.scale_by_nadam(),
    "radam": oc.scale_by_radam(),
    "adamax": oc.scale_by_adamax(),
    "rms": oc.scale_by_rms(),
    "centered rms": oc.scale_by_rms(centered=True),
    "lion": oc.scale_by_lion(),
    "momentum": oc.apply_momentum(0.9),
    "adadelta": oc.scale_by_adadelta(),
    "adagrad": oc.scale_by_rss(),
    "muon": oc.scale_by_muon(),
    "ademamix": oc.scale_by_ademamix(),
}
RECIPES = {
    "adamw": oc.adamw(1e-2, weight_decay=0.1),
    "everything": oc.skip_nonfinite(oc.adamw(1e-2, use_ema=True, global_clipnorm=1.0, gradient_accumulation_steps=2)),
    "groups": oc.multi_optimizer(("hidden", "^hidden/", oc.adamw(1e-2)), default=oc.sgd(1e-2, 0.9)),
    "frozen": oc.freeze(oc.lion(1e-3), oc.matching("out")),
    "schedule-free": oc.schedule_free_adamw(1e-2),
    "muon": oc.muon(1e-2),
    "adafactor": oc.adafactor(1e-2),
    "loss scale": oc.dynamic_loss_scale(oc.sgd(1e-2, 0.9), 8.0),
    "optax": oc.chain(oc.clip_by_global_norm(1.0), optax.adam(1e-2)),
}
every_recipe = pytest.mark.parametrize("name", RECIPES)


def way_of(tx, shape=(64, 256), steps=500):
    """A function of σ that says how far a rule goes with its state wide and compact, where the gradients of a block differ by e^σ."""
    drift = jax.random.normal(KEYS[1], shape)
    compact = oc.compact(tx)

    def distances(sigma):
        scale = jnp.exp(sigma * jax.random.normal(KEYS[0], shape))

        def step(carry, t):
            wide_state, state, wide_sum, total, largest = carry
            g = scale * (drift + jax.random.normal(jax.random.fold_in(KEYS[2], t), shape))
            wide_u, wide_state = tx.update(g, wide_state)
            u, state = compact.update(g, state)
            ratio = jnp.max(jnp.abs(u)) / jnp.max(jnp.abs(wide_u))
            return (wide_state, state, wide_sum + wide_u, total + u, jnp.maximum(largest, ratio)), None

        zeros = jnp.zeros(shape)
        start = (tx.init(zeros), compact.init(zeros), zeros, zeros, jnp.float32(0))
        (_, _, wide_sum, total, largest), _ = lax.scan(step, start, jnp.arange(steps))
        lengths = jnp.linalg.norm(wide_sum), jnp.linalg.norm(total)
        return jnp.vdot(wide_sum, total) / lengths[0] / lengths[1], lengths[1] / lengths[0] - 1, largest

    return jax.jit(distances)


WORST = ("adam", "radam", "lion")
"""Radam is the worst of all, Lion would be with 8 bits; a release takes all rules."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.thorough if name in WORST else pytest.mark.for_release) for name in RULES],
)
@pytest.mark.programs  # long runs, which machine code without optimizations makes longer
def test_every_rule_goes_as_far_in_the_same_direction(name):
    """Over 500 steps. Radam's cosine is the worst, .9992."""
    distances = way_of(RULES[name])
    for sigma in (0.0, 0.5):
        cosine, error, _ = distances(sigma)
        assert cosine >= 0.999
        assert abs(error) <= 5e-4
    assert abs(distances(1.0)[1]) <= 1e-2
    assert distances(2.0)[2] <= 3


@pytest.mark.parametrize("link", [oc.adagc(), oc.project_initial_norm((-2, -1))], ids=["adagc", "project_initial_norm"])
@pytest.mark.parametrize("moments", ["int8", "bfloat16"])
def test_a_norm_that_gradients_or_weights_are_held_to_is_not_rounded(link, moments):
    stack = jnp.ones((64, 4, 2))
    packed = jax.eval_shape(oc.compact(link, moments=moments, min_size=1).init, stack)["inner"]
    assert packed == jax.eval_shape(link.init, stack)


@every_recipe
@pytest.mark.parametrize("form", ["apply", "update"])
def test_stored_wide_a_run_is_the_same_to_the_bit(name, form):
    tx = RECIPES[name]
    params, state = run_steps(tx, PARAMS, GRADS, form)
    same, same_state = run_steps(oc.compact(tx, moments="float32"), PARAMS, GRADS, form)
    assert as_bits(params) == as_bits(same)
    assert as_bits(state) == as_bits(same_state["inner"])


@pytest.mark.parametrize("name", others_thorough(RECIPES, "adamw", "schedule-free", "loss scale"))
@pytest.mark.parametrize(
    "options",
    [
        {"average": "int8"},
        {"moments": "bfloat16", "average": "bfloat16", "accumulator": "int8"},
        {"weights": 24},
        {"weights": 32},
    ],
    ids=["int8", "bfloat16", "24", "32"],
)
def test_a_run_goes_where_the_wide_one_goes(name, options):
    """To within a tenth of the way, which is short; with both forms of a step alike, but that `apply` may round p − u once."""
    tx = oc.compact(RECIPES[name], **options)
    start, grads = PARAMS, GRADS
    if "weights" in options:
        start = oc.narrow(PARAMS)
    wide, _ = run_steps(RECIPES[name], PARAMS, GRADS, number=10)
    params, state = run_steps(Started(tx), start, grads, number=10)
    updated, updated_state = run_steps(Started(tx), start, grads, "update", number=10)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), params, updated)
    assert as_bits(state) == as_bits(updated_state)
    params = oc.wide_params(params, state)
    moved = [np.asarray(p - q) for p, q in zip(jax.tree.leaves(wide), jax.tree.leaves(PARAMS), strict=True)]
    error = [np.asarray(p - q) for p, q in zip(jax.tree.leaves(params), jax.tree.leaves(wide), strict=True)]
    assert np.linalg.norm(np.concatenate([e.ravel() for e in error])) <= 0.1 * np.linalg.norm(
        np.concatenate([m.ravel() for m in moved])
    )


class Started:
    """A transformation whose state is made of the wide parameters, whatever it trains."""

    def __init__(self, tx):
        self.apply, self.update = tx.apply, tx.update
        self.init = lambda params: tx.init(PARAMS)


@pytest.mark.parametrize("weights", [24, 32])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_the_sum_with_the_update_is_the_new_parameter(weights, size):
    tx = oc.compact(oc.sgd(size), weights=weights)
    params, state = oc.narrow(PARAMS), tx.init(PARAMS)
    for _ in range(3):
        applied, applied_state = tx.apply(params, state, grads=NARROW_GRADS)
        updates, state = tx.update(NARROW_GRADS, state, params)
        assert {u.dtype.name for u in jax.tree.leaves(updates)} == {"float32"}
        params = optax.apply_updates(params, updates)
        assert as_bits(params) == as_bits(applied)
        assert as_bits(state) == as_bits(applied_state)


def test_an_update_across_many_binades_leaves_the_parameter_that_the_state_knows():
    """From 1 to 1.2e-6: float32 has no update that leads there exactly, and the low bits say so."""
    tx = oc.compact(oc.sgd(1.0), weights=32, min_size=1)
    old, wanted = jnp.ones(64), jnp.full(64, 1.2345e-6)
    params, state = oc.narrow(old, min_size=1), tx.init(old)
    updates, state = tx.update(old - wanted, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(oc.wide_params(params, state), wanted, atol=2.0**-24)


@pytest.mark.parametrize(("weights", "moves"), [(24, True), (32, True), ("stochastic", True), (None, False)])
def test_steps_below_a_rounding_of_bfloat16_are_not_lost(weights, moves):
    """100 steps of 1e-3 from 1: bfloat16 alone stays at 1."""
    params = jnp.ones((64, 64))
    tx = oc.compact(oc.sgd(1e-3), weights=weights)
    state, params = tx.init(params), params.astype(jnp.bfloat16)
    step = jax.jit(lambda p, s: tx.apply(p, s, grads=jnp.ones_like(p)))
    for _ in range(100):
        params, state = step(params, state)
    mean = float(oc.wide_params(params, state).astype(jnp.float32).mean())
    assert mean == pytest.approx(0.9 if moves else 1.0, abs=2e-3)


def test_bytes():
    tx = oc.adam(1e-3)
    params = {"kernel": jnp.zeros((256, 256))}

    def per_parameter(tx):
        return (
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params))) / 256**2
        )

    assert per_parameter(tx) >= 8
    assert per_parameter(oc.compact(tx)) <= 2.13
    of_parameter_and_gradient = 2 + 2
    assert per_parameter(oc.compact(tx, weights=24)) + of_parameter_and_gradient <= 7.2
    everything = oc.adamw(1e-3, use_ema=True, gradient_accumulation_steps=4)
    assert per_parameter(everything) + 4 + 4 >= 24
    small = oc.compact(everything, weights=24, average="int8", accumulator="int8")
    assert per_parameter(small) + of_parameter_and_gradient <= 9.32


@pytest.mark.parametrize("form", ["apply", "update"])
def test_a_skipped_step_changes_no_bit_of_the_codes(form):
    tx = oc.compact(oc.skip_nonfinite(oc.adamw(1e-2)), weights=24)
    params, state = run_steps(Started(tx), oc.narrow(PARAMS), GRADS, form)
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    step = {
        "apply": lambda: tx.apply(params, state, grads=bad),
        "update": lambda: tx.update(bad, state, params),
    }[form]
    after, new = step()
    assert int(new["inner"]["skipped_steps"]) == 1
    assert as_bits(new["inner"]["inner"]) == as_bits(state["inner"]["inner"])
    assert as_bits(new["low"]) == as_bits(state["low"])
    if form == "apply":
        assert as_bits(after) == as_bits(params)


def test_a_zero_gradient_moves_nothing_that_has_not_moved():
    tx = oc.compact(oc.adam(1e-2), weights=24)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    params, state = run_steps(Started(tx), oc.narrow(PARAMS), zeros)
    assert as_bits(params) == as_bits(oc.narrow(PARAMS))
    assert not any(np.any(codes) for codes in jax.tree.leaves(state["inner"]["scale_by_adam"]["nu"]["codes"]))


def kinds(entry):
    """How each leaf of an entry is stored."""
    codes = entry["codes"] if storage.is_packed(entry) else entry
    return jax.tree.map(lambda leaf: leaf.dtype.name, codes)


def test_what_is_stored_how():
    tx = oc.adamw(1e-2, use_ema=True, gradient_accumulation_steps=2)
    state = oc.compact(
        tx, moments={"nu": "int8"}, average="bfloat16", accumulator="int8", keep=oc.matching("^out")
    ).init(PARAMS)["inner"]
    adam = state["accumulate"]["inner"]["scale_by_adam"]
    packed = lambda kind: {"hidden": {"kernel": kind, "bias": "float32"}, "out": "float32"}  # noqa: E731
    assert kinds(adam["mu"]) == packed("float32")
    assert kinds(adam["nu"]) == packed("uint8")
    assert kinds(state["average_params"]["average"]) == packed("bfloat16")
    assert kinds(state["accumulate"]["grads"]) == packed("int8")


def test_small_odd_and_complex_leaves_stay_wide():
    params = {
        "small": jnp.zeros((32, 32)),
        "odd": jnp.zeros((65, 67)),
        "complex": jnp.zeros((64, 64), jnp.complex64),
        "narrow": jnp.zeros((64, 64), jnp.bfloat16),
    }
    mu = kinds(oc.compact(oc.adam(0.1)).init(params)["inner"]["scale_by_adam"]["mu"])
    assert mu == {"small": "float32", "odd": "float32", "complex": "complex64", "narrow": "int8"}


def test_lazy_rows_and_optax_links_keep_their_state_as_it_is():
    lazy = oc.compact(oc.lazy_rows(oc.adam(0.1))).init(PARAMS)
    assert as_bits(lazy) == as_bits(oc.lazy_rows(oc.adam(0.1)).init(PARAMS))
    link = oc.compact(optax.adam(0.1)).init(PARAMS)
    assert as_bits(link) == as_bits(optax.adam(0.1).init(PARAMS))


def test_what_rules_would_be_biased_by_is_stored_no_narrower():
    state = oc.compact(oc.scale_by_rms(centered=True)).init(PARAMS)["inner"]
    assert kinds(state["nu"])["out"] == "float32"
    state = oc.compact(oc.scale_by_adam(amsgrad=True)).init(PARAMS)["inner"]
    assert [kinds(state[name])["out"] for name in ("mu", "nu", "nu_max")] == ["int8", "bfloat16", "bfloat16"]
    asked = oc.compact(oc.scale_by_adam(amsgrad=True), moments={"nu_max": "int8"}).init(PARAMS)["inner"]
    assert kinds(asked["nu_max"])["out"] == "uint8"
    state = oc.compact(oc.schedule_free(oc.sgd(1.0)), average="int8").init(PARAMS)["inner"]
    assert kinds(state["iterates"])["out"] == "bfloat16"


def test_a_link_of_ones_own_is_stored_so_too():
    def step():
        def leaf(g, sum_of_gradients):
            total = sum_of_gradients + g
            return total, {"sum_of_gradients": total}

        return leaf

    tx = oc.rule(step, slots={"sum_of_gradients": oc.Slot()})
    state = oc.compact(tx).init(PARAMS)["inner"]
    assert kinds(state["sum_of_gradients"])["out"] == "int8"
    updates, _ = oc.compact(tx).update(GRADS, oc.compact(tx).init(PARAMS))
    assert as_bits(updates) == as_bits(GRADS)


@pytest.mark.parametrize("average", others_thorough(["float32", "bfloat16", "int8"], "int8"))
def test_averages_and_iterates_are_read_as_numbers(average):
    tx = oc.compact(oc.adamw(1e-2, use_ema=True, ema_momentum=0.5), average=average)
    params, state = run_steps(tx, PARAMS, GRADS)
    wide_params, wide_state = run_steps(oc.adamw(1e-2, use_ema=True, ema_momentum=0.5), PARAMS, GRADS)
    for found, right in (
        (oc.averaged_params(state), oc.averaged_params(wide_state)),
        (oc.finalize(params, state), oc.finalize(wide_params, wide_state)),
    ):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=0.05 if average == "int8" else 0.03), found, right
        )
    free = oc.compact(oc.schedule_free_adamw(1e-2), average=average)
    params, state = run_steps(free, PARAMS, GRADS)
    right = oc.schedule_free_params(*run_steps(oc.schedule_free_adamw(1e-2), PARAMS, GRADS))
    found = oc.schedule_free_params(params, state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=0.03), found, right)


def test_flush_goes_on_from_the_codes():
    tx = oc.sgd(1.0, gradient_accumulation_steps=4)
    compact = oc.compact(tx, weights=32, accumulator="bfloat16")
    params, state = run_steps(Started(compact), oc.narrow(PARAMS), GRADS, number=2)
    params, state = oc.flush(compact, params, state)
    right, _ = oc.flush(tx, *run_steps(tx, PARAMS, GRADS, number=2))
    found = oc.wide_params(params, state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0.01, atol=0.02), found, right)


def test_hyperparameters_metrics_and_counts_are_found():
    tx = oc.compact(oc.adamw(1e-2, global_clipnorm=1.0), weights=24)
    _, state = run_steps(Started(tx), oc.narrow(PARAMS), GRADS)
    assert "global_norm" in " ".join(oc.metrics(state))
    assert int(oc.steps_taken(state)) == 4
    state = oc.set_hyperparams(state, learning_rate=0.5)
    assert 0.5 in [float(value) for value in oc.get_hyperparams(state).values()]


@pytest.mark.thorough
def test_members_of_a_vmap_are_runs_of_their_own():
    tx = oc.compact(oc.adam(1e-2))
    grads = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), GRADS)
    states = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(2))
    params, _ = jax.jit(jax.vmap(lambda s, g: tx.apply(PARAMS, s, grads=g)))(states, grads)
    for index in range(2):
        alone, _ = jax.jit(lambda g: tx.apply(PARAMS, tx.init(PARAMS), grads=g))(
            jax.tree.map(lambda g, i=index: g[i], grads)
        )
        jax.tree.map(lambda x, y, i=index: np.testing.assert_allclose(x[i], y, rtol=1e-6, atol=1e-7), params, alone)


def test_it_prints_and_is_read_back_as_its_code():
    tx = oc.compact(oc.adamw(1e-3), moments={"mu": "bfloat16"}, weights="stochastic", keep=oc.matching("head"))
    assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx
    assert repr(tx).startswith("compact(")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moments": "int4"}, r"moments must be 'float32', 'bfloat16' or 'int8'; got 'int4'"),
        ({"moments": {"nu_mx": "int8"}}, r"moments has 'nu_mx', .* did you mean 'nu_max'\?"),
        ({"moments": {"mu": "fp8"}}, r"moments\['mu'\] must be"),
        ({"moments": {"average": "bfloat16"}}, r"moments has 'average', which average=… stores"),
        ({"moments": {"grads": "int8"}}, r"moments has 'grads', which accumulator=… stores"),
        ({"average": "int4"}, r"average must be 'float32', 'bfloat16' or 'int8'; got 'int4'"),
        ({"accumulator": 8}, r"accumulator must be"),
        ({"weights": 16}, r"weights must be 24, 32 or 'stochastic'; got 16"),
        ({"min_size": 0}, r"min_size must be an integer >= 1"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        oc.compact(oc.adam(0.1, amsgrad=True, use_ema=True, gradient_accumulation_steps=2), **options)


def test_parameters_that_do_not_fit_the_low_bits_are_named():
    tx = oc.compact(oc.sgd(0.1), weights=24)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r'params\["hidden"\]\["kernel"\] is float32, .* narrow\(params\)'):
        tx.apply(PARAMS, state, grads=GRADS)
    all_narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match=r'params\["hidden"\]\["bias"\] is bfloat16, and the state has no low bits'):
        tx.apply(all_narrow, state, grads=GRADS)


def test_scales_that_do_not_fit_the_codes_are_named():
    tx = oc.compact(oc.scale_by_adam())
    state = tx.init(PARAMS)
    scales = {**state["inner"]["mu"]["scales"], "out": jnp.ones((96, 1))}
    wrong = {"inner": {**state["inner"], "mu": {**state["inner"]["mu"], "scales": scales}}}
    with pytest.raises(ValueError, match=r'state\["mu"\]\["scales"\]\["out"\]: shape \(96, 1\), the codes ask for'):
        tx.update(GRADS, wrong)
    del scales["out"]  # as by a serializer that does not write None
    with pytest.raises(ValueError, match=r'state\["mu"\]\["scales"\] must have the structure of the codes'):
        tx.update(GRADS, wrong)


def test_nothing_follows_weights_with_low_bits_but_links_on_parameters():
    with pytest.raises(ValueError, match="stands after"):
        oc.chain(oc.compact(oc.sgd(0.1), weights=24), oc.scale(0.5))


@pytest.mark.parametrize("link", [oc.average_params(), oc.project_non_negative()])
def test_links_on_parameters_go_inside(link):
    with pytest.raises(ValueError, match=r"Put .* inside compact"):
        oc.chain(oc.compact(oc.sgd(0.1), weights=24), link)


@pytest.mark.parametrize("weights", [24, 32])
def test_a_parameter_that_others_set_to_zero_is_zero(weights):
    tx = oc.compact(oc.sgd(0.1), weights=weights)
    params = jax.tree.map(jnp.zeros_like, oc.narrow(PARAMS))
    wide = oc.wide_params(params, tx.init(PARAMS))
    assert all(float(jnp.abs(leaf).max()) < 1e-38 for leaf in jax.tree.leaves(wide))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
@pytest.mark.parametrize(("weights", "bound"), [(24, 2.0**-15), (32, 0.0)])
def test_the_wide_parameters_of_a_fresh_state_are_those_it_was_made_of(weights, bound, values):
    size = next(size for size in (1, 3, 40) if len(values) <= size)  # each size compiles
    values = np.resize(np.clip(np.array(values, np.float32), -3.3e38, 3.3e38), size)
    tx = oc.compact(oc.sgd(0.1), weights=weights, min_size=1)
    wide = oc.wide_params(oc.narrow(jnp.asarray(values), min_size=1), tx.init(jnp.asarray(values)))
    tiny = float(jnp.finfo(jnp.float32).tiny)
    assert (
        np.abs(wide - values.astype(np.float64)) <= bound * np.maximum(np.abs(values.astype(np.float64)), tiny)
    ).all()


def test_wide_parameters_are_not_made_wider():
    tx = oc.compact(oc.sgd(0.1), weights=24)
    with pytest.raises(ValueError, match="params must be those of the run, bfloat16"):
        oc.wide_params(PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize("tree", [{}, {"a": None}, {"bias": jnp.zeros(3)}])
def test_a_tree_without_narrow_parameters(tree):
    tx = oc.compact(oc.adam(0.1), weights=24)
    params, _ = tx.apply(oc.narrow(tree), tx.init(tree), grads=tree)
    assert jax.tree.structure(params) == jax.tree.structure(tree)


def test_shapes_are_narrowed_too():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert jax.tree.map(lambda s: s.dtype, oc.narrow(shapes)) == jax.tree.map(lambda p: p.dtype, oc.narrow(PARAMS))
