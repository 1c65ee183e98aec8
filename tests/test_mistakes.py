"""What a mistake gets: one row each, with the words of the error that help.

A wrong argument fails where it is written, a wrong tree when the step is traced, and by name. What a single argument refuses
is in `test_arguments.py`; here are arguments that do not go together, chains, trees, states, calls and masks.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

PARAMS = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones(3)}}
TX = oc.adamw(0.1)
TORCH, KERAS_ADAMW = oc.presets.torch, oc.presets.keras_adamw
RATE, ADAM, DECAY = oc.scale_by_learning_rate(), oc.scale_by_adam(), oc.decay_weights(0.1)

NO_DECAY = "exclude_from_weight_decay was given without a weight_decay"

Rows = dict[str, tuple[Callable[[], Any], str]]
"""A name, what is done, and words of the message: plain text, or a regular expression where they begin with `re:`."""


def each(rows: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows.values(), ids=rows)


def check(make: Callable[[], Any], error: type[Exception] | tuple[type[Exception], ...], words: str) -> None:
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

TOGETHER: Rows = {
    "two clips": (
        lambda: oc.adamw(0.1, clipnorm=1.0, clipvalue=0.5),
        "only one of clipnorm, clipvalue and global_clipnorm can be set; got clipnorm=1.0, clipvalue=0.5",
    ),
    "three clips": (
        lambda: oc.sgd(0.1, clipnorm=1.0, clipvalue=0.5, global_clipnorm=2.0),
        "got clipnorm=1.0, clipvalue=0.5, global_clipnorm=2.0",
    ),
    "exclusions without decay": (lambda: oc.adam(0.1, exclude_from_weight_decay=["bias"]), NO_DECAY),
    "exclusions with the decay switched off": (
        lambda: oc.adamw(0.1, None, exclude_from_weight_decay=["bias"]),
        NO_DECAY,
    ),
    "exclusions with both of Muon's decays switched off": (
        lambda: oc.muon(weight_decay=None, adam_weight_decay=None, exclude_from_weight_decay=["bias"]),
        NO_DECAY,
    ),
    "a smallest norm above the largest": (
        lambda: oc.project_min_max_norm(2.0, 1.0),
        "min_value must be at most max_value; got 2.0 and 1.0",
    ),
    **{
        f"PyTorch's nesterov with {given}": (
            lambda given=given: TORCH.sgd(nesterov=True, **given),
            "nesterov needs a momentum > 0 and no dampening; got momentum=",
        )
        for given in ({}, {"momentum": 0.9, "dampening": 0.1})
    },
    **{
        f"keras-adamw's {next(iter(given))} without total_iterations": (
            lambda given=given: KERAS_ADAMW.adamw(**given),
            "total_iterations must be >= 2 for use_cosine_annealing and weight_decays; got 0",
        )
        for given in ({"use_cosine_annealing": True}, {"weight_decays": {"a": (0.0, 0.1)}})
    },
    **{
        f"keras-adamw's {next(iter(given))} without annealing": (
            lambda given=given: KERAS_ADAMW.sgdw(total_iterations=10, **given),
            "autorestart, eta_min, eta_max and t_cur have no effect without use_cosine_annealing",
        )
        for given in ({"autorestart": True}, {"eta_min": 0.1}, {"eta_max": 2}, {"t_cur": 1})
    },
    "a loss scale for some parameters": (
        lambda: oc.masked(oc.sgd(0.1, loss_scale_factor=8.0), oc.matching("bias")),
        "masked would unscale the gradients of some parameters only (unscale_gradients), and the loss is scaled for all: "
        "put unscale_gradients around masked",
    ),
    "a dynamic loss scale for some parameters": (
        lambda: oc.masked(oc.skip_nonfinite(oc.dynamic_loss_scale(oc.sgd(0.1))), oc.matching("bias")),
        "put dynamic_loss_scale around masked",
    ),
    "a loss scale in a group": (
        lambda: oc.multi_optimizer(("a", "bias", TX), default=oc.dynamic_loss_scale(TX)),
        "put dynamic_loss_scale around multi_optimizer",
    ),
    "a static loss scale that cannot be dropped": (
        lambda: oc.loss_scale_optimizer(oc.chain(oc.unscale_gradients(8.0), oc.sgd(0.1))),
        "unscale_gradients within the loss_scale_optimizer would divide the gradients a second time",
    ),
    "decay_first of a gate": (
        lambda: oc.decay_first(oc.accumulate(oc.sgd(0.1), 2), 0.1),
        "rule must act on gradients; accumulate is a gate transformation: put decay_first within it",
    ),
    "schedule_free of an average": (
        lambda: oc.schedule_free(oc.chain(oc.sgd(0.1), oc.average_params())),
        "inner must act on gradients; chain is a parameter transformation",
    ),
}


@each(TOGETHER)
def test_arguments_that_do_not_go_together_fail_where_they_are_written(row):
    make, words = row
    check(make, ValueError, words)


def test_with_two_clips_of_which_one_is_none_all_is_well():
    assert oc.adamw(0.1, clipnorm=None, clipvalue=0.5) == oc.adamw(0.1, clipvalue=0.5)


def test_the_legacy_decay_of_an_array_is_refused():
    with pytest.raises(TypeError, match="with decay, learning_rate must be a number or a schedule"):
        oc.sgd(jnp.array(0.1), decay=0.1)


SIGNATURES: Rows = {
    "an unknown keyword": (lambda: oc.adamw(0.1, lr=0.1), "lr"),
    "an unknown keyword of a link": (lambda: oc.scale_by_adam(b1=0.9), "b1"),
    "an unknown keyword of chain": (lambda: oc.chain(oc.sgd(0.1), momentum=0.9), "momentum"),
    "Keras's name in PyTorch's dialect": (lambda: TORCH.sgd(learning_rate=0.1), "learning_rate"),
    "PyTorch's switches": (lambda: TORCH.adamw(fused=True), "fused"),
    "a keyword twice": (lambda: oc.adamw(0.1, learning_rate=0.2), "learning_rate"),
    "too many arguments": (lambda: oc.clip_by_norm(1.0, 2.0), "too many positional arguments"),
    "an extra by position": (lambda: oc.scale_by_adam(0.9, 0.99, 1e-7, True), "positional"),
    "a missing argument": (lambda: oc.clip_by_norm(), "max_norm"),
}


@each(SIGNATURES)
def test_a_call_that_the_signature_does_not_allow_names_the_argument(row):
    make, words = row
    check(make, TypeError, words)


GROUPS: dict[str, tuple[Sequence[Any], type[Exception], str]] = {
    "none": ([], ValueError, "multi_optimizer needs at least one group"),
    "without a name": (
        [("bias", TX)],
        TypeError,
        "group 0 must be a tuple (name, parameters, transformation); got ('bias', adamw(learning_rate=0.1))",
    ),
    "as a dict": ([{"bias": TX}], TypeError, "group 0 must be a tuple (name, parameters, transformation); got {'bias'"),
    "of one name": (
        [("a", "bias", TX), ("a", "kernel", TX)],
        ValueError,
        "re:the name of a group must be its own and not one of .*; got 'a'",
    ),
    **{
        f"named {name!r}": ([(name, "bias", TX)], ValueError, f"re:the name of a group must be .*; got '{name}'")
        for name in ("default", "inner", "metrics", "average", "a/b")
    },
    "of a number": ([("a", 3, TX)], TypeError, "the parameters of group 'a' must be True or False; got 3"),
    "trained by nothing": (
        [("a", "bias", oc.sgd)],
        TypeError,
        "the transformation of group 'a' must be an optchain or Optax transformation; got <function sgd",
    ),
}


@each(GROUPS)
def test_a_group_that_cannot_be_meant_is_named(row):
    groups, error, words = row
    check(lambda: oc.multi_optimizer(*groups, default=TX), error, words)


# Chains ---------------------------------------------------------------------------------------------------------------

LINKS: dict[str, tuple[Sequence[Any], type[Exception], str]] = {
    "none": ([], ValueError, "chain needs at least one link"),
    "a number": (
        [RATE, 0.1],
        TypeError,
        "link 1 must be an optchain or Optax transformation, or a pair (name, transformation); got 0.1 (float)",
    ),
    "a factory that was not called": ([oc.scale_by_adam], TypeError, "link 0 must be an optchain"),
    "a list of links": ([[ADAM, RATE]], TypeError, "link 0 must be an optchain"),
    "a pair without a transformation": ([("adam", 3)], TypeError, "link 0 must be an optchain"),
    "a number for a name": ([(3, ADAM)], TypeError, "the name of a link must be a string; got 3 (int)"),
    "two of one name": (
        [("a", ADAM), ("a", oc.apply_momentum(0.9))],
        ValueError,
        "two links of the chain are named 'a'",
    ),
    **{
        f"named {name!r}": (
            [(name, ADAM)],
            ValueError,
            f"must be an identifier (letters, digits, underscores); got {name!r}",
        )
        for name in ("a.b", "a/b", "a b", "", "1a", "a-b")
    },
    **{
        f"of a reserved name, {name!r}": ([(name, ADAM)], ValueError, f"got {name!r}")
        for name in ["hyperparams", "scheduled", "count", "metrics", "inner", "mu", "nu", "nu_max", "velocity", "average", "grads", "params"]
    },
}


@each(LINKS)
def test_links_that_cannot_be_meant_are_named(row):
    links, error, words = row
    check(lambda: oc.chain(*links), error, words)


@pytest.mark.parametrize("name", ["metrics", "mu", "hyperparams"])
def test_a_chain_in_a_chain_has_no_reserved_name(name):
    with pytest.raises(ValueError, match=f"got '{name}'"):
        oc.chain(oc.chain(ADAM, name=name))


@pytest.mark.parametrize(
    ("links", "names"), [((oc.clip_by_norm(1.0), ADAM), "clip_by_norm, scale_by_adam"), ((oc.adam(0.1),), "adam")]
)
def test_a_rate_that_no_link_takes_names_the_links(links, names):
    words = f"the chain was given a learning_rate that none of its links takes ({names}): add scale_by_learning_rate()"
    with pytest.raises(ValueError, match=re.escape(words)):
        oc.chain(*links, learning_rate=0.1)


UNSCALE, SGD = oc.unscale_gradients(1024.0), oc.sgd(0.1)
TWICE = "the updates would be scaled twice, and their sign flipped twice"
STILL_SCALED = "the threshold would apply to gradients that are still scaled"

ORDERS: dict[str, tuple[Sequence[Any], str]] = {
    "two learning rates": (
        [oc.scale_by_learning_rate(0.1), oc.scale_by_learning_rate(0.2)],
        f"scale_by_learning_rate_2 stands after scale_by_learning_rate, and cannot: {TWICE}",
    ),
    "two learning rates, one in a preset": ([SGD, RATE], TWICE),
    "a learning rate for some after one for all": ([SGD, oc.masked(SGD, oc.matching("bias"))], TWICE),
    "a learning rate after groups": ([oc.multi_optimizer(("a", "bias", SGD), default=TX), RATE], TWICE),
    "a learning rate after decay_first": ([oc.decay_first(RATE, 0.1), RATE], TWICE),
    "adam after the learning rate": (
        [RATE, ADAM],
        "scale_by_adam stands after scale_by_learning_rate, and cannot: a rule that divides by the gradient's own size "
        "cancels the learning rate",
    ),
    "adam after the learning rate, inside a gate": ([RATE, oc.accumulate(ADAM, 2)], "cancels the learning rate"),
    "decay before the learning rate": (
        [DECAY, RATE],
        "scale_by_learning_rate stands after decay_weights, and cannot: the decay would be scaled again and its sign "
        "flipped: weights would grow",
    ),
    "decay before adam": (
        [oc.decay_weights(0.1, learning_rate=1.0), ADAM],
        "scale_by_adam stands after decay_weights, and cannot: the decay would be rescaled with the gradient",
    ),
    "a penalty after the learning rate": (
        [RATE, oc.add_l2_penalty(0.1)],
        "add_l2_penalty stands after scale_by_learning_rate, and cannot: the sign has flipped: weights would grow",
    ),
    "a penalty before unscaling": (
        [oc.add_l2_penalty(0.1), UNSCALE],
        "unscale_gradients stands after add_l2_penalty, and cannot: the penalty is not scaled as the gradients are",
    ),
    **{
        f"{clip.name} before unscaling": (
            [clip, UNSCALE],
            f"unscale_gradients stands after {clip.name}, and cannot: {STILL_SCALED}",
        )
        for clip in (oc.clip_by_global_norm(1.0), oc.clip_by_block_rms(1.0), oc.adaptive_grad_clip(0.1))
    },
    "adam before unscaling": ([ADAM, UNSCALE], "unscale_gradients stands after scale_by_adam, and cannot"),
    "unscaling after the learning rate": (
        [oc.scale_by_learning_rate(0.1), UNSCALE],
        "unscale_gradients stands after scale_by_learning_rate, and cannot: the updates are not gradients any more",
    ),
    "a gradient link after a gate": (
        [oc.accumulate(SGD, 2), oc.clip_by_norm(1.0)],
        "clip_by_norm (gradient) stands after accumulate (gate): a link on gradients cannot follow a gate",
    ),
    "a gradient link after a group with a gate": (
        [oc.multi_optimizer(("a", "bias", oc.skip_nonfinite(TX)), default=TX), oc.clip_by_norm(1.0)],
        "clip_by_norm (gradient) stands after multi_optimizer (gate)",
    ),
    "a gradient link after a frozen gate": (
        [oc.freeze(oc.accumulate(SGD, 2), oc.matching("bias")), oc.clip_by_norm(1.0)],
        "clip_by_norm (gradient) stands after freeze (gate)",
    ),
    "a gradient link after an average": (
        [oc.average_params(), oc.clip_by_norm(1.0)],
        "clip_by_norm (gradient) stands after average_params (parameter)",
    ),
    "a gradient link after an average, in chains": (
        [oc.chain(SGD, oc.average_params()), oc.chain(oc.clip_by_norm(1.0))],
        "clip_by_norm (gradient) stands after average_params (parameter)",
    ),
    "an Optax link after an average": (
        [oc.average_params(), optax.trace(0.9)],
        "optax (gradient) stands after average_params (parameter)",
    ),
    "an average after a projection": (
        [oc.project_unit_norm(), oc.average_params()],
        "average_params stands after project_unit_norm, and cannot: the average would take the parameters out of the "
        "projection",
    ),
    "an average after a projection of some": (
        [oc.project_non_negative(mask=oc.matching("kernel")), oc.average_params()],
        "average_params stands after project_non_negative, and cannot",
    ),
    "a gate after an average": (
        [oc.average_params(), oc.accumulate(SGD, 2)],
        "accumulate (gate) stands after average_params (parameter)",
    ),
    "two gates": (
        [oc.accumulate(SGD, 2), oc.accumulate(oc.apply_momentum(0.9), 2)],
        "accumulate_2 (gate) stands after accumulate (gate): a chain has at most one gate",
    ),
}


@each(ORDERS)
def test_an_order_that_cannot_be_meant_says_which_link_and_why(row):
    links, words = row
    check(lambda: oc.chain(*links), ValueError, words)


# A link of one's own --------------------------------------------------------------------------------------------------

DECLARED = {
    "stage": ("decays", ValueError, "stage must be one of 'unscale', 'clip', "),
    "accepts": (["row"], ValueError, "accepts must be one of 'scaled', 'rows', 'examples'; got 'row'"),
    "rowwise": ("no", TypeError, "rowwise must be True or False; got 'no' (str)"),
    "needs_params": ("no", TypeError, "needs_params must be True or False; got 'no' (str)"),
}


@pytest.mark.parametrize("name", DECLARED)
def test_what_a_link_of_ones_own_declares_wrongly_is_refused(name):
    value, error, words = DECLARED[name]
    check(
        lambda: oc.Transformation(update=lambda updates, state, params: (updates, state), **{name: value}), error, words
    )


@pytest.mark.parametrize("factory", [3, oc.sgd(0.1), "sgd"])
def test_what_is_registered_is_a_function(factory):
    with pytest.raises(TypeError, match="factory must be a function; got "):
        oc.register(factory)


PATHS = "the paths are: dense/bias, dense/kernel, head/kernel"

# Trees ----------------------------------------------------------------------------------------------------------------

GRADIENTS: dict[str, tuple[Any, type[Exception], str]] = {
    "a shape that would broadcast": (
        kernel(jnp.ones((1, 3))),
        ValueError,
        'grads["dense"]["kernel"]: shape (1, 3), params have (3, 3)',
    ),
    "a scalar that would broadcast": (kernel(1.0), ValueError, '["kernel"]: shape (), params have (3, 3)'),
    "a missing leaf": (
        kernel(None),
        ValueError,
        'grads["dense"]["kernel"] is missing, params have an array of shape (3, 3) there',
    ),
    "a missing key": (
        {"dense": PARAMS["dense"]},
        ValueError,
        'grads["head"]["kernel"] is missing, params have an array of shape (3,) there',
    ),
    "an extra leaf": (
        params_with(tail=jnp.ones(2)),
        ValueError,
        'grads["tail"] has no counterpart: params have no leaf there',
    ),
    "a list for a dict": ([jnp.ones(3)], ValueError, 'grads["dense"]["bias"] is missing'),
    "integers": (
        jax.tree.map(lambda p: p.astype(jnp.int32), PARAMS),
        TypeError,
        'grads["dense"]["bias"] has dtype int32',
    ),
    "gradients of integers": (
        kernel(np.zeros((3, 3), jax.dtypes.float0)),
        TypeError,
        'grads["dense"]["kernel"] has dtype',
    ),
    "complex ones of real parameters": (
        kernel(jnp.ones((3, 3), jnp.complex64)),
        TypeError,
        'grads["dense"]["kernel"] is complex (complex64), its parameter is real (float32)',
    ),
}


@each(GRADIENTS)
def test_wrong_gradients_are_an_error_that_names_the_leaf(row):
    grads, error, words = row
    check(lambda: apply(grads), error, words)


LEAVES = {
    "an integer array": (jnp.array(3), "dtype int32; parameters must be floating-point or complex arrays"),
    "a Python integer": (3, "dtype int"),
    "a bool": (jnp.array(True), "dtype bool"),
    "a key": (jax.random.key(0), "dtype key"),
    "a function": (jax.nn.relu, "re:leaf.* is .*; parameters must be floating-point or complex arrays.*put None"),
    "a string": ("dense", "params[\"leaf\"] is 'dense' (str)"),
}


@each(LEAVES)
def test_a_parameter_that_is_no_floating_point_array_is_named(row):
    leaf, words = row
    check(lambda: TX.init(params_with(leaf=leaf)), TypeError, words)
    check(lambda: TX.init(params_with(leaf=leaf)), TypeError, 'params["leaf"]')


@pytest.mark.parametrize("form", [apply, update])
def test_a_wrong_tree_is_an_error_under_jit_too(form):
    with pytest.raises(ValueError, match=r'\["dense"\]\["kernel"\]: shape \(1, 3\), params have \(3, 3\)'):
        jax.jit(form)(kernel(jnp.ones((1, 3))))


TREES: Rows = {
    "a gradient for a parameter that is None": (
        lambda: TX.apply(kernel(None), TX.init(kernel(None)), grads=PARAMS),
        'grads["dense"]["kernel"] has no counterpart',
    ),
    "another container": (
        lambda: TX.apply([jnp.ones(2)], TX.init([jnp.ones(2)]), grads=(jnp.ones(2),)),
        "grads and params have the same paths in different containers",
    ),
    "the wrong shape in the update form": (
        lambda: update(kernel(jnp.ones((1, 3)))),
        'updates["dense"]["kernel"]: shape (1, 3), params have (3, 3)',
    ),
    "another shape than the state, without params": (
        lambda: oc.scale_by_adam().update(kernel(jnp.ones((1, 3))), oc.scale_by_adam().init(PARAMS)),
        're:scale_by_adam state\\["mu"\\]\\["dense"\\]\\["kernel"\\]: shape \\(3, 3\\), updates have \\(1, 3\\)',
    ),
    "a factor for no parameter": (
        lambda: oc.scale_by_path({"kernel": 1.0, "gamma": 0.5}).init(PARAMS),
        f"factors: pattern 'gamma' decides for no parameter: it matches none; {PATHS}",
    ),
    "a factor whose parameters are taken": (
        lambda: oc.scale_by_path({"kernel": 1.0, "head/kernel": 0.5}).init(PARAMS),
        "pattern 'head/kernel' decides for no parameter: every parameter that it matches is taken by a pattern before it",
    ),
    "a decay for no parameter": (
        lambda: KERAS_ADAMW.adamw(total_iterations=5, weight_decays={"gamma": (0.0, 0.1)}).init(PARAMS),
        "weight_decays: pattern 'gamma' decides for no parameter",
    ),
}


@each(TREES)
def test_a_wrong_tree_is_an_error_that_names_the_leaf(row):
    make, words = row
    check(make, ValueError, words)


NEEDING_PARAMS = {
    "decay_weights needs the parameters, and update() got none: call tx.update(updates, state, params)": TX,
    "decay_weights needs the parameters": oc.sgd(0.1, weight_decay=0.1, gradient_accumulation_steps=2),
    "add_l2_penalty needs the parameters": TORCH.sgd(weight_decay=0.1),
    "apply_ftrl needs the parameters, and update() got none": oc.ftrl(),
    "adaptive_grad_clip needs the parameters, and update() got none": oc.adaptive_grad_clip(0.1),
    "slow needs the parameters": oc.chain(("slow", oc.average_params())),
}


@pytest.mark.parametrize("words", NEEDING_PARAMS)
def test_an_update_without_the_parameters_names_the_link_that_needs_them(words):
    check(lambda: update(params=None, tx=NEEDING_PARAMS[words]), ValueError, words)


def test_update_without_params_works_where_no_link_needs_them():
    updates, _ = update(params=None, tx=oc.adam(0.1, clipnorm=1.0))
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


# States ---------------------------------------------------------------------------------------------------------------

STATES: dict[str, tuple[Any, Any, str]] = {
    "empty": (TX, {}, "the state of adamw has no entry 'hyperparams': it is another transformation's"),
    "without a link": (
        TX,
        {name: entry for name, entry in TX.init(PARAMS).items() if name != "scale_by_adam"},
        "the state of adamw has no entry 'scale_by_adam'",
    ),
    "of sgd": (TX, oc.sgd(0.1, 0.9).init(PARAMS), "the state of adamw has no entry 'scale_by_adam'"),
    "with another link": (
        TX,
        oc.adamw(0.1, use_ema=True).init(PARAMS),
        "the state of adamw has an entry 'average_params' that adamw does not know",
    ),
    "without AMSGrad": (
        oc.adamw(0.1, amsgrad=True),
        TX.init(PARAMS),
        "the state of scale_by_adam has no entry 'nu_max'",
    ),
    "of a number where there is a schedule": (
        oc.adamw(lambda step: 0.1),
        TX.init(PARAMS),
        "the state of adamw has no entry 'count'",
    ),
    "without one hyperparameter": (
        oc.adam(0.1, jnp.array(0.9), jnp.array(0.9)),
        oc.adam(0.1, jnp.array(0.9)).init(PARAMS),
        "beta_2",
    ),
    "of other links, in a gate": (
        oc.adam(0.1, gradient_accumulation_steps=2),
        oc.sgd(0.1, 0.9, gradient_accumulation_steps=2).init(PARAMS),
        "has no entry 'scale_by_adam'",
    ),
    "of other parameters": (
        TX,
        TX.init(kernel(jnp.ones((2, 2)))),
        're:scale_by_adam state\\["mu"\\]\\["dense"\\]\\["kernel"\\]: shape \\(2, 2\\), updates have \\(3, 3\\)',
    ),
    "of fewer parameters": (
        TX,
        TX.init({"dense": PARAMS["dense"]}),
        're:scale_by_adam state\\["mu"\\]\\["head"\\]\\["kernel"\\] is missing',
    ),
    "without the Optax link's": (
        oc.chain(("trace", optax.trace(0.9))),
        {},
        "the state has no entry 'trace'",
    ),
}


@each(STATES)
def test_a_foreign_state_is_an_error_that_names_the_link(row):
    tx, state, words = row
    check(lambda: apply(tx=tx, state=state), ValueError, words)


@pytest.mark.parametrize("state", [optax.adamw(0.1).init(PARAMS), None])
def test_a_state_that_is_no_dict_is_an_error(state):
    words = f"the state of adamw must be the dict that init returned; got {type(state).__name__}"
    check(lambda: TX.apply(PARAMS, state, grads=PARAMS), TypeError, words)


# Calls ----------------------------------------------------------------------------------------------------------------

CALLS: Rows = {
    "trees by position": (lambda: TX.apply(PARAMS, TX.init(PARAMS), PARAMS), "positional argument"),
    "params and gradients in Optax's order": (lambda: TX.apply(PARAMS, PARAMS, TX.init(PARAMS)), "positional argument"),
    "no gradients": (lambda: TX.apply(PARAMS, TX.init(PARAMS)), "grads"),
    "state and params swapped": (lambda: TX.apply(TX.init(PARAMS), PARAMS, grads=PARAMS), "re:."),
    "no learning rate for the link": (
        lambda: apply(tx=RATE, state={}),
        "scale_by_learning_rate needs learning_rate, and the call did not give it; give it to the chain, "
        "chain(…, learning_rate=…)",
    ),
    "no learning rate for the chain": (
        lambda: apply(tx=oc.chain(ADAM, RATE)),
        "scale_by_learning_rate needs learning_rate",
    ),
    "no learning rate for decay, under its chosen name": (
        lambda: apply(tx=oc.chain(("shrink", DECAY)), state={}),
        "shrink needs learning_rate",
    ),
    "no learning rate in a gate": (
        lambda: apply(tx=oc.accumulate(oc.chain(ADAM, RATE), 2)),
        "scale_by_learning_rate needs learning_rate",
    ),
    "no learning rate for a rule": (
        lambda: apply(tx=oc.apply_ftrl()),
        "apply_ftrl needs learning_rate, and the call did not give it",
    ),
    "a learning rate for a chain that owns one": (
        lambda: apply(learning_rate=0.5),
        "adamw owns learning_rate: change it with set_hyperparams, not by the call",
    ),
    "a learning rate for a link that owns one": (
        lambda: update(tx=oc.scale_by_learning_rate(0.1), learning_rate=0.5),
        "scale_by_learning_rate owns learning_rate",
    ),
}


@each(CALLS)
def test_a_wrong_call_is_an_error_that_names_the_link_and_the_argument(row):
    make, words = row
    check(make, TypeError, words)


# Masks on parameters --------------------------------------------------------------------------------------------------

MASKS: dict[str, tuple[Any, type[Exception], str]] = {
    "another structure": ({"dens": True}, ValueError, "mask does not fit the parameters"),
    "deeper than the parameters": (
        {"dense": {"kernel": {"a": True}, "bias": True}, "head": True},
        ValueError,
        "mask does not fit the parameters",
    ),
    "a key too many": ({"dense": True, "head": True, "tail": True}, ValueError, "mask does not fit the parameters"),
    "a list for a dict": ([True, False], ValueError, "mask does not fit the parameters"),
    "a callable that returns no bools": (
        lambda params: jax.tree.map(jnp.ndim, params),
        TypeError,
        'mask["dense"]["bias"] must be True or False; got 1 (int)',
    ),
    "a callable that returns arrays of bools": (
        lambda params: jax.tree.map(lambda p: p > 0, params),
        TypeError,
        'mask["dense"]["bias"] must be True or False; got',
    ),
}


@each(MASKS)
def test_a_mask_that_does_not_fit_is_an_error_at_init(row):
    mask, error, words = row
    check(lambda: oc.decay_weights(0.1, learning_rate=1.0, mask=mask).init(PARAMS), error, words)


EXCLUSIONS: dict[str, tuple[Any, type[Exception], str]] = {
    "a tree that does not fit": ({"dens": True}, ValueError, "exclude_from_weight_decay does not fit the parameters"),
    "a callable that returns a string": (
        lambda params: "bias",
        TypeError,
        "exclude_from_weight_decay must be True or False; got 'bias'",
    ),
}


@each(EXCLUSIONS)
def test_exclusions_that_do_not_fit_are_an_error_at_init(row):
    exclude, error, words = row
    check(lambda: oc.adamw(0.1, exclude_from_weight_decay=exclude).init(PARAMS), error, words)


UNMATCHED = {
    "biass": oc.adamw(0.1, exclude_from_weight_decay=["biass"]),
    "^encoder/": oc.freeze(oc.sgd(0.1), oc.matching("^encoder/")),
    "kernels": oc.project_non_negative(mask=oc.matching("kernels")),
    "haed": oc.muon(exclude_layers=["haed"]),
}


@pytest.mark.parametrize("pattern", UNMATCHED)
def test_a_pattern_that_matches_no_parameter_is_an_error_at_init_that_has_the_paths(pattern):
    words = f"re:{re.escape(repr(pattern))}.* matches no parameter; {PATHS}"
    check(lambda: UNMATCHED[pattern].init(PARAMS), ValueError, words)


AXES: Rows = {
    "a kernel without the axis of outputs": (
        lambda: update(tx=oc.centralize_gradients(2), state={}),
        "centralize_gradients: dense/kernel of shape (3, 3) has no axis 2: leave it out by a mask",
    ),
    "a rank that has no units": (
        lambda: oc.adaptive_grad_clip(0.1).init({"w": jnp.ones((2,) * 6)}),
        "adaptive_grad_clip has no rule for w of shape (2, 2, 2, 2, 2, 2): give the axis, or leave it out with masked",
    ),
    "a parameter without the axis of a norm": (
        lambda: oc.project_max_norm(1.0, 1).init(PARAMS),
        "project_max_norm: dense/bias of shape (3,) has no axis 1: leave it out by a mask",
    ),
}


@each(AXES)
def test_a_parameter_without_the_axis_is_named(row):
    make, words = row
    check(make, ValueError, words)
