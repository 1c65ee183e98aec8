"""Muon: which parameters are made orthogonal is no secret."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

import optchain as oc
from optchain.core.precision import enable_x64
from optchain.rules.muon import NAMED, QUINTIC, each_step, orthogonalize

SCANNED = {
    "layers": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones(3)},
    "conv": jnp.ones((2, 2, 3, 3)),
    "embedding": jnp.ones((5, 3)),
    "head": jnp.ones((3, 4)),
    "scale": jnp.ones(()),
}


def warned(make, params=SCANNED):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make().init(params)
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


@pytest.mark.parametrize(
    "make", [lambda: oc.muon(0.1), oc.scale_by_muon, lambda: oc.freeze(oc.muon(0.1), oc.matching("head"))]
)
def test_init_names_the_stacked_matrices_that_go_by_adam_and_no_others(make):
    (message,) = warned(make)
    assert "trained by Adam's rule: conv (2, 2, 3, 3), layers/kernel (2, 3, 3). To silence this" in message


def test_init_names_what_may_be_vectors_stacked_beside_them():
    (message,) = warned(lambda: oc.muon(0.1), SCANNED | {"scales": jnp.ones((2, 5))})
    assert "These are made orthogonal, and may be stacked vectors: scales (2, 5)." in message


@pytest.mark.parametrize(
    "make",
    [
        lambda: oc.muon(0.1, exclude_layers=["^layers/", "conv"]),
        lambda: oc.scale_by_muon(mask=oc.matrices),
        lambda: oc.scale_by_muon(mask=~oc.matching("layers", "conv")),
        lambda: oc.masked(oc.scale_by_muon(), oc.matching("head")),
        lambda: oc.multi_optimizer(("muon", oc.matrices, oc.muon(0.1)), default=oc.adamw(0.1)),
    ],
)
def test_what_is_left_out_on_purpose_is_no_surprise(make):
    assert warned(make) == []


def test_vectors_scalars_and_embeddings_go_by_adam_without_a_word():
    assert warned(lambda: oc.muon(0.1), {name: SCANNED[name] for name in ("embedding", "head", "scale")}) == []


def test_it_says_so_for_shapes_too():
    with pytest.warns(UserWarning, match=r"layers/kernel \(2, 3, 3\)"):
        jax.eval_shape(oc.muon(0.1).init, SCANNED)


def test_describe_shows_which_parameter_goes_by_which_rule():
    described = oc.describe(oc.muon(0.1, exclude_layers=["layers", "conv"]), SCANNED)
    assert {row.path: row.group for row in described.per_parameter} == {
        "conv": "Adam",
        "embedding": "Adam",
        "head": "orthogonal",
        "layers/bias": "Adam",
        "layers/kernel": "Adam",
        "scale": "Adam",
    }
    assert "head           orthogonal" in str(described)


def test_describe_shows_the_factor_of_the_rate_of_what_goes_by_adams_rule():
    tx = oc.muon_adamw(0.1, matrices={"head": (0, 1)}, adam_lr_ratio=0.25)
    factors = {row.path: row.rate_factor for row in oc.describe(tx, SCANNED).per_parameter}
    assert factors.pop("head") == 1.0
    assert set(factors.values()) == {0.25}
    tx = oc.muon_adamw(0.1, matrices={"head": (0, 1)}, adam_lr_ratio=jnp.array(0.25))
    assert {row.rate_factor for row in oc.describe(tx, SCANNED).per_parameter} == {1.0, 0.25}
    tx = oc.muon_adamw(0.1, matrices={"head": (0, 1)}, adam_lr_ratio=lambda step: 0.25)
    assert {row.rate_factor for row in oc.describe(tx, SCANNED).per_parameter} == {1.0}  # no number to tell


def test_describe_shows_it_within_groups():
    tx = oc.multi_optimizer(("matrices", "layers|head", oc.muon(0.1, exclude_layers=["layers"])), default=oc.sgd(0.1))
    groups = {row.path: row.group for row in oc.describe(tx, SCANNED).per_parameter}
    assert groups["conv"] == "default"
    assert groups["head"] == "matrices/orthogonal"
    assert groups["layers/kernel"] == "matrices/Adam"


# Any weight ---------------------------------------------------------------------------------------------------------


LAYOUTS = {"layers": (-2, -1), "query": (0, (1, 2)), "conv": ((0, 1, 2), 3), "heads": ((0, 2), 1)}
"""Four layouts of axes, with the matrices that they are, each by itself."""


def weights(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {
        "layers": (2, 4, 6),
        "query": (4, 3, 2),
        "conv": (2, 1, 3, 5),
        "heads": (3, 8, 4),
        "bias": (3,),
        "embedding": (3, 2),
    }
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def groups_of(tx):
    return {row.path: row.group for row in oc.describe(tx, weights()).per_parameter}


def by_numpy(matrix, coefficients):
    """The papers' iteration, in float64."""
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for a, b, c in coefficients:
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def loop(gradients):
    """The matrices of each layout one after the other, by NumPy."""
    g = {name: np.asarray(x) for name, x in gradients.items()}

    def each(matrix):
        return 0.2 * max(matrix.shape) ** 0.5 * by_numpy(matrix, [QUINTIC] * 2)

    return {
        "layers": np.stack([each(layer) for layer in g["layers"]]),
        "query": each(g["query"].reshape(4, 6)).reshape(4, 3, 2),
        "conv": each(g["conv"].reshape(6, 5)).reshape(2, 1, 3, 5),
        "heads": each(g["heads"].transpose(0, 2, 1).reshape(12, 8)).reshape(3, 4, 8).transpose(0, 2, 1),
    }


