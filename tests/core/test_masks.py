"""`matching` and masks: the same parameters on every kind of tree, and no silent miss."""

import json
import pickle

import flax.core
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings

import optchain as oc
from optchain.core.masks import resolve_mask

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


# Single bools, and those of NumPy and JAX -------------------------------------------------------------------------------

BOOLS = {
    "python": bool,
    "numpy": np.bool_,
    "numpy, an array": np.asarray,
    "jax": jnp.asarray,
}
CHOSEN = {"dense": {"kernel": True, "bias": False}, "head": {"kernel": True}}
ZEROS = jax.tree.map(jnp.zeros_like, ONES)


def moved(tx, grads=ONES):
    """Which leaves a step changes."""
    params, _ = tx.apply(ONES, tx.init(ONES), grads=grads)
    return jax.tree.map(lambda n, p: bool((n != p).any()), params, ONES)


def clipped(mask):
    updates, _ = oc.masked(oc.clip_by_value(0.5), mask).update(ONES, {})
    return jax.tree.map(lambda u: bool((u == 0.5).all()), updates)


def others(flags):
    return jax.tree.map(lambda flag: not flag, flags)


TAKERS = {
    "masked": clipped,
    "freeze": lambda mask: others(moved(oc.freeze(oc.sgd(0.5), mask))),
    "decay_weights": lambda mask: decayed(mask, ONES),
    "decay_first": lambda mask: moved(
        oc.decay_first(oc.scale_by_learning_rate(0.5), 0.5, learning_rate=1.0, mask=mask), ZEROS
    ),
    "add_l2_penalty": lambda mask: moved(oc.chain(oc.add_l2_penalty(0.5, mask=mask), oc.sgd(0.5)), ZEROS),
    "exclude_from_weight_decay": lambda mask: others(moved(oc.adamw(0.5, 0.5, exclude_from_weight_decay=mask), ZEROS)),
    "exclude_from_weight_decay of muon": lambda mask: others(
        moved(oc.muon(0.5, weight_decay=0.5, exclude_from_weight_decay=mask), ZEROS)
    ),
    "exclude_from_weight_decay of lamb": lambda mask: others(
        moved(oc.lamb(0.5, weight_decay=0.5, exclude_from_weight_decay=mask), ZEROS)
    ),
    "multi_optimizer": lambda mask: moved(oc.multi_optimizer(("chosen", mask, oc.sgd(0.5)), default=oc.sgd(0.0))),
    "as_mask": lambda mask: (oc.as_mask(mask) & oc.as_mask(True))(ONES),
}


@pytest.mark.parametrize("kind", BOOLS)
@pytest.mark.parametrize("taker", TAKERS)
def test_bools_of_every_kind_are_a_mask_wherever_one_is_taken(taker, kind):
    assert TAKERS[taker](jax.tree.map(BOOLS[kind], CHOSEN)) == CHOSEN
    for flag in (True, False):
        assert TAKERS[taker](BOOLS[kind](flag)) == jax.tree.map(lambda _, flag=flag: flag, ONES)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_prefix_of_bools_of_any_kind_chooses_what_it_stands_for(data):
    kinds = st.sampled_from([*BOOLS.values()])
    flag = st.builds(lambda kind, value: kind(value), kinds, st.booleans())
    tree = st.recursive(flag, lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=6)
    mask = data.draw(tree)
    # The parameters have the mask's structure, or a tree of their own below one of its flags.
    below = data.draw(st.sampled_from([[0], {"a": 0, "b": [0, 0]}]))
    params = jax.tree.map(lambda _: jax.tree.map(lambda _: np.ones(2, np.float32), below), mask)
    expected = jax.tree.map(lambda value: jax.tree.map(lambda _: bool(value), below), mask)
    for given_mask in (mask, lambda params: mask, oc.as_mask(mask), ~~oc.as_mask(mask)):
        resolved = resolve_mask("mask", given_mask, params)
        assert resolved == expected
        assert all(type(leaf) is bool for leaf in jax.tree.leaves(resolved))
    assert (~oc.as_mask(mask))(params) == others(expected)


