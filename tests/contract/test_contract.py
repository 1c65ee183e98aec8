"""What holds for every transformation on every tree and in every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

from . import table
from .steps import STEPS, apply_step, assert_close, assert_same, avals, run, update_step
from .table import ROWS, Row, every_row, rows_where
from .trees import PLAIN, TREES, grads_of, params_of

every_tree = pytest.mark.parametrize("tree", TREES)
NARROW = ["bfloat16", "float16"]


def check_forms(row: Row, tree: str, dtype: str = "float32") -> None:
    """The contract of `init`, `update` and `apply` on one tree: steps from the same state, in both forms."""
    tx = row.make()
    params = params_of(tree, dtype)
    state = tx.init(params)
    for number in range(STEPS):
        grads = grads_of(tree, dtype, number)
        new_params, new_state = apply_step(tx, params, state, grads)
        assert avals(new_params) == avals(params)
        assert avals(new_state) == avals(state)
        by_update = update_step(tx, params, state, grads)
        assert_close(by_update, (new_params, new_state), dtype)
        assert avals(by_update[0]) == avals(params)
        params, state = new_params, new_state
    assert all(np.isfinite(np.asarray(leaf, np.complex128)).all() for leaf in jax.tree.leaves((params, state)))


@every_tree
@every_row
def test_apply_is_update_and_apply_updates_on_every_tree(row, tree):
    check_forms(row, tree)


@pytest.mark.parametrize("dtype", NARROW)
@every_row
def test_apply_is_update_and_apply_updates_in_narrow_dtypes(row, dtype):
    check_forms(row, PLAIN, dtype)


@every_row
def test_apply_is_update_and_apply_updates_in_float64(row):
    with jax.enable_x64(True):
        check_forms(row, PLAIN, "float64")


@rows_where(lambda row: not row.refuses_complex)
def test_apply_is_update_and_apply_updates_on_complex_leaves(row):
    check_forms(row, PLAIN, "complex64")


@rows_where(lambda row: row.refuses_complex)
def test_rows_that_refuse_complex_leaves_say_so_at_init(row):
    with pytest.raises(TypeError, match=r"cannot \w+ complex values, and dense/bias is complex64"):
        row.make().init(params_of(PLAIN, jnp.complex64))


@pytest.mark.parametrize("dtype", NARROW)
@every_row
def test_narrow_leaves_follow_the_float32_run(row, dtype):
    """Arithmetic is float32: from the same numbers, one step in a narrow dtype is one rounding away from float32's."""
    tx = row.make()
    params, grads = params_of(PLAIN, dtype), grads_of(PLAIN, dtype)
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), (params, grads))
    # Optax's links compute in the dtype of the parameters; only then more than the last rounding is narrow.
    roundings = 1 if row.owns_all_state else 8
    narrow_params, narrow_state = apply_step(tx, params, tx.init(params), grads)
    wide_params, wide_state = apply_step(tx, widened[0], tx.init(widened[0]), widened[1])
    assert_close(jax.tree.map(lambda x: x.astype(jnp.float32), narrow_params), wide_params, dtype, roundings)
    if row.owns_all_state:
        assert avals(narrow_state) == avals(wide_state)


