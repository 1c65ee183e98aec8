"""`Transformation` and `register`: links written by users get the whole contract."""

import pickle
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"w": jnp.array([1.0, -2.0])}
GRADS = {"w": jnp.array([0.5, 0.25])}


@oc.register
def noisy(eta: float, gamma: float = 0.55) -> optax.GradientTransformation:
    """An Optax transformation with a name."""
    return optax.add_noise(eta, gamma, key=0)


@oc.register(name="tests.sign")
def sign() -> oc.Transformation:
    """A rule of two lines."""
    return oc.Transformation(update=lambda updates, state, params: (jax.tree.map(jnp.sign, updates), state))


def project_to_ball(params: Any, state: Any) -> tuple[Any, Any]:
    norm = optax.tree.norm(params)
    return jax.tree.map(lambda p: p / jnp.maximum(norm, 1.0), params), state


@oc.register
def unit_ball() -> oc.Transformation:
    """A projection."""
    return oc.ParameterLink(project_to_ball, stage="projection")


def test_a_registered_optax_transformation_has_a_config_and_a_repr():
    tx = noisy(0.1)
    assert repr(tx) == "noisy(0.1)"
    assert dict(tx.config) == {"eta": 0.1, "gamma": 0.55}
    assert tx == noisy(0.1)
    assert hash(tx) == hash(noisy(0.1))
    assert tx != noisy(0.2)
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert tx.name == "noisy"


def test_a_registered_name_may_be_qualified_and_the_links_name_is_an_identifier():
    tx = oc.chain(sign(), oc.scale_by_learning_rate(0.1))
    assert repr(sign()) == "tests.sign()"
    assert [link.name for link in tx.links] == ["sign", "scale_by_learning_rate"]


def test_a_link_without_learning_rate_descends_by_its_own_sign():
    params, _ = sign().apply(PARAMS, {}, grads=GRADS)
    np.testing.assert_array_equal(params["w"], PARAMS["w"] + 1.0)


def test_a_projection_acts_on_the_new_parameters_in_both_forms():
    tx = oc.chain(oc.scale_by_learning_rate(1.0), unit_ball())
    params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    assert float(optax.tree.norm(params)) == pytest.approx(1.0)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.apply_updates(PARAMS, updates)["w"], params["w"], rtol=1e-6)


def test_a_projection_stands_after_the_average():
    assert oc.chain(oc.sgd(0.1), oc.average_params(), unit_ball()).kind == "parameter"
    with pytest.raises(ValueError, match="average_params stands after unit_ball, and cannot: the average would take"):
        oc.chain(oc.sgd(0.1), unit_ball(), oc.average_params())


def test_a_rule_gets_the_extra_arguments_that_it_names_and_no_others():
    seen = {}

    @oc.register
    def ask() -> oc.Transformation:
        def update(updates, state, params, *, value, optional=None):
            seen.update(value=value, optional=optional)
            return updates, state

        return oc.Transformation(update=update)

    tx = oc.chain(ask(), oc.scale_by_learning_rate(1.0))
    tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS, value=3.0, unrelated=4.0)
    assert seen == {"value": 3.0, "optional": None}
    with pytest.raises(TypeError, match="ask needs value, and the call did not give it"):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)


def test_a_name_that_is_taken_is_refused_and_the_same_function_is_not():
    with pytest.raises(ValueError, match=r"name 'adamw' is taken by optchain\.presets\.keras\.adam\.adamw"):

        @oc.register
        def adamw():
            return optax.identity()

    def rule():
        return optax.identity()

    first = oc.register(rule, name="rule_of_a_test")()
    assert repr(oc.register(rule, name="rule_of_a_test")()) == repr(first)  # a notebook cell that is run twice


def test_what_was_built_by_hand_is_itself_only_and_says_that_it_cannot_be_pickled():
    one = oc.Transformation(update=lambda updates, state, params: (updates, state)).renamed("mine")
    other = oc.Transformation(update=lambda updates, state, params: (updates, state)).renamed("mine")
    assert one == one
    assert one != other
    assert repr(one) == "<Transformation mine>"
    with pytest.raises(TypeError, match="cannot be pickled: it has no config"):
        pickle.dumps(one)


def test_an_init_that_makes_other_entries_than_it_declares_is_an_error():
    tx = oc.Transformation(init=lambda params: {"surprise": jnp.zeros(())}, update=lambda u, s, p: (u, s)).renamed(
        "mine"
    )
    with pytest.raises(ValueError, match=r"mine: init made the entries \['surprise'\], fields says \[\]"):
        tx.init(PARAMS)


def test_positional_and_keyword_arguments_give_the_same_transformation():
    assert oc.adamw(0.1, 0.01) == oc.adamw(learning_rate=0.1, weight_decay=0.01)
    assert oc.scale_by_adam() == oc.scale_by_adam(0.9, 0.999, 1e-7, amsgrad=False)


def test_numbers_of_another_type_are_the_same_configuration():
    assert oc.sgd(1) == oc.sgd(1.0)
    assert oc.sgd(jnp.array(0.5)) == oc.sgd(np.array(0.5, np.float32))
    assert oc.sgd(jnp.array(0.5)) != oc.sgd(0.5), "an array is a run-time value"


def test_a_dtype_is_one_configuration_however_it_is_written():
    spellings = [jnp.bfloat16, "bfloat16", np.dtype("bfloat16")]
    built = [oc.scale_by_adam(moment_dtype=dtype) for dtype in spellings]
    assert built[0] == built[1] == built[2]
    assert len({repr(tx) for tx in built}) == 1


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(oc.adamw()) == "adamw()"
    assert repr(oc.adamw(0.1, amsgrad=True)) == "adamw(learning_rate=0.1, amsgrad=True)"
    assert repr(oc.clip_by_norm(1.0)) == "clip_by_norm(1.0)"


def test_links_can_be_walked():
    tx = oc.adamw(0.1, clipnorm=1.0, gradient_accumulation_steps=2, use_ema=True)
    assert [link.name for link in tx.links] == ["accumulate", "average_params"]
    gate = tx.links[0]
    assert gate.kind == "gate"
    assert [link.name for link in gate.links[0].links] == [
        "clip_by_norm",
        "scale_by_adam",
        "scale_by_learning_rate",
        "decay_weights",
    ]


def test_a_pickle_names_a_transformation_and_not_the_file_that_it_is_in():
    tx = oc.chain(oc.clip_by_norm(1.0), oc.freeze(oc.adam(0.1), {"w": True}), oc.average_params())
    pickled = pickle.dumps(tx)
    assert {module for module in sys.modules if module.startswith("optchain.") and module.encode() in pickled} == {
        "optchain.core",
        "optchain.core.identity",
    }
    assert pickle.loads(pickled) == tx
