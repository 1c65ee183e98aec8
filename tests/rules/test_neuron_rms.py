"""`scale_by_neuron_rms`: against the paper in float64, over axes, meshes and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc

STEPS = 12


def of_the_paper(grads, beta_2=0.95, epsilon=1e-8):
    """The updates of one matrix, inputs first, in float64."""
    nu, made = np.zeros((1, grads.shape[-1])), []
    for g in np.float64(grads):
        nu = beta_2 * nu + (1 - beta_2) * np.mean(g * g, axis=0, keepdims=True)
        v = g / (np.sqrt(nu) + epsilon)
        made.append(v * np.linalg.norm(g) / np.linalg.norm(v))
    return np.array(made)


def updates_of(tx, grads):
    """The updates of each step, of gradients that are stacked along a first axis."""

    def step(state, g):
        u, state = tx.update(g, state)
        return state, u

    return jax.lax.scan(step, tx.init(jax.tree.map(lambda g: g[0], grads)), grads)[1]


def gradients(*shape):
    return np.random.default_rng(0).normal(size=(STEPS, *shape)).astype(np.float32) * 10.0 ** np.linspace(
        -1, 1, shape[-1], dtype=np.float32
    )


@pytest.mark.parametrize("beta_2", [0.0, 0.95])
def test_updates_are_those_of_the_paper(beta_2):
    grads = gradients(6, 4)
    made = updates_of(oc.scale_by_neuron_rms(beta_2, 1e-3), jnp.asarray(grads))
    np.testing.assert_allclose(made, of_the_paper(grads, beta_2, 1e-3), rtol=2e-5)


@pytest.mark.parametrize(
    ("axes", "order", "shape"),
    [
        ((1, 0), (1, 0), (6, 4)),
        ((-2, -1), (0, 1, 2), (3, 6, 4)),
        ((0, (1, 2)), (0, 1, 2), (6, 2, 2)),
        (((0, 1), 3), (2, 0, 1, 3), (2, 3, 3, 4)),
    ],
)
def test_each_matrix_of_a_stack_goes_by_itself(axes, order, shape):
    """`order` brings what counts matrices to the front, and then the inputs."""
    grads = gradients(*shape)
    tx = oc.scale_by_neuron_rms(matrices={"": axes})
    made = np.asarray(updates_of(tx, {"w": jnp.asarray(grads)})["w"])
    ins, outs = (np.atleast_1d(side) % len(shape) for side in axes)
    n, m = (int(np.prod([shape[i] for i in side])) for side in (ins, outs))
    front = [0, *(1 + i for i in order)]
    ours, one = (x.transpose(front).reshape(STEPS, -1, n, m) for x in (made, grads))
    for i in range(ours.shape[1]):
        np.testing.assert_allclose(ours[:, i], of_the_paper(one[:, i]), rtol=2e-5)


def test_what_is_no_matrix_is_left_alone_and_a_bad_pattern_is_refused():
    grads = {"bias": jnp.array([10.0]), "stack": jnp.ones((2, 3, 4)), "kernel": jnp.ones((3, 4))}
    tx = oc.scale_by_neuron_rms()
    state = tx.init(grads)
    assert jax.tree.map(jnp.shape, state["neuron_nu"]) == {"bias": (1,), "stack": (1,), "kernel": (1, 4)}
    updates, _ = tx.update(grads, state)
    assert all((updates[name] == grads[name]).all() for name in ("bias", "stack"))
    with pytest.raises(ValueError, match="matrices gives bias the axes"):
        oc.scale_by_neuron_rms(matrices={"bias": (0, 1)}).init(grads)
    with pytest.raises(ValueError, match="pattern 'kernels' decides for no parameter"):
        oc.scale_by_neuron_rms(matrices={"kernels": (0, 1)}).init(grads)


def test_a_state_of_other_matrices_is_refused():
    params = {"kernel": jnp.ones((3, 4))}
    state = oc.scale_by_neuron_rms(matrices={"kernel": (1, 0)}).init(params)
    with pytest.raises(ValueError, match=r"made for other matrices: kernel has neuron_nu of the shape \(3, 1\) there"):
        oc.scale_by_neuron_rms().update(params, state)
    with pytest.raises(ValueError, match=r"kernel has neuron_nu of the shape \(3, 1\) there, and \(1,\) here"):
        oc.scale_by_neuron_rms(matrices={"kernel": None}).update(params, state)


def test_zeros_move_nothing_and_a_neuron_without_a_gradient_does_not_disturb_the_others():
    tx, zeros = oc.scale_by_neuron_rms(), jnp.zeros((3, 2))
    updates, state = tx.update(zeros, tx.init(zeros))
    assert (updates == 0).all()
    one = jnp.array([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    updates, state = tx.update(one, state)
    np.testing.assert_allclose(updates, one, rtol=1e-6)
    grad = jax.grad(lambda g: tx.update(g, state)[0].sum())(zeros)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_updates_do_not_depend_on_the_unit(unit):
    grads = gradients(6, 4)
    made = updates_of(oc.scale_by_neuron_rms(epsilon=0.0), jnp.asarray(grads * np.float32(unit)))
    np.testing.assert_allclose(np.asarray(made) / np.float32(unit), of_the_paper(grads, epsilon=0.0), rtol=2e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data"), P(None, "data")])
def test_split_matrices_have_the_numbers_of_one_device(axis_type, spec):
    grads = gradients(16, 32)
    tx = oc.chain(oc.scale_by_muon(ns_steps=3), oc.scale_by_neuron_rms(), oc.scale_by_learning_rate(0.1))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))

    def after(params, grads):
        def step(carry, g):
            return tx.apply(*carry, grads=g), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    expected = jax.jit(after)(jnp.ones((16, 32)), jnp.asarray(grads))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((16, 32)), NamedSharding(mesh, spec))
        over = jax.device_put(jnp.asarray(grads), NamedSharding(mesh, P(None, *spec)))
        made = jax.jit(after)(params, over)
    for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)
