"""`matching` and masks: the same parameters on every kind of tree, and no silent miss."""

import pickle

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optchain as oc

LEAF = np.zeros(2)
LAYERS = {"layers": [{"kernel": LEAF, "bias": LEAF}, {"kernel": LEAF, "bias": LEAF}], "norm": {"scale": LEAF}}


def chosen(mask, params):
    flags = jax.tree_util.tree_flatten_with_path(mask(params))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, flag in flags if flag}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["bias"], {"layers/0/bias", "layers/1/bias"}),
        (["bias$", "norm"], {"layers/0/bias", "layers/1/bias", "norm/scale"}),
        ([r"^layers/1/"], {"layers/1/bias", "layers/1/kernel"}),
        ([r"layers/\d+/kernel"], {"layers/0/kernel", "layers/1/kernel"}),
        (["(?i)SCALE"], {"norm/scale"}),
        (["bias", "typo"], {"layers/0/bias", "layers/1/bias"}),
    ],
)
def test_a_pattern_is_searched_anywhere_in_the_path(patterns, expected):
    assert chosen(oc.matching(*patterns), LAYERS) == expected


def test_the_inverse_chooses_all_others_and_inverts_back():
    mask = oc.matching("bias", "norm")
    assert chosen(~mask, LAYERS) == {"layers/0/kernel", "layers/1/kernel"}
    assert ~~mask == mask
    assert repr(~mask) == "~matching('bias', 'norm')"
    assert ~mask != mask


def test_every_container_gives_the_same_paths():
    inner = {"kernel": LEAF, "bias": LEAF}
    param = nnx.Param(jnp.asarray(LEAF))
    containers = [
        {"layers": {"0": inner}},
        {"layers": [inner]},
        {"layers": (inner,)},
        flax.core.freeze({"layers": {"0": inner}}),
        nnx.State({"layers": {0: {"kernel": param, "bias": param}}}),
        {"layers": [{**inner, "frozen": None, "other": optax.MaskedNode()}]},
    ]
    for tree in containers:
        mask = oc.matching("^layers/0/bias$")(tree)
        assert sum(jax.tree.leaves(mask)) == 1
        assert jax.tree.structure(mask) == jax.tree.structure(tree)


def test_a_parameter_that_is_called_value_keeps_its_name():
    assert chosen(oc.matching("^attention/value$"), {"attention": {"value": LEAF, "key": LEAF}}) == {"attention/value"}


def test_patterns_that_match_nothing_list_the_paths():
    with pytest.raises(ValueError, match=r"matching\('biass'\) matches no parameter; .*layers/0/bias.*norm/scale"):
        oc.matching("biass")(LAYERS)
    with pytest.raises(ValueError, match="matches no parameter"):
        (~oc.matching("biass"))(LAYERS)


def test_patterns_that_match_nothing_are_allowed_on_request_and_in_a_tree_that_is_masked_out():
    assert chosen(oc.matching("biass", allow_unmatched=True), LAYERS) == set()
    assert oc.matching("biass")({"frozen": optax.MaskedNode(), "other": None}) == {
        "frozen": optax.MaskedNode(),
        "other": None,
    }


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ([], ValueError, "at least one pattern"),
        ([1], TypeError, "a pattern must be a string; got 1"),
        ([["bias"]], TypeError, "a pattern must be a string; got"),
        (["("], ValueError, r"'\(' is not a regular expression"),
    ],
)
def test_what_is_not_a_pattern_is_refused_where_it_is_written(patterns, error, message):
    with pytest.raises(error, match=message):
        oc.matching(*patterns)


def test_a_mask_object_is_equal_by_value_pickles_and_prints_as_code():
    mask = ~oc.matching("bias", allow_unmatched=True)
    assert mask == ~oc.matching("bias", allow_unmatched=True)
    assert hash(mask) == hash(~oc.matching("bias", allow_unmatched=True))
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert eval(repr(mask), {"matching": oc.matching}) == mask
    assert mask != oc.matching("bias", allow_unmatched=True)
    assert mask != "bias"


def decayed(mask, params):
    """Which leaves a decay of 1/2 halves."""
    tx = oc.decay_weights(0.5, learning_rate=1.0, mask=mask)
    new, _ = tx.apply(params, tx.init(params), grads=jax.tree.map(jnp.zeros_like, params))
    return jax.tree.map(lambda n, p: bool((n != p).all()), new, params)


ONES = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}


@pytest.mark.parametrize(
    "mask",
    [
        {"dense": {"kernel": True, "bias": False}, "head": {"kernel": False}},
        {"dense": {"kernel": True, "bias": False}, "head": False},
        {"dense": {"kernel": np.bool_(True), "bias": np.bool_(False)}, "head": False},
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        oc.matching("^dense/kernel$"),
        ~oc.matching("bias", "head"),
    ],
    ids=["tree", "prefix", "numpy", "callable", "pattern", "inverse"],
)
def test_a_mask_may_be_a_tree_a_prefix_or_a_callable(mask):
    assert decayed(mask, ONES) == {"dense": {"kernel": True, "bias": False}, "head": {"kernel": False}}


@pytest.mark.parametrize("flag", [True, False])
def test_a_callable_may_return_a_single_bool_for_the_whole_tree(flag):
    assert decayed(lambda params: flag, ONES) == jax.tree.map(lambda _: flag, ONES)


def test_a_callable_sees_the_parameters_with_their_shapes_under_jit():
    tx = oc.decay_weights(0.5, learning_rate=1.0, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    step = jax.jit(lambda params, state: tx.update(params, state, params)[0])
    updates = step(ONES, tx.init(ONES))
    np.testing.assert_allclose(updates["dense"]["kernel"], 0.5)
    np.testing.assert_allclose(updates["dense"]["bias"], 1.0)
