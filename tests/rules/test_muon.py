"""Muon: which parameters are made orthogonal is no secret."""

import warnings

import jax
import jax.numpy as jnp
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
