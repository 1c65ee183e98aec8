"""A transformation is one of Optax's: it works inside Optax's combinators, and inside a chain of ours."""

from typing import Any

import jax
import optax

from optchain.core.chain import chain
from optchain.testing.steps import STEPS, assert_close, run, update_step
from optchain.testing.subject import Subject
from optchain.testing.trees import Tree


def update_like(tx: optax.GradientTransformation) -> Any:
    @jax.jit
    def step(params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run_wrapped(tx: optax.GradientTransformation, subject: Subject, steps: int = STEPS) -> tuple[Tree, Any]:
    step = update_like(tx)
    params = subject.params()
    state = tx.init(params)
    for number in range(steps):
        params, state = step(params, state, subject.grads(number))
    return params, state


def it_works_as_the_last_link_of_an_optax_chain(subject: Subject) -> None:
    tx = subject.make()
    params, state = run_wrapped(optax.chain(optax.identity(), tx), subject)
    expected = run(tx, subject.tree, step=update_step)
    assert_close(params, expected[0])
    assert_close(state[1], expected[1])


def a_tree_that_is_masked_out_whole_is_no_error(subject: Subject) -> None:
    params, grads = subject.params(), subject.grads()
    tx = optax.masked(subject.make(), jax.tree.map(lambda _: False, params))
    after, _ = run_wrapped(tx, subject, steps=1)
    assert_close(after, optax.apply_updates(params, grads))  # Optax passes masked gradients through


def it_works_inside_a_chain_of_ours(subject: Subject) -> None:
    tx = subject.make()
    params, state = run(chain(("inside", tx)), subject.tree)
    expected = run(tx, subject.tree)
    assert_close(params, expected[0])
    assert_close(state.get("inside", {}), expected[1])


def it_works_inside_multi_steps(subject: Subject) -> None:
    """Optax's own accumulation traces both branches of a cond: dtypes must agree."""
    tx = subject.make()
    params, state = run_wrapped(optax.MultiSteps(tx, 2).gradient_transformation(), subject, steps=2)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, subject.grads(0), subject.grads(1))
    first = subject.params()
    expected = update_step(tx, first, tx.init(first), mean)
    assert_close((params, state.inner_opt_state), expected)


CHECKS = (
    it_works_as_the_last_link_of_an_optax_chain,
    a_tree_that_is_masked_out_whole_is_no_error,
    it_works_inside_a_chain_of_ours,
    it_works_inside_multi_steps,
)
