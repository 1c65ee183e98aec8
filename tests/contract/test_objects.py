"""A transformation as a Python object: immutable, static, equal by value, printed as its code."""

import re

import jax.numpy as jnp
import pytest

import optchain as oc

from . import table
from .table import rows_where

NAMESPACE = {name: getattr(oc, name) for name in dir(oc) if not name.startswith("_")}
NAMESPACE |= {"jnp": jnp, **{name: value for name, value in vars(oc.schedules).items() if name[0].isupper()}}
NAMESPACE |= {
    f.__name__: f for f in (table.only_matrices, table.constant_rate, table.half_schedule, table.growing_window)
}


@rows_where(lambda row: row.has_code)
def test_repr_is_the_code_that_builds_it(row):
    tx = row.make()
    built = eval(repr(tx), dict(NAMESPACE))
    assert built == tx
    assert hash(built) == hash(tx)
    assert repr(built) == repr(tx)


def everything_in(tx):
    """The links that a transformation is made of, however deep."""
    return [link for inner in tx.links for link in (inner, *everything_in(inner))]


KERAS_ADAMW, TORCH = oc.presets.keras_adamw, oc.presets.torch
RECIPES = {
    "muon": lambda: oc.muon(0.1, exclude_layers=["head"], exclude_from_weight_decay=["bias"]),
    "muon, all matrices": lambda: oc.muon(0.1, exclude_embeddings=False, exclude_from_weight_decay={"w": True}),
    "adamw, a tree": lambda: oc.adamw(0.1, exclude_from_weight_decay={"kernel": False, "bias": True}),
    "adamw, a combination": lambda: oc.adamw(0.1, exclude_from_weight_decay=oc.matrices & ~oc.matching("head")),
    "adamw, legacy decay": lambda: oc.adamw(table.half_schedule, decay=0.1),
    "sgd, a table": lambda: oc.sgd(oc.schedules.PerEpoch(lambda epoch: 0.1 / (1 + epoch), 10, 0.1, 3)),
    "keras_adamw": lambda: KERAS_ADAMW.adamw(
        0.1, total_iterations=4, use_cosine_annealing=True, lr_multipliers={"head": 2.0}, weight_decays={"": (0.1, 0.1)}
    ),
    "torch.adagrad": lambda: TORCH.adagrad(0.1, lr_decay=0.1, weight_decay=0.1, maximize=True),
    "torch.sgd": lambda: TORCH.sgd(oc.schedules.OneCycleLR(0.1, 10), momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize(
    "make", [*(row.make for row in table.ROWS), *RECIPES.values()], ids=[*map(str, table.ROWS), *RECIPES]
)
def test_what_it_is_made_of_is_code_too_and_equal_when_built_again(make):
    ours = [link for link in everything_in(make()) if link.is_registered]
    again = [link for link in everything_in(make()) if link.is_registered]
    assert ours == again
    assert list(map(hash, ours)) == list(map(hash, again))
    for link in ours:
        assert " at 0x" not in repr(link)
        if "optax(" not in repr(link):
            assert eval(repr(link), dict(NAMESPACE)) == link


@rows_where(lambda row: not row.has_code)
def test_repr_of_an_optax_link_shows_its_name(row):
    assert re.search(r"optax\((adam|optax)\)", repr(row.make()))


def test_rows_of_different_configuration_are_different():
    built = [row.make() for row in table.ROWS]
    assert len(set(built)) == len(built)
    assert oc.sgd(0.1) != (oc.sgd(0.1).init, oc.sgd(0.1).update)


def test_a_write_says_that_it_is_immutable():
    tx = oc.adamw(0.1)
    for name in ("name", "config", "links", "init", "apply", "new_attribute"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(tx, name, None)
    with pytest.raises(AttributeError, match="immutable"):
        del tx.name
    with pytest.raises(TypeError, match="_replace"):
        tx._replace(update=tx.update)
    with pytest.raises(TypeError, match="pair of functions"):
        type(tx)._make((tx.init, tx.update))


def test_a_nested_chain_prints_indented_one_link_a_line():
    tx = oc.chain(oc.chain(oc.scale_by_adam(), name="body"), oc.scale_by_learning_rate(), learning_rate=0.1)
    assert repr(tx) == (
        "chain(\n"
        "    chain(\n"
        "        scale_by_adam(),\n"
        "        name='body',\n"
        "    ),\n"
        "    scale_by_learning_rate(),\n"
        "    learning_rate=0.1,\n"
        ")"
    )


def test_the_order_of_a_mask_dicts_keys_does_not_matter_to_equality():
    one, other = {"a": True, "b": False}, {"b": False, "a": True}
    assert oc.decay_weights(0.1, learning_rate=1.0, mask=one) == oc.decay_weights(0.1, learning_rate=1.0, mask=other)


def test_presets_with_equal_exclusions_are_equal_and_compile_once():
    def build():
        return oc.adamw(0.1, exclude_from_weight_decay={"a": True, "b": False}, use_ema=True)

    assert build() == build()
    assert hash(build()) == hash(build())


def test_a_config_is_not_changed_through_what_the_caller_gave():
    exclude, boundaries = ["bias"], [1, 2]
    tx = oc.adamw(0.1, exclude_from_weight_decay=exclude)
    scheduled = oc.sgd(oc.schedules.PiecewiseConstantDecay(boundaries, [1.0, 0.5, 0.1]))
    code, scheduled_code, key = repr(tx), repr(scheduled), hash(tx)
    exclude.append("kernel")
    boundaries.append(3)
    assert (repr(tx), repr(scheduled), hash(tx)) == (code, scheduled_code, key)
