"""Checks of `init`, `update` and `apply`: the two forms agree, dtypes stay, nothing that a caller holds is written to."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
from optchain.testing.trees import Tree, grads_of, params_of

NARROW = ("bfloat16", "float16")


def check_forms_agree(subject: Subject, *cases: tuple[Any, str]) -> None:
    """Steps from the same state in both forms give the same, and leave structure, shapes and dtypes alone.

    Args:
      cases: trees and dtypes. They are steps of one program: compiling one of many parts takes a fifth of the time of many.
    """
    tx = subject.make()

    @jax.jit
    def both_forms(carries: list[Any], grads: list[Tree]) -> list[Any]:
        pairs = list(zip(carries, grads, strict=True))
        return [(apply_step(tx, *carry, g), update_step(tx, *carry, g)) for carry, g in pairs]

    carries = [(params, tx.init(params)) for params in (params_of(*case) for case in cases)]
    for number in range(STEPS):
        stepped = both_forms(carries, [grads_of(*case, number) for case in cases])
        for (tree, dtype), (params, state), (by_apply, by_update) in zip(cases, carries, stepped, strict=True):
            where = f"on {tree if isinstance(tree, str) else 'the parameters'} in {dtype}, after a step"
            assert_same_avals(by_apply[0], params, f"the parameters {where}")
            assert_same_avals(by_apply[1], state, f"the state {where}")
            assert_same_avals(by_update[0], params, f"the parameters {where} by update and optax.apply_updates")
            assert_close(by_update, by_apply, dtype, what=f"update {where}")
        carries = [by_apply for by_apply, _ in stepped]
    assert_finite(carries, "after some steps")


def apply_is_update_and_apply_updates(subject: Subject) -> None:
    check_forms_agree(subject, (subject.tree, "float32"))


def both_forms_agree_in_narrow_dtypes(subject: Subject) -> None:
    check_forms_agree(subject, *((subject.tree, dtype) for dtype in NARROW))


def both_forms_agree_in_float64(subject: Subject) -> None:
    with enable_x64(True):
        check_forms_agree(subject, (subject.tree, "float64"))


def complex_leaves_work_or_are_refused_at_init(subject: Subject) -> None:
    if not subject.refuses_complex:
        check_forms_agree(subject, (subject.tree, "complex64"))
        return
    try:
        subject.make().init(subject.params(jnp.complex64))
    except TypeError as error:
        if "complex" not in str(error):
            raise
    else:
        raise AssertionError("init accepts complex leaves, and it is said to refuse them")


def narrow_leaves_follow_the_float32_run(subject: Subject) -> None:
    """Arithmetic is float32: from the same numbers, one step in a narrow dtype is one rounding away from float32's."""
    for dtype in NARROW:
        tx = subject.make()
        params, grads = subject.params(dtype), subject.grads(dtype=dtype)
        widened = jax.tree.map(lambda x: x.astype(jnp.float32), (params, grads))
        # Optax's links compute in the dtype of the parameters; only then more than the last rounding is narrow.
        roundings = 1 if subject.owns_all_state else 8
        narrow_params, narrow_state = apply_step(tx, params, tx.init(params), grads)
        wide_params, wide_state = apply_step(tx, widened[0], tx.init(widened[0]), widened[1])
        assert_close(jax.tree.map(lambda x: x.astype(jnp.float32), narrow_params), wide_params, dtype, roundings)
        if subject.owns_all_state:
            assert_same_avals(narrow_state, wide_state, f"the state for {dtype} parameters, which is float32's")


def update_returns_the_dtypes_that_came_in(subject: Subject) -> None:
    """Gradients wider or narrower than the parameters are accepted; Optax's contract is that updates come back as they came."""
    tx, params = subject.make(), subject.params(jnp.bfloat16)
    state = tx.init(params)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        grads = subject.grads(dtype=dtype)
        updates, new_state = jax.eval_shape(tx.update, grads, state, params)
        assert_same_avals(updates, jax.eval_shape(lambda grads=grads: grads), "the updates")
        assert_same_avals(new_state, state, f"the state after {jnp.dtype(dtype).name} gradients")


def wide_gradients_leave_narrow_parameters_narrow(subject: Subject) -> None:
    tx, params = subject.make(), subject.params(jnp.bfloat16)
    state = tx.init(params)
    step = jax.eval_shape(lambda *args: tx.apply(args[0], args[1], grads=args[2]), params, state, subject.grads())
    assert_same_avals(step[0], params, "bfloat16 parameters after float32 gradients")
    assert_same_avals(step[1], state, "the state for bfloat16 parameters after float32 gradients")


def weakly_typed_parameters_make_a_strongly_typed_state(subject: Subject) -> None:
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), subject.params())
    if not all(leaf.weak_type for leaf in jax.tree.leaves(params)):
        raise AssertionError("JAX's full makes no weakly typed arrays any more: this check needs others")
    for path, leaf in jax.tree_util.tree_flatten_with_path(subject.make().init(params))[0]:
        if leaf.weak_type:
            raise AssertionError(
                f"{jax.tree_util.keystr(path)} of the state is weakly typed: JAX compiles again for it"
            )


