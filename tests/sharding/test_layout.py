"""Where state lies over eight devices, what a device holds of it, and what the devices tell each other in a step."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from benchmarks.collectives import collectives
from optchain.core.trees import path_string
from optchain.training.sharding import mirrored, split

from .runs import by_neurons, by_rows, mesh_of, placed, rows, whole

WIDTH, ROWS = 64, 16
PARAMS = {
    "hidden": {"kernel": np.ones((WIDTH, 2 * WIDTH), np.float32), "bias": np.ones(2 * WIDTH, np.float32)},
    "out": {"kernel": np.ones((2 * WIDTH, WIDTH), np.float32), "bias": np.ones(5, np.float32)},
}
NARROW = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
EVERYTHING = functools.partial(
    oc.adamw, 0.1, global_clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2, amsgrad=True
)
MIRRORS = 5  # mu, nu, nu_max, the accumulator, the average


def loss_fn(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["out"]["kernel"]) ** 2) + jnp.mean(params["out"]["bias"] ** 2)


def device_bytes(tree):
    """What the first device holds."""
    shards = (leaf.addressable_shards[0].data for leaf in jax.tree.leaves(tree))
    return sum(shard.nbytes for shard in shards)


def total_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def specs(tree):
    return {path_string(path): tuple(sharding.spec) for path, sharding in jax.tree_util.tree_leaves_with_path(tree)}


def test_each_leaf_lies_with_its_parameter_and_scalars_are_everywhere():
    mesh = mesh_of(data=2, model=4)
    params = placed(PARAMS, mesh, by_neurons)
    found = specs(oc.state_shardings(EVERYTHING(), params, mesh))
    for tree in (
        "accumulate/grads",
        "accumulate/inner/scale_by_adam/mu",
        "accumulate/inner/scale_by_adam/nu_max",
        "average_params/average",
    ):
        assert found[f"{tree}/hidden/kernel"] == (None, "model")
        assert found[f"{tree}/hidden/bias"] == ("model",)
        assert found[f"{tree}/out/kernel"] == ("model",)
        assert found[f"{tree}/out/bias"] == ()
    assert {spec for path, spec in found.items() if "count" in path or "metrics" in path or "hyperparams" in path} == {
        ()
    }


def test_an_axis_splits_what_it_divides_and_leaves_the_rest():
    mesh = mesh_of(data=2, model=4)
    params = placed(PARAMS | {"uneven": np.ones((5, 3, 4), np.float32)}, mesh, by_neurons)
    found = specs(oc.state_shardings(oc.sgd(0.1, 0.9), params, mesh, axis="data"))
    assert found["apply_momentum/velocity/hidden/kernel"] == ("data", "model")
    assert found["apply_momentum/velocity/hidden/bias"] == (("model", "data"),)
    assert found["apply_momentum/velocity/out/kernel"] == (("model", "data"), None)
    assert found["apply_momentum/velocity/out/bias"] == ()
    assert found["apply_momentum/velocity/uneven"] == (None, None, "data")


def test_an_axis_that_a_parameter_uses_already_is_not_used_twice():
    mesh = AbstractMesh((8,), ("data",))
    fully_sharded = NamedSharding(mesh, P(None, "data"))
    assert split(fully_sharded, (64, 64), ("data",)) == fully_sharded


@pytest.mark.parametrize(
    ("params", "state", "expected"),
    [
        ({"mu": {"w": 0}, "w": 0}, {"link": {"count": 0, "mu": {"mu": {"w": 0}, "w": 0}}}, {"mu/mu/w": "mu/w", "mu/w": "w"}),
        ({"w": 0}, {"link": {"velocity": {"w": 0}, "metrics": {"norm": 0}}}, {"velocity/w": "w"}),
        ([0, 0], {"link": {"mu": [0, optax.MaskedNode()]}}, {"mu/0": "0"}),
        (0, {"link": {"mu": 0}}, {"mu": ""}),
    ],
    ids=["a parameter called mu", "metrics", "masked", "bare array"],
)  # fmt: skip
def test_a_leaf_mirrors_the_parameter_at_its_path(params, state, expected):
    names = frozenset(
        tuple(path_string(p).split("/")) if p else () for p, _ in jax.tree_util.tree_leaves_with_path(params)
    )
    found = mirrored(state, names)
    assert {"/".join(place[1:]): "/".join(of) for place, of in found.items()} == expected


def test_factored_moments_and_states_of_optax_have_a_layout_too():
    mesh = mesh_of(data=8)
    params = placed(PARAMS, mesh, by_rows)
    found = specs(oc.state_shardings(oc.adafactor(0.1), params, mesh, axis="data"))
    assert {path: spec for path, spec in found.items() if "hidden" in path and spec} == {
        "scale_by_factored_rms/v/hidden/bias": ("data",),
        "scale_by_factored_rms/v_row/hidden/kernel": ("data",),
        "scale_by_factored_rms/v_col/hidden/kernel": ("data",),
    }
    adam = oc.state_shardings(optax.adam(0.1), params, mesh)
    assert tuple(adam[0].mu["hidden"]["kernel"].spec) == ("data",)
    assert tuple(adam[0].count.spec) == ()


@pytest.mark.parametrize("params", [PARAMS, NARROW], ids=["float32", "bfloat16"])
def test_with_zero_one_a_device_holds_an_eighth_of_the_state(params):
    mesh = mesh_of(data=8)
    params = placed(params, mesh, whole)
    tx = EVERYTHING()
    state = oc.init_sharded(tx, params, mesh, axis="data")
    assert device_bytes(state) <= total_bytes(state) * (1 / 8 + 0.02)
    assert device_bytes(state) == oc.describe(tx, params, axis="data").device_state_bytes
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (WIDTH, 2 * WIDTH)]
    assert len(kernels) == MIRRORS
    for leaf in kernels:
        assert [shard.data.shape for shard in leaf.addressable_shards] == [(WIDTH // 8, 2 * WIDTH)] * 8
    # Made where it lies: the program that makes it has no more than its part on a device.
    init = jax.jit(tx.init, out_shardings=oc.state_shardings(tx, params, mesh, axis="data")).lower(params).compile()
    memory = init.memory_analysis()
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes <= total_bytes(state) * (1 / 8 + 0.02)


def compiled_step(params, layout, axis=None):
    mesh = mesh_of(data=8)
    params, tx = placed(params, mesh, layout), EVERYTHING()
    state = oc.init_sharded(tx, params, mesh, axis=axis)
    x = placed(np.ones((ROWS, WIDTH), np.float32), mesh, rows)
    step = oc.make_step(loss_fn, tx, mesh=mesh, axis=axis)
    return step, (params, state, x), step.lower(params, state, x).compile().as_text()


def gathered(text, **which):
    return sorted(c.shape for c in collectives(text, **which) if c.kind == "all-gather" for _ in range(c.count))


def test_with_zero_one_each_gradient_is_reduced_once_and_of_the_state_nothing_is_gathered():
    step, args, text = compiled_step(PARAMS, whole, axis="data")
    # The bias of five, which no device count divides, is on every device, its gradient too: it is never summed.
    reduced = [c for c in collectives(text) if "reduce" in c.kind and not c.is_scalar]
    shapes = sorted(shape for c in reduced for shape in [c.shape] * c.count)
    gradients = [(2 * WIDTH,), (WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH)]
    assert sorted(map(sorted, shapes)) == sorted(map(sorted, gradients))
    # The parameters' new values, once each, in the branch that has new ones: no state, and nothing in a call that waits.
    assert sorted(map(sorted, gathered(text))) == sorted(map(sorted, gradients))
    assert gathered(text, updates=False) == []
    params, state, _ = step(*args)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    assert device_bytes(state) <= total_bytes(state) * (1 / 8 + 0.02)


@pytest.mark.thorough
def test_without_zero_one_nothing_is_gathered():
    _, _, text = compiled_step(PARAMS, whole)
    assert gathered(text) == []


@pytest.mark.thorough
def test_fully_sharded_only_parameters_are_gathered_for_the_forward_pass():
    step, args, text = compiled_step(PARAMS, by_rows)
    assert len(gathered(text)) <= 2 * 3  # for the forward pass, and at most again for the backward one
    params, state, _ = step(*args)
    whole_bytes = PARAMS["out"]["bias"].nbytes * (1 + MIRRORS)
    assert device_bytes((params, state)) <= total_bytes((params, state)) / 8 + whole_bytes + 200


@pytest.mark.thorough
def test_state_and_parameters_are_updated_in_place():
    step, (params, state, x), _ = compiled_step(PARAMS, whole, axis="data")
    new_params, new_state, _ = step(params, state, x)
    # All but scalars that a step writes and does not read.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)) if leaf.ndim)
    step(new_params, new_state, x)


def test_a_state_made_elsewhere_goes_to_its_place_and_stays():
    mesh = mesh_of(data=8)
    params, tx = placed(PARAMS, mesh, whole), oc.sgd(0.1, 0.9)
    state, step = tx.init(params), oc.make_step(loss_fn, tx, mesh=mesh, axis="data")
    assert state["apply_momentum"]["velocity"]["hidden"]["kernel"].sharding.is_fully_replicated
    x = placed(np.ones((ROWS, WIDTH), np.float32), mesh, rows)
    params, state, metrics = step(params, jax.tree.map(jnp.copy, state), x)
    assert specs(jax.tree.map(lambda leaf: leaf.sharding, state)) == specs(
        oc.state_shardings(tx, params, mesh, axis="data")
    )
    assert all(value.sharding.is_fully_replicated for value in metrics.values())


def test_init_without_jit_follows_the_parameters():
    params = placed(PARAMS, mesh_of(data=8), by_rows)
    state = EVERYTHING().init(params)
    for leaf in jax.tree.leaves(state):
        if leaf.shape == (WIDTH, 2 * WIDTH):
            assert leaf.sharding == params["hidden"]["kernel"].sharding


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_an_axis_that_the_mesh_has_not_is_an_error_that_lists_those_it_has():
    params = placed(PARAMS, mesh_of(data=8), whole)
    with pytest.raises(ValueError, match=r"axis must be one of the mesh's, 'data'; got 'batch'"):
        oc.init_sharded(oc.adam(0.1), params, mesh_of(data=8), axis="batch")
    with pytest.raises(ValueError, match="axis must be given with the mesh"):
        oc.make_step(loss_fn, oc.adam(0.1), axis="data")
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh; got 'data'"):
        oc.state_shardings(oc.adam(0.1), params, "data")  # pyright: ignore


def test_a_parameter_that_lies_elsewhere_is_named():
    params = placed(PARAMS, mesh_of(data=8), whole)
    params["out"]["bias"] = jax.device_put(PARAMS["out"]["bias"], jax.devices()[3])
    with pytest.raises(ValueError, match=r'params\["out"\]\["bias"\] lies elsewhere than on the mesh \{\'data\': 8\}'):
        oc.state_shardings(oc.adam(0.1), params, mesh_of(data=8))
    with pytest.raises(ValueError, match=r'params\["hidden"\]\["bias"\] lies elsewhere'):
        oc.state_shardings(oc.adam(0.1), placed(PARAMS, mesh_of(model=8), whole), mesh_of(data=8))


def test_a_step_over_a_mesh_inside_of_jit_is_an_error_that_says_what_to_do():
    mesh = mesh_of(data=8)
    params, tx = placed(PARAMS, mesh, whole), oc.sgd(0.1)
    step = oc.make_step(loss_fn, tx, mesh=mesh)
    with pytest.raises(TypeError, match=r"use tx\.apply there, and give out_shardings to the outermost jit"):
        jax.jit(lambda params: step(params, tx.init(params), np.ones((ROWS, WIDTH), np.float32)))(params)


# On paper -------------------------------------------------------------------------------------------------------------


def on_paper(tree, mesh, spec_of):
    def struct(path, leaf):
        sharding = NamedSharding(mesh, spec_of(path_string(path), leaf))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(struct, tree)


def test_a_description_on_paper_is_that_of_the_real_arrays():
    tx, mesh = EVERYTHING(), mesh_of(data=2, model=4)
    real = oc.describe(tx, placed(PARAMS, mesh, by_neurons), axis="data")
    paper = AbstractMesh((2, 4), ("data", "model"))
    assert oc.describe(tx, on_paper(PARAMS, paper, by_neurons), axis="data") == real
    assert json.loads(json.dumps(real.to_dict()))["device_state_bytes"] == real.device_state_bytes
    state = oc.init_sharded(tx, placed(PARAMS, mesh, by_neurons), mesh, axis="data")
    assert real.device_state_bytes == device_bytes(state)
    assert sum(row.device_bytes for row in real.rows) == real.device_state_bytes
    by_path = {row.path: row.lies for row in real.leaves if row.is_state}
    assert by_path["accumulate/grads/hidden/kernel"] == ("data", "model")


def test_seven_billion_parameters_over_256_chips():
    mesh = AbstractMesh((32, 8), ("data", "model"))
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)  # noqa: E731
    layer = {"attention": shape(4096, 4 * 4096), "up": shape(4096, 2 * 11008), "down": shape(11008, 4096)}
    model = {"embed": shape(32000, 4096), "head": shape(4096, 32000), "layers": [layer] * 32}
    params = on_paper(model, mesh, lambda name, leaf: P("model") if name.endswith("down") else P(None, "model"))
    described = oc.describe(oc.adamw(1e-4, use_ema=True, gradient_accumulation_steps=4), params, axis="data")
    count = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert described.parameters == count
    assert described.device_parameter_bytes == 2 * count // 8
    assert 0 <= described.device_state_bytes - 16 * count // 256 < 100
    table = str(described)
    assert "256 devices (32 data × 8 model), on each: parameters 1.68 GB, state 421.13 MB, 0.39% of it" in table
    assert "layers/*/down" in table
    assert len(table.splitlines()) < 30
