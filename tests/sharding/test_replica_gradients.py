"""Data-parallel steps by `cross_replica_mean` and by a mean in the loss take the step of one device; a sum is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import optchain as oc

from .runs import mesh_of

PARAMS = {"b": np.float32(0.5), "unused": np.ones(1, np.float32), "w": np.array([1.0, -2.0], np.float32)}
X = np.linspace(-1.0, 2.0, 32, dtype=np.float32).reshape(16, 2)
BODY = oc.adamw(0.1, global_clipnorm=0.5, use_ema=True)
WITH_MEAN = oc.chain(oc.cross_replica_mean("data"), ("body", BODY))
WITHOUT = oc.chain(("body", BODY))
SUMMED = r"""cross_replica_mean: updates\["b"\] does not vary over the axis 'data'.*lax\.pcast\(params, 'data', to='varying'\)"""


def loss_fn(params, x):
    return jnp.mean((x @ params["w"] + params["b"]) ** 2)


def mean_loss(params, x):
    return lax.pmean(loss_fn(params, x), "data")


def own(params):
    return lax.pcast(params, "data", to="varying")


def steps_over_devices(tx, loss=loss_fn, at=lambda params: params, **options):
    def step(params, state, x):
        return tx.apply(params, state, grads=jax.grad(loss)(at(params), x))

    specs = P(), P()
    mapped = jax.jit(
        jax.shard_map(step, mesh=mesh_of(data=8), in_specs=(*specs, P("data")), out_specs=specs, **options)
    )
    carry = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        carry = mapped(*carry, X)
    return carry[0]


def steps_by_pmap():
    def step(params, state, x):
        return WITH_MEAN.apply(params, state, grads=jax.grad(loss_fn)(params, x))

    mapped = jax.pmap(step, axis_name="data")
    carry = jax.tree.map(lambda leaf: np.stack([leaf] * 8), (PARAMS, WITH_MEAN.init(PARAMS)))
    for _ in range(2):
        carry = mapped(*carry, X.reshape(8, 2, 2))
    for leaf in jax.tree.leaves(carry[0]):
        np.testing.assert_array_equal(leaf, np.broadcast_to(np.asarray(leaf)[0], leaf.shape))
    return jax.tree.map(lambda leaf: leaf[0], carry[0])


WAYS = {
    "each device's own gradient": lambda: steps_over_devices(WITH_MEAN, at=own),
    "a mean in the loss": lambda: steps_over_devices(WITHOUT, mean_loss),
    "check_vma=False": lambda: steps_over_devices(WITH_MEAN, check_vma=False),
    "check_vma=False, a mean in the loss too": lambda: steps_over_devices(WITH_MEAN, mean_loss, check_vma=False),
    "pmap": steps_by_pmap,
}


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_eight_devices_take_the_step_of_one(way):
    params, state = PARAMS, WITHOUT.init(PARAMS)
    for _ in range(2):
        params, state = WITHOUT.apply(params, state, grads=jax.grad(loss_fn)(params, X))
    made = WAYS[way]()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), made, params)


@pytest.mark.parametrize("loss", [loss_fn, mean_loss], ids=["a sum", "a mean"])
def test_what_jax_has_reduced_is_refused_and_the_error_says_what_to_write(loss):
    """JAX gives the sum of the gradients and their mean the same type: which one it is only the loss knows."""
    with pytest.raises(ValueError, match=SUMMED):
        steps_over_devices(WITH_MEAN, loss)


def test_of_several_axes_each_must_vary():
    tx = oc.chain(oc.cross_replica_mean(("data", "model")), oc.sgd(0.1))

    def step(params, x, axes):
        return tx.apply(params, tx.init(params), grads=jax.grad(loss_fn)(lax.pcast(params, axes, to="varying"), x))[0]

    def traced(axes):
        mesh = mesh_of(data=2, model=4)
        mapped = jax.shard_map(
            lambda params, x: step(params, x, axes), mesh=mesh, in_specs=(P(), P(("data", "model"))), out_specs=P()
        )
        return jax.eval_shape(mapped, PARAMS, X)

    traced(("data", "model"))
    with pytest.raises(ValueError, match="does not vary over the axis 'model'"):
        traced("data")
