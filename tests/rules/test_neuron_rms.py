"""`scale_by_neuron_rms`: against its formula in float64, over axes, meshes and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc

STEPS = 12


def in_float64(grads, beta_2=0.95, epsilon=1e-8):
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
def test_updates_are_those_of_the_formula(beta_2):
    grads = gradients(6, 4)
    made = updates_of(oc.scale_by_neuron_rms(beta_2, 1e-3), jnp.asarray(grads))
    np.testing.assert_allclose(made, in_float64(grads, beta_2, 1e-3), rtol=2e-5)


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
        np.testing.assert_allclose(ours[:, i], in_float64(one[:, i]), rtol=2e-5)


def test_what_is_no_matrix_is_left_alone_and_a_bad_pattern_is_refused():
    grads = {"bias": jnp.array([10.0]), "stack": jnp.ones((2, 3, 4)), "kernel": jnp.ones((3, 4))}
    tx = oc.scale_by_neuron_rms()
    state = tx.init(grads)
    assert jax.tree.map(jnp.shape, state["neuron_nu"]) == {"bias": (1,), "stack": (1,), "kernel": (1, 4)}
    updates, _ = jax.jit(tx.update)(grads, state)
    for name in ("bias", "stack"):
        np.testing.assert_array_equal(updates[name], grads[name])
    with pytest.raises(ValueError, match="matrices gives bias the axes"):
        oc.scale_by_neuron_rms(matrices={"bias": (0, 1)}).init(grads)
    with pytest.raises(ValueError, match="pattern 'kernels' decides for no parameter"):
        oc.scale_by_neuron_rms(matrices={"kernels": (0, 1)}).init(grads)


def test_a_state_of_other_matrices_is_refused():
    params = {"kernel": jnp.ones((3, 4))}
    state = oc.scale_by_neuron_rms(matrices={"kernel": (1, 0)}).init(params)
    with pytest.raises(
        ValueError, match=r"made for other matrices or shapes: kernel has neuron_nu of the shape \(3, 1\) there"
    ):
        oc.scale_by_neuron_rms().update(params, state)
    with pytest.raises(ValueError, match="made for other matrices: kernel is one there, and by no pattern"):
        oc.scale_by_neuron_rms(matrices={"kernel": None}).update(params, state)
    with pytest.raises(ValueError, match=r'scale_by_neuron_rms state\["neuron_nu"\]'):
        oc.scale_by_neuron_rms().update({"other": params["kernel"]}, state)
    with pytest.raises(ValueError, match=r"shape \(3, 1\) there, and \(1, 2\) here"):
        oc.scale_by_neuron_rms().update({"kernel": jnp.ones((3, 2))}, state)


def test_zeros_move_nothing_and_a_neuron_without_a_gradient_does_not_disturb_the_others():
    tx, zeros = oc.scale_by_neuron_rms(), jnp.zeros((3, 2))
    update = jax.jit(tx.update)
    updates, state = update(zeros, tx.init(zeros))
    np.testing.assert_array_equal(updates, 0)
    one = jnp.array([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    updates, state = update(one, state)
    np.testing.assert_allclose(updates, one, rtol=1e-6)
    grad = jax.jit(jax.grad(lambda g: tx.update(g, state)[0].sum()))(zeros)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1e12, 1e17])
def test_updates_do_not_depend_on_the_unit(unit):
    grads = gradients(6, 4)
    made = np.asarray(updates_of(oc.scale_by_neuron_rms(epsilon=0.0), jnp.asarray(grads * np.float32(unit))))
    if unit < 1e-20:  # the squares are lost: neurons are left as they are
        np.testing.assert_allclose(made, grads * np.float32(unit), rtol=1e-6)
    else:
        np.testing.assert_allclose(made / np.float32(unit), in_float64(grads, epsilon=0.0), rtol=2e-5)


def test_a_neuron_whose_square_overflows_makes_no_step_and_no_nan():
    tx, grads = oc.scale_by_neuron_rms(), jnp.array([[1e20, 0.3], [4.0, 0.4]])
    updates = np.asarray(jax.jit(tx.update)(grads, tx.init(grads))[0])
    assert np.isfinite(updates).all()
    np.testing.assert_array_equal(updates[:, 0], 0)


def test_a_neuron_that_never_had_a_gradient_needs_no_epsilon():
    grads = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    tx = oc.scale_by_neuron_rms(epsilon=0.0)
    np.testing.assert_allclose(jax.jit(tx.update)(grads, tx.init(grads))[0], grads, rtol=1e-6)


def test_what_has_no_inputs_has_no_nan():
    tx, empty = oc.scale_by_neuron_rms(), jnp.zeros((0, 4))
    np.testing.assert_array_equal(jax.jit(tx.update)(empty, tx.init(empty))[1]["neuron_nu"], 0)


def test_it_takes_muons_mask_and_matrices_and_leaves_alone_what_goes_by_adam():
    params = {"layers": jnp.ones((2, 3, 4)), "head": jnp.ones((4, 5)), "embed": jnp.ones((5, 4)), "bias": jnp.ones(4)}
    mask, matrices = ~oc.matching("embed"), {"layers": (-2, -1), "head": None, "embed": (0, 1)}
    muon, even = (f(mask=mask, matrices=matrices) for f in (oc.scale_by_muon, oc.scale_by_neuron_rms))
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    both = oc.chain(muon, even)
    alone, made = (jax.jit(tx.update)(grads, tx.init(params))[0] for tx in (muon, both))
    same = jax.tree.map(np.array_equal, alone, made)
    assert same == {"layers": False, "head": True, "embed": True, "bias": True}


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
        placed = oc.init_sharded(tx, params, mesh)  # where the mean of what is split would lie elsewhere
        jax.jit(tx.apply)(params, placed, grads=over[0])
        oc.scale_by_neuron_rms().init(np.ones((16, 32), np.float32))
    for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)
