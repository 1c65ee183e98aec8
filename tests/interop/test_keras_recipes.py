"""Recipes from Keras and to it, what neither can say of the other, and which parameter is which variable."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import optchain
from optchain import schedules
from optchain.interop import mapping
from optchain.interop.keras import (
    from_keras,
    load_params,
    load_state,
    load_with_report,
    save_params,
    save_state,
    to_keras,
)

from .test_keras_states import CASES, NAMES, OURS, as_tree, built, make, random, steps, the_optimizer, variables

# Keras's own: how it turns a variable into an array when it is asked for a config.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PARAMS = random(0)


@pytest.mark.parametrize("case", [*CASES, "LossScaleOptimizer"])
def test_a_recipe_goes_there_and_back(case: str) -> None:
    optimizer = make(case)
    tx = from_keras(optimizer)
    assert from_keras(keras.optimizers.serialize(optimizer)) == tx
    assert to_keras(tx).get_config() == optimizer.get_config()
    assert from_keras(to_keras(tx)) == tx


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.CosineDecay(0.1, 10, warmup_target=0.2, warmup_steps=3),
        schedules.PiecewiseConstantDecay((1, 2), (0.3, 0.2, 0.1)),
        schedules.PolynomialDecay(0.1, 10, cycle=True),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_schedule_goes_there_and_back(schedule: schedules.Schedule) -> None:
    theirs = to_keras(optchain.sgd(schedule))
    assert float(theirs._learning_rate(2)) == pytest.approx(float(schedule(2)), rel=1e-6)
    assert from_keras(theirs) == optchain.sgd(schedule, name=theirs.name)


@pytest.mark.parametrize(
    ("patterns", "excluded"),
    [
        (["bias"], {"dense/bias"}),
        (["norm"], set()),  # a layer's name, which Keras does not look at
        (["^b", "gamma"], {"dense/bias"}),
        (["^(ern|ias)"], set()),
        (["el$", "ia"], {"dense/bias", "dense/kernel", "head/kernel"}),
    ],
)
def test_exclusions_by_name_are_searched_in_the_last_component(patterns: list[str], excluded: set[str]) -> None:
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=patterns)
    (pattern,) = from_keras(optimizer).config["exclude_from_weight_decay"]
    assert {path for path in OURS if re.search(pattern, path)} == excluded


def test_exclusions_reach_keras_variable_by_variable() -> None:
    tx = optchain.adamw(0.1, exclude_from_weight_decay=["norm", "bias"])
    made = to_keras(tx, PARAMS, variables(PARAMS))
    trained = variables(PARAMS)
    made = to_keras(tx, PARAMS, trained)
    made.build(trained)
    assert [made._use_weight_decay(v) for v in trained] == [True, False, False, True]


CHAIN = optchain.chain(optchain.scale_by_lion(), optchain.scale_by_learning_rate(), learning_rate=0.1)
UNSAID = {
    "a chain": (CHAIN, "tx must be one of Keras's presets; got chain("),
    "a chain within": (optchain.loss_scale_optimizer(CHAIN), "tx must have one of Keras's presets within"),
    "PyTorch's": (optchain.presets.torch.adamw(), "tx must be one of Keras's presets; got presets.torch.adamw()"),
    "another dtype": (optchain.adam(moment_dtype="bfloat16"), "Keras's Adam has no moment_dtype; got moment_dtype='bf"),
    "lazy rows": (optchain.adam(lazy=True), "Keras has no optimizer that updates only the rows that gradients name"),
    "lazy rows within": (
        optchain.loss_scale_optimizer(optchain.adam(lazy=True)),
        "Keras has no optimizer that updates",
    ),
    "the legacy decay": (optchain.adam(decay=0.1), "Keras's Adam has no decay; got decay=0.1"),
    "a schedule that it has not": (
        optchain.adam(schedules.StepLR(0.1, 3)),
        "Keras has no schedule like learning_rate=",
    ),
    "a run-time value": (
        optchain.adam(beta_1=jnp.array(0.9)),
        "beta_1 of Keras's Adam must be a number; got the run-time",
    ),
    "no decay": (optchain.adamw(weight_decay=None), "Keras's AdamW needs a weight_decay; got None: build tx with adam"),
    "exclusions": (optchain.adamw(exclude_from_weight_decay=["b"]), "give params and the model's trainable variables"),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_keras_cannot_say_is_an_error(name: str) -> None:
    tx, words = UNSAID[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        to_keras(tx)


def test_what_cannot_come_from_keras_is_an_error() -> None:
    _, trained = built(keras.optimizers.AdamW())
    with pytest.raises(TypeError, match=r"optimizer must be a Keras optimizer, its serialized form or the path of"):
        from_keras(3)
    other = keras.optimizers.AdamW()
    other.exclude_from_weight_decay(var_list=trained[:1])
    with pytest.raises(ValueError, match=r"excludes single variables from weight decay"):
        from_keras(other)
    given = from_keras(other, exclude_from_weight_decay=["kernel"])
    assert given.config["exclude_from_weight_decay"] == ["kernel"]


def test_a_rate_that_is_code_stays_the_same_code() -> None:
    def rate() -> float:
        return 0.25

    optimizer, trained = built(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate)))
    tx = from_keras(optimizer)
    assert tx.config["inner"].config["learning_rate"] is rate
    assert to_keras(tx).inner_optimizer._learning_rate is rate
    state = load_state(tx, as_tree(trained), optimizer)
    assert float(state["inner"]["scheduled"]["learning_rate"]) == 0.25


# States that do not fit -----------------------------------------------------------------------------------------------


def test_states_that_do_not_fit_say_what_differs() -> None:
    optimizer, trained = the_optimizer("Adam")  # with a window of 3
    params = as_tree(trained)

    def load(tx: optchain.Transformation, source: Any = optimizer, **given: Any) -> Any:
        return load_state(tx, params, source, **given)

    with pytest.raises(
        ValueError, match=r"tx is an optimizer of the class Nadam, that of the Adam 'accumulate' is Adam"
    ):
        load(optchain.nadam(gradient_accumulation_steps=3))
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 1 in tx, and 3 in the Adam"):
        load(optchain.adam())
    with pytest.raises(ValueError, match=r"tx keeps .*velocity_hat.*, and the Adam .* build tx with from_keras"):
        load(optchain.adam(gradient_accumulation_steps=3, amsgrad=True))
    with pytest.raises(ValueError, match=r"tx must be one of Keras's presets"):
        load(CHAIN)
    with pytest.raises(ValueError, match=r"must be built"):
        load(optchain.adam(), keras.optimizers.Adam())
    with pytest.raises(TypeError, match=r"source must be a Keras optimizer or model, or the path of a file; got 3"):
        load(optchain.adam(), 3)
    with pytest.raises(ValueError, match=r'hyperparams must be "saved" or "configured"'):
        load(optchain.adam(), hyperparams="both")


def test_a_schedule_takes_over_from_a_saved_rate_only_where_it_is_said() -> None:
    optimizer, trained = the_optimizer("Adam, AMSGrad")
    tx = optchain.adam(schedules.ExponentialDecay(1.0, 1, 0.5), amsgrad=True)
    with pytest.raises(
        ValueError, match=r'is a number, that of tx a schedule: load_state\(…, hyperparams="configured"\) goes on'
    ):
        load_state(tx, as_tree(trained), optimizer)
    state = load_state(tx, as_tree(trained), optimizer, hyperparams="configured")
    assert int(state["count"]) == 5
    assert float(state["scheduled"]["learning_rate"]) == 0.5**4  # the one of the last call
    assert float(optchain.metrics(state)["learning_rate"]) == 0.5**4


def test_a_schedule_may_give_whole_numbers() -> None:
    optimizer, trained = the_optimizer("Adam, AMSGrad")
    tx = optchain.adam(lambda step: jnp.where(step < 3, 2, 1), amsgrad=True)
    state = load_state(tx, as_tree(trained), optimizer, hyperparams="configured")
    assert float(state["scheduled"]["learning_rate"]) == 1


def test_a_report_says_what_became_of_each_entry() -> None:
    optimizer, trained = the_optimizer("AdamW")
    tx, params = from_keras(optimizer), as_tree(trained)
    state, report = load_with_report(tx, params, optimizer)
    assert not report.new
    assert not report.gone
    assert len(report.restored) == len(jax.tree.leaves(state))
    _, report = load_with_report(tx, params, optimizer, hyperparams="configured")
    assert [row.path for row in report.rows if row.fate == "configured"] == [("hyperparams", "learning_rate")]
    before, _ = built(make("AdamW"))
    _, report = load_with_report(tx, params, before)  # whose average Keras has not made yet
    assert {path.rsplit("/", 2)[0] for path in report.new} == {"average_params/average"}


def test_a_loss_scale_out_of_bounds_is_refused() -> None:
    optimizer, trained = built(make("LossScaleOptimizer"))
    optimizer.dynamic_scale.assign(np.inf)
    with pytest.raises(ValueError, match=r"the dynamic_scale of .* must be a number in .*; it is inf"):
        load_state(from_keras(optimizer), as_tree(trained), optimizer)


def test_what_keras_cannot_hold_of_a_state_is_an_error() -> None:
    tx = optchain.adam(gradient_accumulation_steps=3)
    target, _ = built(to_keras(tx))
    before = [keras.ops.convert_to_numpy(v.value).tobytes() for v in target.variables]
    params, state = PARAMS, tx.init(PARAMS)
    params, state = tx.apply(params, state, grads=PARAMS)
    with pytest.raises(ValueError, match=r"calls=7 was given: they do not go together"):
        save_state(tx, params, state, target, calls=7)
    _, weighted = tx.apply(params, state, grads=PARAMS, weight=5.0)
    with pytest.raises(ValueError, match=r"holds 2 gradients of weight 6.0 together"):
        save_state(tx, params, weighted, target)
    changed = optchain.adam(loss_scale_factor=4.0, gradient_accumulation_steps=3)
    state = optchain.set_hyperparams(changed.init(PARAMS), loss_scale=8.0)
    with pytest.raises(ValueError, match=r"loss_scale is 8.0 in the state and 4.0 in tx; Keras keeps it as a constant"):
        save_state(changed, PARAMS, state, built(to_keras(changed))[0])

    averaged = optchain.adam(gradient_accumulation_steps=3, use_ema=True)
    params, state = averaged.apply(PARAMS, averaged.init(PARAMS), grads=PARAMS)
    params, state = optchain.flush(averaged, params, state)
    with pytest.raises(ValueError, match=r"after a flush they cannot"):
        save_state(averaged, params, state, built(to_keras(averaged))[0])
    assert [keras.ops.convert_to_numpy(v.value).tobytes() for v in target.variables] == before


# Which is which -------------------------------------------------------------------------------------------------------


class Model:
    """What `save_params` asks of a model."""

    name, layers, optimizer = "model", (), None

    def __init__(self, trained: list[keras.Variable]):
        self.trainable_variables = trained


def test_variables_are_found_by_name_by_order_and_by_table() -> None:
    model = Model(variables(PARAMS))
    empty = jax.tree.map(np.zeros_like, PARAMS)
    renamed = {"params": {"model": empty}}
    as_list = [empty["dense"]["kernel"], empty["dense"]["bias"], empty["norm"]["scale"], empty["head"]["kernel"]]
    table = dict(zip(OURS, NAMES, strict=True))
    assert same(load_params(empty, model), PARAMS)
    assert same(load_params(renamed, model)["params"]["model"], PARAMS)
    assert same(load_params(empty, model, OURS), PARAMS)
    assert same(load_params(empty, model, table), PARAMS)
    loaded = load_params(as_list, model, "order")
    assert [leaf.tolist() for leaf in loaded] == [
        keras.ops.convert_to_numpy(v.value).tolist() for v in model.trainable_variables
    ]
    save_params(jax.tree.map(lambda p: p + 1, PARAMS), model)
    assert same(as_tree(model.trainable_variables), jax.tree.map(lambda p: p + 1, PARAMS))


def same(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


SIDES = r"params:\n  dense/bias \(2,\)\n[\s\S]*the Model 'model':\n  dense/kernel \(3, 2\)\n"


@pytest.mark.parametrize(
    ("correspondence", "error", "words"),
    [
        (None, ValueError, "names do not tell which is which[^$]*" + SIDES),
        ({"dense/kernel": "dense/kernel"}, ValueError, "names do not tell which is which[^$]*" + SIDES),
        (
            {"dense/weight": "dense/kernel"},
            ValueError,
            r"names \['dense/weight'\], which params do not have[^$]*" + SIDES,
        ),
        (dict.fromkeys(OURS, "dense/kernel"), ValueError, r"\['dense/kernel'\] in params are ambiguous[^$]*" + SIDES),
        (OURS[:3], ValueError, r"must name every parameter once; missing: \['head/kernel'\], unknown: \[\]"),
        ("tree", TypeError, 'mapping must be None, "order", a sequence of paths or a table'),
        (OURS[::-1], ValueError, r"head/kernel has shape \(2, 2\), and dense/kernel of the Model 'model' has \(3, 2\)"),
        ("order", ValueError, r"dense/bias has shape \(2,\), and dense/kernel of the Model 'model' has \(3, 2\)"),
    ],
)
def test_a_mapping_that_does_not_tell_prints_both_sides(correspondence: Any, error: type, words: str) -> None:
    trained = variables(PARAMS)
    if correspondence is None:
        with keras.name_scope("tail"):
            trained[-1] = keras.Variable(trained[-1].value, name="kernel")
    with pytest.raises(error, match=words):
        load_params(PARAMS, Model(trained), correspondence)


def test_equal_names_are_ambiguous() -> None:
    ours = [mapping.Entry("a", (1,)), mapping.Entry("b", (1,))]
    theirs = [mapping.Entry("x/scale", (1,)), mapping.Entry("x/gamma", (1,))]
    with pytest.raises(ValueError, match=r"\['scale'\] in run are ambiguous"):
        mapping.match(ours, theirs, None, "run", aliases={"gamma": "scale"})


def test_a_run_in_keras_goes_on_with_exclusions() -> None:
    tx = optchain.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=["bias", "norm"])
    optimizer, trained = to_keras(tx, PARAMS, trained := variables(PARAMS)), trained
    optimizer.build(trained)
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=random(100))
    save_params(params, Model(trained))
    save_state(tx, params, state, optimizer)
    expected, _ = tx.apply(params, state, grads=random(101))
    theirs = steps(optimizer, trained, 1, 2)
    for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-6, atol=5e-7)