def the_input_trees_are_left_alone(subject: Subject) -> None:
    """Nothing is written into a dict that a caller holds."""
    tx, params, grads = subject.make(), subject.params(), subject.grads()
    state = tx.init(params)
    before = [jax.tree.flatten(tree) for tree in (params, state, grads)]
    jax.eval_shape(lambda *args: tx.apply(args[0], args[1], grads=args[2]), params, state, grads)
    tx.update(grads, state, params)
    for tree, (leaves, treedef) in zip((params, state, grads), before, strict=True):
        same = jax.tree.structure(tree) == treedef
        if not same or any(a is not b for a, b in zip(jax.tree.leaves(tree), leaves, strict=True)):
            raise AssertionError("a call wrote into a tree that it was given")


def the_state_is_plain_dicts_of_arrays(subject: Subject) -> None:
    if not subject.owns_all_state:
        return

    def check(node: Any, where: str) -> None:
        if type(node) is dict:
            if not node:
                raise AssertionError(f"{where} is an empty dict, which a checkpoint would lose")
            for key, child in node.items():
                if type(key) is not str or not key.isidentifier():
                    raise AssertionError(f"{where} has the key {key!r}, which is no identifier")
                check(child, f"{where}[{key!r}]")
        elif node is not None and not isinstance(node, jax.Array):  # None: a parameter that is left out
            raise AssertionError(f"{where} is a {type(node).__name__}; a state is nested dicts of arrays")

    state = subject.make().init(subject.params())
    if type(state) is not dict:
        raise AssertionError(f"the state is a {type(state).__name__}, and should be a dict")
    if state:
        check(state, "state")


def scalars_of_the_state_are_in_the_default_float_or_int32(subject: Subject) -> None:
    def check(state: Any, default: Any) -> None:
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            name = jax.tree_util.keystr(path)
            if leaf.weak_type:
                raise AssertionError(f"state{name} is weakly typed")
            if leaf.ndim == 0 and leaf.dtype not in (jnp.int32, default):
                raise AssertionError(f"state{name} is {leaf.dtype}, and should be int32 or {jnp.dtype(default).name}")

    check(subject.make().init(_no_scalars(subject, jnp.bfloat16)), jnp.float32)
    with enable_x64(True):
        check(subject.make().init(_no_scalars(subject, jnp.float32)), jnp.float64)


def _no_scalars(subject: Subject, dtype: Any) -> Tree:
    """The parameters, but for scalars: their slots are scalars too, and would be taken for counts or rates."""
    return jax.tree.map(lambda p: p if jnp.ndim(p) else p[None], subject.params(dtype))


def init_works_on_abstract_parameters(subject: Subject) -> None:
    tx, params = subject.make(), subject.params()
    assert_same_avals(jax.eval_shape(tx.init, params), tx.init(params), "init on shapes alone")


def numpy_arrays_are_arrays_too(subject: Subject) -> None:
    tx = subject.make()
    params, grads = jax.tree.map(np.asarray, (subject.params(), subject.grads()))
    expected = apply_step(tx, subject.params(), tx.init(subject.params()), subject.grads())
    assert_same(apply_step(tx, params, tx.init(params), grads), expected)


def the_pair_unpacks_as_in_optax(subject: Subject) -> None:
    init, update = tx = subject.make()
    params = subject.params()
    expected = tx.update(subject.grads(), tx.init(params), params)
    assert_same(update(subject.grads(), init(params), params), expected)
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        raise AssertionError("it is no optax.GradientTransformationExtraArgs")


def unknown_extra_arguments_are_passed_over(subject: Subject) -> None:
    """Optax's contract: every link gets every extra argument and takes its own."""
    tx, params, grads = subject.make(), subject.params(), subject.grads()
    state = tx.init(params)
    plain = jax.eval_shape(lambda: tx.update(grads, state, params))
    extra = jax.eval_shape(lambda: tx.update(grads, state, params, value=1.0, anything=2))
    assert_same_avals(extra, plain, "update with extra arguments")


def a_run_is_repeatable(subject: Subject) -> None:
    assert_same(run(subject.make(), subject.tree), run(subject.make(), subject.tree))


CHECKS = (
    apply_is_update_and_apply_updates,
    both_forms_agree_in_narrow_dtypes,
    both_forms_agree_in_float64,
    complex_leaves_work_or_are_refused_at_init,
    narrow_leaves_follow_the_float32_run,
    update_returns_the_dtypes_that_came_in,
    wide_gradients_leave_narrow_parameters_narrow,
    weakly_typed_parameters_make_a_strongly_typed_state,
    the_input_trees_are_left_alone,
    the_state_is_plain_dicts_of_arrays,
    scalars_of_the_state_are_in_the_default_float_or_int32,
    init_works_on_abstract_parameters,
    numpy_arrays_are_arrays_too,
    the_pair_unpacks_as_in_optax,
    unknown_extra_arguments_are_passed_over,
    a_run_is_repeatable,
)
