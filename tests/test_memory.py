"""What a step may cost, counted in bytes by the compiler: exact, without a clock.

The recipes are those of `optchain bench`, on the shapes of a small transformer; parameters and state are donated.
"""

import functools

import jax.numpy as jnp
import pytest

from optchain.cli.bench import counts, trees
from optchain.cli.bench.contenders import optax_chain, ours
from optchain.cli.bench.counts import Counts
from optchain.cli.bench.names import RecipeName
from optchain.cli.bench.recipes import RECIPES

LAYERS, WIDTH = 4, 256
SCALARS = 1e-3
"""Bytes per parameter: what a few hundred scalars come to."""
FORMS = {"apply": ours.apply_form, "update": ours.update_form, "optax": optax_chain.step_functions}

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@functools.cache
def counted(recipe: RecipeName, dtype: str, form: str) -> Counts:
    return counts.count(FORMS[form](RECIPES[recipe]), trees.transformer(LAYERS, WIDTH, jnp.dtype(dtype)))


@every_dtype
@every_recipe
def test_apply_needs_no_temporary_tree(recipe: RecipeName, dtype: str) -> None:
    assert counted(recipe, dtype, "apply").temporary_bytes <= 0.1


@every_recipe
def test_update_needs_at_most_one_temporary_tree(recipe: RecipeName) -> None:
    assert counted(recipe, "float32", "update").temporary_bytes <= 4.01


@every_dtype
@pytest.mark.parametrize("form", ["apply", "update"])
@every_recipe
def test_every_donated_leaf_is_reused(recipe: RecipeName, form: str, dtype: str) -> None:
    # A scalar that passes through unchanged is handed on, not aliased; no leaf is that small.
    assert 0 <= counted(recipe, dtype, form).not_aliased_bytes <= SCALARS


@every_recipe
def test_a_step_needs_and_moves_no_more_than_that_of_optax(recipe: RecipeName) -> None:
    mine, theirs = counted(recipe, "float32", "apply"), counted(recipe, "float32", "optax")
    assert mine.temporary_bytes <= theirs.temporary_bytes + SCALARS
    assert mine.bytes_accessed is not None
    assert theirs.bytes_accessed is not None
    assert mine.bytes_accessed <= theirs.bytes_accessed + SCALARS


def test_an_accumulating_step_of_optax_needs_trees() -> None:
    assert counted(RecipeName.ACCUMULATE, "float32", "optax").temporary_bytes >= 4
