"""One version, told everywhere; one list of checks, told in the documentation."""

import importlib.util
import re
import tomllib
from pathlib import Path

import optchain
from optchain.core.registry import FACTORIES

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_place_and_the_citation_has_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"]
    assert settings["tool"]["hatch"]["version"]["path"] == "optchain/__init__.py"
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == optchain.__version__


def test_the_changelog_is_in_order():
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1:] == sorted(headings[1:], key=lambda version: [int(n) for n in version.split(".")], reverse=True)
    assert optchain.__version__ in headings or len(headings) == 1


def test_the_dependencies_have_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert [name for name in listed if ">=" not in name and not name.startswith("optchain[")] == []


def test_every_picture_of_the_site_is_of_a_transformation_that_can_be_built():
    path = ROOT / "docs" / "hooks" / "calls.py"
    spec = importlib.util.spec_from_file_location("calls", path)
    calls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(calls)
    assert {*calls.CALLS, *calls.NO_PICTURE} <= FACTORIES.keys()
    for code in calls.CALLS.values():
        assert isinstance(eval(f"optchain.{code}"), optchain.Transformation)
