"""Steps of packed state on a CPU: leaf by leaf, with the numbers of all at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from optchain.core import by_platform
from optchain.core.leaf_by_leaf import leaf_by_leaf

pytestmark = pytest.mark.programs

LEAVES, SIDE = 24, 256
SHAPES = {str(i): jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32) for i in range(LEAVES)}
NUMBERS = LEAVES * SIDE * SIDE


def temporary_bytes(tx: optchain.Transformation, params: Any) -> float:
    """Of a compiled step with donated parameters and state, for each parameter."""
    step = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g), donate_argnums=(0, 1))
    compiled = step.lower(params, jax.eval_shape(tx.init, SHAPES), params).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes / NUMBERS


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: optchain.compact(optchain.adamw(1e-3)), marks=pytest.mark.thorough, id="adamw"),
        pytest.param(lambda: optchain.compact(optchain.adamw(1e-3), weights=24), id="24 bits"),
        pytest.param(
            lambda: optchain.compact(optchain.adamw(1e-3, global_clipnorm=1.0, use_ema=True)),
            marks=pytest.mark.thorough,
            id="clip and average",
        ),
        pytest.param(
            lambda: optchain.skip_nonfinite(optchain.compact(optchain.adamw(1e-3), weights=24)),
            marks=pytest.mark.thorough,
            id="skip",
        ),
        pytest.param(
            lambda: optchain.compact(optchain.skip_nonfinite(optchain.adamw(1e-3))),
            marks=pytest.mark.thorough,
            id="skip within",
        ),
    ],
)
def test_a_step_needs_room_for_the_temporaries_of_few_leaves(make: Any) -> None:
    tx = make()
    params = jax.eval_shape(optchain.narrow, SHAPES) if "weights=24" in repr(tx) else SHAPES
    # Three leaves in float32; all leaves at once need 15 to 20 bytes a parameter.
    assert temporary_bytes(tx, params) <= 3 * 4 / LEAVES + 0.6


def test_what_leaves_share_is_computed_once_and_the_rest_for_each() -> None:
    leaves = {"a": jnp.arange(4.0), "b": jnp.ones((2, 3))}
    state = {"count": jnp.int32(3), "slot": {"a": jnp.zeros(4), "b": jnp.ones((2, 3))}, "average": dict(leaves)}

    def run(leaves: Any, state: Any) -> Any:
        norm = sum(jnp.sum(x * x) for x in jax.tree.leaves(leaves)) ** 0.5
        slot = jax.tree.map(lambda x, s: s + x / norm, leaves, state["slot"])
        new = jax.tree.map(lambda x, s: x - s, leaves, slot)
        average = jax.tree.map(lambda a, x: (a + x) / 2, state["average"], new)
        return new, {"count": state["count"] + 1, "slot": slot, "average": average}

    expected = run(leaves, state)
    found = jax.jit(lambda *given: leaf_by_leaf(run, *given))(leaves, state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), expected, found)
    loops = jax.jit(lambda *given: leaf_by_leaf(run, *given)).lower(leaves, state).as_text().count("stablehlo.while")
    assert loops == 2


@pytest.mark.parametrize("weights", [None, 32])
def test_the_numbers_are_those_of_all_leaves_at_once(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.standard_normal((64, 96)), jnp.float32) for name in "abc"}
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    tx = optchain.compact(optchain.adamw(1e-2, global_clipnorm=0.5), weights=weights)
    start = optchain.narrow(params) if weights else params

    def three_steps(params: Any) -> Any:
        state = tx.init(jax.tree.map(jnp.float32, params))
        step = jax.jit(lambda p, s: tx.apply(p, s, grads=grads))
        for _ in range(3):
            params, state = step(params, state)
        return params, state

    by_leaf = three_steps(start)
    monkeypatch.setattr("optchain.core.leaf_by_leaf.by_platform", lambda default, *operands, cpu: default(*operands))
    at_once = three_steps(start)
    # A number between two codes may fall to either when it is rounded otherwise.
    for x, y in zip(jax.tree.leaves(by_leaf[0]), jax.tree.leaves(at_once[0]), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=1e-5, atol=1e-5)


def test_a_form_for_a_platform_has_the_derivative_of_the_default() -> None:
    def squared(x: jax.Array) -> jax.Array:
        looped = jax.lax.while_loop  # no derivative in reverse mode
        (y,) = by_platform.by_platform(
            lambda x: [x * x],
            x,
            cpu=lambda x: [looped(lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] * c[1]), (jnp.int32(0), x))[1]],
        )
        return y

    assert jax.jit(squared)(3.0) == 9
    assert jax.grad(jax.jit(squared))(jnp.float32(3.0)) == 6
    np.testing.assert_array_equal(jax.vmap(squared)(jnp.arange(3.0)), [0, 1, 4])
