"""Every notebook runs from top to bottom, and is kept with its outputs."""

import itertools
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.long
@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter client, on its way to a new event loop
def test_notebook_runs_and_its_outputs_are_kept(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of all copies this one
    monkeypatch.setenv("PYTHONWARNINGS", "ignore::FutureWarning")
    kept = nbformat.read(path, as_version=4)
    outputs = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert [kinds(cell) for cell in notebook.cells] == [kinds(cell) for cell in kept.cells]


def kinds(cell):
    """The kinds of what a cell showed. What it prints comes in one piece or in several, as time has it."""
    shown = [(output.output_type, output.get("name")) for output in cell.get("outputs", [])]
    return [kind for kind, _ in itertools.groupby(shown)]