def test_a_stack_is_the_loop_over_its_matrices_in_each_layout_of_axes():
    with enable_x64():
        grads = weights(jnp.float64)
        tx = oc.scale_by_muon(0.0, ns_steps=2, matrices=LAYOUTS)
        u, _ = jax.jit(tx.update)(grads, tx.init(grads))
    for name, value in loop(grads).items():
        np.testing.assert_allclose(u[name], value, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.thorough
def test_layouts_and_widths_are_those_of_optax():
    layouts = {name: LAYOUTS[name] for name in ("layers", "query")}
    grads = {name: weights()[name] for name in layouts}
    axes = {name: optax.contrib.MuonDimensionNumbers(*pair) for name, pair in layouts.items()}
    theirs = optax.contrib.muon(1.0, ns_steps=3, beta=0.0, nesterov=False, muon_weight_dimension_numbers=axes)
    ours = oc.muon_adamw(
        1.0, None, matrices=layouts, coefficients="classic", ns_steps=3, momentum=0.0, nesterov=False, scaling="width"
    )
    u, expected = (jax.jit(tx.update)(grads, tx.init(grads), grads)[0] for tx in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), u, expected)


def test_what_no_pattern_finds_and_what_has_none_goes_by_adam_and_describe_says_so():
    groups = groups_of(oc.muon_adamw(matrices=LAYOUTS | {"conv": None}))
    assert {name for name, rule in groups.items() if rule == "Adam"} == {"bias", "embedding", "conv"}
    assert warned(lambda: oc.muon_adamw(matrices=LAYOUTS), weights()) == []


def test_masks_and_patterns_go_together():
    groups = groups_of(oc.scale_by_muon(matrices=LAYOUTS, mask=~oc.matching("conv")))
    assert groups["conv"] == "Adam"
    assert groups["query"] == "orthogonal"


def test_the_preset_leaves_embeddings_to_adam_unless_it_is_told_otherwise():
    params = {"wte": {"Embed": jnp.ones((5, 3))}, "kernel": jnp.ones((3, 3))}

    def matrices_of(**options):
        rows = oc.describe(oc.muon_adamw(**options), params).per_parameter
        return {row.path for row in rows if row.group == "orthogonal"}

    assert matrices_of() == {"kernel"}
    assert matrices_of(mask=True) == matrices_of(matrices={"": (0, 1)}) == {"kernel", "wte/Embed"}


