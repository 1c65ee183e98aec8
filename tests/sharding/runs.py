"""The same run on one device and in every way over eight: a small network, four batches, float64."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc

Tree = Any
DEVICES, STEPS, ROWS, IN, HIDDEN, OUT = 8, 4, 16, 8, 16, 5
BAD_BATCH = 1


def params_of(seed: int = 0) -> Tree:
    rng = np.random.default_rng(seed)
    return {
        "hidden": {"kernel": rng.normal(size=(IN, HIDDEN)), "bias": rng.normal(size=HIDDEN)},
        "out": {"kernel": rng.normal(size=(HIDDEN, OUT)), "bias": rng.normal(size=OUT)},  # five divide by no axis
        "scale": rng.normal(size=()),
    }


def loss_fn(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    out = params["scale"] * (hidden @ params["out"]["kernel"]) + params["out"]["bias"]
    return jnp.mean((out - y) ** 2)


def batches(*, one_is_bad: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    made = [(rng.normal(size=(ROWS, IN)), rng.normal(size=(ROWS, OUT))) for _ in range(STEPS)]
    if one_is_bad:
        made[BAD_BATCH][0][3] = np.nan  # in the rows of one device
    return made


def targets(*, one_is_bad: bool) -> list[list[np.ndarray]]:
    """Leaves like the parameters', for losses that need no batch."""
    made = [jax.tree.leaves(params_of(seed)) for seed in range(2, 2 + STEPS)]
    if one_is_bad:
        made[BAD_BATCH][1][3] = np.nan  # in the rows of the hidden kernel that one device has
    return made


# Recipes --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    name: str
    make: Callable[[str | None], oc.Transformation]
    """From the axis over which parameters are split in manual SPMD, or None."""
    takes_axis_name: bool = False
    one_batch_is_bad: bool = False

    def __str__(self) -> str:
        return self.name


def _adamw(axis_name: str | None) -> oc.Transformation:
    return oc.chain(
        oc.clip_by_global_norm(0.1, axis_name=axis_name),
        oc.scale_by_adam(),
        oc.scale_by_learning_rate(),
        oc.decay_weights(0.1),
        learning_rate=oc.schedules.CosineDecay(0.1, STEPS),
    )


RECIPES = [
    Recipe("adamw, global clip", _adamw, takes_axis_name=True),
    Recipe(
        "accumulate, average",
        lambda axis: oc.chain(oc.accumulate(_adamw(axis), 2), oc.average_params(0.5)),
        takes_axis_name=True,
    ),
    Recipe(
        "skip non-finite",
        lambda axis: oc.skip_nonfinite(oc.sgd(0.1, 0.9, nesterov=True), axis_name=axis),
        takes_axis_name=True,
        one_batch_is_bad=True,
    ),
    Recipe(
        "dynamic loss scale",
        lambda axis: oc.dynamic_loss_scale(oc.adam(0.1), 8.0, 2, axis_name=axis),
        takes_axis_name=True,
        one_batch_is_bad=True,
    ),
    Recipe("clip each leaf, lamb", lambda axis: oc.chain(oc.adaptive_grad_clip(0.01), oc.lamb(0.1, clipnorm=0.1))),
    Recipe("adafactor", lambda axis: oc.adafactor(0.1)),
    Recipe("muon", lambda axis: oc.muon(0.1)),
]


# Ways to run them -----------------------------------------------------------------------------------------------------

Run = Callable[[oc.Transformation, list[tuple[np.ndarray, np.ndarray]]], tuple[Tree, Tree]]


def on_one_device(
    tx: oc.Transformation, data: list[Any], loss: Callable[..., jax.Array] = loss_fn
) -> tuple[Tree, Tree]:
    params = jax.tree.map(jnp.asarray, params_of())
    state, step = tx.init(params), oc.make_step(loss, tx)
    for batch in data:
        params, state, _ = step(params, state, *batch)
    return params, state


def mesh_of(explicit: bool = False, **sizes: int) -> Mesh:
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))


