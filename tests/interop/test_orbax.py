"""Checkpoints that survive a changed chain, other devices, a kill at any moment and a full disk."""

import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import optchain as oc
from optchain.interop import orbax

from .helpers import assert_same
from .saving import save_for_ever, tree_of

PARAMS = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
KILLS = int(os.environ.get("OPTCHAIN_KILLS", "3"))
"""How often the process that saves is killed: 100 by hand."""


def stepped(tx: Any, params: Any = PARAMS, steps: int = 3) -> dict[str, Any]:
    state = tx.init(params)
    for number in range(steps):
        grads = jax.tree.map(lambda p, size=number + 0.5: jnp.full_like(p, size), params)
        params, state = tx.apply(params, state, grads=grads)
    return {"params": params, "state": state}


def started(tx: Any, params: Any = PARAMS) -> dict[str, Any]:
    return {"params": params, "state": tx.init(params)}


@pytest.mark.thorough
def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    tx = oc.adamw(0.1, use_ema=True, gradient_accumulation_steps=2)
    for step in (1, 2, 3):
        orbax.save(tmp_path, step, stepped(tx, steps=step), metadata={"seed": 7})
    assert orbax.steps(tmp_path) == [2, 3]
    restored, report = orbax.restore(tmp_path, started(tx), hyperparams="saved")
    assert_same(restored, stepped(tx, steps=3))
    assert (report.new, report.gone) == ([], [])
    earlier, _ = orbax.restore(tmp_path / "2", started(tx), hyperparams="saved")
    assert_same(earlier, stepped(tx, steps=2))
    assert orbax.latest(tmp_path).metadata == {"seed": 7}


def test_after_a_change_of_the_chain_what_is_new_and_what_is_gone_is_reported(tmp_path):
    orbax.save(tmp_path, 3, stepped(oc.adam(0.1, use_ema=True)))
    tx = oc.adam(0.3, global_clipnorm=1.0)
    restored, report = orbax.restore(tmp_path, started(tx), hyperparams="configured")
    assert {path.split("/")[1] for path in report.new} == {"clip_by_global_norm"}
    assert {path.split("/")[1] for path in report.gone} == {"average_params"}
    assert oc.get_hyperparams(restored["state"])["learning_rate"] == np.float32(0.3)
    assert restored["state"]["scale_by_adam"]["count"] == 3
    assert "configured  saved 0.1" in str(report)
    tx.apply(restored["params"], restored["state"], grads=PARAMS)


def written_by_orbax(folder: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "plain", tree)
    return folder / "plain"


def written_by_a_manager(folder: Path, tree: Any) -> Path:
    with ocp.CheckpointManager(folder / "managed") as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
        manager.save(10, args=ocp.args.StandardSave(tree))
    return folder / "managed"


@pytest.mark.parametrize("write", [written_by_orbax, written_by_a_manager])
def test_what_orbax_itself_has_written_is_restored_named_tuples_and_all(write, tmp_path):
    tx = oc.chain(("adam", optax.scale_by_adam()), oc.scale_by_learning_rate(), learning_rate=0.1)
    params = {"layers": [jnp.ones(2), {0: jnp.ones(3)}]}
    folder = write(tmp_path, stepped(tx, params))
    assert orbax.read(folder)["params"]["layers"][1]["0"].shape == (3,)
    restored, report = orbax.restore(folder, started(tx, params), hyperparams="saved")
    assert_same(restored, stepped(tx, params))
    assert (report.new, report.gone) == ([], [])


def test_the_state_of_an_nnx_optimizer_is_restored(tmp_path):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, oc.adam(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: model(jnp.ones((1, 2))).sum())(model))
    state = nnx.as_pure(nnx.state(optimizer))
    orbax.save(tmp_path, 1, state)
    restored, report = orbax.restore(tmp_path, state, hyperparams="saved")
    assert_same(restored, state)
    assert "opt_state/scale_by_adam/mu/kernel" in report.restored


