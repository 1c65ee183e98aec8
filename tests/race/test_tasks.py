"""The tasks of a race: what they train, what they hold out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from optchain.cli.race.tasks import TASKS, chars, text
from optchain.cli.race.tasks.digits import Convolution
from optchain.race import Task
from optchain.rows.embedding import value_and_grad

KEY = jax.random.key(0)
PARAMETERS = {
    "digits": (50_000, 55_000),
    "conv": (5_000, 7_000),
    "chars": (780_000, 850_000),
    "autoencoder": (30_000, 40_000),
    "skip-gram": (80_000, 90_000),
}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]()


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.for_release
def test_a_step_down_the_gradient_lowers_the_loss_and_the_held_out_loss(task: Task):
    @jax.jit
    def losses(key: jax.Array) -> tuple[jax.Array, ...]:
        params, batch = task.init(key), task.batch(key)
        before, grads = jax.value_and_grad(task.loss)(params, batch)
        length = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        after = jax.tree.map(lambda p, g: p - 0.05 * g / length, params, grads)
        return before, task.loss(after, batch), task.held_out_loss(params), task.held_out_loss(after)

    before, after, held_out, held_out_after = losses(KEY)
    assert after < before
    assert held_out_after < held_out
    assert np.isfinite([before, held_out]).all()


@pytest.mark.thorough
def test_a_batch_is_a_function_of_its_key_and_every_part_has_the_axis_of_examples(task: Task):
    first, again, other = (jax.jit(task.batch)(jax.random.key(seed)) for seed in (1, 1, 2))
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(first)}
    assert len(lengths) == 1
    assert lengths.pop() % 4 == 0  # a quarter can be accumulated
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))


def test_it_is_as_large_as_it_says(task: Task):
    low, high = PARAMETERS[task.name]
    assert low < size(jax.eval_shape(task.init, KEY)) < high
    assert task.steps % task.evaluations == 0
    assert task.target is not None
    assert task.about


def test_the_text_is_split_once_and_for_all():
    numbers, characters = text.characters()
    train, held_out = text.split(numbers)
    assert len(numbers) > 400_000
    assert 90 < characters < 256
    assert len(held_out) == pytest.approx(0.1 * len(numbers), abs=1)
    assert np.array_equal(np.concatenate([train, held_out]), numbers)
    words, counts = text.words()
    assert np.array_equal(np.bincount(words), counts)
    assert counts.min() >= text.FEWEST


@pytest.mark.for_release
def test_scanned_blocks_are_the_list_of_blocks():
    listed, scanned = chars(), chars(scanned=True)
    assert (listed.name, scanned.name, chars(tied=True).name) == ("chars", "chars-scanned", "chars-tied")
    params = listed.init(KEY)
    blocks = [params[f"block_{number}"] for number in range(4)]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block_")}
    stacked = rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
    assert jax.tree.structure(jax.eval_shape(scanned.init, KEY)) == jax.tree.structure(stacked)
    batch = listed.batch(KEY)
    np.testing.assert_allclose(jax.jit(scanned.loss)(stacked, batch), jax.jit(listed.loss)(params, batch), rtol=1e-5)


@pytest.mark.for_release
def test_a_tied_embedding_is_the_last_layer_too():
    free, tied = (jax.eval_shape(chars(tied=tied).init, KEY) for tied in (False, True))
    assert size(free) - size(tied) == free["head"]["kernel"].size
    grads = jax.jit(jax.grad(chars(tied=True).loss))(chars(tied=True).init(KEY), chars().batch(KEY))
    assert np.abs(grads["embedding"]["embedding"]).sum(-1).all()  # of characters too that the batch has not


@pytest.mark.thorough
def test_no_place_of_the_text_model_sees_what_comes_after_it():
    task = chars()
    params, batch = jax.jit(task.init)(KEY), task.batch(KEY)

    @jax.jit
    def first_half(windows: jax.Array) -> jax.Array:
        from optchain.cli.race.tasks.chars import Transformer

        _, characters = text.characters()
        model = Transformer(characters, False, False)
        return model.apply({"params": params}, windows[:, :-1].astype(jnp.int32))[:, :32]  # pyright: ignore

    changed = batch.at[:, 40:].set(0)
    np.testing.assert_allclose(first_half(batch), first_half(changed), atol=1e-5)


@pytest.mark.thorough
def test_the_gradients_of_skip_gram_name_rows():
    task = TASKS["skip-gram"]()
    _, grads = value_and_grad(task.loss)(task.init(KEY), task.batch(KEY))
    assert all(isinstance(g, optchain.RowGradient) for g in grads.values())


@pytest.mark.thorough
def test_the_convolution_is_a_convolution():
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    layer = Convolution(5)
    params = layer.init(KEY, images)
    expected = jax.lax.conv_general_dilated(
        images, params["params"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer.apply(params, images), expected, atol=1e-5)
