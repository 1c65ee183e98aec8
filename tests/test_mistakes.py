"""What a mistake gets: tables of the words of an error that help, each with what provokes it.

A wrong argument fails where it is written, a wrong tree when the step is traced, and by name. What a single argument refuses
is in `test_arguments.py`; here are arguments that do not go together, chains, trees, states, calls and masks.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones(3)}}
PATHS = "the paths are: dense/bias, dense/kernel, head/kernel"
TORCH, KERAS_ADAMW = oc.presets.torch, oc.presets.keras_adamw
TX, SGD, ADAM, RATE, DECAY = (
    oc.adamw(0.1),
    oc.sgd(0.1),
    oc.scale_by_adam(),
    oc.scale_by_learning_rate(),
    oc.decay_weights(0.1),
)


def each(*tables: tuple[type[Exception], dict[str, list[Any]]]) -> pytest.MarkDecorator:
    """For each row of tables of one type of error: the words of its message, and what provokes it, one or several."""
    rows = [(error, words, wrong) for error, table in tables for words, wrongs in table.items() for wrong in wrongs]
    return pytest.mark.parametrize(("error", "words", "wrong"), rows, ids=[words for _, words, _ in rows])


def check(error, words, make):
    """The words are plain text, or a regular expression where they begin with `re:`."""
    with pytest.raises(error, match=words.removeprefix("re:") if words.startswith("re:") else re.escape(words)):
        make()


def params_with(**changed):
    return {**PARAMS, **changed}


def kernel(value):
    return params_with(dense={"kernel": value, "bias": jnp.ones(3)})


def apply(grads=PARAMS, params=PARAMS, tx=TX, state=None, **extra):
    return tx.apply(params, tx.init(PARAMS) if state is None else state, grads=grads, **extra)


def update(updates=PARAMS, params=PARAMS, tx=TX, state=None, **extra):
    return tx.update(updates, tx.init(PARAMS) if state is None else state, params, **extra)


# Arguments that do not go together ------------------------------------------------------------------------------------

UNLIKE = {
    "only one of clipnorm, clipvalue and global_clipnorm can be set; got clipnorm=1.0, clipvalue=0.5": [
        lambda: oc.adamw(0.1, clipnorm=1.0, clipvalue=0.5)
    ],
    "got clipnorm=1.0, clipvalue=0.5, global_clipnorm=2.0": [
        lambda: oc.sgd(0.1, clipnorm=1.0, clipvalue=0.5, global_clipnorm=2.0)
    ],
    "exclude_from_weight_decay was given without a weight_decay": [
        lambda: oc.adam(0.1, exclude_from_weight_decay=["bias"]),
        lambda: oc.adamw(0.1, None, exclude_from_weight_decay=["bias"]),
        lambda: oc.muon(weight_decay=None, adam_weight_decay=None, exclude_from_weight_decay=["bias"]),
    ],
    "min_value must be at most max_value; got 2.0 and 1.0": [lambda: oc.project_min_max_norm(2.0, 1.0)],
    "nesterov needs a momentum > 0 and no dampening; got momentum=": [
        lambda: TORCH.sgd(nesterov=True),
        lambda: TORCH.sgd(nesterov=True, momentum=0.9, dampening=0.1),
    ],
    "total_iterations must be >= 2 for use_cosine_annealing and weight_decays; got 0": [
        lambda: KERAS_ADAMW.adamw(use_cosine_annealing=True),
        lambda: KERAS_ADAMW.adamw(weight_decays={"a": (0.0, 0.1)}),
    ],
    "autorestart, eta_min, eta_max and t_cur have no effect without use_cosine_annealing": [
        lambda: KERAS_ADAMW.sgdw(total_iterations=10, autorestart=True),
        lambda: KERAS_ADAMW.sgdw(total_iterations=10, eta_min=0.1),
        lambda: KERAS_ADAMW.sgdw(total_iterations=10, eta_max=2),
        lambda: KERAS_ADAMW.sgdw(total_iterations=10, t_cur=1),
    ],
    "masked would unscale the gradients of some parameters only (unscale_gradients), and the loss is scaled for all: "
    "put unscale_gradients around masked": [
        lambda: oc.masked(oc.sgd(0.1, loss_scale_factor=8.0), oc.matching("bias")),
    ],
    "put dynamic_loss_scale around masked": [
        lambda: oc.masked(oc.accumulate(oc.dynamic_loss_scale(SGD), 2), oc.matching("bias")),
    ],
    "skip_nonfinite would keep from the dynamic_loss_scale within it the gradients that overflow": [
        lambda: oc.skip_nonfinite(oc.dynamic_loss_scale(SGD)),
        lambda: oc.skip_nonfinite(oc.accumulate(oc.dynamic_loss_scale(SGD), 2), 3),
    ],
    "put dynamic_loss_scale around skip_spikes": [lambda: oc.skip_spikes(oc.loss_scale_optimizer(SGD))],
    "put dynamic_loss_scale around multi_optimizer": [
        lambda: oc.multi_optimizer(("a", "bias", TX), default=oc.dynamic_loss_scale(TX))
    ],
    "unscale_gradients within the loss_scale_optimizer would divide the gradients a second time": [
        lambda: oc.loss_scale_optimizer(oc.chain(oc.unscale_gradients(8.0), SGD))
    ],
    "rule must act on gradients; accumulate is a gate transformation: put decay_first within it": [
        lambda: oc.decay_first(oc.accumulate(SGD, 2), 0.1)
    ],
    "inner must act on gradients; chain is a parameter transformation": [
        lambda: oc.schedule_free(oc.chain(SGD, oc.average_params()))
    ],
}
OF_AN_ARRAY = {
    "with decay, learning_rate must be a number or a schedule": [lambda: oc.sgd(jnp.array(0.1), decay=0.1)],
}


@each((ValueError, UNLIKE), (TypeError, OF_AN_ARRAY))
def test_arguments_that_do_not_go_together_fail_where_they_are_written(error, words, wrong):
    check(error, words, wrong)


def test_with_two_clips_of_which_one_is_none_all_is_well():
    assert oc.adamw(0.1, clipnorm=None, clipvalue=0.5) == oc.adamw(0.1, clipvalue=0.5)


SIGNATURES = {
    "b1": [lambda: oc.scale_by_adam(b1=0.9)],
    "fused": [lambda: TORCH.adamw(fused=True)],
    "learning_rate": [lambda: oc.adamw(0.1, learning_rate=0.2), lambda: TORCH.sgd(learning_rate=0.1)],
    "lr": [lambda: oc.adamw(0.1, lr=0.1)],
    "max_norm": [lambda: oc.clip_by_norm()],
    "momentum": [lambda: oc.chain(SGD, momentum=0.9)],
    "positional": [lambda: oc.scale_by_adam(0.9, 0.99, 1e-7, True)],
    "too many positional arguments": [lambda: oc.clip_by_norm(1.0, 2.0)],
}


@each((TypeError, SIGNATURES))
def test_a_call_that_the_signature_does_not_allow_names_the_argument(error, words, wrong):
    check(error, words, wrong)


GROUP = "group 0 must be a tuple (name, parameters, transformation); got "
GROUPS = {
    "multi_optimizer needs at least one group": [[]],
    "a group cannot be called 'a': it is the name of another group": [[("a", "bias", TX), ("a", "kernel", TX)]],
    "the name of a group must be an identifier (letters, digits, underscores); got 'a/b'": [[("a/b", "bias", TX)]],
    **{
        f"a group cannot be called '{name}': it is": [[(name, "bias", TX)]]
        for name in ("default", "inner", "metrics", "average")
    },
}
NO_GROUPS = {
    f"{GROUP}('bias', adamw(learning_rate=0.1))": [[("bias", TX)]],
    f"{GROUP}{{'bias'": [[{"bias": TX}]],
    "the parameters of group 'a' must be True or False; got 3": [[("a", 3, TX)]],
    "the transformation of group 'a' must be an optchain or Optax transformation; got <function sgd": [
        [("a", "bias", oc.sgd)]
    ],
}


@each((ValueError, GROUPS), (TypeError, NO_GROUPS))
def test_a_group_that_cannot_be_meant_is_named(error, words, wrong):
    check(error, words, lambda: oc.multi_optimizer(*wrong, default=TX))


# Chains ---------------------------------------------------------------------------------------------------------------

RESERVED = "hyperparams scheduled count metrics inner mu nu nu_max velocity average grads params"
NAMES = {
    "chain needs at least one link": [[]],
    "two links of the chain are named 'a'": [[("a", ADAM), ("a", oc.apply_momentum(0.9))]],
    **{
        f"must be an identifier (letters, digits, underscores); got {name!r}": [[(name, ADAM)]]
        for name in ("a.b", "a/b", "a b", "", "1a", "a-b")
    },
    **{f"a link cannot be called '{name}': it is": [[(name, ADAM)]] for name in RESERVED.split()},
}
NO_LINKS = {
    "link 1 must be an optchain or Optax transformation, or a pair (name, transformation); got 0.1 (float)": [
        [RATE, 0.1]
    ],
    "link 0 must be an optchain": [[oc.scale_by_adam], [[ADAM, RATE]], [("adam", 3)]],
    "the name of a link must be a string; got 3 (int)": [[(3, ADAM)]],
}


@each((ValueError, NAMES), (TypeError, NO_LINKS))
def test_a_link_that_cannot_be_meant_is_named(error, words, wrong):
    check(error, words, lambda: oc.chain(*wrong))


@pytest.mark.parametrize("name", ["metrics", "mu", "hyperparams"])
def test_a_chain_in_a_chain_has_no_reserved_name(name):
    check(ValueError, f"a link cannot be called '{name}'", lambda: oc.chain(oc.chain(ADAM, name=name)))


NO_RATE = "the chain was given a learning_rate that none of its links takes"
TAKE_NONE = {
    f"{NO_RATE} (clip_by_norm, scale_by_adam): add scale_by_learning_rate()": [[oc.clip_by_norm(1.0), ADAM]],
    f"{NO_RATE} (adam)": [[oc.adam(0.1)]],
}


@each((ValueError, TAKE_NONE))
def test_a_rate_that_no_link_takes_names_the_links(error, words, wrong):
    check(error, words, lambda: oc.chain(*wrong, learning_rate=0.1))


AVERAGE, CLIP, UNSCALE = oc.average_params(), oc.clip_by_norm(1.0), oc.unscale_gradients(1024.0)
OWN_RATE, KERNELS, BIASES = oc.scale_by_learning_rate(0.1), oc.matching("kernel"), oc.matching("bias")
TWICE = "the updates would be scaled twice, and their sign flipped twice"
ORDERS = {
    f"scale_by_learning_rate_2 stands after scale_by_learning_rate, and cannot: {TWICE}": [[OWN_RATE, OWN_RATE]],
    TWICE: [
        [SGD, RATE],
        [SGD, oc.masked(SGD, BIASES)],
        [oc.multi_optimizer(("a", "bias", SGD), default=TX), RATE],
        [oc.decay_first(RATE, 0.1), RATE],
    ],
    "scale_by_adam stands after scale_by_learning_rate, and cannot: a rule that divides by the gradient's own size "
    "cancels the learning rate": [[RATE, ADAM]],
    "cancels the learning rate": [[RATE, oc.accumulate(ADAM, 2)]],
    "scale_by_learning_rate stands after decay_weights, and cannot: the decay would be scaled again and its sign flipped: "
    "weights would grow": [[DECAY, RATE]],
    "scale_by_adam stands after decay_weights, and cannot: the decay would be rescaled with the gradient": [
        [oc.decay_weights(0.1, learning_rate=1.0), ADAM]
    ],
    "add_l2_penalty stands after scale_by_learning_rate, and cannot: the sign has flipped: weights would grow": [
        [RATE, oc.add_l2_penalty(0.1)]
    ],
    "unscale_gradients stands after add_l2_penalty, and cannot: the penalty is not scaled as the gradients are": [
        [oc.add_l2_penalty(0.1), UNSCALE]
    ],
    **{
        f"unscale_gradients stands after {clip.name}, and cannot: the threshold would apply to gradients that are still "
        "scaled": [[clip, UNSCALE]]
        for clip in (oc.clip_by_global_norm(1.0), oc.clip_by_block_rms(1.0), oc.adaptive_grad_clip(0.1))
    },
    "unscale_gradients stands after scale_by_adam, and cannot": [[ADAM, UNSCALE]],
    "unscale_gradients stands after scale_by_learning_rate, and cannot: the updates are not gradients any more": [
        [OWN_RATE, UNSCALE]
    ],
    "clip_by_norm (gradient) stands after accumulate (gate): a link on gradients cannot follow a gate": [
        [oc.accumulate(SGD, 2), CLIP]
    ],
    "clip_by_norm (gradient) stands after multi_optimizer (gate)": [
        [oc.multi_optimizer(("a", "bias", oc.skip_nonfinite(TX)), default=TX), CLIP]
    ],
    "clip_by_norm (gradient) stands after freeze (gate)": [[oc.freeze(oc.accumulate(SGD, 2), BIASES), CLIP]],
    "clip_by_norm (gradient) stands after average_params (parameter)": [
        [AVERAGE, CLIP],
        [oc.chain(SGD, AVERAGE), oc.chain(CLIP)],
    ],
    "optax (gradient) stands after average_params (parameter)": [[AVERAGE, optax.trace(0.9)]],
    "average_params stands after project_unit_norm, and cannot: the average would take the parameters out of the "
    "projection": [[oc.project_unit_norm(), AVERAGE]],
    "average_params stands after project_non_negative, and cannot": [[oc.project_non_negative(mask=KERNELS), AVERAGE]],
    "accumulate (gate) stands after average_params (parameter)": [[AVERAGE, oc.accumulate(SGD, 2)]],
    "accumulate_2 (gate) stands after accumulate (gate): a chain has at most one gate": [
        [oc.accumulate(SGD, 2), oc.accumulate(oc.apply_momentum(0.9), 2)]
    ],
}


@each((ValueError, ORDERS))
def test_an_order_that_cannot_be_meant_says_which_link_and_why(error, words, wrong):
    check(error, words, lambda: oc.chain(*wrong))


# A link of one's own --------------------------------------------------------------------------------------------------

UNKNOWN = {
    "stage must be one of 'unscale', 'clip', ": [{"stage": "decays"}],
    "accepts must be one of 'scaled', 'rows', 'examples'; got 'row'": [{"accepts": ["row"]}],
}
NO_FLAGS = {
    "rowwise must be True or False; got 'no' (str)": [{"rowwise": "no"}],
    "needs_params must be True or False; got 'no' (str)": [{"needs_params": "no"}],
}


@each((ValueError, UNKNOWN), (TypeError, NO_FLAGS))
def test_what_a_link_of_ones_own_declares_wrongly_is_refused(error, words, wrong):
    check(error, words, lambda: oc.Transformation(update=lambda updates, state, params: (updates, state), **wrong))


@pytest.mark.parametrize("factory", [3, SGD, "sgd"])
def test_what_is_registered_is_a_function(factory):
    check(TypeError, "factory must be a function; got ", lambda: oc.register(factory))


# Trees ----------------------------------------------------------------------------------------------------------------

OTHER_TREES = {
    'grads["dense"]["kernel"]: shape (1, 3), params have (3, 3)': [kernel(jnp.ones((1, 3)))],
    'grads["dense"]["kernel"]: shape (), params have (3, 3)': [kernel(1.0)],
    'grads["dense"]["kernel"] is missing, params have an array of shape (3, 3) there': [kernel(None)],
    'grads["head"]["kernel"] is missing, params have an array of shape (3,) there': [{"dense": PARAMS["dense"]}],
    'grads["tail"] has no counterpart: params have no leaf there': [params_with(tail=jnp.ones(2))],
    'grads["dense"]["bias"] is missing': [[jnp.ones(3)]],
}
OTHER_DTYPES = {
    'grads["dense"]["bias"] has dtype int32': [jax.tree.map(lambda p: p.astype(jnp.int32), PARAMS)],
    'grads["dense"]["kernel"] has dtype': [kernel(np.zeros((3, 3), jax.dtypes.float0))],
    'grads["dense"]["kernel"] is complex (complex64), its parameter is real (float32)': [
        kernel(jnp.ones((3, 3), jnp.complex64))
    ],
}


@each((ValueError, OTHER_TREES), (TypeError, OTHER_DTYPES))
def test_wrong_gradients_are_an_error_that_names_the_leaf(error, words, wrong):
    check(error, words, lambda: apply(wrong))


@pytest.mark.parametrize("form", [apply, update])
def test_a_wrong_tree_is_an_error_under_jit_too(form):
    with pytest.raises(ValueError, match=r'\["dense"\]\["kernel"\]: shape \(1, 3\), params have \(3, 3\)'):
        jax.jit(form)(kernel(jnp.ones((1, 3))))


LEAVES = {
    'params["leaf"] has dtype int32; parameters must be floating-point or complex arrays': [jnp.array(3)],
    'params["leaf"] has dtype int': [3],
    'params["leaf"] has dtype bool': [jnp.array(True)],
    'params["leaf"] has dtype key': [jax.random.key(0)],
    're:params\\["leaf"\\] is .*; parameters must be floating-point or complex arrays.*put None': [jax.nn.relu],
    "params[\"leaf\"] is 'dense' (str)": ["dense"],
}


@each((TypeError, LEAVES))
def test_a_parameter_that_is_no_floating_point_array_is_named(error, words, wrong):
    check(error, words, lambda: TX.init(params_with(leaf=wrong)))


TREES = {
    'grads["dense"]["kernel"] has no counterpart': [
        lambda: TX.apply(kernel(None), TX.init(kernel(None)), grads=PARAMS),
    ],
    "grads and params have the same paths in different containers": [
        lambda: TX.apply([jnp.ones(2)], TX.init([jnp.ones(2)]), grads=(jnp.ones(2),)),
    ],
    'updates["dense"]["kernel"]: shape (1, 3), params have (3, 3)': [lambda: update(kernel(jnp.ones((1, 3))))],
    'scale_by_adam state["mu"]["dense"]["kernel"]: shape (3, 3), updates have (1, 3)': [
        lambda: ADAM.update(kernel(jnp.ones((1, 3))), ADAM.init(PARAMS)),
    ],
    f"factors: pattern 'gamma' decides for no parameter: it matches none; {PATHS}": [
        lambda: oc.scale_by_path({"kernel": 1.0, "gamma": 0.5}).init(PARAMS),
    ],
    "'head/kernel' decides for no parameter: every parameter that it matches is taken by a pattern before it": [
        lambda: oc.scale_by_path({"kernel": 1.0, "head/kernel": 0.5}).init(PARAMS),
    ],
    "weight_decays: pattern 'gamma' decides for no parameter": [
        lambda: KERAS_ADAMW.adamw(total_iterations=5, weight_decays={"gamma": (0.0, 0.1)}).init(PARAMS),
    ],
    "centralize_gradients: dense/kernel of shape (3, 3) has no axis 2: leave it out by a mask": [
        lambda: update(tx=oc.centralize_gradients(2), state={}),
    ],
    "project_max_norm: dense/bias of shape (3,) has no axis 1: leave it out by a mask": [
        lambda: oc.project_max_norm(1.0, 1).init(PARAMS),
    ],
    "adaptive_grad_clip has no rule for w of shape (2, 2, 2, 2, 2, 2): give the axis, or leave it out with masked": [
        lambda: oc.adaptive_grad_clip(0.1).init({"w": jnp.ones((2,) * 6)}),
    ],
}


@each((ValueError, TREES))
def test_a_tree_that_does_not_fit_is_an_error_that_names_the_leaf(error, words, wrong):
    check(error, words, wrong)


NEEDING_PARAMS = {
    "decay_weights needs the parameters, and update() got none: call tx.update(updates, state, params)": [TX],
    "decay_weights needs the parameters": [oc.sgd(0.1, weight_decay=0.1, gradient_accumulation_steps=2)],
    "add_l2_penalty needs the parameters": [TORCH.sgd(weight_decay=0.1)],
    "apply_ftrl needs the parameters, and update() got none": [oc.ftrl()],
    "adaptive_grad_clip needs the parameters, and update() got none": [oc.adaptive_grad_clip(0.1)],
    "slow needs the parameters": [oc.chain(("slow", AVERAGE))],
}


@each((ValueError, NEEDING_PARAMS))
def test_an_update_without_the_parameters_names_the_link_that_needs_them(error, words, wrong):
    check(error, words, lambda: update(params=None, tx=wrong))


def test_update_without_params_works_where_no_link_needs_them():
    updates, _ = update(params=None, tx=oc.adam(0.1, clipnorm=1.0))
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


# States ---------------------------------------------------------------------------------------------------------------

WAITING = {"gradient_accumulation_steps": 2}
STATES = {
    "the state of adamw has no entry 'hyperparams': it is another transformation's": [(TX, {})],
    "the state of adamw has no entry 'scale_by_adam'": [
        (TX, {name: entry for name, entry in TX.init(PARAMS).items() if name != "scale_by_adam"}),
        (TX, oc.sgd(0.1, 0.9).init(PARAMS)),
    ],
    "has no entry 'scale_by_adam'": [(oc.adam(0.1, **WAITING), oc.sgd(0.1, 0.9, **WAITING).init(PARAMS))],
    "the state of adamw has an entry 'average_params' that adamw does not know": [
        (TX, oc.adamw(0.1, use_ema=True).init(PARAMS))
    ],
    "the state of scale_by_adam has no entry 'nu_max'": [(oc.adamw(0.1, amsgrad=True), TX.init(PARAMS))],
    "the state of adamw has no entry 'count'": [(oc.adamw(lambda step: 0.1), TX.init(PARAMS))],
    "beta_2": [(oc.adam(0.1, jnp.array(0.9), jnp.array(0.9)), oc.adam(0.1, jnp.array(0.9)).init(PARAMS))],
    'scale_by_adam state["mu"]["dense"]["kernel"]: shape (2, 2), updates have (3, 3)': [
        (TX, TX.init(kernel(jnp.ones((2, 2)))))
    ],
    'scale_by_adam state["mu"]["head"]["kernel"] is missing': [(TX, TX.init({"dense": PARAMS["dense"]}))],
    "the state has no entry 'trace'": [(oc.chain(("trace", optax.trace(0.9))), {})],
}
NO_STATES = {
    "the state of adamw must be the dict that init returned; got tuple": [(TX, optax.adamw(0.1).init(PARAMS))],
    "the state of adamw must be the dict that init returned; got NoneType": [(TX, None)],
}


@each((ValueError, STATES), (TypeError, NO_STATES))
def test_a_foreign_state_is_an_error_that_names_the_link(error, words, wrong):
    tx, state = wrong
    check(error, words, lambda: tx.apply(PARAMS, state, grads=PARAMS))


# Calls ----------------------------------------------------------------------------------------------------------------

CALLS = {
    "positional argument": [
        lambda: TX.apply(PARAMS, TX.init(PARAMS), PARAMS),
        lambda: TX.apply(PARAMS, PARAMS, TX.init(PARAMS)),
    ],
    "grads": [lambda: TX.apply(PARAMS, TX.init(PARAMS))],
    "parameters must be floating-point or complex arrays": [lambda: TX.apply(TX.init(PARAMS), PARAMS, grads=PARAMS)],
    "scale_by_learning_rate needs learning_rate, and the call did not give it; give it to the chain, "
    "chain(…, learning_rate=…)": [lambda: apply(tx=RATE, state={})],
    "scale_by_learning_rate needs learning_rate": [
        lambda: apply(tx=oc.chain(ADAM, RATE)),
        lambda: apply(tx=oc.accumulate(oc.chain(ADAM, RATE), 2)),
    ],
    "shrink needs learning_rate": [lambda: apply(tx=oc.chain(("shrink", DECAY)), state={})],
    "apply_ftrl needs learning_rate, and the call did not give it": [lambda: apply(tx=oc.apply_ftrl())],
    "adamw owns learning_rate: change it with set_hyperparams, not by the call": [lambda: apply(learning_rate=0.5)],
    "scale_by_learning_rate owns learning_rate": [lambda: update(tx=OWN_RATE, learning_rate=0.5)],
}


@each((TypeError, CALLS))
def test_a_wrong_call_is_an_error_that_names_the_link_and_the_argument(error, words, wrong):
    check(error, words, wrong)


# Masks on parameters --------------------------------------------------------------------------------------------------

MASKS = {
    "mask does not fit the parameters": [
        {"dens": True},
        {"dense": {"kernel": {"a": True}, "bias": True}, "head": True},
        {"dense": True, "head": True, "tail": True},
        [True, False],
    ],
}
NO_BOOLS = {
    'mask["dense"]["bias"] must be True or False; got 1 (int)': [lambda params: jax.tree.map(jnp.ndim, params)],
    'mask["dense"]["bias"] must be True or False; got': [lambda params: jax.tree.map(lambda p: p > 0, params)],
}


@each((ValueError, MASKS), (TypeError, NO_BOOLS))
def test_a_mask_that_does_not_fit_is_an_error_at_init(error, words, wrong):
    check(error, words, lambda: oc.decay_weights(0.1, learning_rate=1.0, mask=wrong).init(PARAMS))


EXCLUSIONS = {"exclude_from_weight_decay does not fit the parameters": [{"dens": True}]}
NO_EXCLUSIONS = {"exclude_from_weight_decay must be True or False; got 'bias'": [lambda params: "bias"]}


@each((ValueError, EXCLUSIONS), (TypeError, NO_EXCLUSIONS))
def test_exclusions_that_do_not_fit_are_an_error_at_init(error, words, wrong):
    check(error, words, lambda: oc.adamw(0.1, exclude_from_weight_decay=wrong).init(PARAMS))


UNMATCHED = {
    f"re:'biass'.* matches no parameter; {PATHS}": [oc.adamw(0.1, exclude_from_weight_decay=["biass"])],
    f"matching('^encoder/') matches no parameter; {PATHS}": [oc.freeze(SGD, oc.matching("^encoder/"))],
    "matching('kernels') matches no parameter": [oc.project_non_negative(mask=oc.matching("kernels"))],
    f"matching('haed') matches no parameter; {PATHS}": [oc.muon(exclude_layers=["haed"])],
}


@each((ValueError, UNMATCHED))
def test_a_pattern_that_matches_no_parameter_is_an_error_at_init_that_has_the_paths(error, words, wrong):
    check(error, words, lambda: wrong.init(PARAMS))
