"""SOAP's matrices are split over the axes over which their parameter is: a device holds its part."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from optchain.verification.keras_peer import precision
from tests.sampling import others_for_release

TX = oc.soap(0.1, epsilon=1e-3, precondition_frequency=2)
COLLECTIVE = re.compile(r"= (.*?) (?:all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(")


def matrix(sharding, dtype="float32"):
    return {"kernel": jax.ShapeDtypeStruct((64, 32), dtype, sharding=sharding)}


def test_matrices_are_split_over_the_axes_of_their_parameter_and_what_no_axis_divides_is_whole():
    mesh = AbstractMesh((4, 2), ("data", "model"))

    def specs(spec, **options):
        params = matrix(NamedSharding(mesh, spec)) | {"odd": jax.ShapeDtypeStruct((5, 3), jnp.float32)}
        state = oc.state_shardings(TX, params, mesh, **options)["scale_by_soap"]
        assert jax.tree.map(lambda s: s.spec, state["gram"]) == jax.tree.map(lambda s: s.spec, state["basis"])
        assert all(s.is_fully_replicated for s in jax.tree.leaves(state["gram"]["odd"]))
        return {tuple(s.spec)[:1] for s in state["gram"]["kernel"].values()}

    assert specs(P("data", "model")) == {(("data", "model"),)}
    assert specs(P(None, "model")) == {("model",)}
    assert specs(P(), axis="data") == {("data",)}
    assert specs(P()) == {()}


def test_describe_counts_them_with_their_parameter():
    params = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
    rows = {row.path: row for row in oc.describe(TX, params).per_parameter}
    assert rows["kernel"].state_bytes == 4 * (2 * 12 + 2 * 16 + 2 * 9)
    assert set(rows["kernel"].storage) == {"mu", "nu", "gram", "basis"}


def compiled(mesh, spec, matrices_split):
    """A step whose state lies where `state_shardings` says, or with whole matrices on every device."""
    params = matrix(NamedSharding(mesh, spec))
    shardings = oc.state_shardings(TX, params, mesh)
    if not matrices_split:
        for name in ("gram", "basis"):
            shardings["scale_by_soap"][name] = jax.tree.map(
                lambda _: NamedSharding(mesh, P()), shardings["scale_by_soap"][name]
            )
    out = (jax.tree.map(lambda p: p.sharding, params), shardings)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(TX.init, params), shardings
    )
    step = jax.jit(lambda params, state: TX.apply(params, state, grads=params), out_shardings=out)
    return step.lower(params, state).compile()


def bytes_between_refreshes(program):
    """What a device receives in the collectives outside of the branch."""
    entry = program.as_text().split("\nENTRY ")[1]
    shapes = [re.findall(r"[fs]32\[([\d,]*)\]", kind) for kind in COLLECTIVE.findall(entry)]
    return sum(4 * np.prod([int(n) for n in shape.split(",") if n]) for some in shapes for shape in some)


@pytest.mark.thorough
def test_a_device_holds_its_part_of_the_matrices_and_less_travels_than_with_whole_ones():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = P("data")
    split, whole = (compiled(mesh, spec, flag) for flag in (True, False))
    held, held_whole = (program.memory_analysis().argument_size_in_bytes for program in (split, whole))
    matrices, rest = 4 * 2 * (64**2 + 32**2), 3 * 4 * 64 * 32
    assert abs(held - (matrices + rest) / 8) <= 64  # and the scalars
    assert abs(held_whole - (matrices + rest / 8)) <= 64
    assert bytes_between_refreshes(split) <= 0.8 * bytes_between_refreshes(whole)


@pytest.mark.thorough
def test_steps_over_a_mesh_have_the_numbers_of_one_device():
    mesh, spec = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2), P("data", "model")
    with precision("float64"):
        start = {"kernel": np.random.default_rng(0).normal(size=(16, 8))}

        def loss(params):
            return jnp.sum(jnp.sin(3 * params["kernel"]) + 0.1 * params["kernel"])

        found = []
        for options in ({}, {"mesh": mesh}):
            params = jax.device_put(start, NamedSharding(mesh, spec)) if options else jax.tree.map(jnp.asarray, start)
            state = oc.init_sharded(TX, params, **options) if options else TX.init(params)
            step = oc.make_step(loss, TX, **options)
            for _ in range(5):
                params, state, _ = step(params, state)
            found.append(np.asarray(params["kernel"]))
        basis = state["scale_by_soap"]["basis"]["kernel"]["axis_0"]
        assert basis.sharding.shard_shape(basis.shape) == (2, 16)
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", others_for_release([AxisType.Auto, AxisType.Explicit], AxisType.Explicit))
def test_the_refresh_is_dealt_out_over_the_devices_with_the_numbers_of_one(kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    rng = np.random.default_rng(0)
    with precision("float64"):
        start = {f"kernel_{i}": rng.normal(size=(16, 8)) for i in range(11)}
        grads = [jax.tree.map(lambda p: rng.normal(size=p.shape), start) for _ in range(4)]
        found = []
        for place in (None, NamedSharding(mesh, P("data", "model"))):
            params = jax.device_put(start, place)
            state = TX.init(params) if place is None else oc.init_sharded(TX, params, mesh)
            with jax.set_mesh(mesh) if place else contextlib.nullcontext():
                out = jax.tree.map(lambda x: x.sharding, (params, state))
                jitted = jax.jit(lambda p, s, g: TX.apply(p, s, grads=g), out_shardings=out if place else None)
                step = jitted.lower(params, state, jax.device_put(grads[0], place)).compile()
                for g in grads:
                    params, state = step(params, state, jax.device_put(g, place))
            found.append(jax.device_get(params))
    for name in start:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-6, atol=1e-9)
    # Of 11 bases each of 8 devices decomposes at most two.
    decomposed = re.findall(r"f64\[(\d+),(?:16,16|8,8)\]\S*.*custom-call\(.*lapack_d(?:geqrf|syevd)", step.as_text())
    assert decomposed
    assert set(decomposed) <= {"2"}
