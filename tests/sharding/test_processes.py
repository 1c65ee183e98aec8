"""A run over two processes: the numbers of one, and what happens when one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

STEPS, DIE_AT, LAST_CHECKPOINT = 6, 5, 4
TIME_LIMIT = 60
"""Seconds in which the other process must end; it is heard no more for ten before it counts as lost."""


def start(folder: Path, processes: int, *more: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    script = str(Path(__file__).with_name("process.py"))
    folder.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [sys.executable, script, str(folder), *map(str, (processes, index, port, STEPS, *more))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def outputs(running: list[subprocess.Popen[str]]) -> list[str]:
    try:
        return [process.communicate(timeout=2 * TIME_LIMIT)[0] for process in running]
    finally:
        for process in running:
            process.kill()


def finish(folder: Path, processes: int) -> dict:
    running = start(folder, processes)
    printed = outputs(running)
    assert [process.returncode for process in running] == [0] * processes, printed
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return finish(tmp_path_factory.mktemp("one"), 1)


def worst_difference(result: dict, expected: dict) -> float:
    assert result["values"].keys() == expected["values"].keys()
    worst = 0.0
    for path, values in expected["values"].items():
        a, b = np.array(result["values"][path]), np.array(values)
        worst = max(worst, np.abs(a - b).max() / (np.abs(b).max() + 1e-3))
    return worst


@pytest.mark.thorough
def test_two_processes_have_the_numbers_of_one(tmp_path, on_one, record_difference):
    difference = worst_difference(finish(tmp_path, 2), on_one)
    record_difference(("clip, accumulate, average", "two processes, ZeRO-1", "8"), difference)
    assert difference <= 1e-10


@pytest.mark.for_release
def test_when_a_process_is_lost_the_other_ends_and_the_run_goes_on_from_its_checkpoint_on_one(
    tmp_path, on_one, record_difference
):
    survivor, lost = running = start(tmp_path, 2, DIE_AT)
    try:
        lost.communicate(timeout=2 * TIME_LIMIT)
        died = time.monotonic()
        printed, _ = survivor.communicate(timeout=TIME_LIMIT)
        seconds = time.monotonic() - died
    finally:
        for process in running:
            process.kill()
    assert lost.returncode == -signal.SIGKILL
    assert survivor.returncode != 0
    assert "another task died" in printed or "Connection closed by peer" in printed
    assert seconds < TIME_LIMIT
    assert not (tmp_path / "result.json").exists()

    resumed = finish(tmp_path, 1)
    assert resumed["start"] == LAST_CHECKPOINT
    difference = worst_difference(resumed, on_one)
    record_difference(("clip, accumulate, average", "two processes, one lost, resumed on one", "8"), difference)
    assert difference <= 1e-10
