"""`optchain plot`: the numbers that a run will see, as data, as a picture, in characters."""

import json

import numpy as np
import pytest

import optchain
from optchain.cli import main
from optchain.cli.plot import terminal, values

WARMUP = optchain.schedules.LinearWarmupDecay(0.1, warmup_steps=4, total_steps=20)


def written(tx, path):
    path.write_text(json.dumps(optchain.to_config(tx)))
    return str(path)


@pytest.mark.thorough
def test_the_values_are_those_that_a_run_reads_in_its_state():
    cycle = optchain.schedules.OneCycleLR(max_lr=0.1, total_steps=30)
    inner = optchain.chain(
        optchain.scale_by_adam(beta_1=optchain.schedules.OneCycleMomentum(cycle)),
        optchain.scale_by_learning_rate(),
        optchain.decay_weights(0.1, learning_rate=optchain.schedules.InverseTimeDecay(0.5, 3, 0.5)),
        name="body",
    )
    tx = optchain.chain(optchain.accumulate(inner, 3), learning_rate=WARMUP)
    params = {"w": np.ones(2, "float32")}
    state, seen = tx.init(params), []
    for _ in range(12):
        params, state = tx.apply(params, state, grads=params)
        seen.append({name: float(value) for name, value in optchain.get_hyperparams(state).items()})
    found = values.over(tx, 12)
    assert found.keys() == seen[0].keys()
    assert len(found) == 3
    updating = slice(2, None, 3)  # within the gate, what was scheduled at the last update
    for name, series in found.items():
        np.testing.assert_allclose(series[updating], [step[name] for step in seen][updating], rtol=1e-6, err_msg=name)


def test_a_window_that_is_scheduled_counts_its_updates():
    tx = optchain.accumulate(optchain.sgd(WARMUP), lambda updates: 1 + updates)
    series = values.over(tx, 6)["learning_rate"]  # windows of 1, 2, 3 calls
    np.testing.assert_allclose(series, np.asarray(WARMUP(np.array([0, 1, 1, 2, 2, 2]))), rtol=1e-6)


def test_data_for_programs(tmp_path, capsys):
    file = written(optchain.sgd(WARMUP), tmp_path / "recipe.json")
    assert main(["plot", file, "--steps", "21", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 21
    assert max(report["hyperparams"]["learning_rate"]) == pytest.approx(0.1)
    assert report["hyperparams"]["learning_rate"][-1] == 0


def test_a_picture_and_a_chart_in_characters(tmp_path, capsys):
    file = written(optchain.adamw(WARMUP, weight_decay=WARMUP * 0.1), tmp_path / "recipe.json")
    assert main(["plot", file, "--steps", "21", "--out", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"see {tmp_path / 'plot.png'}\n"
    assert main(["plot", file, "--steps", "21"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("learning_rate") < shown.index("weight_decay")
    assert "0.1 |" in shown


def test_the_chart_has_its_highest_point_where_the_values_have_it():
    lines = terminal.chart(np.concatenate([np.linspace(0, 1, 45), np.linspace(1, 0, 15)]), 63, braille=False)
    assert 3 + 40 <= lines[0].index("*") <= 3 + 45
    assert lines[7].index("*") == 3
    assert len(lines[8]) == 63


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["adamw", "--steps", "0"], "greater than or equal to 1"),
        (["adamw", "--out", "plot.pdf"], "must end in .png"),
        (["adamw", "--out", "nowhere/plot.png"], "No such file"),
        (["adam0"], "did you mean adam"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments: list[str], told: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