@every_row
def test_update_returns_the_dtypes_that_came_in(row):
    """Gradients wider or narrower than the parameters are accepted; Optax's contract is that updates come back as they came."""
    tx, params = row.make(), params_of(PLAIN, jnp.bfloat16)
    state = tx.init(params)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        grads = grads_of(PLAIN, dtype)
        updates, new_state = jax.eval_shape(tx.update, grads, state, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        assert avals(new_state) == avals(state)


@every_row
def test_float32_gradients_of_narrow_parameters_leave_every_dtype_alone(row):
    tx, params = row.make(), params_of(PLAIN, jnp.bfloat16)
    state = tx.init(params)
    new = jax.eval_shape(lambda *args: tx.apply(args[0], args[1], grads=args[2]), params, state, grads_of(PLAIN))
    assert avals(new) == avals((params, state))


@every_row
def test_weakly_typed_parameters_make_a_strongly_typed_state(row):
    weak = {"w": jnp.asarray(2.0)}
    assert weak["w"].weak_type
    state = row.make().init(weak)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


@every_row
def test_the_input_trees_are_left_alone(row):
    """Nothing is written into a dict that a caller holds."""
    tx, params, grads = row.make(), params_of(), grads_of()
    state = tx.init(params)
    before = [jax.tree.flatten(tree) for tree in (params, state, grads)]
    jax.eval_shape(lambda *args: tx.apply(args[0], args[1], grads=args[2]), params, state, grads)
    tx.update(grads, state, params)
    for tree, (leaves, treedef) in zip((params, state, grads), before, strict=True):
        assert jax.tree.structure(tree) == treedef
        assert all(a is b for a, b in zip(jax.tree.leaves(tree), leaves, strict=True))


@rows_where(lambda row: row.owns_all_state)
def test_the_state_is_plain_dicts_of_arrays(row):
    def check(node):
        if type(node) is dict:
            assert all(type(key) is str and key.isidentifier() for key in node)
            assert node, "an empty dict: a checkpoint would lose it"
            for child in node.values():
                check(child)
        else:
            assert node is None or isinstance(node, jax.Array)  # None: a parameter that is left out

    state = row.make().init(params_of())
    if state:
        check(state)
    assert type(state) is dict


@every_row
def test_scalars_of_the_state_are_in_the_default_float_or_int32(row):
    def check(state, default):
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            name = jax.tree_util.keystr(path)
            assert not leaf.weak_type, name
            if leaf.ndim == 0:
                assert leaf.dtype in (jnp.int32, default), name

    check(row.make().init(params_of(PLAIN, jnp.bfloat16)), jnp.float32)
    with jax.enable_x64(True):
        check(row.make().init(params_of(PLAIN, jnp.float32)), jnp.float64)


@every_row
def test_init_works_on_abstract_parameters(row):
    tx, params = row.make(), params_of()
    assert avals(jax.eval_shape(tx.init, params)) == avals(tx.init(params))


@every_row
def test_numpy_parameters_and_gradients_are_arrays_too(row):
    tx = row.make()
    params, grads = jax.tree.map(np.asarray, (params_of(), grads_of()))
    expected = apply_step(tx, params_of(), tx.init(params_of()), grads_of())
    assert_same(apply_step(tx, params, tx.init(params), grads), expected)


def test_float64_numpy_parameters_become_float32_without_a_warning():
    """As everywhere in JAX without x64; a warning is an error here."""
    params = {"w": np.ones(2)}
    tx = oc.adamw(0.1, use_ema=True, gradient_accumulation_steps=2)
    params, state = tx.apply(params, tx.init(params), grads=params)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype("float32"), jnp.dtype("int32")}


@every_row
def test_the_pair_unpacks_as_in_optax(row):
    init, update = tx = row.make()
    params = params_of()
    expected = tx.update(grads_of(), tx.init(params), params)
    assert_same(update(grads_of(), init(params), params), expected)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)


@every_row
def test_unknown_extra_arguments_are_passed_over(row):
    """Optax's contract: every link gets every extra argument and takes its own."""
    tx, params = row.make(), params_of()
    state = tx.init(params)
    plain = jax.eval_shape(lambda: tx.update(grads_of(), state, params))
    assert avals(jax.eval_shape(lambda: tx.update(grads_of(), state, params, value=1.0, anything=2))) == avals(plain)


def test_every_public_transformation_has_a_row():
    from optchain.core.registry import FACTORIES

    def names(tx):
        yield repr(tx).partition("(")[0]
        for link in tx.links:
            yield from names(link)

    covered = {name for row in ROWS for name in names(row.make())}
    ours = {name for name, factory in FACTORIES.items() if factory.__module__.startswith("optchain.")}
    assert {name for name in ours if hasattr(oc, name)} <= covered | table.ELSEWHERE.keys()


@every_row
def test_a_run_is_repeatable(row):
    assert_same(run(row.make()), run(row.make()))
