"""What a step may cost, counted in bytes by the compiler: exact, without a clock.

A tree of the size of a small transformer; parameters and state donated, as `make_step` does.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

import optchain

WIDTH, LAYERS = 256, 4

RECIPES = {
    "adamw": lambda: optchain.adamw(1e-3),
    "adamw, global clip": lambda: optchain.adamw(1e-3, global_clipnorm=1.0),
    "adamw, clip by norm": lambda: optchain.adamw(1e-3, clipnorm=1.0),
    "adamw, average": lambda: optchain.adamw(1e-3, use_ema=True),
    "adamw, accumulate": lambda: optchain.adamw(1e-3, gradient_accumulation_steps=4),
    "sgd, momentum": lambda: optchain.sgd(1e-3, momentum=0.9),
    "adamw, half of it frozen": lambda: optchain.freeze(
        optchain.adamw(1e-3, global_clipnorm=1.0), optchain.matching("^layer_[01]/")
    ),
    "adamw, adaptive clip": lambda: optchain.chain(optchain.adaptive_grad_clip(0.01), optchain.adamw(1e-3)),
    "adamw, clip by block RMS": lambda: optchain.chain(optchain.clip_by_block_rms(1.0), optchain.adamw(1e-3)),
    "adamw, centralized": lambda: optchain.chain(optchain.centralize_gradients(), optchain.adamw(1e-3)),
    "two groups": lambda: optchain.multi_optimizer(
        ("attention", "query|key|value|out", optchain.adamw(1e-3, global_clipnorm=1.0)),
        default=optchain.sgd(1e-3, momentum=0.9, use_ema=True),
    ),
}
EVERYTHING = optchain.adamw(1e-3, global_clipnorm=1.0, use_ema=True, gradient_accumulation_steps=4)


def transformer(dtype):
    def layer():
        shapes = {"query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH), "out": (WIDTH, WIDTH)}
        shapes |= {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH), "bias": (WIDTH,), "scale": (WIDTH,)}
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}

    return {f"layer_{i}": layer() for i in range(LAYERS)}


def memory(tx, dtype, form):
    """The compiler's memory analysis of a donated step, and the number of parameters."""

    def apply(params, state, grads):
        return tx.apply(params, state, grads=grads)

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = transformer(dtype)
    state = jax.eval_shape(tx.init, params)
    step = jax.jit({"apply": apply, "update": update}[form], donate_argnums=(0, 1))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    donated = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, state)))
    return step.lower(params, state, params).compile().memory_analysis(), size, donated


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_apply_needs_no_temporary_tree(recipe, dtype):
    analysis, size, _ = memory(RECIPES[recipe](), dtype, "apply")
    assert analysis.temp_size_in_bytes / size <= 0.1


@pytest.mark.parametrize("recipe", RECIPES)
def test_update_needs_at_most_one_temporary_tree(recipe):
    analysis, size, _ = memory(RECIPES[recipe](), jnp.float32, "update")
    assert analysis.temp_size_in_bytes / size <= 4.01


def test_everything_together_needs_at_most_one_temporary_tree():
    analysis, size, _ = memory(EVERYTHING, jnp.float32, "apply")
    assert analysis.temp_size_in_bytes / size <= 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_donated_leaf_is_reused(recipe):
    analysis, _, donated = memory(RECIPES[recipe](), jnp.float32, "apply")
    # A scalar that passes through unchanged is handed on, not aliased; no leaf is that small.
    assert 0 <= donated - analysis.alias_size_in_bytes < 4 * WIDTH


def test_accumulate_needs_less_memory_than_multi_steps():
    multi_steps = optax.MultiSteps(optax.adamw(1e-3), 4)
    theirs, size, _ = memory(multi_steps, jnp.float32, "update")
    ours, _, _ = memory(RECIPES["adamw, accumulate"](), jnp.float32, "apply")
    assert ours.temp_size_in_bytes / size <= 0.1
    assert theirs.temp_size_in_bytes / size >= 4


def test_what_is_frozen_moves_no_bytes():
    """A frozen parameter costs nothing: what a step reads and writes is what it does for the others alone."""
    others = {name: layer for name, layer in transformer(jnp.float32).items() if name in ("layer_2", "layer_3")}
    frozen = accessed(RECIPES["adamw, half of it frozen"](), transformer(jnp.float32))
    assert frozen <= 1.01 * accessed(optchain.adamw(1e-3, global_clipnorm=1.0), others)


def test_one_recipe_in_two_groups_costs_what_it_costs_alone():
    grouped = optchain.multi_optimizer(
        ("attention", "query|key|value|out", optchain.adamw(1e-3)), default=optchain.adamw(1e-3)
    )
    params = transformer(jnp.float32)
    assert accessed(grouped, params) <= 1.01 * accessed(optchain.adamw(1e-3), params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_projection_of_norms_needs_no_temporary_tree(dtype):
    analysis, size, _ = memory(optchain.chain(optchain.adamw(1e-3), optchain.project_max_norm()), dtype, "apply")
    assert analysis.temp_size_in_bytes / size <= 0.1


def test_a_projection_of_single_values_adds_no_pass():
    params = transformer(jnp.float32)
    projected = optchain.chain(optchain.adamw(1e-3), optchain.project_non_negative())
    assert accessed(projected, params) == accessed(optchain.adamw(1e-3), params)


def accessed(tx, params):
    """The bytes that a step reads and writes, by the compiler's count."""
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads), donate_argnums=(0, 1))
    compiled = step.lower(params, jax.eval_shape(tx.init, params), params).compile()
    return compiled.cost_analysis()["bytes accessed"]
