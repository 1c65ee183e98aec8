"""Norms: of whatever floats hold, with one pass where squares are ordinary, and differentiable in both branches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import optchain as oc
from optchain.core import trees
from optchain.core.factors import Factor
from optchain.core.precision import enable_x64
from tests import programs

pytestmark = pytest.mark.each_value

EXPONENTS = st.floats(-125, 125)


@jax.jit
def measured(tree):
    return trees.global_norm(tree), jax.tree.map(lambda x: trees.norm(x), tree)


def exact_norm(*leaves):
    return np.linalg.norm(np.concatenate([np.asarray(leaf).astype(np.complex128).ravel() for leaf in leaves]))


@given(
    mantissas=st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8),
    exponents=st.tuples(EXPONENTS, EXPONENTS),
)
def test_a_norm_is_that_of_float64_over_the_whole_range(mantissas, exponents):
    values = np.array(mantissas, np.float32).reshape(2, 4) * np.float32(2.0) ** np.float32(exponents)[:, None]
    values[np.abs(values) < np.finfo(np.float32).tiny] = 0  # XLA flushes them
    tree = {"a": jnp.asarray(values[0]), "b": jnp.asarray(values[1])}
    norm, each = measured(tree)
    np.testing.assert_allclose(norm, exact_norm(*tree.values()), rtol=1e-6)
    for name, leaf in tree.items():
        np.testing.assert_allclose(each[name], exact_norm(leaf), rtol=1e-6)


@pytest.mark.parametrize("size", [1e20, 3e37, 1e-25, 1e-37])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_every_dtype_with_its_range_has_its_norm(dtype, size):
    leaf = jnp.asarray([3.0, 4.0], dtype) * jnp.asarray(size, dtype)
    np.testing.assert_allclose(trees.global_norm([leaf]), exact_norm(leaf), rtol=1e-5)


def test_a_norm_beyond_float32_still_clips_to_the_bound():
    tx = oc.clip_by_global_norm(1.0)
    updates, state = tx.update(jnp.full(4, 3e38), tx.init(jnp.zeros(4)))
    np.testing.assert_allclose(updates, 0.5, rtol=1e-6)
    assert float(oc.metrics(state)["global_norm"]) == np.inf
    np.testing.assert_allclose(oc.clip_by_norm(1.0).update(jnp.full(4, 3e38), {})[0], 0.5, rtol=1e-6)


@jax.jit
def clipped_by_norm(leaf, bound, factor, exponent):
    given = trees.rescale([leaf], Factor.of(factor, exponent))
    return trees.clipped_to([leaf], Factor.of(bound))[0], trees.clipped_to(given, Factor.of(bound))[0]


@given(
    mantissas=st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6),
    exponent=EXPONENTS,
    bound=EXPONENTS,
    factor=st.floats(1, 2, width=32),
    factor_exponent=st.integers(-140, 140),
)
def test_a_clipped_leaf_is_that_of_float64_over_the_whole_range(mantissas, exponent, bound, factor, factor_exponent):
    tiny = np.finfo(np.float32).tiny
    leaf = np.array(mantissas, np.float32) * np.float32(2.0) ** np.float32(exponent)
    leaf[np.abs(leaf) < tiny] = 0
    bound = np.float32(2.0) ** np.float32(bound)
    found = clipped_by_norm(leaf, bound, np.float32(-factor), np.int32(factor_exponent))
    for multiplier, actual in zip((1.0, -factor * 2.0**factor_exponent), found, strict=True):
        product = leaf.astype(np.float64) * multiplier
        expected = product * bound / max(np.linalg.norm(product), float(bound))
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(actual, expected.astype(np.float32), rtol=2e-6, atol=4 * tiny)


@pytest.mark.parametrize("factor", [np.inf, np.nan])
def test_a_factor_that_is_not_finite_is_not_clipped_away(factor):
    given = trees.rescale([jnp.array([3.0, 4.0])], jnp.float32(factor))
    assert np.isnan(trees.clipped_to(given, Factor.of(jnp.float32(1.0)))[0]).all()


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_still_turns_every_leaf_to_nan(bad):
    tx = oc.clip_by_global_norm(1.0)
    grads = {"a": jnp.array([1.0, bad]), "b": jnp.array([1e20])}
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("value", [1e20, 1.0, 1e-25, 0.0])
def test_the_gradient_of_a_norm_is_the_direction(value):
    x = jnp.array([3.0, -4.0]) * value
    slope = jax.jit(jax.grad(lambda x: trees.global_norm([x])))(x)
    np.testing.assert_allclose(slope, [0.6, -0.8] if value else [0, 0], rtol=1e-5)
    np.testing.assert_allclose(jax.jvp(lambda x: trees.norm(x), (x,), (x,))[1], 5 * value, rtol=1e-5)


def test_the_gradient_goes_through_a_clip_of_huge_gradients():
    tx = oc.clip_by_global_norm(1.0)

    def clipped(g):
        return tx.update(g, tx.init(g))[0][0]

    np.testing.assert_allclose(jax.grad(clipped)(jnp.array([3e20, 4e20])), [0.64 / 5e20, -0.48 / 5e20], rtol=1e-5)


def test_members_of_a_vmap_have_norms_of_their_own():
    values = jnp.array([[3e20, 4e20], [3.0, 4.0], [3e-25, 4e-25], [0.0, 0.0]])
    np.testing.assert_allclose(jax.vmap(lambda x: trees.global_norm([x]))(values), [5e20, 5.0, 5e-25, 0.0], rtol=1e-6)


@pytest.mark.thorough
def test_a_row_gradient_has_the_norm_of_the_dense_one():
    grad = oc.RowGradient(jnp.array([2, 0, 2]), jnp.full((3, 2), 1e20), shape=(4, 2))
    for tx in (oc.clip_by_global_norm(1.0), oc.clip_by_norm(1.0), oc.clip_by_block_rms(1.0)):
        params = jnp.zeros((4, 2))
        dense, _ = tx.update(grad.dense(), tx.init(params), params)
        rows, _ = tx.update(grad, tx.init(params), params)
        np.testing.assert_allclose(rows, dense, rtol=1e-6)


@pytest.mark.parametrize("value", [1e200, 1e25, 1.0, 1e-25, 1e-200])
def test_float32_and_float64_leaves_have_one_norm(value):
    with enable_x64():
        tree = [jnp.array([3.0, 4.0], jnp.float32), jnp.array([3 * value, 4 * value])]
        np.testing.assert_allclose(trees.global_norm(tree), np.hypot(5.0, 5 * value), rtol=1e-6)
        narrow = [jnp.array([3e20, 4e20], jnp.float32)]
        np.testing.assert_allclose(trees.global_norm(narrow), 5e20, rtol=1e-6)


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100, -(2.0**100)])
@pytest.mark.parametrize("value", [1e-6, 1.0, 1e6])
def test_the_norm_of_a_scaled_tree_is_that_of_the_product(scale, value):
    scaled = trees.rescale([jnp.array([3.0, 4.0]) * value], jnp.float32(scale))
    np.testing.assert_allclose(trees.global_norm(scaled), 5 * value * abs(scale), rtol=1e-5)


# Whether values are usable -----------------------------------------------------------------------------------------------


FITS = 2.0**60


def usable(leaf, exponent, unscaled_exponent):
    given = trees.rescale([leaf], Factor.of(jnp.float32(1), exponent))
    return trees.all_usable(given, unscaled_by=Factor.of(jnp.float32(1), unscaled_exponent), values_fit=FITS)


usable_by_its_norm = jax.jit(usable)  # first, on a CPU


def usable_by_its_maximum(*args):
    """As on other devices: outside of `jit` an operation that has forms runs its default."""
    return jaxpr_as_fun(jax.make_jaxpr(usable)(*args))(*args)[0]


@given(
    mantissas=st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6),
    exponent=EXPONENTS,
    exponents=st.tuples(st.integers(-140, 140), st.integers(-140, 140)),
    bad=st.sampled_from([None, None, np.nan, np.inf, -np.inf]),
    dtype=st.sampled_from(["float32", "complex64", "bfloat16"]),
)
@pytest.mark.parametrize("form", [usable_by_its_norm, usable_by_its_maximum])
def test_values_are_usable_where_those_of_float64_are(form, mantissas, exponent, exponents, bad, dtype):
    values = np.array(mantissas, np.float32) * np.float32(2.0) ** np.float32(exponent)
    values = values * (1 + 1j) if dtype == "complex64" else values
    values[2] = values[2] if bad is None else bad
    leaf = jnp.asarray(values, dtype)
    parts = np.asarray(leaf).astype(np.complex128).view(np.float64)
    largest = np.abs(parts).max() * 2.0 ** exponents[0] if np.isfinite(parts).all() else np.inf
    met, bound = largest * 2.0 ** exponents[1], min(FITS, (float(jnp.finfo(jnp.float32).max) / 2) ** 0.5)
    assume(not 0.999 < largest / 2.0**128 < 1.001 and not 0.999 < met / bound < 1.001)
    assert bool(form(leaf, *map(np.int32, exponents))) == (largest < 2.0**128 and met < bound)


@pytest.mark.parametrize("bad", [1e20, np.nan, np.inf])  # the square of the first is not finite
def test_one_bad_value_is_seen_wherever_it_lies(bad):
    good = [jnp.ones((64, 128)), jnp.zeros(0), jnp.float32(3), jnp.ones(8192)]
    look = jax.jit(trees.all_usable)
    for space in (jax.memory.Space.Device, jax.memory.Space.Host):
        placed = [jax.device_put(x, space) for x in good]
        assert look(placed)
        assert not look([*placed[:3], jax.device_put(good[3].at[8000].set(bad), space)])


def test_a_factor_that_turns_the_sign_does_not_hide_what_is_too_large():
    tx = oc.chain(oc.scale(-1.0), oc.skip_nonfinite(oc.adamw(0.1)))
    params = jnp.ones(4)
    new, state = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g))(params, tx.init(params), jnp.full(4, 1e25))
    assert int(oc.metrics(state)["skipped_steps"]) == 1
    np.testing.assert_array_equal(new, params)


@pytest.mark.parametrize("good", [True, False])
def test_members_of_a_vmap_look_at_leaves_of_their_own_and_empty_ones_decide_nothing(good):
    rows, empty = jnp.ones((3, 2)).at[1, 0].set(1.0 if good else jnp.nan), jnp.zeros((3, 0))
    np.testing.assert_array_equal(jax.vmap(lambda *leaves: trees.all_usable(leaves))(rows, empty), [True, good, True])
    assert jax.vmap(lambda x: trees.all_usable([x]))(empty).all()
    tx = oc.skip_nonfinite(oc.adamw(0.1))
    state = jax.vmap(tx.init)(empty)
    assert jax.vmap(lambda p, s: tx.apply(p, s, grads=p))(empty, state)[0].shape == (3, 0)


# Other sums of squares ------------------------------------------------------------------------------------------------


def last(tx, grads, params):
    return jax.jit(lambda p, s, g: tx.update(g, s, p))(params, tx.init(params), grads)[0]


@pytest.mark.thorough
@pytest.mark.parametrize("power", [-70, 0, 70])
def test_clips_and_ratios_do_not_depend_on_the_unit(power):
    """A gradient and its bound, or parameters and updates, times a power of two: the same step in that unit."""
    unit = 2.0**power
    grads = jnp.array([[3.0, 30.0], [4.0, 40.0]])
    params = jnp.array([[0.3, 2.0], [0.4, 1.0]])
    for build, scales_params in (
        (lambda unit: oc.clip_by_norm(2.0 * unit), False),
        (lambda unit: oc.clip_by_global_norm(2.0 * unit), False),
        (lambda unit: oc.clip_by_block_rms(2.0 * unit), False),
        (lambda unit: oc.scale_by_trust_ratio(), True),
        (lambda unit: oc.adaptive_grad_clip(2.0, 0.1 * unit), True),
    ):
        if power < 0 and "adaptive" in build(1.0).name:
            continue  # its smallest norm of a gradient, 1e-6, is a unit of its own
        expected = last(build(1.0), grads, params)
        actual = last(build(unit), grads * unit, params * unit if scales_params else params)
        np.testing.assert_allclose(actual / unit, expected, rtol=1e-6, err_msg=build(1.0).name)


def test_the_monitor_and_the_scale_of_parameters_see_large_norms():
    params = jnp.array([3e25, 4e25])
    tx = oc.monitor()
    _, state = tx.update(params * 1e-3, tx.init(params), params)
    metrics = {name: float(value) for name, value in oc.metrics(state).items()}
    assert metrics == pytest.approx({"param_norm": 5e25, "update_norm": 5e22, "update_ratio": 1e-3}, rel=1e-5)
    scaled = last(oc.scale_by_param_block_rms(), jnp.ones(2), params)
    np.testing.assert_allclose(scaled, 5e25 / 2**0.5, rtol=1e-5)


@pytest.mark.parametrize("power", [-100, 60, 100])
def test_muon_does_not_depend_on_the_unit(power):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    muon = oc.scale_by_muon(momentum=0.0)
    big = last(muon, matrix * 2.0**power, matrix)
    if power > 0:
        np.testing.assert_allclose(big, last(muon, matrix * 2.0**40, matrix), rtol=1e-4, atol=1e-5)
    assert np.isfinite(big).all()


# What it costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [{"global_clipnorm": 1.0}, {"clipnorm": 1.0}], ids=["global_clipnorm", "clipnorm"])
@pytest.mark.parametrize("more", [{}, {"loss_scale_factor": 8.0}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_clipped_step_needs_no_temporary_tree(clip, more):
    tx = oc.adamw(1e-3, **clip, **more)
    params = {f"w{i}": jnp.ones((256, 256)) for i in range(8)}
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads), donate_argnums=(0, 1))
    program = step.lower(params, tx.init(params), params).compile()
    tree = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert program.memory_analysis().temp_size_in_bytes < tree // 32


# Over devices ---------------------------------------------------------------------------------------------------------


@functools.cache
def mesh():
    return Mesh(np.array(jax.devices()[:1]), ("x",))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("value", [1e20, 1.0, 1e-25])
def test_split_and_whole_leaves_have_one_norm_inside_shard_map(value, check_vma):
    def norm(a, b):
        return trees.global_norm([a, b], "x")

    tree = jnp.array([2.0, 4.0]) * value, jnp.array([4.0]) * value
    mapped = jax.shard_map(norm, mesh=mesh(), in_specs=(P("x"), P()), out_specs=P(), check_vma=check_vma)
    np.testing.assert_allclose(jax.jit(mapped)(*tree), 6 * value, rtol=1e-6)


def test_a_norm_of_a_whole_leaf_stays_whole_beside_a_split_one():
    tx = oc.clip_by_norm(1.0)

    def clip(a, b):
        return tx.update([a, b], {})[0]

    mapped = jax.shard_map(clip, mesh=mesh(), in_specs=(P("x"), P()), out_specs=[P("x"), P()])
    a, b = jax.jit(mapped)(jnp.full(4, 1e20), jnp.full(4, 1e-20))
    np.testing.assert_allclose(a, 0.5, rtol=1e-6)
    np.testing.assert_allclose(b, 1e-20, rtol=1e-6)


# Means ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [lambda tx: tx, oc.skip_nonfinite])
@pytest.mark.parametrize("value", [1.0, 1.5e19, 1.84e19])
def test_adafactors_means_are_finite_where_the_squares_are(gate, value):
    g = np.array([[1, -1, 1], [0.5, 1, 1]], "float32") * np.float32(value)
    tx = gate(oc.scale_by_factored_rms())
    u, state = tx.update(jnp.asarray(g), tx.init(jnp.asarray(g)))
    square = np.square(g.astype("float64"))
    row, column = square.mean(1, keepdims=True), square.mean(0, keepdims=True)
    np.testing.assert_allclose(u, g / np.sqrt(row * column / row.mean()), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "tx",
    [
        oc.clip_by_norm(1.0),
        oc.clip_by_global_norm(1.0),
        oc.monitor(),
        pytest.param(oc.adafactor(0.1), marks=pytest.mark.thorough),
    ],
    ids=lambda tx: tx.name,
)
def test_without_jit_a_second_step_compiles_nothing(tx):
    grads = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    state = tx.init(grads)
    for _ in range(2):
        _, state = tx.update(grads, state, grads)
    with programs.compilations() as compiled:
        tx.update(grads, state, grads)
    assert compiled == []
