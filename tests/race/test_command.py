"""`optchain race`: what it promises, and what it does with mistakes."""

import html
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import optchain
from optchain.cli import main
from optchain.cli.errors import UserError
from optchain.cli.race import named
from optchain.cli.race.results import from_json
from optchain.cli.race.settings import Settings

TOYS = Path(__file__).parent / "toys.py"
TOY = f"{TOYS}:steps=40"
COMMAND = [sys.executable, "-W", "error", "-m", "optchain.cli", "race"]


def race(*arguments: object) -> None:
    """A race in this process, which has to succeed."""
    assert main(["race", *map(str, arguments)]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said of a mistake: one line."""
    assert main(["race", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def results(folder: Path) -> dict[str, Any]:
    return {r["recipe"]: from_json(r) for r in json.loads((folder / "race.json").read_text())["results"]}


def bits(folder: Path) -> dict[str, Any]:
    """All that a race came to but the times that it took."""
    found = {}
    for path in sorted((folder / "groups").rglob("*.json")):
        group = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = {
            k: v for k, v in group.items() if k not in ("milliseconds", "compile_seconds")
        }
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A race of a recipe, itself under another name, a worse one, and one that is built with its own schedule."""
    folder = tmp_path_factory.mktemp("race")
    recipe = folder / "cosine.json"
    schedule = optchain.schedules.CosineDecay(0.3, 40)
    recipe.write_text(json.dumps(optchain.to_config(optchain.adamw(schedule, use_ema=True))))
    recipes = f"adamw=adamw:rate=0.3,twin=adamw:rate=0.3,slow=adamw:rate=0.003,{recipe}:rate=own"
    race("--tasks", TOY, "--recipes", recipes, "--out", folder / "out")
    return folder / "out"


# What a race says --------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_recipe_against_itself_shows_no_difference_and_a_worse_one_is_worse(finished: Path):
    found = results(finished)
    assert found["adamw"].comparison is None
    assert found["twin"].comparison.verdict == "no difference seen"
    assert found["twin"].group.weights == found["adamw"].group.weights  # to the bit
    assert found["slow"].comparison.verdict == "worse"
    assert found["cosine"].rates == {"learning_rate": pytest.approx(0.3)}  # the highest of its schedule
    assert found["adamw"].rates == {"learning_rate": pytest.approx(0.3)}
    assert found["adamw"].state_bytes > 8


@pytest.mark.thorough
def test_the_record_says_all_that_a_reader_needs_to_judge_it(finished: Path):
    kept = json.loads((finished / "race.json").read_text())
    assert kept["settings"]["level"] == 0.01
    assert kept["place"]["versions"]["jax"]
    assert kept["place"]["python"]
    assert json.loads(kept["recipes"]["cosine"])["arguments"]["use_ema"] is True
    assert kept["command"].startswith(f"optchain race --tasks {TOY} --recipes ")
    for result in kept["results"]:
        assert len(result["group"]["held_out"]) == len(result["group"]["weights"]) == 8
        assert result["group"]["steps"] == [0, 10, 20, 30, 40]
        assert result["target"] == pytest.approx(results(finished)["adamw"].mean)


def test_the_report_is_a_page_a_picture_and_a_table(finished: Path):
    page = (finished / "report.html").read_text()
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append(tag)
            for name, value in attrs:
                assert name not in ("src", "href") or value.startswith("#"), value  # nothing from elsewhere

    Reader().feed(page)
    assert {"svg", "table", "tr", "td"} <= set(tags)
    assert tags.count("tr") == 5
    assert "currentColor" in page
    assert struct.unpack(">II", (finished / "report.png").read_bytes()[16:24]) > (1000, 400)
    table = (finished / "table.md").read_text()
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 6
    assert "| slow |" in table
    assert "| **worse** |" in table


@pytest.mark.thorough
def test_a_rate_is_searched_for_on_seeds_that_are_not_compared(tmp_path: Path):
    race("--tasks", TOY, "--recipes", "sgd", "--seeds", "8", "--out", tmp_path / "out")
    (found,) = results(tmp_path / "out").values()
    means = {factor: sum(losses) / len(losses) for factor, losses in found.tried.items()}
    by_rate = [means[factor] for factor in sorted(means, key=float)]
    assert means[f"{found.factor:g}"] < min(by_rate[0], by_rate[-1])
    assert {len(losses) for losses in found.tried.values()} == {2}
    tuned, compared = set(), set()
    for path in (tmp_path / "out" / "groups" / "line" / "sgd").glob("*.json"):
        (compared if path.stem == "compared" else tuned).update(json.loads(path.read_text())["seeds"])
    assert compared == set(range(8))
    assert len(tuned) == 2
    assert tuned.isdisjoint(compared)


@pytest.mark.long
@pytest.mark.programs  # machine code without optimizations makes it longer
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("task", "recipes"),
    [
        pytest.param(
            "autoencoder",
            ["good=adam:rate=0.03", "beta_2=adam:rate=0.03:beta_2=0.9999", "rate=adam:rate=0.09"],
            marks=pytest.mark.for_release,
        ),
        (
            "digits",
            [
                'good=adamw:rate=0.003:weight_decay=1.0:exclude_from_weight_decay=["bias$","scale$"]',
                "norms=adamw:rate=0.003:weight_decay=1.0",
            ],
        ),
    ],
)
def test_a_planted_fault_is_called_worse(task: str, recipes: list[str], tmp_path: Path):
    """β₂ off by ten, a rate three times as high as the best, decay that acts on norms and biases too."""
    race("--tasks", task, "--recipes", ",".join(recipes), "--seeds", "16", "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    for name, result in found.items():
        assert result.comparison is None if name == "good" else result.comparison.verdict == "worse", name


# A race that is killed -----------------------------------------------------------------------------------------------------


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    while not list(path.rglob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.for_release
def test_a_race_that_is_stopped_and_then_killed_goes_on_to_the_same_bits(tmp_path: Path):
    chosen = ("--tasks", f"{TOYS}:steps=40000:evaluations=400", "--recipes", "sgd,adamw:rate=0.1")
    process = start(*chosen, "--out", tmp_path / "whole")
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, ""), output

    broken = tmp_path / "broken"
    process = start(*chosen, "--out", broken)
    wait_for(broken, "rates-*.json", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"go on with: optchain race --resume {broken}" in output

    process = start("--resume", broken)
    wait_for(broken / "groups" / "line" / "sgd", "compared.json", process)
    process.kill()
    process.communicate()
    assert not (broken / "report.html").exists()

    process = start(*chosen, "--out", broken)  # the same command goes on too
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert bits(broken) == bits(tmp_path / "whole")
    assert not list(broken.rglob("*.unfinished"))


def test_what_is_done_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch):
    from optchain.race import Program

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr(Program, "run", run)
    before = bits(finished)
    race("--resume", finished)
    assert bits(finished) == before


# Names -------------------------------------------------------------------------------------------------------------------


def test_a_recipe_is_named_with_arguments():
    made = named.entrant("slow=adamw:beta_2=0.99:use_ema=true:rate=0.01")
    assert (made.name, made.tx, made.rate) == ("slow", optchain.adamw(beta_2=0.99, use_ema=True), 0.01)
    assert made.factor({"learning_rate": 0.001}) == pytest.approx(10)
    assert named.entrant("sgd:momentum=0.9").name == "sgd-momentum=0.9"
    assert named.entrant("torch.adamw").tx == optchain.presets.torch.adamw()
    assert named.entrant("adamw").factor({"learning_rate": 0.001}) is None
    assert named.entrant("adamw:rate=own").factor({"learning_rate": 0.001}) == 1
    with pytest.raises(ValueError, match=r"rate=0.1 needs one learning rate in the state; there are 2"):
        named.entrant("adamw:rate=0.1").factor({"a/learning_rate": 0.001, "b/learning_rate": 0.002})


def test_a_recipe_is_stored_compactly_on_request():
    made = named.entrant('c=adamw:compact={"weights":24,"moments":"bfloat16"}:rate=0.01')
    assert made.tx == optchain.compact(optchain.adamw(), weights=24, moments="bfloat16")
    assert named.entrant("adamw:compact=true").tx == optchain.compact(optchain.adamw())
    assert named.entrant("adamw:compact=false").tx == optchain.adamw()
    assert [named.entrant(spec).narrow for spec in ("adamw", "adamw:narrow=true")] == [False, True]


def test_a_recipe_of_optax_has_its_rate_in_the_state():
    made = named.entrant("optax.adamw:weight_decay=0.1")
    assert made.rates({"w": jnp.ones(2)}, 10) == {"learning_rate": pytest.approx(1e-3)}
    usual = named.entrant("optax.contrib.prodigy")  # has a rate of its own
    assert usual.rates({"w": jnp.ones(2)}, 10) == {"learning_rate": pytest.approx(1.0)}
    assert named.entrant("optax.contrib.schedule_free_adamw").is_schedule_free({"w": jnp.ones(2)})


def test_a_task_is_named_with_arguments_or_by_a_file():
    assert named.task("chars:tied=true").name == "chars-tied"
    assert named.task(TOY).steps == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes", "adamv"], "no preset has this name: did you mean adam or nadam or adamw"),
        (["--recipes", "adamw:beta_3=1"], "beta_3"),
        (["--recipes", "adamw:beta_2=1.5"], "beta_2 must be a number in [0, 1)"),
        (["--recipes", "adamw:beta_2"], "'beta_2' is no ARGUMENT=VALUE"),
        (["--recipes", "adamw:rate=-1"], "rate must be a finite number > 0; got -1.0; or say own"),
        (["--recipes", "adamw:compact=8"], "compact must be true or false; got 8"),
        (["--recipes", 'adamw:compact={"weights":12}'], "weights must be 24, 32 or 'stochastic'; got 12"),
        (["--recipes", 'adamw:compact={"bits":12}'], "bits"),
        (["--recipes", "optax.nothing"], "optax has no optimizer nothing"),
        (["--recipes", "optax.adm"], "optax has no optimizer adm with a learning_rate (did you mean 'adam'?)"),
        (["--recipes", "optax.contrib.prodgy"], "(did you mean 'prodigy'?)"),
        (["--recipes", "adamw,adamw"], "two are called adamw"),
        (["--recipes", "../x=adamw"], "is no name for a folder"),
        (["--recipes", "adamw,"], "'' names no recipe"),
        (["--tasks", "digit"], "there is no such task: did you mean digits?"),
        (["--tasks", "chars:layers=4"], "layers"),
        (["--tasks", "chars:tied=False"], "tied must be True or False; got 'False'"),
        (["--recipes", "optax.lbfgs"], "optax.lbfgs: scale_by_zoom_linesearch.<locals>.update_fn() missing 2"),
        (["--tasks", "nowhere.py"], "there is no such file"),
        (["--seeds", "1"], "--seeds must be between 2 and 1000000; got 1"),
        (["--recipes", "adamw:rate=1e39"], "rate must be a finite number > 0; got 1e+39, which overflows in float32"),
        (["--recipes", "adamw:rate=1e-60"], "got 1e-60, which is flushed to 0 in float32"),
        (["--recipes", "adamw:beta_2=0.9:beta_2=0.8"], "the argument 'beta_2' is there twice"),
        (["--recipes", 'adamw:mask={"a":true,"a":false}'], "the key 'a' is there twice"),
        (["--level", "0"], "--level must be at least 1e-09 and below 1; got 0.0"),
        (["--level", "1e-17"], "--level must be at least 1e-09 and below 1; got 1e-17"),
        (["--recipes", f"{'a' * 260}=adamw"], "a name of 260 letters is no name for a folder"),
        (["--recipes", "a\nb=adamw"], "is no name for a folder"),
        (["--recipes", "optax.adamw:mask=[1]"], "--recipes optax.adamw:mask=[1]: pytree structure error"),
        (["--recipes", "optax.lion:b2=foo"], "--recipes optax.lion:b2=foo: "),
        (["--recipes", "optax.sgd:learning_rate=foo"], "learning_rate must be a finite number >= 0; got 'foo'"),
        (["--resume", "nowhere"], "--resume nowhere: there is no such folder"),
        (["--resume", "nowhere", "--seeds", "3"], "give no other option"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_race_or_of_anything_else_is_left_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = bits(finished)
    assert "holds a race of other settings" in refused(capsys, "--tasks", TOY, "--out", finished)
    assert bits(finished) == before
    (tmp_path / "notes").write_text("mine")
    assert "is not empty" in refused(capsys, "--tasks", TOY, "--out", tmp_path)
    assert "holds no race" in refused(capsys, "--resume", tmp_path)


OWN_TASK = """from __future__ import annotations
import dataclasses
import jax, jax.numpy as jnp
from beside import SCALE
from optchain.race import Task

@dataclasses.dataclass
class Batch:
    size: int = 4

def loss(params, x):
    return SCALE * jnp.mean((x @ params["w"] - x.sum(-1)) ** 2)

shown = jax.random.normal(jax.random.key(0), (64, 8))
task = Task(
    "own",
    init=lambda key: {"w": jax.random.normal(key, (8,))},
    batch=lambda key: jax.random.normal(key, (Batch().size, 8)),
    loss=loss,
    held_out_loss=lambda params: loss(params, shown),
    steps=20,
)
"""


@pytest.mark.thorough
def test_a_race_does_not_go_on_with_another_task_or_recipe_of_the_same_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file, beside, recipe = tmp_path / "own.py", tmp_path / "beside.py", tmp_path / "recipe.json"

    def schedule(steps: int) -> None:
        recipe.write_text(json.dumps(optchain.to_config(optchain.sgd(optchain.schedules.CosineDecay(0.1, steps)))))

    file.write_text(OWN_TASK)
    beside.write_text("SCALE = 1.0\n")
    schedule(20)
    chosen = (
        "--tasks",
        file,
        "--recipes",
        f"sgd:rate=0.1,{recipe}:rate=own",
        "--seeds",
        "2",
        "--out",
        tmp_path / "out",
    )
    race(*chosen)
    before = bits(tmp_path / "out")
    race("--resume", tmp_path / "out")
    file.write_text(OWN_TASK + "# a remark\n")  # no number depends on it
    race(*chosen)
    schedule(40)
    assert "in which the recipe recipe was another" in refused(capsys, *chosen)
    schedule(20)
    file.write_text(OWN_TASK.replace("size: int = 4", "size: int = 5"))
    assert "in which the task own was another (its functions, its data or" in refused(capsys, *chosen)
    file.write_text(OWN_TASK)
    beside.write_text("SCALE = 2.0\n")  # a module that the file imports
    sys.modules.pop("beside")
    assert "in which the task own was another" in refused(capsys, *chosen)
    assert bits(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("race.json", "[]", "race.json is damaged: it holds no object"),
        ("race.json", "[" * 100_000, "race.json is damaged: "),
        ("race.json", '{"program": "optchain race", "version": 1}', "race.json is damaged: it has no settings"),
        (
            "race.json",
            '{"program": "optchain race", "version": 1, "settings": {"seeds": "x"}}',
            "was not written by this",
        ),
        ("compared.json", "{", "compared.json is damaged: "),
        ("compared.json", "[]", "a group must be an object; got list. Delete it, and it is run again"),
        ("compared.json", "{}", "missing 7 required positional arguments"),
        ("compared.json", ("held_out", [[1.0]] * 8), "a curve must have 5 losses"),
        ("compared.json", ("held_out", []), "a group must have a seed, a factor, a curve"),
        ("compared.json", ("seeds", list(range(7, 15))), "compared.json is damaged: it is of other members"),
        ("compared.json", ("steps", ["a"] * 5), "steps must be numbers"),
        ("compared.json", ("milliseconds", None), "times must be numbers"),
    ],
)
def test_a_file_of_a_race_that_is_damaged_is_named(
    name: str, text: Any, message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shutil.copytree(finished, tmp_path / "out")
    path = next(folder.rglob(name))
    if isinstance(text, tuple):
        kept = json.loads(path.read_text())
        text = json.dumps({**kept, text[0]: text[1]})
    path.write_text(text)
    assert message in refused(capsys, "--resume", folder)


NAMES = ["_slow", "$x", "a|b", "[red]x[b]", "naïve €", "a" * 200]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A race of recipes with names that other programs could take for more than names."""
    folder = tmp_path_factory.mktemp("small") / "out"
    recipes = ",".join(f"{name}=sgd:rate=0.{n + 1}" for n, name in enumerate(NAMES))
    race("--tasks", TOY, "--recipes", recipes, "--seeds", "2", "--level", "0.001", "--out", folder)
    return folder


@pytest.mark.thorough
def test_a_name_is_shown_as_it_is_everywhere(small: Path, capsys: pytest.CaptureFixture[str]):
    race("--resume", small)
    said = capsys.readouterr().out
    page, table = (small / "report.html").read_text(), (small / "table.md").read_text()
    for name in NAMES[:-1]:
        assert f"│ {name} " in said
        assert f"<td>{html.escape(name)}<td>" in page
        assert f">{html.escape(name)}</text>" in page.replace("\u200b", "")  # in the picture
        assert f"| {name.replace('|', chr(92) + '|')} |" in table
    assert f"│ {'a' * 39}… " in said
    assert f"<td>{'a' * 200}<td>" in page
    assert "99.9% interval" in page
    assert "100%" not in page.partition("</style>")[2]


@pytest.mark.parametrize(
    "settings",
    [
        Settings(["digits"], ["adamw"], seeds=8, tuning_seeds=2, shorter=4),  # what --quick would not choose
        Settings(["digits"], ["adamw"], seeds=4, tuning_seeds=1, shorter=4),
        Settings(["digits", "chars"], ["a b=sgd", "$c=adamw:rate=0.1"], seeds=4, level=0.05, schedule="constant"),
        Settings(["digits"], ["adamw", "sgd"]),
    ],
)
def test_the_command_that_is_kept_makes_the_race_again(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    from optchain.cli.race import command

    made: list[Settings] = []
    monkeypatch.setattr(command, "_race", lambda path, given, resumed: made.append(command._chosen(given)))
    program, *words = shlex.split(command._command(settings))
    assert (program, main(words)) == ("optchain", 0)
    assert made == [settings]


@pytest.mark.thorough
def test_a_reference_that_is_lost_gives_no_target(tmp_path: Path):
    race("--tasks", TOY, "--recipes", "bad=sgd:rate=1e30,good=sgd:rate=0.1", "--seeds", "2", "--out", tmp_path / "out")
    assert results(tmp_path / "out")["good"].steps_to_target == []
    assert "target" not in (tmp_path / "out" / "table.md").read_text().splitlines()[0]


@pytest.mark.thorough
def test_a_task_whose_loss_is_not_finite_at_the_start_names_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "own.py"
    (tmp_path / "beside.py").write_text("SCALE = 1.0\n")
    sys.modules.pop("beside", None)
    nan = 'lambda key: {"w": jnp.where(jax.random.uniform(key) < 0.5, jnp.nan, 1.0) * jax.random.normal(key, (8,))}'
    file.write_text(OWN_TASK.replace('lambda key: {"w": jax.random.normal(key, (8,))}', nan))
    said = refused(capsys, "--tasks", file, "--recipes", "sgd:rate=0.1", "--seeds", "8", "--out", tmp_path / "out")
    assert "own: the held-out loss of fresh parameters is not finite, of seed " in said


def test_a_task_file_with_a_mistake_in_its_syntax_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "own.py").write_text("import jax\ntask = (\n")
    assert "own.py: line 2: '(' was never closed" in refused(capsys, "--tasks", tmp_path / "own.py")


def test_a_task_that_is_no_task_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "own.py").write_text("task = 3\n")
    assert "task must be a Task, or a function" in refused(capsys, "--tasks", tmp_path / "own.py")


def test_ctrl_c_before_anything_is_begun_promises_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "own.py").write_text("raise KeyboardInterrupt\n")
    assert main(["race", "--tasks", str(tmp_path / "own.py"), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was begun yet\n"


def test_a_number_is_shown_to_two_digits_of_its_error():
    from optchain.cli.race.table import _shown

    assert [_shown(0.0793, 0.00057), _shown(10.4593, 1.8607), _shown(1.28e-6, 2.1e-7), _shown(-987.6, 2.1)] == [
        "0.07930",
        "10.5",
        "1.28e-06",
        "-987.6",
    ]
    assert [_shown(0.0, 0.0, "+"), _shown(float("inf"), 1.0), _shown(0.0123, 0.0005, "+")] == ["+0", "inf", "+0.01230"]


def test_a_folder_called_as_a_preset_hides_no_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sgd").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named.entrant("sgd").tx == optchain.sgd()


def test_a_recipe_that_does_not_go_with_a_task_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = refused(
        capsys, "--tasks", TOY, "--recipes", "adamw:gradient_accumulation_steps=3", "--out", tmp_path / "out"
    )
    assert "takes a batch in 3 parts, and it has 8 examples" in said


def test_the_settings_are_read_as_they_were_written():
    settings = Settings(["digits"], ["adamw", "sgd"], seeds=4, level=0.05)
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert not set(settings.compared) & set(settings.tuned)
    with pytest.raises(UserError, match="--tuning-seeds must be between 1"):
        Settings(["digits"], ["adamw"], tuning_seeds=0)