@pytest.mark.parametrize(
    "tx",
    [
        oc.compact(oc.adam(0.1)),
        oc.multi_optimizer(("kernels", "kernel", oc.adam(0.1)), default=oc.sgd(0.1, momentum=0.9)),
        oc.freeze(oc.adam(0.1, use_ema=True), oc.matching("bias")),
    ],
    ids=["compact", "groups", "freeze"],
)
def test_what_is_read_without_a_target_is_a_state_to_go_on_with(tmp_path, tx):
    """Orbax does not write None: the scale beside what `compact` keeps wide, the parameters of other groups."""
    params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(3)}
    params, state = tx.apply(params, tx.init(params), grads=params)
    orbax.save(tmp_path, 1, {"params": params, "state": state})
    found = orbax.read(tmp_path)
    assert_same(tx.apply(found["params"], found["state"], grads=params), tx.apply(params, state, grads=params))
    assert_same(orbax.read(orbax.latest(tmp_path)), found)


def test_keys_that_orbax_would_mix_up_come_back(tmp_path):
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}, "linear/~/w%2E": jnp.ones(3)}
    orbax.save(tmp_path, 0, tree)
    assert_same(orbax.restore(tmp_path, tree, hyperparams="saved")[0], tree)
    assert orbax.read(tmp_path).keys() == tree.keys()
    orbax.save(tmp_path, 1, jnp.ones(2))
    assert orbax.restore(tmp_path, jnp.zeros(2), hyperparams="saved")[0].tolist() == [1.0, 1.0]


def test_a_checkpoint_lives_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "run [1] *?"
    orbax.save(folder, 0, PARAMS)
    assert_same(orbax.restore(folder, PARAMS, hyperparams="saved")[0], PARAMS)


