"""`presets.optax` against live Optax: each argument, over 50 steps; schedules, masks, states that are taken over."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.interop.optax import from_optax_state

OURS = oc.presets.optax
STEPS = 50
PARAMS = {
    "dense": {"kernel": jnp.linspace(-1.0, 2.0, 6).reshape(3, 2), "bias": jnp.array([0.5, -0.25])},
    "zero": jnp.zeros(2),
}
MASK = {"dense": {"kernel": True, "bias": False}, "zero": True}


def falling(count):
    return 0.1 * 0.9**count


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


ADAM = [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 1e-2}, {"eps_root": 1e-3}, {"nesterov": True}, {"nesterov": False}]
DECAY = [
    {"weight_decay": 0.5},
    {"weight_decay": 0.0},
    {"weight_decay": 0.5, "mask": MASK},
    {"weight_decay": 0.5, "mask": matrices},
]
ARGUMENTS = {
    "adam": [*ADAM, {"nesterov": True, "eps_root": 1e-3, "b1": 0.0}],
    "adamw": [*ADAM, *DECAY, {"weight_decay": lambda count: 0.5 * 0.9**count}],
    "nadam": ADAM,
    "nadamw": [*ADAM, *DECAY],
    "sgd": [{}, {"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.9, "nesterov": True}],
    "lion": [{}, {"b1": 0.5}, {"b2": 0.5}, *DECAY],
    "lamb": [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 1e-2}, {"eps_root": 1e-3}, *DECAY],
    "rmsprop": [
        {},
        {"decay": 0.5},
        {"eps": 1e-2},
        {"eps": 1e-2, "eps_in_sqrt": False},
        {"initial_scale": 1.0},
        {"initial_scale": 1.0, "centered": True},
        {"eps": 1e-2, "centered": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"bias_correction": True},
        {"bias_correction": True, "centered": True, "eps": 1e-2},
    ],
    "adagrad": [{}, {"initial_accumulator_value": 0.0}, {"eps": 1e-2}],
}
TOGETHER = {
    "adamw": {"b1": 0.5, "eps_root": 1e-3, "weight_decay": 0.5, "mask": matrices, "nesterov": True},
    "rmsprop": {"eps": 1e-2, "initial_scale": 1.0, "centered": True, "momentum": 0.9, "bias_correction": True},
    "lamb": {"eps_root": 1e-3, "weight_decay": 0.5, "mask": MASK},
}
QUICK = [(name, TOGETHER.get(name, {}), falling) for name in ARGUMENTS]
CASES = [(name, kwargs, 0.1) for name, each in ARGUMENTS.items() for kwargs in each]


def case_id(value):
    return f"{value[0]}-{'-'.join(value[1]) or 'defaults'}-{getattr(value[2], '__name__', 'constant')}"


def gradients():
    """The gradients of all steps: of sizes between 1e-3 and 30."""
    random = np.random.default_rng(0)
    sizes = 10.0 ** random.uniform(-3.0, 1.5, STEPS)
    return jax.tree.map(
        lambda p: np.multiply.outer(sizes, np.ones(p.shape)) * random.normal(size=(STEPS, *p.shape)), PARAMS
    )


GRADIENTS = gradients()


def run(tx, params=PARAMS, state=None, of=slice(0, STEPS)):
    """The parameters after each of some steps, and the last state."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    grads = jax.tree.map(lambda g, p: jnp.asarray(g[of], p.dtype), GRADIENTS, params)
    start = (params, tx.init(params) if state is None else state)
    (_, state), made = jax.jit(lambda start: jax.lax.scan(step, start, grads))(start)
    return made, state


