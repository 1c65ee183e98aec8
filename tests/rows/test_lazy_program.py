"""The compiled lazy step: in place, and of a size that does not depend on the table's."""

import re

import jax
import jax.numpy as jnp
import pytest

import optchain as oc

pytestmark = pytest.mark.programs

WIDTH, BATCH = 64, 32
RECIPES = {
    "adamw": lambda: oc.adamw(0.1, global_clipnorm=1.0, use_ema=True, lazy=True),
    "catch_up": lambda: oc.lazy_rows(oc.adam(0.1), catch_up=True),
    "gate": lambda: oc.skip_nonfinite(oc.adam(0.1, lazy=True)),
}


def compiled(tx, height):
    def loss_fn(params, ids):
        return jnp.sum((oc.rows_of(params["table"], ids) @ params["head"]) ** 2)

    params = {
        "head": jax.ShapeDtypeStruct((WIDTH,), jnp.float32),
        "table": jax.ShapeDtypeStruct((height, WIDTH), jnp.float32),
    }
    ids = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return oc.make_step(loss_fn, tx).lower(params, jax.eval_shape(tx.init, params), ids).compile()


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_works_in_place_and_needs_no_more_memory_for_a_longer_table(recipe):
    short, long = (compiled(RECIPES[recipe](), height) for height in (10_000, 40_000))
    memory = long.memory_analysis()
    assert memory.temp_size_in_bytes < 40 * BATCH * WIDTH * 4
    assert memory.temp_size_in_bytes == short.memory_analysis().temp_size_in_bytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 4096  # metrics and the pointers of a tuple
    assert not re.search(r"f32\[40000,64\]\S* (copy|broadcast|multiply|add)\(", long.as_text())
