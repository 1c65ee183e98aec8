"""Muon: which parameters are made orthogonal is no secret."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

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


def test_describe_shows_it_within_groups():
    tx = oc.multi_optimizer(("matrices", "layers|head", oc.muon(0.1, exclude_layers=["layers"])), default=oc.sgd(0.1))
    groups = {row.path: row.group for row in oc.describe(tx, SCANNED).per_parameter}
    assert groups["conv"] == "default"
    assert groups["head"] == "matrices/orthogonal"
    assert groups["layers/kernel"] == "matrices/Adam"


# Any weight ---------------------------------------------------------------------------------------------------------


LAYOUTS = {"layers": (-2, -1), "query": (0, (1, 2)), "conv": ((0, 1, 2), 3), "heads": ((0, 2), 1)}
"""Four layouts of axes, with the matrices that they are, each by itself."""


def weights():
    rng = np.random.default_rng(0)
    shapes = {
        "layers": (3, 8, 12),
        "query": (8, 3, 4),
        "conv": (2, 2, 3, 5),
        "heads": (3, 8, 4),
        "bias": (3,),
        "embedding": (3, 2),
    }
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def groups_of(tx):
    return {row.path: row.group for row in oc.describe(tx, weights()).per_parameter}


def alone(matrix):
    tx = oc.scale_by_muon()
    return tx.update(matrix, tx.init(matrix))[0]


def test_a_stack_is_the_loop_over_its_matrices_in_each_layout_of_axes():
    grads, tx = weights(), oc.scale_by_muon(matrices=LAYOUTS)
    u, _ = jax.jit(tx.update)(grads, tx.init(grads))
    expected = {
        "layers": jnp.stack([alone(layer) for layer in grads["layers"]]),
        "query": alone(grads["query"].reshape(8, 12)).reshape(8, 3, 4),
        "conv": alone(grads["conv"].reshape(12, 5)).reshape(2, 2, 3, 5),
        "heads": alone(grads["heads"].transpose(0, 2, 1).reshape(12, 8)).reshape(3, 4, 8).transpose(0, 2, 1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(u[name], value, atol=1e-5, err_msg=name)


def test_what_no_pattern_finds_goes_by_adam_and_describe_says_so():
    groups = groups_of(oc.scale_by_muon(matrices=LAYOUTS))
    assert {name for name, rule in groups.items() if rule == "Adam"} == {"bias", "embedding"}
    assert warned(lambda: oc.scale_by_muon(matrices=LAYOUTS), weights()) == []


def test_masks_and_patterns_go_together():
    groups = groups_of(oc.scale_by_muon(matrices=LAYOUTS, mask=~oc.matching("conv")))
    assert groups["conv"] == "Adam"
    assert groups["query"] == "orthogonal"


def test_matrices_come_back_from_a_config():
    tx = oc.scale_by_muon(matrices=LAYOUTS, coefficients="polar_express", iteration_dtype="bfloat16")
    back = oc.from_config(json.loads(json.dumps(oc.to_config(tx))))
    grads = weights()
    jax.tree.map(np.testing.assert_array_equal, *(t.update(grads, t.init(grads))[0] for t in (tx, back)))


def test_compact_takes_stacks():
    grads, tx = weights(), oc.scale_by_muon(matrices=LAYOUTS)
    u, _ = oc.compact(tx).update(grads, oc.compact(tx).init(grads))
    np.testing.assert_allclose(u["conv"], tx.update(grads, tx.init(grads))[0]["conv"], atol=1e-2)


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        ({"layers": (0,)}, TypeError, r"matrices\['layers'\] must be \(axes in, axes out\)"),
        ({"layers": (0, 0)}, ValueError, r"matrices gives layers the axes .* no distinct axes of \(3, 8, 12\)"),
        ({"layers": (0, 3)}, ValueError, "no distinct axes"),
        ({"lairs": (0, 1)}, ValueError, "pattern 'lairs' decides for no parameter"),
        ({}, ValueError, "matrices needs at least one pattern"),
    ],
)
def test_axes_that_are_none_are_refused(matrices, error, message):
    with pytest.raises(error, match=message):
        oc.scale_by_muon(matrices=matrices).init(weights())


def test_polar_express_brings_small_singular_values_nearer_to_one_than_the_classic():
    values = jnp.diag(jnp.geomspace(1.0, 1e-3, 8))

    def spread(coefficients, steps):
        tx = oc.scale_by_muon(0.0, False, steps, coefficients=coefficients, rms_rate=None)
        found = jnp.linalg.svd(tx.update(values, tx.init(values))[0], compute_uv=False)
        return float(jnp.abs(found - 1).max())

    assert spread("polar_express", 8) < 1e-3
    assert spread("polar_express", 5) < spread("classic", 5)


def test_a_list_of_triples_is_one_for_each_iteration():
    one, grads = (1.5, -0.5, 0.0), weights()["conv"].reshape(12, 5)
    made = [
        tx.update(grads, tx.init(grads))[0]
        for tx in (oc.scale_by_muon(ns_steps=3, coefficients=c) for c in (one, [one], [one] * 3))
    ]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