def test_metadata_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        orbax.save(tmp_path / "run", 0, PARAMS, metadata={"a": {1, 2}})
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_there_is_not_replaced_so_that_no_moment_is_without_one(tmp_path):
    orbax.save(tmp_path, 0, PARAMS)
    with pytest.raises(FileExistsError, match=r"cannot save checkpoint 0 in .*: there is one already"):
        orbax.save(tmp_path, 0, PARAMS)
    assert orbax.latest(tmp_path).step == 0


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        orbax.save(folder, step, stepped(oc.adam(0.1)))
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def largest(run: Path) -> Path:
    files = [path for path in (run / "2" / "arrays").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncated(run: Path) -> None:
    largest(run).write_bytes(largest(run).read_bytes()[:-9])


def flipped(run: Path) -> None:
    data = bytearray(largest(run).read_bytes())
    data[len(data) // 2] ^= 1
    largest(run).write_bytes(data)


def missing(run: Path) -> None:
    (run / "2" / "arrays" / "manifest.ocdbt").unlink()


def torn(run: Path) -> None:
    about = run / "2" / "checkpoint.json"
    about.write_text(about.read_text()[:200])


def other_version(run: Path) -> None:
    about = run / "2" / "checkpoint.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"version": 99}))


def no_description(run: Path) -> None:
    (run / "2" / "checkpoint.json").unlink()


def empty(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


class Malice:
    def __reduce__(self) -> Any:
        return os._exit, (99,)


def a_pickle(run: Path) -> None:
    for step in ("1", "2"):
        shutil.rmtree(run / step)
    (run / "2" / "arrays").mkdir(parents=True)
    for name in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"):
        (run / "2" / "arrays" / name).write_bytes(pickle.dumps(Malice()))


def another_pickle(run: Path) -> None:
    empty(run)
    (run / "_METADATA").write_bytes(pickle.dumps(Malice()))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "is not as written; remove .*2 to go on from step 1"),
        (flipped, "the checkpoint is damaged"),
        (missing, "the checkpoint is damaged, arrays/manifest.ocdbt is not as written"),
        (
            torn,
            "expected a checkpoint of optchain.interop.orbax, version 1, and checkpoint.json is none: JSONDecodeError",
        ),
        (other_version, "expected a checkpoint of optchain.interop.orbax, version 1; it says .*, version 99"),
        (
            no_description,
            "expected a checkpoint of optchain.interop.orbax, version 1, and checkpoint.json is not there",
        ),
        (empty, "the folder holds no checkpoint"),
        (shutil.rmtree, "there is no such folder"),
        (a_pickle, "expected a checkpoint of optchain.interop.orbax"),
        (another_pickle, "expected a checkpoint of Orbax, and it cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_restored_is_refused_and_nothing_changes(spoil, said, run):
    spoil(run)
    target = started(oc.adam(0.3))
    before = jax.tree.map(np.array, target)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as refused:
        orbax.restore(run, target, hyperparams="saved")
    assert "\n" not in str(refused.value)
    assert str(run) in str(refused.value)
    assert_same(before, target)


def test_no_flipped_bit_of_the_description_is_taken_for_another_value(saved):
    about = saved / "2" / "checkpoint.json"
    written = about.read_bytes()
    whole, where = orbax.latest(saved), random.Random(0)
    try:
        for _ in range(1500):
            flipped = bytearray(written)
            flipped[where.randrange(len(written))] ^= 1 << where.randrange(8)
            about.write_bytes(flipped)
            try:
                found = orbax.latest(saved)
            except ValueError:
                continue
            assert found == whole
    finally:
        about.write_bytes(written)


@pytest.mark.parametrize("entry", ["step", "metadata", "arrays", "files", "sha256"])
def test_a_description_that_was_edited_is_damaged(entry, run):
    about = run / "2" / "checkpoint.json"
    data = json.loads(about.read_text())
    data[entry] = {"step": 3, "metadata": {"seed": 8}, "sha256": "0" * 64}.get(entry, {})
    about.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=r"damaged, checkpoint.json is not as written; remove .*2 to go on from step 1"
    ):
        orbax.latest(run)


def test_metadata_of_any_json_keeps_its_digest(tmp_path):
    metadata = {10: 1.5, 2: (1, float("inf")), 1: {"ü": None}}
    orbax.save(tmp_path, 0, PARAMS, metadata=metadata)
    assert orbax.latest(tmp_path).metadata == json.loads(json.dumps(metadata))


def test_a_checkpoint_from_before_there_was_a_digest_of_the_description_is_read(run):
    about = run / "2" / "checkpoint.json"
    data = json.loads(about.read_text())
    del data["sha256"]
    about.write_text(json.dumps(data))
    assert orbax.latest(run).step == 2


def test_the_checkpoint_of_another_model_is_refused_with_both_sides(run):
    other = {"conv": {"kernel": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"params is that of another model: .*not saved are conv/kernel; .* dense/"):
        orbax.restore(run, started(oc.adam(0.1), other), hyperparams="saved")
    wider = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"params/dense/kernel: saved with shape \(4, 2\), expected \(4, 3\)"):
        orbax.restore(run, started(oc.adam(0.1), wider), hyperparams="saved")
    with pytest.raises(TypeError, match="hyperparams"):
        orbax.restore(run, started(oc.adam(0.1)))  # pyright: ignore[reportCallIssue]


# Kills and full disks ------------------------------------------------------------------------------------------------


def assert_last_complete(folder: Path) -> int:
    """The last checkpoint restores, and is all of one moment."""
    step = orbax.latest(folder).step
    restored, _ = orbax.restore(folder, tree_of(0), hyperparams="saved")
    assert_same(restored, tree_of(step))
    return step


@pytest.mark.thorough
def test_a_save_that_is_killed_at_any_moment_leaves_the_last_complete_checkpoint(tmp_path):
    context = multiprocessing.get_context("forkserver")  # which imports once, and forks what is then killed
    context.set_forkserver_preload(["interop.saving"])
    orbax.save(tmp_path, 0, tree_of(0))
    last, torn, random_moment = 0, 0, random.Random(0)
    for _ in range(KILLS):
        process = context.Process(target=save_for_ever, args=(str(tmp_path), last + 1), daemon=True)
        process.start()
        deadline = time.monotonic() + 60
        while orbax.steps(tmp_path)[-1] == last and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(random_moment.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9
        torn += any(path.name.endswith(".partial") for path in tmp_path.iterdir())
        found = assert_last_complete(tmp_path)
        assert found > last
        last = found
    assert torn > 0
    orbax.save(tmp_path, last + 1, tree_of(last + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([str(last), str(last + 1)])


def limited(folder: str, errors: Any) -> None:
    """Saves where no file may become larger than 20 kB, as on a disk that is full."""
    sys.dont_write_bytecode = True  # Python would cut off what it compiles, and keep it
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    big = {"w": np.random.default_rng(0).normal(size=(100, 100))}
    try:
        orbax.save(folder, 2, big)
    except OSError as error:
        errors.put(str(error))


def test_a_disk_that_fills_up_leaves_the_last_complete_checkpoint_and_one_line(tmp_path):
    orbax.save(tmp_path, 1, tree_of(1))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interop.saving"])
    errors = context.Queue()
    process = context.Process(target=limited, args=(str(tmp_path), errors), daemon=True)
    process.start()
    assert errors.get(timeout=60) == f"cannot save checkpoint 2 in {tmp_path}: File too large"
    process.join()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert assert_last_complete(tmp_path) == 1


@pytest.mark.parametrize("name", ["run", "run[0]"])
def test_what_other_threads_of_orbax_write_after_its_error_does_not_stay(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads: list[threading.Thread] = []

    def write_late(path: Path) -> None:
        for wait in (0.05, 0.3, 0.5):
            time.sleep(wait)
            path.mkdir(parents=True, exist_ok=True)
            (path / "data").write_bytes(b"0")

    def fails(_: Any, path: Path, **__: Any) -> None:
        thread = threading.Thread(target=write_late, args=(path,))
        threads.append(thread)
        thread.start()
        raise OSError("No space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", fails)
    with pytest.raises(OSError, match=r"cannot save checkpoint 0 in .*: No space left on device"):
        orbax.save(tmp_path / name, 0, {"w": jnp.ones(2)})
    for thread in threads:
        thread.join()
    assert len(threads) == 1
    assert list(tmp_path.iterdir()) == []


# Devices -------------------------------------------------------------------------------------------------------------

ON_FOUR_DEVICES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
import optchain as oc
from jax.sharding import NamedSharding, PartitionSpec as P
from optchain.interop import orbax

tx = oc.adam(0.1)
params = {"dense": {"kernel": jnp.arange(8.0).reshape(4, 2), "bias": jnp.zeros(2)}}
tree = {"params": params, "state": tx.init(params)}


def placed(devices):
    mesh = jax.make_mesh((len(devices),), ("x",), devices=devices)
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, P("x") if a.ndim == 2 else P())), tree)


def check(restored, like):
    for a, b, whole in zip(*map(jax.tree.leaves, (restored, like, tree)), strict=True):
        assert a.sharding == b.sharding, (a.sharding, b.sharding)
        np.testing.assert_array_equal(a, whole)


for number, devices in enumerate([jax.devices()[:4], jax.devices()[:2], jax.devices()[3:]]):
    orbax.save(sys.argv[1], number, placed(devices))
    for others in (jax.devices()[:4], jax.devices()[2:4], jax.devices()[:1]):
        check(orbax.restore(sys.argv[1], placed(others), hyperparams="saved")[0], placed(others))
print("held")
"""


@pytest.mark.thorough
def test_a_checkpoint_is_restored_onto_other_shardings_and_numbers_of_devices(tmp_path):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_FOUR_DEVICES, str(tmp_path / "four")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "held\n", done.stderr
    # And on one device, of a process that has no other.
    like = {"params": PARAMS, "state": oc.adam(0.1).init(PARAMS)}
    restored, report = orbax.restore(tmp_path / "four", like, hyperparams="saved")
    np.testing.assert_array_equal(restored["params"]["dense"]["kernel"], np.arange(8.0).reshape(4, 2))
    assert (report.new, report.gone) == ([], [])