def test_the_rest_is_adamw():
    params = {"bias": jnp.array([1.0, -2.0, 3.0])}
    grads = {"bias": jnp.array([0.1, 0.2, -0.3])}

    def moved(tx):
        return jax.jit(tx.apply)(params, tx.init(params), grads=grads)[0]["bias"]

    ours, theirs = oc.muon_adamw(0.1, 0.5), oc.adamw(0.1, beta_2=0.95, epsilon=1e-8, weight_decay=0.5)
    np.testing.assert_array_equal(moved(ours), moved(theirs))


def test_matrices_come_back_from_a_config():
    tx = oc.muon_adamw(matrices={"head": None, **LAYOUTS}, coefficients=[QUINTIC, (1.5, -0.5, 0.0)])
    back = oc.from_config(json.loads(json.dumps(oc.to_config(tx))))
    assert oc.to_config(back) == oc.to_config(tx)
    assert str(back) == str(tx)


@pytest.mark.parametrize("others", [{}, {"conv": None}])
def test_a_state_of_other_matrices_is_refused_by_name(others):
    grads = weights()
    state = oc.scale_by_muon(matrices=LAYOUTS).init(grads)
    fewer = oc.scale_by_muon(matrices={"layers": (-2, -1), **others})
    with pytest.raises(ValueError, match="the state was made for other matrices: conv is one there"):
        jax.eval_shape(fewer.update, grads, state)


def test_a_state_without_one_of_the_matrices_is_refused_by_name():
    grads = weights()
    state = oc.scale_by_muon(matrices={"layers": (-2, -1)}).init(grads)
    with pytest.raises(ValueError, match="the state was made for other matrices: conv is none there"):
        jax.eval_shape(oc.scale_by_muon(matrices=LAYOUTS).update, grads, state)
    # A mask may have left it out, and is not asked again.
    masked = oc.scale_by_muon(matrices=LAYOUTS, mask=oc.matching("layers"))
    jax.eval_shape(masked.update, grads, masked.init(grads))


def test_narrow_iterations_round_each_sum_once():
    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    exact = orthogonalize(x, "polar_express")
    narrow = orthogonalize(x, "polar_express", dtype="bfloat16")
    assert np.abs(narrow - exact).max() < 0.01  # three times as much where each product and each sum is rounded
    least = [np.linalg.svd(u, compute_uv=False).min() for u in (exact, narrow)]
    assert least[1] == pytest.approx(least[0], abs=0.01)


@pytest.mark.thorough
def test_groups_and_compact_take_stacks():
    def muon(*names):
        return oc.muon_adamw(0.1, matrices={name: LAYOUTS[name] for name in names}, ns_steps=1)

    grads = {name: weights()[name] for name in ("layers", "conv")}
    plain = muon("layers", "conv")
    expected, _ = jax.jit(plain.apply)(grads, plain.init(grads), grads=grads)
    for tx in (
        oc.multi_optimizer(("layers", "layers", muon("layers")), default=muon("conv")),
        oc.compact(plain, moments="bfloat16", min_size=1),
    ):
        new, _ = jax.jit(tx.apply)(grads, tx.init(grads), grads=grads)
        for name in grads:
            np.testing.assert_allclose(new[name], expected[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        ({"layers": (0,)}, TypeError, r"matrices\['layers'\] must be \(axes in, axes out\)"),
        ({"layers": (0, 0)}, ValueError, r"matrices gives layers the axes .* no distinct axes of \(2, 4, 6\)"),
        ({"layers": (0, 3)}, ValueError, "no distinct axes"),
        ({"lairs": (0, 1)}, ValueError, "pattern 'lairs' decides for no parameter"),
        ({"lairs": None}, ValueError, "pattern 'lairs' decides for no parameter"),
        ({}, ValueError, "matrices needs at least one pattern"),
    ],
)
def test_axes_that_are_none_are_refused(matrices, error, message):
    with pytest.raises(error, match=message):
        oc.scale_by_muon(matrices=matrices).init(weights())


# Coefficients -------------------------------------------------------------------------------------------------------


