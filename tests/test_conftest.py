"""What `conftest.py` adds to a run: tiers, tables of errors that cross from worker to worker, and red where a worker crashed."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import hypothesis
import hypothesis.strategies as st
import pytest
from sampling import each_value

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
UNSENDABLE = """
def test_passes(request):
    request.config.workeroutput["what"] = object()  # pytest-xdist sends strings and numbers
"""
DIES_IN_A_TEST = """
import os

def test_dies():
    os._exit(3)
"""


def run(code: str, folder: Path, *options: str) -> tuple[int, str]:
    """A run of its own of one test file, with our `conftest.py`."""
    for ours in ("conftest.py", "sampling.py", "compiler.py"):
        shutil.copy(Path(__file__).with_name(ours), folder)
    (folder / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_it.py"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


TIERED = """
import pytest

@pytest.mark.each_value
@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(4))
def test_product(first, second): ...

@pytest.mark.each_value(of="the large one")
@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(4))
def test_large_product(first, second): ...

@pytest.mark.parametrize(argnames="first,", argvalues=[(i,) for i in range(6)])
def test_whole(first): ...

@pytest.mark.parametrize(("first", "second"), [(i, j) for i in range(3) for j in range(2)])
def test_table(first, second): ...

@pytest.mark.thorough
def test_slow(): ...

@pytest.mark.thorough
@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("second", range(2))
def test_slow_product(first, second): ...

@pytest.mark.programs
@pytest.mark.thorough
def test_program(): ...

@pytest.mark.programs
def test_quick_program(): ...

@pytest.mark.for_release
def test_slowest(): ...
"""


@pytest.mark.thorough
def test_the_tiers_share_the_tests_out(tmp_path: Path):
    markers = ("-o", "markers=each_value\nthorough\nprograms\nfor_release")
    names = {}
    for tier in ("quick", "rest", "programs", "exhaustive", "all"):
        code, output = run(TIERED, tmp_path, *markers, "--tier", tier, "-v")
        assert code == 0, output
        found = re.findall(r"test_it\.py::(\S+) PASSED", output)
        names[tier] = set(found)
        assert len(found) == len(names[tier])
    assert names["quick"] | names["rest"] | names["programs"] | names["exhaustive"] == names["all"]
    assert sum(map(len, names.values())) == 2 * len(names["all"])
    sampled = ("test_product", "test_large_product", "test_whole", "test_table")
    assert count(names["quick"]) == dict.fromkeys(sampled, 6) | {"test_quick_program": 1}
    assert count(names["rest"]) == {"test_slow": 1, "test_slow_product": 3}
    assert count(names["programs"]) == {"test_program": 1}
    left = {"test_product": 18, "test_large_product": 18, "test_slow_product": 3, "test_slowest": 1}
    assert count(names["exhaustive"]) == left
    product = [name[13:-1].split("-") for name in names["quick"] if name.startswith("test_product")]
    assert {second for second, _ in product} == set("0123")
    assert {first for _, first in product} == set("012345")


@pytest.mark.parametrize("tier", ["quick", "all"])
def test_a_test_that_no_tier_would_run_is_an_error(tier: str, tmp_path: Path):
    """A tier looks for its mark in the text of a file before it reads it."""
    code, output = run(
        "import pytest\n\npytestmark = getattr(pytest.mark, 'thor' + 'ough')\n\ndef test_slow(): ...\n",
        tmp_path, "-o", "markers=thorough", "--tier", tier,
    )  # fmt: skip
    assert code == (pytest.ExitCode.USAGE_ERROR if tier == "quick" else 0), output
    assert ("write that word in its file" in output) == (tier == "quick")


def count(names: set[str]) -> Counter[str]:
    return Counter(name.partition("[")[0] for name in names)


cases_of_values = st.lists(
    st.fixed_dictionaries({"a": st.integers(0, 4), "b": st.integers(0, 3)}, optional={"c": st.integers(0, 2)}),
    max_size=40,
)


@hypothesis.given(cases_of_values)
def test_each_value_is_taken(cases: list[dict[str, int]]):
    taken = each_value([case.items() for case in cases])
    assert taken == sorted(set(taken))
    assert {value for index in taken for value in cases[index].items()} == {v for case in cases for v in case.items()}


@hypothesis.given(cases_of_values, st.randoms(use_true_random=False))
def test_what_is_taken_does_not_depend_on_how_values_are_hashed(cases: list[dict[str, int]], random: Random):
    # The processes that share a run each choose for themselves, and their strings and addresses are hashed differently.
    class Hashed(int):
        def __hash__(self) -> int:
            return hashes[int(self)]

    hashes = [random.getrandbits(60) for _ in range(5)]
    hashed = [[(name, Hashed(value)) for name, value in case.items()] for case in cases]
    assert each_value(hashed) == each_value([case.items() for case in cases])


def test_of_a_product_the_longest_side_is_taken():
    assert len(each_value([(("row", i), ("check", j)) for i in range(84) for j in range(42)])) == 84


@pytest.mark.thorough
def test_errors_of_any_float_reach_the_table_from_a_worker(tmp_path: Path):
    code, output = run(RECORDS, tmp_path, "-n", "1")
    assert code == 0, output
    assert "Traceback" not in output
    assert "Keras  adam   float32  apply  3.0e-07" in output
    assert "Keras  sgd    float32  apply  nan" in output  # the worst there is


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("crash", "passed"),
    [
        pytest.param(DIES_AT_ITS_END, True, id="at its end"),
        pytest.param(UNSENDABLE, True, id="by what it reports", marks=pytest.mark.for_release),
        pytest.param(DIES_IN_A_TEST, False, id="in a test", marks=pytest.mark.for_release),
    ],
)
def test_a_crash_of_a_worker_makes_the_run_red(crash: str, passed: bool, tmp_path: Path):
    code, output = run(crash, tmp_path, "-n", "1", "--max-worker-restart", "1")
    assert code != 0, output
    assert ("1 passed" in output) == passed
    assert "Crashed workers" in output
    assert "gw0" in output