def placed(tree: Tree, mesh: Mesh, spec_of: Callable[[str, Any], P]) -> Tree:
    def put(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.device_put(leaf, NamedSharding(mesh, spec_of(name, leaf)))

    return jax.tree_util.tree_map_with_path(put, tree)


def whole(name: str, leaf: Any) -> P:
    return P()


def rows(name: Any, leaf: Any) -> P:
    return P("data")


def by_rows(name: str, leaf: Any) -> P:
    """Fully sharded: along the first dimension, where the devices divide it."""
    return P("data") if leaf.ndim and leaf.shape[0] % DEVICES == 0 else P()


def by_neurons(name: str, leaf: Any) -> P:
    """Tensor-parallel: the hidden layer's neurons are split."""
    return {"hidden/kernel": P(None, "model"), "hidden/bias": P("model"), "out/kernel": P("model")}.get(name, P())


def sharded_jit(spec_of: Callable[[str, Any], P], axis: str | None = None, explicit: bool = False, **sizes: int) -> Run:
    def run(tx: oc.Transformation, data: list[Any]) -> tuple[Tree, Tree]:
        mesh = mesh_of(explicit, **sizes)
        params = placed(params_of(), mesh, spec_of)
        state = oc.init_sharded(tx, params, mesh, axis=axis)
        layouts = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
        step = oc.make_step(loss_fn, tx, mesh=mesh, axis=axis)
        for batch in data:
            params, state, _ = step(params, state, *placed(batch, mesh, rows))
        assert jax.tree.map(lambda leaf: leaf.sharding, (params, state)) == layouts
        return params, state

    return run


def in_shard_map(tx: oc.Transformation, data: list[Any]) -> tuple[Tree, Tree]:
    """Every device takes the gradient of its own rows, and `cross_replica_mean` reduces it."""
    tx = oc.chain(oc.cross_replica_mean("data"), ("recipe", tx))

    def step(params: Tree, state: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, Tree]:
        own = jax.tree.map(lambda p: lax.pcast(p, "data", to="varying"), params)  # or JAX would add the gradients up
        loss = lambda params: oc.scale_loss(loss_fn(params, x, y), state)  # noqa: E731
        return tx.apply(params, state, grads=jax.grad(loss)(own))

    mesh, specs = mesh_of(data=8), (P(), P())
    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(*specs, P("data"), P("data")), out_specs=specs))
    params = placed(params_of(), mesh, whole)
    state = oc.init_sharded(tx, params, mesh)
    for batch in data:
        params, state = step(params, state, *placed(batch, mesh, rows))
    return params, state["recipe"]


def in_pmap(tx: oc.Transformation, data: list[Any]) -> tuple[Tree, Tree]:
    tx = oc.chain(oc.cross_replica_mean("data"), ("recipe", tx))

    def step(params: Tree, state: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, Tree]:
        loss = lambda params: oc.scale_loss(loss_fn(params, x, y), state)  # noqa: E731
        return tx.apply(params, state, grads=jax.grad(loss)(params))

    mesh, step = mesh_of(data=8), jax.pmap(step, axis_name="data")
    start = params_of(), jax.jit(tx.init)(params_of())
    carry = placed(jax.tree.map(lambda leaf: np.stack([leaf] * DEVICES), start), mesh, rows)
    for batch in data:
        carry = step(*carry, *(part.reshape(DEVICES, -1, *part.shape[1:]) for part in batch))
    for leaf in jax.tree.leaves(carry):
        each = np.asarray(leaf)
        np.testing.assert_array_equal(each, np.broadcast_to(each[:1], each.shape))  # no replica has gone astray
    params, state = jax.tree.map(lambda leaf: np.asarray(leaf)[0], carry)
    return params, state["recipe"]


def distance(params: Tree, *target: jax.Array) -> jax.Array:
    """A loss of which each device can take the gradient of its part of the parameters."""
    return sum(jnp.sum((p - t) ** 2) for p, t in zip(jax.tree.leaves(params), target, strict=True))


def split_in_shard_map(tx: oc.Transformation, data: list[Any]) -> tuple[Tree, Tree]:
    """Parameters split by hand, but for those that do not divide: `axis_name` says over which axis."""
    mesh = mesh_of(model=8)
    params = placed(params_of(), mesh, lambda name, leaf: P("model") if by_rows(name, leaf) == P("data") else P())
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, params)

    def step(params: Tree, state: Tree, *target: jax.Array) -> tuple[Tree, Tree]:
        def loss(params: Tree) -> jax.Array:
            parts = [jnp.sum((p - t) ** 2) for p, t in zip(jax.tree.leaves(params), target, strict=True)]
            whole = [lax.psum(part, "model") if jax.typeof(part).mat.varying else part for part in parts]
            return oc.scale_loss(sum(whole), state)

        return tx.apply(params, state, grads=jax.grad(loss)(params))

    both = specs, jax.tree.map(lambda sharding: sharding.spec, oc.state_shardings(tx, params, mesh))
    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(*both, *jax.tree.leaves(specs)), out_specs=both))
    state = oc.init_sharded(tx, params, mesh)
    for target in data:
        params, state = step(params, state, *target)
    return params, state


WAYS: dict[str, Run] = {
    "jit, data-parallel": sharded_jit(whole, data=8),
    "jit, data-parallel, ZeRO-1": sharded_jit(whole, "data", data=8),
    "jit, data-parallel, ZeRO-1, explicit axes": sharded_jit(whole, "data", True, data=8),
    "jit, fully sharded": sharded_jit(by_rows, data=8),
    "jit, tensor-parallel": sharded_jit(by_neurons, data=2, model=4),
    "jit, tensor-parallel, ZeRO-1": sharded_jit(by_neurons, "data", data=2, model=4),
    "shard_map, reduced gradients": in_shard_map,
    "pmap, reduced gradients": in_pmap,
}


def worst_difference(actual: Tree, expected: Tree) -> float:
    """`max |a − b| / (max |b| + 1e-3)` over the leaves, which must have the same structure, shapes and dtypes."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    worst = 0.0
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, float), np.asarray(b, float)
        assert np.isfinite(b).all()
        assert np.isfinite(a).all()
        worst = max(worst, np.abs(a - b).max(initial=0) / (np.abs(b).max(initial=0) + 1e-3))
    return float(worst)