def best_quintic(low, high):
    """The odd polynomial of degree 5 that is nearest to 1 on an interval, by Remez's algorithm."""
    at = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * np.arange(4) / 3)
    grid = np.unique(np.concatenate([np.geomspace(low, high, 20_001), np.linspace(low, high, 20_001)]))
    for _ in range(30):
        system = np.stack([at, at**3, at**5, [1, -1, 1, -1]], axis=1)
        *made, _ = np.linalg.solve(system, np.ones(4))
        error = polynomial(made, grid) - 1
        turns = 1 + np.flatnonzero(np.diff(np.sign(np.diff(error))))
        at = grid[[0, *turns[:2], -1]]
    return np.array(made)


def polynomial(triple, x):
    a, b, c = triple
    return a * x + b * x**3 + c * x**5


CUSHION = 0.02407327424182761
"""Polar Express's: what share of the largest value counts as the smallest, at least."""


@pytest.mark.parametrize(("name", "cushion"), [("polar_express", CUSHION), ("cans", 0.0)])
def test_each_polynomial_is_the_best_after_those_before_it(name, cushion):
    low, high = 1e-3, 1.0
    for triple in NAMED[name][:6]:
        made = best_quintic(max(low, cushion * high), high)
        if cushion * high > low:
            made *= 2 / (polynomial(made, low) + polynomial(made, high))
        found = np.multiply(triple, [1.01, 1.01**3, 1.01**5])  # for values up to 1.01
        np.testing.assert_allclose(found, made, rtol=1e-4)
        low = polynomial(found, low)
        high = 2 - low


DEVIATIONS = {
    "classic": {5: 0.529, 6: 0.318, 8: 0.318},
    "polar_express": {5: 0.154, 6: 0.00559, 8: 1e-12},
    "cans": {5: 0.143, 6: 0.00472, 8: 1e-12},
}
"""The largest deviation from 1 that singular values in [1e-3, 1] have after so many iterations: what the documentation says."""


@pytest.mark.parametrize("name", DEVIATIONS)
def test_singular_values_come_as_near_to_one_as_is_said(name):
    values = np.geomspace(1e-3, 1, 20_001)
    for count, largest in DEVIATIONS[name].items():
        x = values
        for triple in each_step(name, count):
            x = polynomial(triple, x)
        assert np.abs(x - 1).max() == pytest.approx(largest, rel=2e-3, abs=1e-12)


def test_a_matrix_gets_the_polynomials_of_its_singular_values():
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.normal(size=(5, 4)))[0] * [1.0, 0.3, 0.02, 1e-3]
    with enable_x64():
        made = jax.jit(lambda x: orthogonalize(x, "polar_express", 7))(jnp.asarray(matrix))
    np.testing.assert_allclose(made, by_numpy(matrix.T, each_step("polar_express", 7)).T, atol=1e-12)


@pytest.mark.parametrize("name", ["polar_express", "cans"])
def test_a_value_that_rounding_puts_above_one_comes_back(name):
    """Without the margin it would be soon beyond everything."""
    kept = lost = np.linspace(1.0, 1.005, 11)  # bfloat16 has 1.0078 after 1
    for triple in each_step(name, 5):
        kept = polynomial(triple, kept)
        lost = polynomial(np.multiply(triple, [1.01, 1.01**3, 1.01**5]), lost)
    assert np.abs(kept - 1).max() < 0.16
    assert np.abs(lost).max() > 1e3


@pytest.mark.thorough
def test_bfloat16_does_not_throw_a_matrix_of_rank_one_out():
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(64, 1)) @ rng.normal(size=(1, 64)), jnp.float32)
    made = jax.jit(lambda x: orthogonalize(x, "polar_express", 7, dtype="bfloat16"))(matrix)
    assert made.dtype == jnp.float32
    assert abs(np.linalg.norm(made, 2) - 1) < 0.02


def test_a_list_of_triples_is_one_for_each_iteration():
    one = (1.5, -0.5, 0.0)
    assert each_step(one, 3) == each_step([one], 3) == each_step([one] * 4, 3) == (one,) * 3
    assert each_step([QUINTIC, one], 3) == (QUINTIC, one, one)
