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


# Releases -------------------------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_jax_and_optax_have_upper_bounds_that_the_page_of_versions_tells():
    bounds = dict(re.fullmatch(r"(\w+)>=[\d.]+,<([\d.]+)", name).groups() for name in PROJECT["dependencies"])
    page = (ROOT / "docs" / "policy.md").read_text()
    newest = re.search(r"^\| JAX \| \S+ to 0\.(\d+) \|$", page, re.MULTILINE)[1]
    assert bounds == {"jax": f"0.{int(newest) + 1}", "optax": "0.3"}


def test_the_classifiers_name_the_pythons_that_the_page_of_versions_and_the_newest_tests_do():
    said = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={said[0]}"
    assert f"| Python | {', '.join(said)} |" in (ROOT / "docs" / "policy.md").read_text()
    assert f"for version in {' '.join(reversed(said[1:]))};" in (ROOT / ".ci" / "run").read_text()


def test_each_job_of_the_workflow_is_one_of_the_script_and_none_is_left_out():
    script = (ROOT / ".ci" / "run").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    jobs = set(re.search(r"job: \[(.*)\]", workflow)[1].split(", "))
    cases = re.findall(r"^    ([a-z][a-z |]*)\)", script.partition("case ")[2], re.MULTILINE)
    assert jobs == {name for case in cases for name in case.split(" | ")} - {"all"}


def test_a_release_is_published_without_a_token_and_only_after_it_was_rehearsed():
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert workflow.index(".ci/rehearse") < workflow.index("pypa/gh-action-pypi-publish")
    assert "id-token: write" in workflow
    assert "attestations: write" in workflow
    assert "secrets." not in workflow
