"""`optchain.testing` for those who write their own: what is right passes, and each slip is told by the check that is for it."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optchain
from optchain.core import trees
from optchain.testing import CHECKS, check_transformation


@optchain.register
def scale_by_momentum_sign(momentum=0.9):
    def init(params):
        return {"mu": trees.zeros_like(params)}

    def update(updates, state, params):
        mu = jax.tree.map(lambda g, mu: momentum * mu + (1 - momentum) * trees.wide(g), updates, state["mu"])
        return jax.tree.map(jnp.sign, mu), {"mu": mu}

    return optchain.Transformation(init, update, fields=["mu"])


def test_a_link_of_ones_own_passes_every_check():
    assert check_transformation(
        scale_by_momentum_sign, skip=("vmap_over_a_state_runs_ten_learning_rates_at_once",)
    ) == tuple(name for name in CHECKS if name != "vmap_over_a_state_runs_ten_learning_rates_at_once")


def of_update(update, init=None, fields=()):
    return lambda: optchain.Transformation(init, update, fields=fields)


class DoubledInApply(optchain.Transformation):
    def run_apply(self, params, state, grads, extra):
        return jax.tree.map(lambda p, g: p + 2 * g, params, grads), state


def doubled_in_apply():
    return DoubledInApply(None, lambda updates, state, params: (updates, state))


def aliased(params):
    return {"mu": params}


def views(params):
    return {"mu": jax.tree.map(lambda p: p.addressable_data(0), params)}


SLIPS = {
    "the forms differ": (doubled_in_apply, "apply_is_update_and_apply_updates", "Not equal to tolerance"),
    "an update of another dtype": (
        of_update(lambda updates, state, params: (jax.tree.map(jnp.sign, updates), {"mu": updates}), aliased, ["mu"]),
        "wide_gradients_leave_narrow_parameters_narrow",
        "mu/dense/bias is float32[2], and should be bfloat16[2]",
    ),
    "a state in the memory of the parameters": (
        of_update(lambda updates, state, params: (updates, state), views, ["mu"]),
        "init_shares_no_buffer",
        "share a buffer",
    ),
    "two that are never equal": (
        of_update(lambda updates, state, params: (updates, state)),
        "two_built_alike_are_equal_and_hash_alike",
        "optchain.register",
    ),
    "a NaN at zero": (
        of_update(lambda updates, state, params: (jax.tree.map(lambda g: g / jnp.abs(g), updates), state)),
        "zero_gradients_and_parameters_stay_finite",
        "nan",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_told_by_its_check(slip):
    make, check, told = SLIPS[slip]
    with pytest.raises(AssertionError) as raised:
        check_transformation(make, only=(check,))
    assert check.replace("_", " ") in str(raised.value)
    assert told in str(raised.value)


def test_a_transformation_of_optax_may_be_given_as_it_is():
    assert check_transformation(optax.scale(-0.1), only=("apply_is_update_and_apply_updates",))


def test_a_link_that_looks_for_paths_is_tried_on_parameters_that_have_them():
    tx = optchain.scale_by_path({"^embed": 0.1})
    params = {"embed": jnp.ones((3, 2)), "head": jnp.ones(2)}
    assert check_transformation(tx, params=params, only=("apply_is_update_and_apply_updates",))
    with pytest.raises(AssertionError, match="embed"):
        check_transformation(tx, only=("apply_is_update_and_apply_updates",))


def test_an_unknown_check_is_refused_with_the_ones_that_there_are():
    with pytest.raises(ValueError, match="a_run_is_repeatable"):
        check_transformation(scale_by_momentum_sign, only=("a_run_is_repeated",))