def assert_same(ours, theirs, rtol=1e-7):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "case",
    [*QUICK, *(pytest.param(case, marks=pytest.mark.thorough) for case in CASES)],
    ids=[*map(case_id, QUICK), *map(case_id, CASES)],
)
def test_every_argument_gives_optaxs_numbers_over_50_steps(case):
    name, kwargs, rate = case
    with jax.enable_x64():
        params = jax.tree.map(lambda p: p.astype("float64"), PARAMS)
        ours, _ = run(getattr(OURS, name)(rate, **kwargs), params)
        theirs, _ = run(getattr(optax, name)(rate, **kwargs), params)
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_what_the_rule_keeps_may_be_narrower_and_the_second_moment_is_not(name):
    kwargs = {"momentum": 0.9, "accumulator_dtype": "bfloat16"} if name == "sgd" else {"mu_dtype": "bfloat16"}
    state = getattr(OURS, name)(0.01, **kwargs).init(PARAMS)
    link = next(entry for key, entry in state.items() if key not in ("hyperparams", "count"))
    dtypes = {key: jax.tree.leaves(entry)[0].dtype.name for key, entry in link.items() if key != "count"}
    assert dtypes == {"adamw": {"mu": "bfloat16", "nu": "float32"}, "lion": {"mu": "bfloat16"}}.get(
        name, {"velocity": "bfloat16"}
    )


def test_a_narrow_first_moment_gives_optaxs_numbers_to_its_own_rounding():
    ours, _ = run(OURS.adamw(0.01, mu_dtype="bfloat16"))
    theirs, _ = run(optax.adamw(0.01, mu_dtype="bfloat16"))
    assert_same(ours, theirs, rtol=2e-3)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_arguments_names_order_and_defaults_are_optaxs(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (OURS, optax))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        pytest.param("adam", {}, marks=pytest.mark.thorough),
        pytest.param("adamw", {"eps_root": 1e-3}, marks=pytest.mark.thorough),
        pytest.param("nadamw", {}, marks=pytest.mark.thorough),
        pytest.param("lamb", {"weight_decay": 0.1}, marks=pytest.mark.thorough),
        ("lion", {}),
        ("sgd", {"momentum": 0.9}),
        pytest.param("sgd", {}, marks=pytest.mark.thorough),
        pytest.param("rmsprop", {}, marks=pytest.mark.thorough),
        ("rmsprop", {"centered": True, "eps": 1e-2, "bias_correction": True}),
        ("adagrad", {}),
    ],
)
def test_a_run_of_optaxs_goes_on_here(name, kwargs):
    with jax.enable_x64():
        params = jax.tree.map(lambda p: p.astype("float64"), PARAMS)
        theirs, ours = getattr(optax, name)(0.1, **kwargs), getattr(OURS, name)(0.1, **kwargs)
        made, saved = run(theirs, params, of=slice(0, 5))
        half = jax.tree.map(lambda x: x[-1], made)
        expected, _ = run(theirs, half, saved, of=slice(5, 10))
        found, _ = run(ours, half, from_optax_state(ours, half, saved), of=slice(5, 10))
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: OURS.adamw(0.1, beta_1=0.9), "b1"),
        (lambda: OURS.adamw(0.1, b1=1.0), r"b1 must be a number in \[0, 1\); got 1.0"),
        (lambda: OURS.rmsprop(0.1, decay=1.0), r"decay must be a number in \[0, 1\); got 1.0"),
        (lambda: OURS.rmsprop(0.1, initial_scale=-1.0), "initial_scale must be"),
        (lambda: OURS.adam(0.1, eps_root=-1.0), "eps_root must be a finite number >= 0; got -1.0"),
        (lambda: OURS.sgd(0.1, nesterov=True), "need a momentum"),
        (lambda: OURS.rmsprop(0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda: oc.scale_by_adam(nesterov=True), "needs epsilon_hat=False"),
    ],
)
def test_a_mistake_names_the_argument(build, said):
    with pytest.raises((ValueError, TypeError), match=said):
        build()


def test_adagrad_leaves_alone_what_never_had_a_gradient():
    grads = jnp.array([0.0, 1.0])
    updates = [
        tx.update(grads, tx.init(grads), grads)[0]
        for tx in (module.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0) for module in (OURS, optax))
    ]
    np.testing.assert_allclose(*updates, rtol=1e-6)


def test_a_swap_by_name_gives_the_same_numbers_and_a_rate_that_can_be_set():
    ours, state = run(OURS.adamw(1e-3))
    theirs, _ = run(optax.adamw(1e-3))
    assert_same(ours, theirs, rtol=1e-5)  # float32
    assert float(oc.get_hyperparams(state)["learning_rate"]) == pytest.approx(1e-3)
