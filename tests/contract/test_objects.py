"""A transformation as a Python object: immutable, static, equal by value, printed as its code."""

import re

import jax.numpy as jnp
import pytest

import optchain as oc

from . import table
from .table import rows_where

NAMESPACE = {name: getattr(oc, name) for name in dir(oc) if not name.startswith("_")}
NAMESPACE |= {"jnp": jnp, **vars(oc.schedules)}
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
