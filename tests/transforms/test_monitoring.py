"""`monitor`: the numbers are NumPy's, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrappers.bad_gradients import assert_same_bits

import optchain as oc


def random_trees():
    rng = np.random.default_rng(0)
    shapes = {"encoder": {"kernel": (3, 4), "bias": (4,)}, "head": [(4, 2), (2,)], "scale": ()}
    make = lambda size: jax.tree.map(  # noqa: E731
        lambda shape: (size * rng.normal(size=shape)).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return make(1.0), make(0.01)


def norm(tree):
    return np.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(tree)))


def expected_of(params, updates, subtrees=()):
    parts = {"": (params, updates)} | {f"_{key}": (params[key], updates[key]) for key in subtrees}
    return {
        f"{name}{suffix}": value
        for suffix, (p, u) in parts.items()
        for name, value in (
            ("update_norm", norm(u)),
            ("param_norm", norm(p)),
            ("update_ratio", norm(u) / norm(p)),
        )
    }


def assert_metrics(measured, expected):
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert float(measured[name]) == pytest.approx(value, rel=1e-6), name


@pytest.mark.thorough
@pytest.mark.parametrize("per_subtree", [False, True])
def test_the_numbers_are_numpys(per_subtree):
    params, updates = random_trees()
    tx = oc.monitor(per_subtree)
    _, state = jax.jit(tx.update)(updates, tx.init(params), params)
    subtrees = ["encoder", "head", "scale"] if per_subtree else []
    assert_metrics(oc.metrics(state), expected_of(params, updates, subtrees))


@pytest.mark.thorough
def test_it_changes_nothing():
    params, updates = random_trees()
    tx = oc.monitor(True)
    same, state = tx.update(updates, tx.init(params), params)
    assert_same_bits(same, updates)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


@pytest.mark.thorough
@pytest.mark.parametrize("rule", [lambda: oc.scale_by_adam(), lambda: oc.scale_by_adam(epsilon_hat=False)])
def test_last_in_a_chain_it_sees_what_is_added_to_the_parameters(rule):
    params, grads = random_trees()
    tx = oc.chain(
        oc.clip_by_global_norm(0.01),
        rule(),
        oc.scale_by_learning_rate(),
        oc.decay_weights(0.1),
        oc.monitor(per_subtree=True),
        learning_rate=0.1,
    )
    new, state = tx.apply(params, tx.init(params), grads=grads)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, new, params)
    measured = oc.metrics(state)
    for name, value in expected_of(params, moved, ["encoder", "head", "scale"]).items():
        assert float(measured[name]) == pytest.approx(value, rel=1e-4), name
    assert float(measured["global_norm"]) == pytest.approx(norm(grads), rel=1e-6)


def test_inside_a_gate_it_speaks_of_the_last_update():
    params, grads = random_trees()
    tx = oc.accumulate(oc.chain(oc.scale_by_learning_rate(0.5), oc.monitor()), 2)
    state, seen = tx.init(params), []
    for factor in (1.0, 3.0, 100.0):
        _, state = tx.apply(params, state, grads=jax.tree.map(lambda g, factor=factor: factor * g, grads))
        seen.append(float(oc.metrics(state)["update_norm"]))
    assert seen[0] == 0
    assert seen[1] == seen[2] == pytest.approx(0.5 * 2 * norm(grads), rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_norms_of_narrow_leaves_are_accumulated_in_float32(dtype):
    params = {"w": jnp.full(10_000, 300.0, dtype)}
    tx = oc.monitor()
    _, state = tx.update(params, tx.init(params), params)
    metrics = oc.metrics(state)
    exact = float(jnp.float32(jnp.array(300.0, dtype))) * 100
    assert float(metrics["param_norm"]) == pytest.approx(exact, rel=1e-5)
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}


def test_at_zero_parameters_the_ratio_is_zero_and_no_nan():
    params = {"w": jnp.zeros(3)}
    tx = oc.monitor()
    _, state = tx.update({"w": jnp.ones(3)}, tx.init(params), params)
    assert float(oc.metrics(state)["update_ratio"]) == 0.0


def test_names_of_subtrees_are_good_keys():
    params = {"layer.0/kernel": jnp.ones(2), "b": jnp.ones(1)}
    metrics = oc.monitor(True).init(params)["metrics"]
    assert "update_norm_layer_0_kernel" in metrics
    assert all(key.isidentifier() for key in metrics)


@pytest.mark.thorough
def test_subtrees_of_a_list_are_its_indices_and_a_bare_leaf_has_none():
    assert "update_norm_1" in oc.monitor(True).init([jnp.ones(1), jnp.ones(2)])["metrics"]
    assert len(oc.monitor(True).init(jnp.ones(2))["metrics"]) == 3


def test_update_needs_params_and_says_so():
    tx = oc.monitor()
    with pytest.raises(ValueError, match="monitor needs the parameters"):
        tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))


def test_it_wants_true_or_false():
    with pytest.raises(TypeError, match="per_subtree must be True or False; got 'yes'"):
        oc.monitor("yes")


# What clipping notices -------------------------------------------------------------------------------------------------


def test_the_clipped_fraction_is_the_share_of_calls_that_clipped():
    tx = oc.clip_by_global_norm(1.0)
    params = {"w": jnp.zeros(2)}
    state, seen = tx.init(params), []
    for size in (0.5, 2.0, 1.0, 3.0):
        _, state = tx.update({"w": jnp.array([size, 0.0])}, state)
        seen.append(float(oc.metrics(state)["clipped_fraction"]))
    np.testing.assert_allclose(seen, [0, 1 / 2, 1 / 3, 2 / 4], rtol=1e-6)
