"""On a mesh of explicit axes, whose layouts are part of the types, every rule runs with the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.table import every_row
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from optchain.verification.keras_peer import precision

SHAPE = (8, 16)
LAYOUTS = [P(None, "model"), P("model", None), P("data", "model"), P(("data", "model"), None)]


def explicit_mesh():
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)


def numbers(shape=SHAPE):
    rng = np.random.default_rng(0)
    return {"kernel": rng.normal(size=shape).astype(np.float32), "bias": rng.normal(size=shape[-1:]).astype(np.float32)}


def placed(tree, spec):
    mesh = explicit_mesh()
    specs = {"kernel": spec, "bias": P(*spec[-1:])}
    return {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in tree.items()}


def three_steps(tx, params, state=None):
    """Three steps in a `scan`, which demands that no step changes a type."""

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, params)
        return tx.apply(params, state, grads=grads), None

    return jax.lax.scan(step, (params, tx.init(params) if state is None else state), length=3)[0]


def check_numbers_of_one_device(make, params, layout):
    one, _ = jax.jit(three_steps, static_argnums=0)(make(), params)
    many = placed(params, layout)
    split, _ = jax.jit(three_steps, static_argnums=0)(make(), many)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), split, one)
    assert jax.tree.map(jax.typeof, split) == jax.tree.map(jax.typeof, many)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [SHAPE, SHAPE[::-1]], ids=["wide", "tall"])
@pytest.mark.parametrize("make", [lambda: oc.muon(0.1), lambda: oc.adafactor(0.1)], ids=["muon", "adafactor"])
def test_rules_of_whole_matrices_run_on_split_ones_with_the_numbers_of_one_device(make, shape, layout):
    check_numbers_of_one_device(make, numbers(shape), layout)


@pytest.mark.thorough
def test_soap_too():
    """In float64: eigenvectors whose eigenvalues are close turn by more than a rounding of float32."""
    with precision("float64"):
        params = {name: p.astype(np.float64) for name, p in numbers().items()}
        soap = oc.soap(0.1, epsilon=1e-3, precondition_frequency=2)
        check_numbers_of_one_device(lambda: soap, params, P("data", "model"))


@pytest.mark.thorough
@pytest.mark.parametrize("begun", [True, False], ids=["init before the jit", "init inside"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("make", [lambda: oc.muon(0.1), lambda: oc.adafactor(0.1)], ids=["muon", "adafactor"])
def test_where_a_mesh_is_set_a_scan_takes_the_state_of_any_init(make, layout, begun):
    tx, params = make(), placed(numbers(), layout)
    with jax.set_mesh(explicit_mesh()):
        new, _ = jax.jit(three_steps, static_argnums=0)(tx, params, tx.init(params) if begun else None)
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, params)


@pytest.mark.thorough
@pytest.mark.parametrize("make", [lambda: oc.muon(0.1), lambda: oc.adafactor(0.1)], ids=["muon", "adafactor"])
def test_they_run_step_by_step_too_without_jit(make):
    tx, params = make(), placed(numbers(), P("data", "model"))
    state = tx.init(params)
    types = jax.tree.map(jax.typeof, (params, state))
    assert jax.tree.map(jax.typeof, tx.apply(params, state, grads=params)) == types


def test_the_factors_of_a_second_moment_are_split_as_the_matrix_is():
    state = oc.scale_by_factored_rms().init(placed(numbers(), P("data", "model")))
    assert tuple(state["v_row"]["kernel"].sharding.spec) == ("data",)
    assert tuple(state["v_col"]["kernel"].sharding.spec) == ("model",)


@every_row
def test_no_step_changes_the_type_of_any_entry(row):
    params = placed(numbers(), P("data", "model"))

    def types(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): str(jax.typeof(leaf)) for path, leaf in leaves}

    def step(params):
        state = row.make().init(params)
        new = row.make().apply(params, state, grads=params)
        assert types(new) == types((params, state))

    with jax.sharding.use_abstract_mesh(jax.typeof(params["kernel"]).sharding.mesh):
        jax.eval_shape(step, params)
