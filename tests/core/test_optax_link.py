"""Optax's transformations in our chains: what they hand back, and states that come back from a checkpoint in other containers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import optchain as oc

PARAMS = {"b": jnp.ones(2), "layers": [jnp.ones((3, 2)), jnp.full((2,), 2.0)]}
GRADS = jax.tree.map(lambda p: 0.5 * p + jnp.arange(p.size, dtype=p.dtype).reshape(p.shape), PARAMS)


def returning(change):
    """An Optax transformation that makes something else of each update."""
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params=None: (change(updates), state)
    )


# What comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda u: {**u, "b": u["b"][:1]},
            ValueError,
            r'reducer returned updates\["b"\]: shape \(1,\), \w+ have \(2,\)',
        ),
        (lambda u: jax.tree.map(lambda x: x[0], u), ValueError, r'reducer returned updates\["b"\]: shape \(\)'),
        (lambda u: {"b": u["b"]}, ValueError, r'reducer returned updates\["layers"\]\[0\] is missing'),
        (lambda u: {**u, "b": None}, ValueError, r'reducer returned updates\["b"\] is missing'),
        (lambda u: {**u, "b": u["b"].astype(int)}, TypeError, r'reducer returned updates\["b"\] has dtype int32'),
        (lambda u: {**u, "b": u["b"] > 0}, TypeError, r'reducer returned updates\["b"\] has dtype bool'),
        (lambda u: {**u, "b": u["b"] + 1j}, TypeError, r'reducer returned updates\["b"\] is complex'),
    ],
    ids=["a shorter axis", "an axis less", "a leaf less", "None", "integers", "bools", "complex"],
)
@pytest.mark.parametrize("within", [lambda link: link, lambda link: oc.accumulate(link, 2)], ids=["chain", "gate"])
def test_updates_that_do_not_fit_name_the_link_and_the_leaf(change, error, message, within):
    tx = within(oc.chain(("reducer", returning(change)), oc.scale(1.0)))
    with pytest.raises(error, match=message):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    with pytest.raises(error, match=message):
        tx.update(GRADS, tx.init(PARAMS))


def test_a_link_of_ones_own_is_held_to_it_too():
    careless = oc.Transformation(update=lambda updates, state, params: ({**updates, "b": updates["b"][:1]}, state))
    tx = oc.chain(("careless", careless), oc.scale(1.0))
    with pytest.raises(ValueError, match=r'careless returned updates\["b"\]: shape \(1,\), params have \(2,\)'):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)


def test_parameters_that_a_link_of_ones_own_returns_are_held_to_it():
    careless = oc.ParameterLink(lambda params, state: ({**params, "b": params["b"][:1]}, state))
    tx = oc.chain(oc.sgd(0.1), ("careless", careless))
    with pytest.raises(ValueError, match=r'careless returned params\["b"\]: shape \(1,\), params have \(2,\)'):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)


def test_updates_in_another_float_dtype_are_no_error():
    tx = oc.chain(("half", returning(lambda u: jax.tree.map(lambda x: x.astype(jnp.bfloat16), u))), oc.scale(-1.0))
    params, _ = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    assert params["b"].dtype == jnp.float32


# Checkpoints without a template ---------------------------------------------------------------------------------------


def by_orbax(state, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / "state")


def by_msgpack(state, path):
    return serialization.msgpack_restore(serialization.to_bytes(state))  # the lists of parameters are dicts too


def plain(node, tuples):
    """Named tuples as dicts, or like tuples, which become lists; None where there is nothing."""
    if isinstance(node, dict):
        return {key: plain(child, tuples) for key, child in node.items()}
    if isinstance(node, tuple) and not tuples and hasattr(node, "_fields"):
        return {name: plain(child, tuples) for name, child in zip(node._fields, node, strict=True)}
    if isinstance(node, tuple | list):
        return [plain(child, tuples) for child in node]
    return node


CHECKPOINTS = {
    "orbax": by_orbax,
    "msgpack": by_msgpack,
    "dicts": lambda state, path: plain(state, tuples=False),
    "lists": lambda state, path: plain(state, tuples=True),
}

CHAINS = {
    "the readme's": lambda: oc.chain(
        oc.clip_by_global_norm(1.0), ("yogi", optax.scale_by_yogi()), oc.scale_by_learning_rate(0.1)
    ),
    "a chain of Optax's": lambda: oc.chain(("theirs", optax.chain(optax.clip(1.0), optax.adam(0.1), optax.trace(0.5)))),
    "no state": lambda: oc.chain(("theirs", optax.chain(optax.clip(1.0), optax.scale(-1.0)))),
    "injected": lambda: oc.chain(("theirs", optax.inject_hyperparams(optax.adam)(learning_rate=0.1))),
    "masked": lambda: oc.chain(("theirs", optax.masked(optax.adam(0.1), {"b": True, "layers": False}))),
    "groups": lambda: oc.chain(
        ("theirs", optax.multi_transform({"x": optax.adam(0.1), "y": optax.sgd(0.1)}, {"b": "x", "layers": "y"}))
    ),
    "MultiSteps": lambda: oc.chain(("theirs", optax.MultiSteps(optax.adam(0.1), 2))),
    "ours inside theirs": lambda: oc.chain(("theirs", optax.apply_if_finite(oc.adam(0.1), 3))),
    "in a gate": lambda: oc.accumulate(oc.chain(oc.skip_nonfinite(oc.chain(("lamb", optax.lamb(0.1))))), 2),
    "in a chain in a mask": lambda: oc.freeze(oc.chain(oc.chain(("lion", optax.lion(0.1)))), oc.matching("^b")),
    "in a group": lambda: oc.multi_optimizer(("b", "^b", optax.adam(0.1)), default=optax.rmsprop(0.1, momentum=0.9)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("form", CHECKPOINTS)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_goes_on_from_a_checkpoint_without_a_template(chain, form, tmp_path):
    tx = CHAINS[chain]()

    @jax.jit
    def step(params, state):
        return tx.apply(params, state, grads=jax.tree.map(lambda p: 2 * p, params))

    params, state = step(PARAMS, tx.init(PARAMS))
    restored = CHECKPOINTS[form]({"params": params, "state": state}, tmp_path)
    params_again, state_again = restored["params"], restored["state"]
    for _ in range(3):
        params, state = step(params, state)
        params_again, state_again = step(params_again, state_again)
    for again, expected in zip(jax.tree.leaves(params_again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(again, expected)


def restored_yogi():
    tx = CHAINS["the readme's"]()
    _, state = tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)
    return tx, plain(state, tuples=False)


def test_a_restored_state_is_given_back_as_it_came():
    tx, state = restored_yogi()

    def step(carry, _):
        return tx.apply(*carry, grads=GRADS), None

    _, scanned = jax.lax.scan(step, (PARAMS, state), length=2)[0]
    assert jax.tree.structure(scanned) == jax.tree.structure(state)
    assert int(scanned["yogi"]["count"]) == 3
    _, new_state = tx.update(GRADS, state)  # the parameters are not needed to know the containers
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda yogi: {"count": yogi["count"], "mu": yogi["mu"]},
            r"yogi state\.nu is missing; the state has \[\'count\', \'mu\'\]",
        ),
        (lambda yogi: yogi | {"velocity": yogi["mu"]}, r'yogi state\["velocity"\] has no counterpart: yogi keeps'),
        (lambda yogi: yogi | {"mu": {"b": yogi["mu"]["b"]}}, r'yogi state\.mu\["layers"\] is missing'),
        (lambda yogi: yogi | {"count": yogi["mu"]}, r"yogi state\.count must be an array"),
    ],
    ids=["an entry less", "an entry more", "a parameter less", "a tree for an array"],
)
def test_a_state_that_cannot_be_rebuilt_names_the_link_and_the_entry(change, message):
    tx, state = restored_yogi()
    with pytest.raises(ValueError, match=message):
        tx.apply(PARAMS, state | {"yogi": change(state["yogi"])}, grads=GRADS)


# MultiSteps -----------------------------------------------------------------------------------------------------------


def multi_steps():
    return optax.MultiSteps(optax.adam(0.1), every_k_schedule=2)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: oc.chain(tx),
        pytest.param(lambda tx: oc.chain(("named", tx)), marks=pytest.mark.for_release),
        lambda tx: oc.skip_nonfinite(tx),
        pytest.param(lambda tx: oc.masked(tx, oc.matching("")), marks=pytest.mark.for_release),
        lambda tx: oc.freeze(tx, oc.matching("nothing", allow_unmatched=True)),
        pytest.param(lambda tx: oc.multi_optimizer(("all", "", tx)), marks=pytest.mark.for_release),
        lambda tx: oc.multi_optimizer(("some", "^b", tx), default=tx),
        lambda tx: oc.dynamic_loss_scale(tx, 1.0),
        lambda tx: oc.register(lambda: tx, name="a_window")(),
    ],
    ids=["chain", "named", "gate", "masked", "freeze", "group", "default", "loss_scale", "registered"],
)
def test_multi_steps_objects_are_taken_wherever_a_transformation_is(wrap):
    given, theirs = wrap(multi_steps()), multi_steps()
    params, state = PARAMS, given.init(PARAMS)
    expected, their_state = PARAMS, theirs.init(PARAMS)
    for _ in range(2):
        params, state = given.apply(params, state, grads=GRADS)
        updates, their_state = theirs.update(GRADS, their_state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)
    assert float(jnp.abs(params["b"] - PARAMS["b"]).max()) > 0.05


def test_multi_steps_hands_on_what_a_call_gives():
    tx = oc.chain(optax.MultiSteps(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), 1))
    assert tx.update(GRADS, tx.init(PARAMS), PARAMS, value=1.0)


def test_links_of_one_optax_object_are_equal():
    for tx in (multi_steps(), optax.scale_by_adam()):
        assert oc.chain(tx) == oc.chain(tx)
        assert hash(oc.chain(tx)) == hash(oc.chain(tx))


# Those that keep the parameters, and those that ask for the loss --------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    "source",
    [
        optax.contrib.prodigy(weight_decay=0.1),
        optax.contrib.momo(),
        optax.contrib.mechanize(optax.sgd(0.1)),
        optax.contrib.dog(1.0),
    ],
    ids=["prodigy", "momo", "mechanize", "dog"],
)
def test_one_that_finds_its_own_rate_makes_the_steps_that_it_makes_in_optax(source):
    features = jnp.arange(12.0).reshape(4, 3) / 12

    def loss_fn(params):
        return jnp.mean((features @ params["w"] + params["b"] - 1.0) ** 2)

    params = theirs = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    tx, source = oc.chain(("found", source)), optax.with_extra_args_support(source)
    params, state = jax.tree.map(jnp.copy, params), source.init(theirs)
    step, ours = oc.make_step(loss_fn, tx), tx.init(params)  # which donates both

    @jax.jit
    def their_step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = source.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(10):
        params, ours, _ = step(params, ours)
        theirs, state = their_step(theirs, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, theirs)


def test_no_array_of_a_state_is_one_of_the_parameters_or_there_twice():
    def init(params):
        return {"start": params, "again": params, "zero": [zero := jnp.zeros(2), zero]}

    tx = oc.chain(("keeper", optax.GradientTransformation(init, lambda u, s, p=None: (u, s))))
    for make in (tx.init, jax.jit(tx.init)):
        leaves = jax.tree.leaves((PARAMS, make(PARAMS)))
        places = [leaf.unsafe_buffer_pointer() for leaf in leaves]
        assert len(places) == len(set(places))
    jax.tree.map(np.testing.assert_array_equal, tx.init(PARAMS)["keeper"]["start"], PARAMS)
