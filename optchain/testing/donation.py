"""States and parameters can be donated: no two leaves share a buffer, with each other or with the caller."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.core.hyperparams import get_hyperparams, set_hyperparams
from optchain.core.lookup import find_fields
from optchain.core.metrics import metrics
from optchain.testing.steps import assert_close, assert_same, run
from optchain.testing.subject import Subject
from optchain.testing.trees import Tree


@functools.partial(jax.jit, donate_argnums=(1, 2))
def donated_step(tx: Any, params: Tree, state: Any, grads: Tree) -> Any:
    return tx.apply(params, state, grads=grads)


def assert_no_shared_buffers(*trees: Tree) -> None:
    found: dict[int, str] = {}
    for number, tree in enumerate(trees):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = f"tree {number}{jax.tree_util.keystr(path)}"
            pointer = leaf.unsafe_buffer_pointer() if leaf.size else id(leaf)
            if pointer in found:
                raise AssertionError(
                    f"{name} and {found[pointer]} share a buffer: donating one deletes the other. Copy"
                )
            found[pointer] = name


def init_shares_no_buffer(subject: Subject) -> None:
    params = subject.params()
    assert_no_shared_buffers(params, subject.make().init(params))


def a_donated_step_works_right_after_init(subject: Subject) -> None:
    for dtype in ("float32", "bfloat16"):
        tx, params = subject.make(), subject.params(dtype)
        state = tx.init(params)
        donated = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.ndim]
        expected = run(tx, subject.tree, dtype, steps=2)
        params, state = donated_step(tx, params, state, subject.grads(dtype=dtype))
        if not all(leaf.is_deleted() for leaf in donated):  # JAX keeps a scalar that the step does not read
            raise AssertionError("a donated buffer was not used again: an output has another shape or dtype")
        assert_same(donated_step(tx, params, state, subject.grads(1, dtype)), expected)


def a_donated_step_works_after_an_eager_step(subject: Subject) -> None:
    tx, params = subject.make(), subject.params()
    params, state = tx.apply(params, tx.init(params), grads=subject.grads())
    assert_no_shared_buffers(params, state)
    params, state = donated_step(tx, params, state, subject.grads(1))
    assert_close((params, state), run(tx, subject.tree, steps=2), roundings=32)  # eager arithmetic is not fused


def a_donated_step_works_after_an_eager_update(subject: Subject) -> None:
    tx, params = subject.make(), subject.params()
    state = tx.init(params)
    updates, state = tx.update(subject.grads(), state, params)
    params = optax.apply_updates(params, updates)
    assert_no_shared_buffers(params, state)
    params, state = donated_step(tx, params, state, subject.grads(1))
    assert_close((params, state), run(tx, subject.tree, steps=2), roundings=32)


def a_donated_step_works_after_set_hyperparams(subject: Subject) -> None:
    """With a NumPy scalar and with a JAX array, which stays the caller's."""
    tx, params = subject.make(), subject.params()
    state = tx.init(params)
    scheduled = {name for field in find_fields(state, "scheduled") for name in (field.name, field.key)}
    for make in (np.float32, jnp.float32):
        given = {key: make(0.25) for key in get_hyperparams(state) if key not in scheduled}
        state = set_hyperparams(state, given)
        assert_no_shared_buffers(params, state, [jnp.asarray(value) for value in given.values()])
        params, state = donated_step(tx, params, state, subject.grads())
        for key, value in given.items():
            if not float(value) == float(get_hyperparams(state)[key]) == 0.25:
                raise AssertionError(f"{key} was set to 0.25 and is {get_hyperparams(state)[key]}")


def what_readers_return_is_not_the_states(subject: Subject) -> None:
    tx, params = subject.make(), subject.params()
    state = tx.init(params)
    assert_no_shared_buffers(params, state, get_hyperparams(state), metrics(state))


CHECKS = (
    init_shares_no_buffer,
    a_donated_step_works_right_after_init,
    a_donated_step_works_after_an_eager_step,
    a_donated_step_works_after_an_eager_update,
    a_donated_step_works_after_set_hyperparams,
    what_readers_return_is_not_the_states,
)
