"""`multi_optimizer`: each group is trained as if it were alone."""

import dataclasses
import json
import re

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optchain as oc

from .running import as_bits, run_steps

PARAMS = {
    "embed": jnp.array([[1.0, 2.0], [3.0, -4.0]]),
    "dense": {"kernel": jnp.array([[0.5, -1.0]]), "bias": jnp.array([1.0, 2.0])},
    "norm": {"scale": jnp.ones(2)},
}
GRADS = jax.tree.map(lambda p: 3.0 * p + 1.0, PARAMS)
EMBED, VECTORS, REST = (
    oc.sgd(0.5, 0.9, global_clipnorm=1.0),
    oc.adamw(0.1, weight_decay=None, gradient_accumulation_steps=2, use_ema=True),
    oc.skip_nonfinite(oc.adamw(0.2, weight_decay=0.3, global_clipnorm=0.5)),
)
TX = oc.multi_optimizer(
    ("embedding", "^embed$", EMBED), ("vectors", oc.matching("bias$", "scale$"), VECTORS), default=REST
)
GROUPS = {
    "embedding": (EMBED, lambda tree: {"embed": tree["embed"]}),
    "vectors": (VECTORS, lambda tree: {"dense": {"bias": tree["dense"]["bias"]}, "norm": tree["norm"]}),
    "default": (REST, lambda tree: {"dense": {"kernel": tree["dense"]["kernel"]}}),
}


def steps(tx, params=PARAMS, grads=GRADS, form="apply", number=4):
    return run_steps(tx, params, grads, form, number)


@pytest.mark.parametrize("form", ["apply", "update"])
def test_each_group_goes_the_way_it_would_go_alone(form):
    """Its norms, its gate, its accumulation and its average."""
    params, state = steps(TX, form=form)
    for name, (tx, part) in GROUPS.items():
        alone, alone_state = steps(tx, part(PARAMS), part(GRADS), form)
        assert as_bits(part(params)) == as_bits(alone), name
        assert as_bits(state[name]) == as_bits(alone_state), name


def test_it_equals_optax_multi_transform():
    body = {"a": optax.adam(0.1), "b": optax.sgd(0.1, 0.9)}
    labels = {"embed": "a", "dense": {"kernel": "a", "bias": "b"}, "norm": {"scale": "b"}}
    ours = oc.multi_optimizer(("a", "embed|kernel", body["a"]), default=body["b"])
    assert as_bits(steps(ours, form="update")[0]) == as_bits(
        steps(optax.multi_transform(body, labels), form="update")[0]
    )


def test_the_first_group_that_matches_wins():
    tx = oc.multi_optimizer(("first", "dense", oc.sgd(1.0)), ("second", "bias|embed|norm", oc.sgd(0.5)))
    assert {row.path: row.group for row in oc.describe(tx, PARAMS).per_parameter} == {
        "dense/bias": "first",
        "dense/kernel": "first",
        "embed": "second",
        "norm/scale": "second",
    }


def test_the_description_shows_the_groups_of_each_parameter_within_what_is_trained():
    described = oc.describe(oc.freeze(TX, oc.matching("norm")), jax.eval_shape(lambda: PARAMS))
    assert {row.path: row.group for row in described.per_parameter} == {
        "dense/bias": "vectors",
        "dense/kernel": "default",
        "embed": "embedding",
        "norm/scale": "frozen",
    }
    assert [row.path for row in described.rows if row.depth == 2] == [
        f"freeze/inner/{name}" for name in ("embedding", "vectors", "default")
    ]
    assert sum(row.bytes for row in described.rows) == described.state_bytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


