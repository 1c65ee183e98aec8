"""Every recipe compiled for TPUs, with no TPU: what a step would move and need there, next to Optax's.

`libtpu`, which compiles, is no dependency of the tests: without it they are left out, and say so.
"""

import functools

import jax.numpy as jnp
import pytest

from benchmarks import pods
from optchain.cli.bench import ahead, trees
from optchain.cli.bench.names import ContenderName, RecipeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.results import CompiledRow

pytest.importorskip("libtpu", reason="TPU programs were left out: pip install 'jax[tpu]'")

# As many parameters a device: what fits its vector memory whole is copied there before it is known that a call waits.
WIDTHS = {("v5e:2x2", "replicated"): 384, ("v5e:4x4", "sharded"): 4 * 384}
every_place = pytest.mark.parametrize(("topology", "layout"), WIDTHS, ids=lambda word: word)
ROUNDING = 1.005
"""Layouts round small leaves up to whole tiles."""
SCRATCH = 1.05
NORMS_OF_LEAVES = {RecipeName.CLIP_BY_NORM: 1.0, RecipeName.KERAS_ARGUMENTS: 1.0}
"""B/parameter of temporary memory that the norms of single leaves may cost besides: the factor of each has a power of two of its
own, and the compiler schedules these programs otherwise. Optax has 1.6 and 2.7 there."""


@functools.cache
def rows(topology: str, layout: str, recipe: RecipeName) -> dict[ContenderName, CompiledRow]:
    shapes = trees.transformer(layers=2, width=WIDTHS[topology, layout])
    both = [ContenderName.APPLY, ContenderName.OPTAX]
    compiled = ahead.compile_all(topology, shapes, [recipe], both, [layout])
    return {ContenderName(row.contender): row for row in compiled}


@every_place
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_step_moves_and_needs_no_more_than_that_of_optax(topology: str, layout: str, recipe: RecipeName) -> None:
    ours, theirs = (rows(topology, layout, recipe)[name] for name in (ContenderName.APPLY, ContenderName.OPTAX))
    assert ours.mean_bytes <= theirs.mean_bytes * ROUNDING
    assert ours.temporary_bytes <= theirs.temporary_bytes * SCRATCH + 0.01 + NORMS_OF_LEAVES.get(recipe, 0)


@every_place
def test_a_call_that_only_accumulates_moves_gradient_and_accumulator(topology: str, layout: str) -> None:
    row = rows(topology, layout, RecipeName.ACCUMULATE)[ContenderName.APPLY]
    assert 12 <= row.waiting_bytes <= 12.5


def test_a_call_that_waits_widens_no_narrow_parameter() -> None:
    """Where an average after the gate widens them, XLA would move that into the gate's branches: 12 bytes, and 3 temporary."""
    shapes = trees.transformer(layers=2, width=384, dtype=jnp.bfloat16)
    (row,) = ahead.compile_all("v5e:2x2", shapes, [RecipeName.EVERYTHING], [ContenderName.APPLY], ["replicated"])
    assert 20 <= row.waiting_bytes <= 21
    assert row.updating_bytes <= 44


@every_place
def test_adamw_moves_each_byte_once(topology: str, layout: str) -> None:
    row = rows(topology, layout, RecipeName.ADAMW)[ContenderName.APPLY]
    assert row.mean_bytes == pytest.approx(28, abs=0.1)


@functools.cache
def pod(layout: str) -> pods.PodRow:
    return pods.compile_step("v5e:2x2", layout, layers=1, width=256, vocabulary=1024, length=128)


def test_a_data_parallel_training_step_reduces_each_gradient_once_and_gathers_nothing() -> None:
    row = pod("data-parallel")
    assert row.reduced_arrays == row.gradients
    assert row.waiting.keys() == row.updating.keys() == {"all-reduce"}
    assert row.updating["all-reduce"] == (row.gradients, row.parameter_bytes)


def test_with_zero_one_a_chip_holds_its_part_of_the_state_and_none_of_it_travels() -> None:
    row, whole = pod("data-parallel, ZeRO-1"), pod("data-parallel")
    assert row.state_bytes <= whole.state_bytes * (1 / row.devices + 0.02)
    assert row.argument_bytes - whole.argument_bytes <= (row.state_bytes - whole.state_bytes) * 0.98
    assert row.state_arrays == 0
    # All but the embedding's, whose rows are gathered, and once; the new parameters only where there are some.
    assert row.reduced_arrays == row.gradients - 1
    assert row.waiting["reduce-scatter"] == row.updating["reduce-scatter"]
    assert row.waiting["all-gather"][0] <= 2 < row.updating["all-gather"][0] <= 2 + row.gradients
