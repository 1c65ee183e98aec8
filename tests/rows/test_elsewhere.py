"""Row gradients in Flax, over devices, in the example and in the benchmark."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optchain as oc
from optchain.flax import Embed, NnxEmbed, Optimizer, TrainState

ROOT = Path(__file__).parents[2]
IDS = jnp.array([[3, 1], [3, -1]])


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
def test_flaxs_train_state_takes_the_rows_of_an_embed():
    layer = Embed(5, 2, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), IDS)["params"]
    state = TrainState.create(apply_fn=layer.apply, params=params, tx=oc.sgd(1.0, lazy=True))
    _, grads = oc.value_and_grad(lambda p: layer.apply({"params": p}, IDS).astype(jnp.float32).sum())(params)
    assert isinstance(grads["embedding"], oc.RowGradient)
    new = state.apply_gradients(grads=grads).params["embedding"]
    moved = np.zeros((5, 2))
    moved[[1, 3]] = [[1], [2]]
    np.testing.assert_allclose(new, params["embedding"] - moved, rtol=1e-5)


def test_flaxs_embed_is_the_same_where_indices_are_inside():
    layer, theirs = Embed(5, 2), Embed.__bases__[0](5, 2)
    variables = layer.init(jax.random.key(0), IDS[0])
    np.testing.assert_array_equal(layer.apply(variables, IDS[0]), theirs.apply(variables, IDS[0]))
    np.testing.assert_array_equal(layer.apply(variables, jnp.array([-1, 5])), 0)


def test_an_nnx_optimizer_takes_the_rows_of_an_embed():
    model = NnxEmbed(5, 2, rngs=nnx.Rngs(0))
    before = np.asarray(model.embedding[...])
    optimizer = Optimizer(model, oc.sgd(1.0, lazy=True), wrt=nnx.Param)
    graph, params = nnx.split(model)
    _, grads = oc.value_and_grad(lambda params: nnx.merge(graph, params)(IDS).sum())(params)
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.embedding[...][3], before[3] - 2, rtol=1e-6)
    np.testing.assert_array_equal(model.embedding[...][0], before[0])


TWO_DEVICES = """
    import json
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import optchain as oc

    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    ids = jnp.array([[5, 0, 5, -1], [7, 2, 0, 0]])
    table = jnp.arange(16.0).reshape(8, 2) / 16
    loss_fn = lambda params, ids: jnp.mean(oc.rows_of(params, ids) ** 2)
    tx = oc.adam(0.1, lazy=True, global_clipnorm=0.1)

    alone, alone_state, _ = oc.make_step(loss_fn, tx)(table.copy(), tx.init(table), ids)

    rows = NamedSharding(mesh, P("d", None))
    split, state = jax.tree.map(
        lambda x: jax.device_put(x, rows if x.ndim == 2 else NamedSharding(mesh, P())), (table, tx.init(table))
    )
    in_parts = oc.make_step(loss_fn, tx).lower(split, state, ids).compile()
    split, state, _ = in_parts(split, state, ids)
    mu = state["inner"]["scale_by_adam"]["mu"]

    mean = oc.chain(oc.cross_replica_mean("d"), tx)
    def step(params, state, ids):
        _, grads = oc.value_and_grad(loss_fn)(params, ids)
        return mean.apply(params, state, grads=grads)
    replicas = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=(P(), P()), check_vma=False)
    gathered, _ = jax.jit(replicas)(table, mean.init(table), ids)

    print(json.dumps({
        "split": float(np.abs(np.asarray(split) - np.asarray(alone)).max()),
        "gathered": float(np.abs(np.asarray(gathered) - np.asarray(alone)).max()),
        "moved": float(np.abs(np.asarray(alone) - np.asarray(table)).max()),
        "gathers_the_table": "all-gather" in in_parts.as_text(),
        "stays_split": bool(split.sharding.is_equivalent_to(rows, 2) and mu.sharding.is_equivalent_to(rows, 2)),
    }))
"""


@pytest.mark.thorough
def test_a_table_split_by_rows_and_replicas_that_split_the_batch_give_the_same():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(TWO_DEVICES)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["split"] < 1e-6
    assert found["gathered"] < 1e-6
    assert found["moved"] > 0.05
    assert found["stays_split"]
    assert not found["gathers_the_table"]


@pytest.mark.thorough
def test_the_example_comes_to_the_same_loss_with_dense_exact_and_lazy_gradients():
    skip_gram = module_at(ROOT / "examples" / "skip_gram.py")
    runs = {kind: skip_gram.train(kind, 300) for kind in ("dense", "exact", "lazy")}
    losses = {kind: losses for kind, (_, losses) in runs.items()}
    np.testing.assert_allclose(losses["exact"], losses["dense"], rtol=1e-3)
    ends = {kind: float(loss[-20:].mean()) for kind, loss in losses.items()}
    assert ends["dense"] < 0.6 * losses["dense"][0]
    assert abs(ends["lazy"] - ends["dense"]) < 0.1 * ends["dense"]
    assert skip_gram.share_of_neighbors_in_topic(runs["lazy"][0]) > 0.5


@pytest.mark.thorough
def test_the_benchmark_writes_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rows.py", "--longest", "4", "--turns", "1", "--out", str(tmp_path)])
    module_at(ROOT / "benchmarks" / "rows.py").main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {"lazy", "exact", "optax"} <= {row["contender"] for row in rows}
    assert (tmp_path / "rows.png").stat().st_size > 0
