"""Every recipe, in every way over eight devices, has the numbers of one: parameters and state, in float64."""

import functools
from collections.abc import Iterator

import jax
import pytest

import optchain as oc

from .runs import (
    DEVICES,
    RECIPES,
    WAYS,
    Recipe,
    batches,
    distance,
    on_one_device,
    split_in_shard_map,
    targets,
    worst_difference,
)

pytestmark = pytest.mark.each_value

TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def expected(recipe: Recipe):
    return on_one_device(recipe.make(None), batches(one_is_bad=recipe.one_batch_is_bad))


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_eight_devices_have_the_numbers_of_one(recipe, way, record_difference):
    tx, data = recipe.make(None), batches(one_is_bad=recipe.one_batch_is_bad)
    difference = worst_difference(WAYS[way](tx, data), expected(recipe))
    record_difference((recipe.name, way, str(DEVICES)), difference)
    assert difference <= TOLERANCE


GROUPS = Recipe(
    "groups with gates of their own, one frozen",
    lambda axis: oc.freeze(
        oc.multi_optimizer(
            ("kernels", oc.matching("kernel"), oc.adamw(0.1, gradient_accumulation_steps=2, use_ema=True)),
            default=oc.skip_nonfinite(oc.sgd(0.1, 0.9)),
        ),
        oc.matching("scale"),
    ),
)


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["jit, data-parallel, ZeRO-1, explicit axes", "jit, tensor-parallel, ZeRO-1"])
def test_gates_that_see_some_of_the_parameters_keep_their_layout(way, record_difference):
    data = batches(one_is_bad=False)
    difference = worst_difference(WAYS[way](GROUPS.make(None), data), expected(GROUPS))
    record_difference((GROUPS.name, way, str(DEVICES)), difference)
    assert difference <= TOLERANCE


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.takes_axis_name], ids=str)
def test_parameters_split_by_hand_have_the_numbers_of_one_device(recipe, record_difference):
    data = targets(one_is_bad=recipe.one_batch_is_bad)
    actual = split_in_shard_map(recipe.make("model"), data)
    difference = worst_difference(actual, on_one_device(recipe.make(None), data, distance))
    record_difference((recipe.name, "shard_map, split parameters", str(DEVICES)), difference)
    assert difference <= TOLERANCE
