"""One process of a run over several: `python process.py FOLDER PROCESSES INDEX PORT STEPS [DIE_AT]`.

The devices are the same eight however many processes hold them. It goes on from the last checkpoint in the folder, writes one
after every second step, and at the end `result.json`. With DIE_AT the process of the highest index kills itself before
that step, as a machine that is lost does.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc

DEVICES = 8


def loss_fn(params, x, y):
    hidden = jax.numpy.tanh(x @ params["hidden"])
    return jax.numpy.mean((hidden @ params["out"] - y) ** 2)


def main(folder: Path, processes: int, index: int, port: int, steps: int, die_at: int | None = None) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.config.update("jax_enable_x64", True)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            processes,
            index,
            initialization_timeout=60,
            heartbeat_timeout_seconds=10,
            shutdown_timeout_seconds=10,
        )
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def put(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda piece: array[piece])

    rng = np.random.default_rng(0)
    params = {"hidden": rng.normal(size=(8, 16)), "out": rng.normal(size=(16, 3))}
    params = jax.tree.map(lambda array: put(array, whole), params)
    tx = oc.adamw(0.1, global_clipnorm=0.5, use_ema=True, gradient_accumulation_steps=2)
    state = oc.init_sharded(tx, params, mesh, axis="data")
    step = oc.make_step(loss_fn, tx, mesh=mesh, axis="data")

    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        start = manager.latest_step() or 0
        if start:
            print(f"process {index}: goes on from step {start}", flush=True)
            params, state = manager.restore(start, args=ocp.args.StandardRestore((params, state)))
        for number in range(start, steps):
            if number == die_at and index == processes - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            batch = np.random.default_rng(100 + number)
            x, y = put(batch.normal(size=(16, 8)), rows), put(batch.normal(size=(16, 3)), rows)
            params, state, metrics = step(params, state, x, y)
            print(f"process {index}: step {number + 1}, loss {float(metrics['loss']):.3f}", flush=True)
            if (number + 1) % 2 == 0:
                manager.save(number + 1, args=ocp.args.StandardSave((params, state)))
                manager.wait_until_finished()
    gathered = jax.jit(lambda tree: tree, out_shardings=whole)((params, state))
    if index == 0:
        leaves = jax.tree_util.tree_leaves_with_path(gathered)
        values = {jax.tree_util.keystr(path): np.asarray(leaf).tolist() for path, leaf in leaves}
        (folder / "result.json").write_text(json.dumps({"start": start, "values": values}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
