"""Checks under every transform of JAX: jit, scan, vmap, grad, export, and the settings that are strict."""

import contextlib
import importlib.util
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from optchain.core.hyperparams import get_hyperparams, set_hyperparams
from optchain.core.lookup import find_fields
from optchain.core.precision import enable_x64
from optchain.testing.steps import (
    STEPS,
    apply_step,
    assert_close,
    assert_finite,
    assert_same,
    assert_same_avals,
    run,
    update_step,
)
from optchain.testing.subject import Subject

EAGER_ROUNDINGS = 32  # XLA fuses and contracts under jit: a few roundings a step, over several steps


def jit_gives_the_numbers_of_the_eager_run(subject: Subject) -> None:
    tx = subject.make()
    expected = run(tx, subject.tree)
    params = subject.params()
    state = tx.init(params)
    for number in range(STEPS):
        params, state = tx.apply(params, state, grads=subject.grads(number))
    assert_same_avals((params, state), expected, "an eager run, next to a compiled one")
    assert_close((params, state), expected, roundings=EAGER_ROUNDINGS)


def scan_gives_the_numbers_of_the_loop(subject: Subject) -> None:
    tx, params = subject.make(), subject.params()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(subject.grads(step) for step in range(5)))

    @jax.jit
    def scanned(params: Any, state: Any, grads: Any) -> Any:
        return jax.lax.scan(lambda carry, g: (tx.apply(*carry, grads=g), None), (params, state), grads)[0]

    expected = run(tx, subject.tree, steps=5)
    assert_close(scanned(params, tx.init(params), stacked), expected, roundings=EAGER_ROUNDINGS)


def vmap_over_parameters_gives_each_member_its_own_run(subject: Subject) -> None:
    tx = subject.make()
    members = [
        (subject.params(), subject.grads()),
        (subject.grads(1), subject.grads(2)),
        (subject.grads(3), subject.params()),
    ]
    params, grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    @jax.jit
    @jax.vmap
    def both(params: Any, grads: Any) -> Any:
        carry = tx.apply(params, tx.init(params), grads=grads)
        return tx.apply(*carry, grads=params)

    batched = both(params, grads)
    for index, (member_params, member_grads) in enumerate(members):
        carry = apply_step(tx, member_params, tx.init(member_params), member_grads)
        expected = apply_step(tx, *carry, member_params)
        assert_close(jax.tree.map(lambda x, i=index: x[i], batched), expected, roundings=EAGER_ROUNDINGS)


def vmap_over_a_state_runs_ten_learning_rates_at_once(subject: Subject) -> None:
    tx, params = subject.make(), subject.params()
    state = tx.init(params)
    rates = np.linspace(0.1, 0.2, 10)
    scheduled = {field.key for field in find_fields(state, "scheduled")}
    settable = [
        key for key in get_hyperparams(state) if key.rpartition("/")[2] == "learning_rate" and key not in scheduled
    ]
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (10, *jnp.shape(x))), state)
    states = set_hyperparams(states, dict.fromkeys(settable, rates))
    assert_same_avals(jax.tree.map(lambda x: x[0], states), state, "one of the states")
    grads = [subject.grads(step) for step in range(2)]

    @jax.jit
    def steps(state: Any) -> Any:
        return tx.apply(*tx.apply(params, state, grads=grads[0]), grads=grads[1])

    batched = jax.jit(jax.vmap(steps, axis_size=10))(states)
    for index in (0, 9):
        expected = steps(set_hyperparams(state, dict.fromkeys(settable, rates[index])))
        assert_close(jax.tree.map(lambda x, i=index: x[i], batched), expected, roundings=EAGER_ROUNDINGS)


def the_gradient_through_two_steps_is_finite_at_zero(subject: Subject) -> None:
    """Norms and roots have no derivative at zero; ours have the derivative 0 there, Optax's Adam has NaN."""
    if not subject.owns_all_state:
        return
    tx = subject.make()
    zeros = jax.tree.map(jnp.zeros_like, subject.params())
    state = tx.init(zeros)

    @jax.jit
    @jax.grad
    def gradient(inputs: Any) -> Any:
        params, grads = inputs
        params, new_state = tx.apply(params, state, grads=grads)
        params, _ = tx.apply(params, new_state, grads=jax.tree.map(jnp.add, grads, params))
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    assert_finite(gradient((zeros, zeros)), "the gradient through two steps at zero")