@pytest.mark.parametrize(
    "tree",
    [
        {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
        flax.core.freeze({"kernel": jnp.ones(2), "bias": jnp.ones(2)}),
        nnx.State({"kernel": nnx.Param(jnp.ones(2)), "bias": nnx.Param(jnp.ones(2))}),
        Layer(jnp.ones(2), jnp.ones(2)),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_patterns_find_the_groups_in_every_container(tree):
    tx = oc.multi_optimizer(("kernels", "kernel$", oc.sgd(1.0, 0.9)), default=oc.sgd(0.25))
    params, state = steps(tx, tree, tree, number=1)
    assert jax.tree.structure(params) == jax.tree.structure(tree)
    values = {oc.core.trees.path_string(path): float(leaf[0]) for path, leaf in jax.tree.leaves_with_path(params)}
    assert values == {"kernel": 0.0, "bias": 0.75}
    assert len(jax.tree.leaves(state["kernels"]["apply_momentum"])) == 1


def test_hyperparameters_have_the_names_of_their_groups():
    _, state = steps(TX)
    assert list(oc.get_hyperparams(state)) == [
        "default/inner/learning_rate",
        "embedding/learning_rate",
        "vectors/learning_rate",
    ]
    assert {"embedding/clip_by_global_norm/global_norm", "default/inner/clip_by_global_norm/global_norm"} <= set(
        oc.metrics(state)
    )
    state = oc.set_hyperparams(state, {"embedding/learning_rate": 0.0})
    assert float(oc.get_hyperparams(state)["embedding/learning_rate"]) == 0.0


def test_the_rate_of_a_chain_reaches_the_groups_that_have_none():
    tx = oc.chain(
        oc.multi_optimizer(("embedding", "embed", oc.scale_by_learning_rate()), default=oc.sgd(0.5)), learning_rate=0.0
    )
    params, state = steps(tx, number=1)
    np.testing.assert_array_equal(params["embed"], PARAMS["embed"])
    np.testing.assert_array_equal(params["norm"]["scale"], PARAMS["norm"]["scale"] - 0.5 * GRADS["norm"]["scale"])
    assert oc.get_hyperparams(state).keys() == {"learning_rate", "multi_optimizer/default/learning_rate"}


def test_averages_of_groups_are_one_average_and_finalize_fills_in_the_rest():
    tx = oc.multi_optimizer(
        ("embedding", "embed", oc.sgd(0.1, use_ema=True)),
        ("dense", "dense", oc.adam(0.1, use_ema=True)),
        default=oc.sgd(0.1),
    )
    params, state = steps(tx)
    average = oc.averaged_params(state)
    assert as_bits(average["embed"]) == as_bits(state["embedding"]["average_params"]["average"]["embed"])
    assert average["norm"] == {"scale": None}
    final = oc.finalize(params, state)
    assert as_bits(final) == as_bits({**average, "norm": params["norm"]})


def test_flush_applies_the_tail_of_the_groups_that_have_one():
    params, state = steps(TX, number=3)
    flushed, flushed_state = oc.flush(TX, params, state)
    tx, part = GROUPS["vectors"]
    assert as_bits(part(flushed)) == as_bits(
        oc.flush(tx, part(params), steps(tx, part(PARAMS), part(GRADS), number=3)[1])[0]
    )
    assert as_bits(flushed["embed"]) == as_bits(params["embed"])
    assert int(flushed_state["vectors"]["accumulate"]["count"]) == 0


def test_a_bad_gradient_of_one_group_is_no_matter_to_the_gate_of_another():
    grads = {**GRADS, "embed": jnp.full((2, 2), jnp.nan)}
    gated = oc.skip_nonfinite(oc.sgd(0.5))
    params, _ = steps(oc.multi_optimizer(("embedding", "embed", gated), default=gated), grads=grads, number=1)
    assert as_bits(params["embed"]) == as_bits(PARAMS["embed"])
    np.testing.assert_array_equal(params["norm"]["scale"], PARAMS["norm"]["scale"] - 0.5 * GRADS["norm"]["scale"])


def test_its_kind_is_that_of_its_most_demanding_group():
    gradient, gate, parameter = oc.sgd(0.1), oc.skip_nonfinite(oc.sgd(0.1)), oc.sgd(0.1, use_ema=True)
    for kind, tx in {"gradient": gradient, "gate": gate, "parameter": parameter}.items():
        assert oc.multi_optimizer(("embedding", "embed", gradient), default=tx).kind == kind
    links_on_parameters = oc.multi_optimizer(
        ("embedding", "embed", oc.average_params(0.5)), default=oc.average_params()
    )
    params, state = steps(oc.chain(oc.accumulate(oc.sgd(0.1), 2), links_on_parameters))
    assert jax.tree.structure(oc.finalize(params, state)) == jax.tree.structure(PARAMS)


def test_a_recipe_comes_back_from_json_in_the_same_order():
    tx = oc.multi_optimizer(
        ("b", "bias", oc.sgd(0.1)), ("a", {"embed": True, "dense": False, "norm": False}, oc.adam(0.1)), default=REST
    )
    back = oc.from_config(json.loads(json.dumps(oc.to_config(tx))))
    assert back == tx
    assert list(back.init(PARAMS)) == ["b", "a", "default"]
    assert tx != oc.multi_optimizer(*reversed(tx.config["groups"]), default=REST)


MISTAKES = {
    "a pattern that matches nothing": (
        [("typo", "^embedd", EMBED)],
        "matching('^embedd') matches no parameter; the paths are: dense/bias, dense/kernel, embed, norm/scale",
    ),
    "a pattern whose matches are taken": (
        [("all", "dense|norm", EMBED), ("biases", "bias", EMBED)],
        "group 'biases' has no parameters: what matching('bias') matches belongs to earlier groups: dense/bias (all)",
    ),
    "a parameter without a group": (
        [("embedding", "embed", EMBED), ("dense", "dense", EMBED)],
        "no group of multi_optimizer matches norm/scale: add one, or default=…. "
        "The groups are: embedding (matching('embed')), dense (matching('dense'))",
    ),
    "a mask that does not fit": (
        [("embedding", {"embedding": True}, EMBED)],
        "the parameters of group 'embedding' does not fit the parameters",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_group_that_fits_nothing_is_an_error_that_lists_the_paths(name):
    groups, message = MISTAKES[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        oc.multi_optimizer(*groups, default=REST if "without" not in name else None).init(PARAMS)
