"""Every recipe compiled for an H100, with no GPU: what a step would move and need there, next to Optax's.

CUDA's compiler is no dependency of the tests: without it they are left out, and say so.
"""

import functools

import jax.numpy as jnp
import pytest

from optchain.cli.bench import ahead, trees
from optchain.cli.bench.names import ContenderName, RecipeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.results import CompiledRow

pytest.importorskip("jax_cuda12_plugin", reason=f"left out: pip install {' '.join(ahead.CUDA_COMPILER)}")

BUDGETS = {
    RecipeName.ADAMW: (28, 28),
    RecipeName.GLOBAL_CLIP: (32, 32),
    RecipeName.CLIP_BY_NORM: (32, 32),
    RecipeName.AVERAGE: (36, 36),
    RecipeName.ACCUMULATE: (12, 40),  # a call that updates adds to the accumulator first, as any other
    RecipeName.SKIP_NONFINITE: (4, 32),
    RecipeName.KERAS_ARGUMENTS: (24, 56),
    RecipeName.EVERYTHING: (24, 60),
    RecipeName.SGD: (20, 20),
}
"""Bytes a parameter in float32: a call that takes the cheapest branch of every condition, and the dearest."""
NARROW_BUDGETS = {
    RecipeName.ACCUMULATE: (10, 34),
    RecipeName.SKIP_NONFINITE: (2, 24),
    RecipeName.EVERYTHING: (20, 52),
}
"""With parameters in bfloat16 and state in float32."""
SCALARS = 1.02
"""Norms, counts, the partial sums of reductions."""


@functools.cache
def row(recipe: RecipeName, contender: ContenderName, dtype: str = "float32") -> CompiledRow:
    shapes = trees.transformer(layers=1, width=512, dtype=jnp.dtype(dtype))
    (compiled,) = ahead.compile_all("h100", shapes, [recipe], [contender])
    return compiled


def assert_within(compiled: CompiledRow, waiting: float, updating: float) -> None:
    assert waiting * 0.99 <= compiled.waiting_bytes <= waiting * SCALARS
    assert updating * 0.99 <= compiled.updating_bytes <= updating * SCALARS
    assert compiled.temporary_bytes <= 0.1
    assert compiled.copied_arrays == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_step_moves_what_it_must_and_copies_nothing(recipe: RecipeName) -> None:
    assert_within(row(recipe, ContenderName.APPLY), *BUDGETS[recipe])


@pytest.mark.parametrize("recipe", NARROW_BUDGETS, ids=str)
def test_a_step_of_narrow_parameters_does_so_too(recipe: RecipeName) -> None:
    assert_within(row(recipe, ContenderName.APPLY, "bfloat16"), *NARROW_BUDGETS[recipe])


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_window_moves_no_more_than_that_of_optax(recipe: RecipeName) -> None:
    ours, theirs = row(recipe, ContenderName.APPLY), row(recipe, ContenderName.OPTAX)
    assert ours.mean_bytes <= theirs.mean_bytes * 1.005