def zero_gradients_and_parameters_stay_finite(subject: Subject) -> None:
    tx = subject.make()
    zeros = jax.tree.map(jnp.zeros_like, subject.params())
    params, state = zeros, tx.init(zeros)
    for _ in range(STEPS):
        params, state = apply_step(tx, params, state, zeros)
    if subject.zero_is_fixed_point:
        assert_same(params, zeros)
    assert_finite(state, "the state after zero gradients")


def strict_promotion_holds_in_both_forms(subject: Subject) -> None:
    """Promotion is decided when a step is traced, so tracing is the test. Optax's own Adam does not trace under it."""
    if not subject.owns_all_state:
        return
    dtypes = ["float32", "bfloat16", *["complex64"] * (not subject.refuses_complex)]
    for dtype, x64 in [(dtype, x64) for dtype in dtypes for x64 in (False, True)]:
        strict = [jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), enable_x64(x64)]
        with contextlib.ExitStack() as stack:
            for context in strict:
                stack.enter_context(context)
            tx, params, grads = subject.make(), subject.params(dtype), subject.grads(dtype=dtype)
            state = tx.init(params)
            new = jax.eval_shape(lambda p, s, g, tx=tx: tx.apply(p, s, grads=g), params, state, grads)
            assert_same_avals(new, (params, state), "apply")
            updates, new_state = jax.eval_shape(tx.update, grads, state, params)
            assert_same_avals((updates, new_state), (grads, state), "update")


def debug_nans_finds_none(subject: Subject) -> None:
    with jax.debug_nans(True):
        zeros = jax.tree.map(jnp.zeros_like, subject.params())
        tx = subject.make()
        for params, grads in ((subject.params(), subject.grads()), (zeros, zeros)):
            state = tx.init(params)
            for step in (apply_step, update_step):
                assert_finite(step(tx, params, state, grads)[0], "the parameters")


def a_static_jit_argument_does_not_retrace(subject: Subject) -> None:
    """Building the same configuration again, as a function of a training script does, compiles nothing."""
    traces = 0

    @jax.jit
    def step(tx: Any, params: Any, state: Any, grads: Any) -> Any:
        nonlocal traces
        traces += 1
        return tx.apply(params, state, grads=grads)

    params, state = subject.params(), {}
    for number in range(3):
        tx = subject.make()
        state = tx.init(params)
        params, state = step(tx, params, state, subject.grads(number))
    if traces != 1:
        raise AssertionError(
            f"three transformations built alike made a jitted step trace {traces} times: decorate the function that "
            "builds it with optchain.register, and give it arguments that compare by value"
        )
    step(subject.make(), params, state, subject.grads())
    if traces != 1:
        raise AssertionError("the state that a step returns is another type than init's")


def an_exported_step_gives_the_same_numbers(subject: Subject) -> None:
    if not subject.owns_all_state:
        return
    tx, params = subject.make(), subject.params()
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        return tx.apply(params, state, grads=grads)

    if not subject.exports:
        try:
            jax.export.export(step)(params, state, subject.grads()).serialize()
        except (ValueError, NotImplementedError) as error:
            if "call" not in str(error).lower():
                raise
            return
        raise AssertionError("it exports, and is said not to")
    exported = jax.export.export(step)(params, state, subject.grads())
    if importlib.util.find_spec("flatbuffers"):  # what JAX needs to write it down
        exported = jax.export.deserialize(exported.serialize())
    carry = exported.call(params, state, subject.grads())
    assert_same(exported.call(*carry, subject.grads(1)), run(tx, subject.tree, steps=2))


CHECKS = (
    jit_gives_the_numbers_of_the_eager_run,
    scan_gives_the_numbers_of_the_loop,
    vmap_over_parameters_gives_each_member_its_own_run,
    vmap_over_a_state_runs_ten_learning_rates_at_once,
    the_gradient_through_two_steps_is_finite_at_zero,
    zero_gradients_and_parameters_stay_finite,
    strict_promotion_holds_in_both_forms,
    debug_nans_finds_none,
    a_static_jit_argument_does_not_retrace,
    an_exported_step_gives_the_same_numbers,
)