def test_a_single_bool_in_a_preset_is_the_whole_tree_and_goes_through_a_config():
    tx = oc.adamw(0.1, 0.5, exclude_from_weight_decay=True)
    assert moved(tx, ZEROS) == jax.tree.map(lambda _: False, ONES)
    for mask in (True, {"dense": np.bool_(True), "head": jnp.array(False)}):
        tx = oc.masked(oc.clip_by_norm(1.0), mask)
        again = oc.from_config(json.loads(json.dumps(oc.to_config(tx))))
        assert (
            again.update(ONES, {})[0]["dense"]["kernel"].tolist() == tx.update(ONES, {})[0]["dense"]["kernel"].tolist()
        )


def test_a_traced_bool_is_refused_and_says_why():
    def step(flag, params):
        return oc.masked(oc.clip_by_norm(1.0), {"dense": flag, "head": True}).update(params, {})[0]

    with pytest.raises(TypeError, match=r'mask\["dense"\] is traced: the chosen parameters must be known'):
        jax.jit(step)(True, ONES)
    tx = oc.decay_weights(0.5, learning_rate=1.0, mask=lambda params: jax.tree.map(lambda p: jnp.all(p > 0), params))
    with pytest.raises(TypeError, match=r'mask\["dense"\]\["bias"\] is traced'):
        jax.jit(tx.init)(ONES)


@pytest.mark.parametrize("wrong", [1, 0.0, "bias", np.ones(2, bool), np.array(1), jnp.zeros(2, bool)], ids=repr)
def test_what_is_no_bool_is_refused(wrong):
    with pytest.raises(TypeError, match=r"mask(\[.*\])? must be"):
        oc.masked(oc.clip_by_norm(1.0), {"dense": wrong, "head": True})
    with pytest.raises(TypeError, match="mask must be"):
        oc.masked(oc.clip_by_norm(1.0), wrong)


# Masks that are objects -------------------------------------------------------------------------------------------------


def wide_ones(params):
    return jax.tree.map(lambda p: p.shape[-1] > 1, params)


LEAVES = [oc.matching("kernel"), oc.matching("^head"), oc.matrices, oc.as_mask(wide_ones), oc.as_mask(CHOSEN)]


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.sampled_from(LEAVES),
        lambda m: st.one_of(
            st.builds(lambda a: ~a, m), st.builds(lambda a, b: a & b, m, m), st.builds(lambda a, b: a | b, m, m)
        ),
        max_leaves=5,
    )
)
def test_masks_combine_print_as_code_and_are_equal_by_value(mask):
    assert oc.as_mask(mask) is mask
    assert (~mask)(ONES) == others(mask(ONES))
    for other in LEAVES:
        both, either = (mask & other)(ONES), (mask | other)(ONES)
        assert both == jax.tree.map(lambda a, b: a and b, mask(ONES), other(ONES))
        assert either == jax.tree.map(lambda a, b: a or b, mask(ONES), other(ONES))
    names = {"matching": oc.matching, "matrices": oc.matrices, "as_mask": oc.as_mask, "wide_ones": wide_ones}
    again = eval(repr(mask), names)
    assert again == mask
    assert hash(again) == hash(mask)
    assert pickle.loads(pickle.dumps(mask)) == mask
    tx = oc.masked(oc.clip_by_norm(1.0), mask)
    if "wide_ones" not in repr(mask):
        assert oc.from_config(json.loads(json.dumps(oc.to_config(tx)))) == tx


def test_a_mask_combines_with_masks_only():
    with pytest.raises(TypeError, match="unsupported operand"):
        oc.matrices & True
    with pytest.raises(TypeError, match="mask must be a tree of bools"):
        oc.as_mask("bias")
