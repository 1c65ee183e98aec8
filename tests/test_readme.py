"""The code of the README and of the pages in `docs` runs as it stands there."""

import json
import re
import textwrap
from pathlib import Path

import pytest

from optchain.cli import main

ROOT = Path(__file__).parents[1]


README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def code_blocks(language: str, page: Path = README) -> list[str]:
    """The blocks of a page; those that stand indented, in a tab, without their indent."""
    found = re.findall(rf"^( *)```{language}$\n(.*?)^\1```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's variables and NumPy 2
@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks("python", page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page):
    """In one namespace, top to bottom; what the page calls a recipe and parameters go together."""
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(code_blocks("python", page), 1):
        if re.search("^import torch$", block, re.MULTILINE):
            continue  # it may be missing here: tests/interop/test_torch_page.py runs these
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    if {"tx", "params"} <= namespace.keys():
        tx, params = namespace["tx"], namespace["params"]
        tx.apply(params, tx.init(params), grads=params)


def test_no_page_of_the_guide_is_without_code():
    assert all(code_blocks("python", page) for page in (ROOT / "docs" / "guide").glob("*.md"))


def test_python_blocks_run(capsys):
    namespace = {}
    blocks = code_blocks("python")
    for block in blocks:
        exec(block, namespace)
    assert blocks
    assert "learning_rate" in capsys.readouterr().out


@pytest.mark.thorough
def test_the_recipe_trains(tmp_path):
    (block,) = code_blocks("toml")
    (tmp_path / "recipe.toml").write_text(block)
    command = ["train", "--recipe", tmp_path / "recipe.toml", "--steps", 20, "--out", tmp_path / "run"]
    assert main(list(map(str, command))) == 0
    rates = [
        json.loads(line)["learning_rate"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(rates) == 0.2


def test_there_are_exactly_two_set_up_commands_each_complete_on_a_fresh_machine():
    commands = code_blocks("sh")
    assert len(commands) == 2
    assert all(
        command.startswith("python3 -m venv .venv && .venv/bin/pip install --quiet uv && ") for command in commands
    )
