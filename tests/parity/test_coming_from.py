"""What `docs/coming-from.md` says of the peers' rules holds for the live ones."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

GRADS = [jnp.array([0.5, -1.0]), jnp.array([-0.25, 2.0]), jnp.array([1.0, 0.0])]


def halved(step):
    return 0.1 * 0.5**step


def run(tx):
    params = jnp.array([1.0, -2.0])
    state = tx.init(params)
    for grads in GRADS:
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: optax.sgd(halved, 0.9), lambda: oc.presets.torch.sgd(halved, 0.9)),
        (lambda: optax.sgd(halved, 0.9, nesterov=True), lambda: oc.presets.torch.sgd(halved, 0.9, nesterov=True)),
        (lambda: optax.adam(halved), lambda: oc.presets.torch.adam(halved)),
        (lambda: optax.adamw(halved), lambda: oc.presets.torch.adamw(halved, weight_decay=1e-4)),
    ],
)
def test_optax_has_pytorchs_rule_under_a_schedule(theirs, ours):
    np.testing.assert_allclose(run(ours()), run(theirs()), rtol=1e-6)


def test_kerass_sgd_has_the_rate_inside_the_velocity_and_differs_under_a_schedule():
    np.testing.assert_allclose(run(oc.sgd(0.1, 0.9)), run(optax.sgd(0.1, 0.9)), rtol=1e-6)
    assert np.abs(run(oc.sgd(halved, 0.9)) - run(optax.sgd(halved, 0.9))).max() > 1e-2


def test_exclude_from_weight_decay_is_the_opposite_of_optaxs_mask():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    zeros = {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)}
    theirs = optax.adamw(0.1, weight_decay=0.5, mask={"kernel": True, "bias": False})
    ours = oc.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=["bias$"])
    for tx in (theirs, ours):
        updates, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize(("inside", "ratio"), [(False, 1.0), (True, 10.0)])
def test_a_heads_rate_is_on_its_decay_where_the_decay_is_part_of_the_update(inside, ratio):
    decay = [optax.add_decayed_weights(0.01)] if inside else []
    links = [oc.scale_by_adam(), *decay, oc.scale_by_path({"^head": 10.0}), oc.scale_by_learning_rate()]
    tx = oc.chain(*links, *([] if inside else [oc.decay_weights(0.01)]), learning_rate=0.1)
    params = {"head": jnp.ones(2), "body": jnp.ones(2)}
    zeros = {"head": jnp.zeros(2), "body": jnp.zeros(2)}
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["head"], ratio * updates["body"], rtol=1e-6)


def test_under_accumulation_the_presets_average_moves_at_every_call_as_kerass_does():
    tx = oc.sgd(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2)
    params, averages = jnp.ones(1), []
    state = tx.init(params)
    for _ in range(6):
        params, state = tx.apply(params, state, grads=jnp.ones(1))
        averages.append(float(oc.averaged_params(state)[0]))
    np.testing.assert_allclose(averages, [1.0, 0.9, 0.9, 0.85, 0.825, 0.7625], rtol=1e-6)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_pytorchs_plateau_waits_one_value_longer(patience):
    torch = pytest.importorskip("torch")
    losses = [1.0, 0.9, 0.9, 0.95, 0.9, 0.8999, 0.9, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=1e-3, threshold_mode="abs"
    )
    ours = oc.ReduceLROnPlateau(factor=0.5, patience=patience + 1, min_delta=1e-3)
    watched, state = ours.init(), oc.sgd(1.0).init(jnp.zeros(1))
    for loss in losses:
        theirs.step(loss)
        watched, state = ours.update(loss, watched, state)
        assert float(oc.get_hyperparams(state)["learning_rate"]) == optimizer.param_groups[0]["lr"]


# The pages themselves -------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


def rows(name):
    """The rows of the tables of `coming-from.md` that have a name in their first cell."""
    lines = [line for line in (DOCS / "coming-from.md").read_text().splitlines() if line.startswith("| ")]
    return [line for line in lines if re.search(rf"{re.escape(name)}(\b|`)", line.split("|")[1])]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("optax.adam", "presets.optax.adam"),
        ("optax.adamw", "presets.optax.adamw"),
        ("optax.sgd", "presets.optax.sgd"),
        ("mask=", "exclude_from_weight_decay"),
        ("mask=", "opposite"),
        ("mu_dtype", "moment_dtype"),
        ("eps_root", "presets.optax"),
        ("ReduceLROnPlateau", "patience"),
        ("lr_scheduler.ReduceLROnPlateau", "presets.torch.ReduceLROnPlateau"),
        ("LambdaLR", "PerEpoch"),
        ("CyclicLR", "CyclicMomentum"),
        ("count", "steps_taken(state)"),
    ],
)
def test_a_name_that_is_brought_has_a_row_with_ours(theirs, ours):
    found = rows(theirs)
    assert any(ours in line for line in found), found


def test_the_page_on_cost_recommends_no_second_moment_that_stalls():
    page = (DOCS / "cost.md").read_text()
    assert '"nu": "float32"' in page
    assert not re.search(r"""moment_dtype=(jnp\.)?["']?bfloat16""", page)


def test_the_guide_says_that_an_error_of_a_callable_in_a_donated_step_costs_the_parameters():
    assert "donates parameters and state" in " ".join((DOCS / "guide" / "hyperparameters.md").read_text().split())
