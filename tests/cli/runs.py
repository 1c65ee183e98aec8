"""Runs of `optchain train`: what is in their folders, and processes that tests end."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from optchain.cli import main
from optchain.cli.train import checkpoints, digits, loop, report  # noqa: F401  # once, for all that are forked


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint, by path, read by Orbax alone."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        path = checkpoints.latest(folder).path / "arrays"
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): array for path, array in jax.tree.leaves_with_path(restored)}


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def in_silence(arguments: list[str], compiled: str) -> None:
    """The command, as the whole of a process, with a folder of what is compiled already."""
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        code = main(arguments)
    sys.exit(code)
