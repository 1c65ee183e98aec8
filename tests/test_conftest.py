"""What `conftest.py` adds to a run: tables of errors that cross from worker to worker, and red where a worker crashed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist")

RECORDS = """
import enum
import numpy as np

class Form(enum.StrEnum):
    APPLY = "apply"

def test_records(record_error):
    record_error(("Keras", np.str_("adam"), "float32", Form.APPLY), np.float64(1e-7))
    record_error(("Keras", "adam", "float32", "apply"), np.float32(3e-7))
    record_error(("Keras", "sgd", "float32", "apply"), np.float64("nan"))
    record_error(("Keras", "sgd", "float32", "apply"), 1e-7)
"""
DIES_AT_ITS_END = """
import os
import pytest

@pytest.fixture(scope="session")
def dying():
    yield
    os._exit(3)

def test_passes(dying): ...
"""
DIES_IN_A_TEST = """
import os

def test_dies():
    os._exit(3)
"""


def run(code: str, folder: Path, *options: str) -> tuple[int, str]:
    """A run of its own of one test file, with our `conftest.py`."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", *options, "test_it.py"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_errors_of_any_float_reach_the_table_from_a_worker(tmp_path: Path):
    code, output = run(RECORDS, tmp_path)
    assert code == 0, output
    assert "Traceback" not in output
    assert "Keras  adam   float32  apply  3.0e-07" in output
    assert "Keras  sgd    float32  apply  nan" in output  # the worst there is


@pytest.mark.parametrize("crash", [DIES_AT_ITS_END, DIES_IN_A_TEST], ids=["at its end", "in a test"])
def test_a_crash_of_a_worker_makes_the_run_red(crash: str, tmp_path: Path):
    code, output = run(crash, tmp_path, "--max-worker-restart", "1")
    assert code != 0, output
    assert "Crashed workers" in output
    assert "gw0" in output
