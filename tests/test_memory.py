"""What a step may cost, counted in bytes by the compiler: exact, without a clock.

The recipes are those of `optchain bench`, on the shapes of a small transformer; parameters and state are donated.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

import optchain
from optchain.cli.bench import counts, trees
from optchain.cli.bench.contenders import optax_chain, ours
from optchain.cli.bench.counts import Counts
from optchain.cli.bench.names import RecipeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.traffic import traffic

pytestmark = [pytest.mark.each_value, pytest.mark.programs]

LAYERS, WIDTH = 2, 256
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


@pytest.mark.thorough
@every_recipe
def test_update_needs_at_most_one_temporary_tree(recipe: RecipeName) -> None:
    assert counted(recipe, "float32", "update").temporary_bytes <= 4.01


@pytest.mark.thorough
@every_dtype
@pytest.mark.parametrize("form", ["apply", "update"])
@every_recipe
def test_every_donated_leaf_is_reused(recipe: RecipeName, form: str, dtype: str) -> None:
    # A scalar that passes through unchanged is handed on, not aliased; no leaf is that small.
    assert 0 <= counted(recipe, dtype, form).not_aliased_bytes <= SCALARS


@pytest.mark.thorough
@every_recipe
def test_a_step_needs_and_moves_no_more_than_that_of_optax(recipe: RecipeName) -> None:
    mine, theirs = counted(recipe, "float32", "apply"), counted(recipe, "float32", "optax")
    assert mine.temporary_bytes <= theirs.temporary_bytes + SCALARS + norms_of(recipe)
    assert moved(recipe, "apply") <= moved(recipe, "optax") + SCALARS


def norms_of(recipe: RecipeName) -> float:
    """Bytes per parameter of the scalar that a norm of each leaf takes more, since a branch may take it again; XLA aligns it."""
    leaves = jax.tree.leaves(trees.transformer(LAYERS, WIDTH, jnp.dtype("float32")))
    return 64 * len(leaves) / trees.size(leaves) if RECIPES[recipe].clip_by_norm else 0.0


def moved(recipe: RecipeName, form: str) -> float:
    """Bytes per parameter that the dearest call reads and writes. XLA's own count adds up the branches of a condition."""
    functions, params = FORMS[form](RECIPES[recipe]), trees.transformer(LAYERS, WIDTH, jnp.dtype("float32"))
    compiled, _ = counts.compile_step(functions, params, jax.eval_shape(functions.init, params), params)
    return traffic(compiled.as_text()).most / trees.size(params)


@pytest.mark.thorough
def test_an_accumulating_step_of_optax_needs_trees() -> None:
    assert counted(RecipeName.ACCUMULATE, "float32", "optax").temporary_bytes >= 4


# What no recipe of the benchmark has ---------------------------------------------------------------------------------

ADAMW = optchain.adamw(1e-3)
OTHERS = {
    "rmsprop": optchain.rmsprop(1e-3, momentum=0.9, centered=True),
    "nadam": optchain.nadam(1e-3),
    "adaptive_grad_clip": optchain.chain(optchain.adaptive_grad_clip(0.01), ADAMW),
    "clip_by_block_rms": optchain.chain(optchain.clip_by_block_rms(1.0), ADAMW),
    "centralize_gradients": optchain.chain(optchain.centralize_gradients(), ADAMW),
    "project_max_norm": optchain.chain(ADAMW, optchain.project_max_norm()),
    "freeze": optchain.freeze(optchain.adamw(1e-3, global_clipnorm=1.0), optchain.matching("^layer_00/")),
    "multi_optimizer": optchain.multi_optimizer(
        ("attention", "query|key|value|out", optchain.adamw(1e-3, global_clipnorm=1.0)),
        default=optchain.sgd(1e-3, momentum=0.9, use_ema=True),
    ),
}


def counted_of(tx: optchain.Transformation, dtype: str = "float32", layers: int = LAYERS) -> Counts:
    return counts.count(ours.applying(tx), trees.transformer(layers, WIDTH, jnp.dtype(dtype)))


@pytest.mark.thorough
@every_dtype
@pytest.mark.parametrize("name", OTHERS)
def test_no_link_needs_a_temporary_tree(name: str, dtype: str) -> None:
    counted = counted_of(OTHERS[name], dtype)
    assert counted.temporary_bytes <= 0.1
    assert 0 <= counted.not_aliased_bytes <= SCALARS


def accessed(tx: optchain.Transformation, layers: int = LAYERS) -> float:
    """Bytes that a step reads and writes."""
    bytes_accessed = counted_of(tx, layers=layers).bytes_accessed
    assert bytes_accessed is not None
    return bytes_accessed * trees.size(trees.transformer(layers, WIDTH))


@pytest.mark.thorough
def test_what_is_frozen_moves_no_bytes() -> None:
    """A frozen parameter costs nothing: what a step reads and writes is what it does for the others alone."""
    assert accessed(OTHERS["freeze"]) <= 1.01 * accessed(optchain.adamw(1e-3, global_clipnorm=1.0), LAYERS - 1)


def test_one_recipe_in_two_groups_costs_what_it_costs_alone() -> None:
    grouped = optchain.multi_optimizer(("attention", "query|key|value|out", ADAMW), default=ADAMW)
    assert accessed(grouped) <= 1.01 * accessed(ADAMW)


def test_a_projection_of_single_values_adds_no_pass() -> None:
    assert accessed(optchain.chain(ADAMW, optchain.project_non_negative())) == accessed(ADAMW)
