"""The page on races and its example run as they stand there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import optchain
from optchain.race import Entrant, Program, Task, cosine
from optchain.race.statistics import BETTER, SAME, WORSE

ROOT = Path(__file__).parents[2]


def example() -> ModuleType:
    path = ROOT / "examples" / "own_task.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
def test_the_code_of_the_page_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "race.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert isinstance(names["task"], Task)
    assert capsys.readouterr().out.startswith((BETTER, SAME, WORSE))


@pytest.mark.thorough
def test_the_task_of_the_example_is_learned():
    task = example().task(turns=1.0)
    program = Program(task, Entrant("adamw", optchain.adamw(0.01)), 8, cosine(task.steps))
    group = program.run(list(range(8)), [1.0] * 8)
    assert max(group.final) < 0.5 * min(curve[0] or 0.0 for curve in group.held_out)
