"""The blocks of the page on moving runs that need PyTorch."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")

PAGE = Path(__file__).parents[2] / "docs" / "moving-runs.md"


def test_the_blocks_with_torch_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    blocks = [block for block in blocks if re.search("^import torch$", block, re.MULTILINE)]
    assert blocks
    for block in blocks:
        exec(block, {})
