"""What holds for every transformation on every tree and in every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc
from optchain.testing import CHECKS, forms

from . import table
from .table import ROWS, every_row, rows_where
from .trees import PLAIN, TREES, params_of

pytestmark = pytest.mark.each_value(of="the contract")

every_check = pytest.mark.parametrize("check", CHECKS)


@every_check
@every_row
def test_every_transformation_passes_every_check_of_optchain_testing(row, check):
    CHECKS[check](row)


@every_row
def test_apply_is_update_and_apply_updates_on_every_tree(row):
    forms.check_forms_agree(row, *((tree, "float32") for tree in TREES if tree != PLAIN))


@rows_where(lambda row: row.refuses_complex)
def test_rows_that_refuse_complex_leaves_say_so_at_init(row):
    with pytest.raises(TypeError, match=r"cannot \w+ complex values, and dense/bias is complex64"):
        row.make().init(params_of(PLAIN, jnp.complex64))


def test_float64_numpy_parameters_become_float32_without_a_warning():
    """As everywhere in JAX without x64; a warning is an error here."""
    params = {"w": np.ones(2)}
    tx = oc.adamw(0.1, use_ema=True, gradient_accumulation_steps=2)
    params, state = tx.apply(params, tx.init(params), grads=params)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_every_public_transformation_has_a_row():
    from optchain.core.registry import FACTORIES

    def names(tx):
        yield repr(tx).partition("(")[0]
        for link in tx.links:
            yield from names(link)

    covered = {name for row in ROWS for name in names(row.make())}
    ours = {name for name, factory in FACTORIES.items() if factory.__module__.startswith("optchain.")}
    assert {name for name in ours if hasattr(oc, name)} <= covered | table.ELSEWHERE.keys()
