"""A state survives Orbax, with and without a template, and goes on to the same numbers."""

import jax
import orbax.checkpoint as ocp
import pytest

import optchain as oc

from .steps import apply_step, assert_same, run
from .table import rows_where
from .trees import grads_of, params_of

pytestmark = pytest.mark.each_value(of="the contract")

# Orbax keeps arrays and dicts; of an Optax link it makes what it makes of any named tuple.
ours = rows_where(lambda row: row.owns_all_state)


def saved(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def restored(path, *template):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, *template)


@pytest.mark.parametrize("with_template", [True, False], ids=["template", "no_template"])
@ours
def test_a_run_goes_on_from_a_checkpoint(row, with_template, tmp_path):
    tx = row.make()
    halfway = run(tx, steps=2)
    checkpoint = {"params": halfway[0], "state": halfway[1]}
    if not halfway[1]:  # Orbax has no empty dict: a transformation without state has nothing to save
        checkpoint.pop("state")
    path = saved(tmp_path / "checkpoint", checkpoint)
    loaded = restored(path, jax.eval_shape(lambda: checkpoint)) if with_template else restored(path)
    assert_same(loaded, checkpoint)
    params, state = loaded["params"], loaded.get("state", {})
    for number in (2, 3):
        params, state = apply_step(tx, params, state, grads_of(step=number))
    assert_same((params, state), run(tx))


@pytest.mark.parametrize("tree", ["list", "scalars", "none_inside", "bare_array"])
def test_a_run_goes_on_with_a_template_on_other_trees(tree, tmp_path):
    tx = oc.adamw(0.1, use_ema=True, amsgrad=True)
    params, state = run(tx, tree, steps=2)
    path = saved(tmp_path / "checkpoint", {"params": params, "state": state})
    loaded = restored(path, {"params": params, "state": jax.eval_shape(tx.init, params)})
    params, state = loaded["params"], loaded["state"]
    for number in (2, 3):
        params, state = apply_step(tx, params, state, grads_of(tree, step=number))
    assert_same((params, state), run(tx, tree))


def test_adding_a_link_without_state_leaves_old_checkpoints_good():
    rule = [oc.scale_by_adam(), oc.scale_by_learning_rate()]
    old, new = oc.chain(*rule, learning_rate=0.1), oc.chain(oc.clip_by_value(0.5), *rule, learning_rate=0.1)
    params, state = run(old, steps=2)
    assert jax.tree.structure(new.init(params)) == jax.tree.structure(state)
    assert "clip_by_value" not in apply_step(new, params, state, grads_of())[1]


def test_a_field_that_a_configuration_does_not_need_is_absent():
    assert "nu_max" not in oc.scale_by_adam().init(params_of())
    assert "nu_max" in oc.scale_by_adam(amsgrad=True).init(params_of())
    assert set(oc.adam(0.1).init(params_of())) == {"scale_by_adam", "hyperparams"}
