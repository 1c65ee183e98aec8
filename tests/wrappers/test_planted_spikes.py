"""The runs with planted spikes that the guide shows."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optchain.race import Task

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "spikes"


@pytest.fixture(scope="module")
def spikes():
    spec = importlib.util.spec_from_file_location("spikes", ROOT / "benchmarks" / "spikes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report():
    return json.loads((RESULTS / "spikes.json").read_text())


def test_without_an_answer_every_run_is_lost_or_worse_and_with_one_none_is_lost(report):
    for guards in report["rules"].values():
        seeds = len(guards["nothing"]["curves"])
        assert seeds == report["place"]["seeds"] == 16
        assert guards["nothing"]["comparison"]["verdict"] == "worse"
        answers = guards.keys() - {"nothing", "no spikes"}
        assert answers == {"clip_by_global_norm(1.0)", "zclip()", "adagc()", "skip_spikes(…)"}
        assert not any(guards[answer]["lost"] for answer in answers)
        ends = {guard: [curve[-1] for curve in made["curves"]] for guard, made in guards.items()}
        worst = max(max(ends[answer]) for answer in answers)
        assert all(end is None or end > 2 * worst for end in ends["nothing"])
    assert report["rules"]["SGD with momentum"]["nothing"]["lost"] == 16


@pytest.mark.parametrize("answer", ["zclip()", "skip_spikes(…)"])
def test_what_leaves_ordinary_steps_alone_ends_where_a_run_without_spikes_ends(report, answer):
    for guards in report["rules"].values():
        compared = guards[answer]["comparison"]
        assert compared["verdict"] == "no difference seen"
        assert max(abs(compared["low"]), abs(compared["high"])) < 0.01 * guards["no spikes"]["mean"]


@pytest.mark.thorough
def test_the_table_in_the_guide_is_that_of_the_report(spikes, report):
    assert (RESULTS / "table.md").read_text() == spikes.table(report)


@pytest.mark.thorough
def test_the_benchmark_writes_its_report(spikes, tmp_path, monkeypatch):
    wanted = jnp.linspace(-1.0, 1.0, 8)

    def loss(w, x):
        return jnp.mean((x @ (w - wanted)) ** 2)

    task = Task(
        "line",
        init=lambda key: jax.random.normal(key, (8,)),
        batch=lambda key: jax.random.normal(key, (16, 8)),
        loss=loss,
        held_out_loss=lambda w: loss(w, jnp.eye(8)),
        steps=40,
    )
    changed = {"autoencoder": lambda: task, "STEPS": 40, "WATCHED": 20, "SHARE": 0.2}
    changed["GUARDS"] = {name: spikes.GUARDS[name] for name in ("no spikes", "nothing", "clip_by_global_norm(1.0)")}
    changed["RULES"] = {"SGD with momentum": spikes.RULES["SGD with momentum"]}
    for name, value in changed.items():
        monkeypatch.setattr(spikes, name, value)
    monkeypatch.setattr(sys, "argv", ["spikes.py", "--seeds", "3", "--out", str(tmp_path)])
    spikes.main()
    guards = json.loads((tmp_path / "spikes.json").read_text())["rules"]["SGD with momentum"]
    curves = {guard: np.array(made["curves"], float) for guard, made in guards.items()}
    np.testing.assert_array_equal(curves["no spikes"][:, :3], curves["nothing"][:, :3])  # the same run up to the first
    assert guards["nothing"]["lost"] == 3
    assert guards["clip_by_global_norm(1.0)"]["lost"] == 0
    assert (tmp_path / "table.md").read_text() == spikes.table(json.loads((tmp_path / "spikes.json").read_text()))
    assert (tmp_path / "spikes.png").stat().st_size > 0
