"""`optchain train`: what it promises, and what it does with mistakes."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import optchain
from optchain.cli import main
from optchain.cli.train import checkpoints, digits, recipe
from tests.sampling import others_for_release, others_thorough

from .runs import arrays, assert_same_run, contents, lines

COMMAND = [sys.executable, "-W", "error", "-m", "optchain.cli", "train"]
PNG_SIZE = (1800, 1200)


def train(*arguments: object) -> None:
    """A run in this process, which has to succeed."""
    assert main(["train", *map(str, arguments)]) == 0


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    env = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 steps, to look at."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train("--out", folder, "--steps", 60, "--checkpoint-every", 25)
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 800 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("long") / "run"
    train("--out", folder, "--steps", 800)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# What a run gives -----------------------------------------------------------------------------------------------------


@pytest.mark.for_release  # `.ci/run` looks at the accuracies of the README's own run
def test_the_defaults_classify_97_percent_of_the_test_images_with_raw_and_averaged_weights(tmp_path: Path):
    process = start("--out", tmp_path / "run")
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    shown = [float(percent) for percent in re.findall(r"([\d.]+)%", output)]
    assert len(shown) == 2
    assert min(shown) >= 97
    last = lines(tmp_path / "run")[-1]
    assert last["step"] == 1000
    assert min(last["test_accuracy"], last["test_accuracy_averaged"]) >= 0.97
    # Not a terminal: plain lines, none of what draws a bar.
    assert "\x1b" not in output
    assert "\r" not in output
    assert len(re.findall(r"^step +\d+/1000  loss [\d.]+ +rate [\d.e-]+ +gradient [\d.]+$", output, re.M)) == 10


@pytest.mark.thorough
def test_a_line_of_metrics_is_written_for_every_step(finished: Path):
    written = lines(finished)
    assert [line["step"] for line in written] == list(range(1, 61))
    for line in written:
        keys = ["step", "loss", "learning_rate"]
        keys += ["gradient_norm"] if line["step"] % 2 == 0 else []  # two batches make one update
        keys += ["test_accuracy", "test_accuracy_averaged"] if line["step"] % 20 == 0 else []
        assert list(line) == keys
    assert written[0]["learning_rate"] == 0
    assert max(line["learning_rate"] for line in written) == 0.003
    assert written[-1]["loss"] < written[0]["loss"]


@pytest.mark.thorough
def test_the_report_is_a_picture_of_the_promised_size(finished: Path):
    from matplotlib.image import imread

    header = (finished / "report.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == PNG_SIZE
    pixels = imread(finished / "report.png")[..., :3]
    panels = [half for row in np.split(pixels, 2) for half in np.split(row, 2, axis=1)]
    assert all(panel.std() > 0.05 for panel in panels)


def test_the_last_two_checkpoints_are_kept_and_say_what_they_are(finished: Path):
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["50", "60"]
    about = json.loads((finished / "checkpoints" / "60" / "checkpoint.json").read_text())
    assert about["step"] == 60
    assert about["metadata"]["settings"]["optimizer"] == "adamw"
    assert about["arrays"]["params/dense_1/kernel"] == "float32[64, 256]"


def test_batches_depend_on_seed_and_step_alone_and_an_epoch_has_every_image_once():
    data = digits.load(seed=3)
    assert len(data.train_labels) == 1437
    assert np.ptp(np.bincount(data.test_labels)) <= 3  # stratified
    later = digits.batch(data, seed=3, step=30, size=64)
    epoch = [digits.batch(data, seed=3, step=step, size=64)[0] for step in range(22)]
    again = digits.batch(data, seed=3, step=30, size=64)
    assert all((one == other).all() for one, other in zip(later, again, strict=True))
    assert not (later[0] == digits.batch(data, seed=4, step=30, size=64)[0]).all()
    drawn = np.unique(np.concatenate(epoch), axis=0)
    assert len(drawn) == 22 * 64


@pytest.mark.thorough
def test_a_diverging_run_says_so_and_still_draws_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train("--out", tmp_path / "run", "--steps", 20, "--optimizer", "sgd", "--learning-rate", 1e30)
    assert "the loss is not finite any more" in capsys.readouterr().out
    assert lines(tmp_path / "run")[-1]["loss"] is None
    assert (tmp_path / "run" / "report.png").stat().st_size > 10_000


def test_a_single_step_makes_a_run(tmp_path: Path):
    train("--out", tmp_path / "run", "--steps", 1)
    assert len(lines(tmp_path / "run")) == 1


@pytest.mark.for_release
def test_on_a_terminal_without_colours_the_bar_has_none(tmp_path: Path):
    environment = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "NO_COLOR": "1", "COLUMNS": "100"}
    process = start("--out", tmp_path / "run", "--steps", 60, **environment)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert re.search(r"60/60 loss [\d.]+ +rate [\d.e-]+ +gradient [\d.]+", output)
    assert "\x1b[" in output  # the bar moves
    assert not re.search(r"\x1b\[[\d;]*(?:3\d|4\d|9\d)(?:;[\d;]*)?m", output)


# Going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    others_for_release([("adamw", "cosine"), ("adam", "constant"), ("sgd", "cosine")], ("adamw", "cosine")),
)
def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(options: tuple[str, str], tmp_path: Path):
    optimizer, schedule = options
    common = ["--optimizer", optimizer, "--schedule", schedule, "--seed", 7]
    train("--out", tmp_path / "whole", "--steps", 90, *common)
    # At 37 an update is half accumulated, and neither a checkpoint nor an evaluation is due.
    laid_out = ["--schedule-steps", 90] if schedule == "cosine" else []
    train("--out", tmp_path / "halves", "--steps", 37, *common, *laid_out)
    train("--resume", tmp_path / "halves", "--steps", 90)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.for_release
def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on_as_if_nothing_had_happened(long: Path, tmp_path: Path):
    folder = tmp_path / "run"
    process = start("--out", folder, "--steps", 800)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(lines_so_far(folder)) > 100, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, (output, errors)
    stopped = checkpoints.latest(folder).step
    assert 100 < stopped < 800
    resuming = f"stopped at step {stopped} of 800; go on with: optchain train --resume {folder}"
    assert output.splitlines()[-1] == resuming
    assert errors == ""
    assert len(lines(folder)) == stopped
    train("--resume", folder)
    assert_same_run(folder, long)


@pytest.mark.for_release
def test_a_kill_at_any_moment_leaves_the_last_complete_checkpoint(long: Path, tmp_path: Path):
    folder = tmp_path / "run"
    process = start("--out", folder, "--steps", 800, "--checkpoint-every", 3)  # writes checkpoints most of the time
    wait_for(lambda: (folder / "checkpoints" / "30").exists(), process)
    process.kill()
    process.communicate()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 799, "lo')  # a line that the kill tore
    (folder / "checkpoints" / ".799.partial").mkdir(exist_ok=True)
    assert 30 <= checkpoints.latest(folder).step < 800
    train("--resume", folder, "--checkpoint-every", 500)
    assert_same_run(folder, long)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["500", "800"]


def lines_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.thorough
def test_another_learning_rate_on_resume_is_said_and_scales_the_rest_of_the_schedule(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.rmtree(run / "checkpoints" / "60")  # back to step 50
    train("--resume", run, "--learning-rate", 0.0015)
    said = capsys.readouterr().out
    assert f"resuming {run} at step 50" in said
    assert "learning rate: its highest 0.003 -> 0.0015, so 0.000274 -> 0.000137 from here on" in said
    before, after = lines(finished), lines(run)
    assert after[:50] == before[:50]
    for old, new in zip(before[50:], after[50:], strict=True):
        assert new["learning_rate"] == pytest.approx(old["learning_rate"] / 2, rel=1e-5)


@pytest.mark.for_release
def test_another_learning_rate_on_resume_is_said_and_set_where_the_rate_is_constant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train("--out", tmp_path / "run", "--steps", 10, "--schedule", "constant")
    train("--resume", tmp_path / "run", "--steps", 20, "--learning-rate", 0.001)
    assert "learning rate: 0.003 -> 0.001" in capsys.readouterr().out
    train("--resume", tmp_path / "run", "--steps", 30)  # and it stays
    assert "->" not in capsys.readouterr().out
    assert [line["learning_rate"] for line in lines(tmp_path / "run")] == [0.003] * 10 + [0.001] * 20


@pytest.mark.for_release
def test_steps_beyond_the_schedule_run_at_its_last_rate_unless_it_is_laid_out_anew(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    train("--resume", run, "--steps", 70)
    assert "the schedule ends at step 60; after it the rate stays 3e-05" in capsys.readouterr().out
    assert [line["learning_rate"] for line in lines(run)[60:]] == pytest.approx([3e-5] * 10)
    train("--resume", run, "--steps", 80, "--schedule-steps", 160)
    assert "the steps of its schedule 60 -> 160, so 3e-05 -> 0.00" in capsys.readouterr().out
    assert lines(run)[-1]["learning_rate"] > 0.001


def test_resuming_a_complete_run_draws_its_report_and_changes_nothing_else(run: Path):
    (run / "report.png").unlink()
    before = contents(run)
    train("--resume", run)
    after = contents(run)
    assert after.pop(str(run / "report.png")) is not None
    assert after == before


@pytest.mark.for_release
def test_a_run_lives_in_a_folder_of_any_name(tmp_path: Path):
    folder = tmp_path / "a run [1] * über ünits"
    train("--out", folder, "--steps", 10)
    train("--resume", folder, "--steps", 12)
    assert len(lines(folder)) == 12


# Mistakes -------------------------------------------------------------------------------------------------------------


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake gets."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(r"optchain: [^\n]+\n", errors)
    return errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", 0], "--steps must be between 1 and 2147483647; got 0"),
        (["--steps", -5], "--steps must be between 1 and 2147483647; got -5"),
        (["--steps", "many"], "'--steps'"),
        (["--seed", -1], "--seed must be between 0 and 4294967295; got -1"),
        (["--seed", 2**32], "--seed must be between"),
        (["--learning-rate", 0], "--learning-rate must be a finite number > 0; got 0.0"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number > 0; got nan"),
        (["--learning-rate", "inf"], "--learning-rate must be"),
        (["--optimizer", "lamb"], "lamb"),
        (["--schedule", "linear"], "linear"),
        (["--schedule-steps", 0], "--schedule-steps must be between 1 and 2147483647; got 0"),
        (["--schedule", "constant", "--schedule-steps", 10], "--schedule-steps lays out a cosine"),
        (["--checkpoint-every", 0], "--checkpoint-every must be between 1 and 2147483647; got 0"),
        (["--stpes", 10], "--stpes"),
        (["digits"], "digits"),
    ],
)
def test_a_bad_option_is_refused_and_nothing_is_written(
    options: list[object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert said in refused(["train", *options], capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]):
    assert "tarin" in refused(["tarin"], capsys)


def test_an_out_that_holds_anything_is_refused_and_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("everything")
    before = contents(tmp_path)
    assert f"holds a run: go on with it by --resume {run}" in refused(["train", "--out", run], capsys)
    assert "is not empty" in refused(["train", "--out", notes], capsys)
    assert "is not a folder" in refused(["train", "--out", notes / "todo.txt"], capsys)
    assert "todo.txt" in refused(["train", "--out", notes / "todo.txt" / "run"], capsys)
    assert contents(tmp_path) == before


def no_folder(run: Path) -> None:
    shutil.rmtree(run)


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def unfinished_checkpoints(run: Path) -> None:
    for step in ("50", "60"):
        (run / "checkpoints" / step).rename(run / "checkpoints" / f".{step}.partial")


def foreign_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with ocp.CheckpointManager(run / "checkpoints") as manager:
        manager.save(7, args=ocp.args.StandardSave({"params": np.ones(3)}))


def other_arrays(run: Path) -> None:
    settings = checkpoints.latest(run).settings
    checkpoints.save(run, 61, {"params": {"dense_1": np.ones(3)}}, settings)


def flipped_byte(run: Path) -> None:
    file = max((run / "checkpoints" / "60" / "arrays").rglob("*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)


def missing_file(run: Path) -> None:
    (run / "checkpoints" / "60" / "arrays" / "manifest.ocdbt").unlink()


def torn_settings(run: Path) -> None:
    file = run / "checkpoints" / "60" / "checkpoint.json"
    file.write_text(file.read_text()[:300])


def other_settings(run: Path) -> None:
    file = run / "checkpoints" / "60" / "checkpoint.json"
    about = json.loads(file.read_text().replace('"clip_norm"', '"clip_value"'))
    del about["sha256"]  # as another version might have written it
    file.write_text(json.dumps(about))


def other_setting(run: Path) -> None:
    file = run / "checkpoints" / "60" / "checkpoint.json"
    file.write_text(file.read_text().replace('"clip_norm": 0.5', '"clip_norm": 0.7'))


def other_version(run: Path) -> None:
    file = run / "checkpoints" / "60" / "checkpoint.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 99'))


def damaged_metrics(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_text(file.read_text().replace('{"step": 9,', "{step 9,"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_folder, "there is no such folder"),
        (no_checkpoint, "holds no checkpoint"),
        (unfinished_checkpoints, "holds no checkpoint"),
        (foreign_checkpoint, "was not written by this version of optchain train"),
        (other_arrays, "does not fit this program: params/dense_1 is float64[3] there and unknown here"),
        (flipped_byte, "the checkpoint is damaged"),
        (missing_file, "the checkpoint is damaged"),
        (torn_settings, "checkpoint.json is none: JSONDecodeError"),
        (other_setting, "the checkpoint is damaged, checkpoint.json is not as written"),
        (other_settings, "the settings clip_norm, clip_value are missing or unknown"),
        (other_version, "was not written by this version of optchain train"),
        (damaged_metrics, "line 9 of"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_cannot_be_resumed_is_refused_and_left_alone(
    spoil: Callable[[Path], None], said: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    spoil(run)
    before = contents(run.parent)
    assert said in refused(["train", "--resume", run, "--steps", 70], capsys)
    assert contents(run.parent) == before


@pytest.mark.thorough
def test_a_damaged_checkpoint_can_be_removed_to_go_on_from_the_one_before(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
):
    flipped_byte(run)
    damaged = run / "checkpoints" / "60"
    assert f"remove {damaged} to go on from step 50" in refused(["train", "--resume", run], capsys)
    shutil.rmtree(damaged)
    train("--resume", run)
    assert_same_run(run, finished)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", 1], "has seed 0, and keeps it"),
        (["--optimizer", "sgd"], "has optimizer adamw, and keeps it"),
        (["--schedule", "constant"], "has schedule cosine, and keeps it"),
        (["--steps", 59], "is at step 60 already"),
        (["--steps", 0], "--steps must be between 1 and"),
        (["--learning-rate", 0.1], "is complete at step 60"),
        (["--out", "elsewhere"], "give one of them"),
    ],
)
def test_a_change_that_a_resumed_run_cannot_have_is_refused(
    options: list[object], said: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    before = contents(run.parent)
    assert said in refused(["train", "--resume", run, *options], capsys)
    assert contents(run.parent) == before


# Recipes --------------------------------------------------------------------------------------------------------------

PLAIN = optchain.sgd(0.1)
ALL = optchain.dynamic_loss_scale(
    optchain.skip_nonfinite(
        optchain.chain(
            optchain.clip_by_global_norm(0.5),
            optchain.scale_by_learning_rate(),
            optchain.monitor(),
            optchain.average_params(0.9),
            learning_rate=optchain.schedules.CosineDecay(0.1, 20),
        ),
        max_consecutive=3,
    ),
)
DIVERGES = optchain.skip_nonfinite(optchain.sgd(1e30), max_consecutive=3)


def write(tx: optchain.Transformation, folder: Path) -> Path:
    """A recipe file."""
    file = folder / "recipe.json"
    file.write_text(json.dumps(optchain.to_config(tx)))
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps of a recipe with nothing but a rate."""
    folder = tmp_path_factory.mktemp("plain")
    train("--recipe", write(PLAIN, folder), "--out", folder / "run", "--steps", 20)
    return folder / "run"


def test_a_recipe_is_the_same_from_json_toml_and_keras(tmp_path: Path):
    import keras

    rate = keras.optimizers.schedules.CosineDecay(0.1, 20)
    serialized = keras.optimizers.serialize(keras.optimizers.SGD(rate, momentum=0.9))
    (tmp_path / "keras.json").write_text(json.dumps(serialized))
    (tmp_path / "recipe.TOML").write_text("""
        optchain = 1
        transformation = "sgd"
        [arguments]
        momentum = 0.9
        learning_rate = { schedule = "CosineDecay", arguments = { initial_learning_rate = 0.1, decay_steps = 20 } }
    """)
    ours = optchain.sgd(optchain.schedules.CosineDecay(0.1, 20), momentum=0.9)
    for file in (write(ours, tmp_path), tmp_path / "recipe.TOML", tmp_path / "keras.json"):
        assert optchain.from_config(recipe.read(file)) == ours


@pytest.mark.thorough
def test_a_recipe_without_average_clipping_and_accumulation_has_no_columns_of_them(
    plain: Path, capsys: pytest.CaptureFixture[str]
):
    for line in lines(plain):
        accuracy = ["test_accuracy"] if line["step"] == 20 else []
        assert list(line) == ["step", "loss", "gradient_norm", "learning_rate", *accuracy]
        assert line["gradient_norm"] > 0
    train("--resume", plain)
    shown = capsys.readouterr().out
    assert "raw" in shown
    assert "averaged" not in shown
    assert (plain / "report.png").stat().st_size > 10_000


@pytest.mark.thorough
def test_all_that_a_recipe_measures_is_in_the_record_at_every_step(tmp_path: Path):
    train("--recipe", write(ALL, tmp_path), "--out", tmp_path / "run", "--steps", 20)
    measured = {"learning_rate", "global_norm", "clipped_fraction", "loss_scale", "skipped_steps"}
    measured |= {"inner/skipped_steps", "inner/consecutive", "inner/max_consecutive"}  # both gates count
    measured |= {"update_norm", "param_norm", "update_ratio"}
    written = lines(tmp_path / "run")
    assert [line["step"] for line in written] == list(range(1, 21))
    for line in written:
        accuracies = {"test_accuracy", "test_accuracy_averaged"} if line["step"] == 20 else set()
        assert set(line) == {"step", "loss"} | measured | accuracies
        assert line["loss_scale"] == 2**15
        assert line["update_norm"] == pytest.approx(line["learning_rate"] * min(line["global_norm"], 0.5), rel=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "tx", [optchain.sgd(0.1, loss_scale_factor=1024.0), optchain.dynamic_loss_scale(PLAIN)], ids=["static", "dynamic"]
)
def test_the_loss_is_scaled_for_a_recipe_that_takes_it_so(tx: optchain.Transformation, plain: Path, tmp_path: Path):
    train("--recipe", write(tx, tmp_path), "--out", tmp_path / "run", "--steps", 10)
    expected = [line["loss"] for line in lines(plain)[:10]]
    assert [line["loss"] for line in lines(tmp_path / "run")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.for_release
def test_a_resumed_run_goes_on_with_its_recipe(tmp_path: Path):
    tx = optchain.adamw(0.003, gradient_accumulation_steps=3, use_ema=True, exclude_from_weight_decay=["bias$"])
    file = write(tx, tmp_path)
    train("--recipe", file, "--out", tmp_path / "whole", "--steps", 20)
    train("--recipe", file, "--out", tmp_path / "halves", "--steps", 7)
    train("--resume", tmp_path / "halves", "--steps", 14, "--recipe", file)  # it is the same: no contradiction
    file.unlink()
    train("--resume", tmp_path / "halves", "--steps", 20)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.thorough
def test_a_run_that_reaches_the_recipes_limit_of_bad_steps_ends_with_one_line_and_a_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    arguments = ["train", "--recipe", write(DIVERGES, tmp_path), "--out", folder, "--steps", 60]
    assert main(list(map(str, arguments))) == 1
    output, errors = capsys.readouterr()
    stopped = checkpoints.latest(folder)
    assert 0 < stopped.step < 60
    assert errors.startswith(
        f"optchain: stopped with the checkpoint {stopped.path}: the gradients were not finite in 3 steps"
    )
    assert errors.count("\n") == 1
    assert "see " not in output
    assert all(np.isfinite(array).all() for array in arrays(folder).values())
    assert [line["step"] for line in lines(folder)] == list(range(1, stopped.step + 1))
    assert lines(folder)[-1]["skipped_steps"] == stopped.step - 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("recipe.yaml", "", "the file's name must end in .json or .toml"),
        ("recipe.json", None, "No such file or directory"),
        ("recipe.json", "{", "Expecting property name"),
        ("recipe.json", "[" * 100_000, "it is nested too deep"),
        ("recipe.json", "[]", "a config must be a mapping"),
        ("recipe.toml", "optchain: 1", "Expected '='"),
        ("recipe.toml", "optchain = 2", 'config["optchain"] must be 1'),
        ("recipe.json", '{"optchain": 1, "transformation": "adan"}', "no transformation is registered as 'adan'"),
        ("recipe.json", json.dumps({"class_name": "Adan", "config": {}}), "Keras's 'Adan' has no counterpart here"),
        (
            "recipe.toml",
            'optchain = 1\ntransformation = "sgd"\narguments = { learning_rate = -0.1 }',
            "learning_rate must be a finite number >= 0; got -0.1",
        ),
        (
            "recipe.json",
            json.dumps(optchain.to_config(optchain.skip_nonfinite(PLAIN, axis_name="hosts"))),
            "unbound axis name: hosts",
        ),
    ],
)
def test_a_recipe_file_that_cannot_be_used_is_named_and_nothing_is_written(
    name: str, text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if text is not None:
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    errors = refused(["train", "--recipe", tmp_path / name, "--out", tmp_path / "run", "--steps", 20], capsys)
    assert errors.startswith(f"optchain: --recipe {tmp_path / name}: ")
    assert said in errors
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "option", [["--optimizer", "sgd"], ["--learning-rate", 0.1], ["--schedule", "cosine"], ["--schedule-steps", 9]]
)
def test_an_option_that_a_recipe_takes_the_place_of_is_refused(
    option: list[object], plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "recipe.json"
    errors = refused(["train", "--recipe", file, "--out", tmp_path / "run", *option], capsys)
    assert f"{option[0]} {option[1]}: --recipe {file} says it already" in errors
    before = contents(plain)
    assert "has a recipe, and keeps it" in refused(["train", "--resume", plain, *option], capsys)
    assert contents(plain) == before


def test_another_recipe_on_resume_is_refused(
    run: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = write(DIVERGES, tmp_path)
    assert "has optimizer adamw, and keeps it" in refused(["train", "--resume", run, "--recipe", file], capsys)
    assert "has another recipe, and keeps it" in refused(["train", "--resume", plain, "--recipe", file], capsys)


@pytest.mark.thorough
def test_a_checkpoint_from_before_there_were_recipes_is_resumed(run: Path):
    file = run / "checkpoints" / "60" / "checkpoint.json"
    about = json.loads(file.read_text())
    assert about["metadata"]["settings"].pop("recipe") is None
    del about["sha256"]
    file.write_text(json.dumps(about))
    train("--resume", run, "--steps", 61)
    assert len(lines(run)) == 61


# Around it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", others_thorough(["typer", "sklearn", "orbax"], "sklearn"))
def test_a_missing_package_is_named_with_the_extra_that_brings_it(package: str, tmp_path: Path):
    code = f"import sys; sys.modules[{package!r}] = None; from optchain.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train"]
    env = os.environ | {"PYTHONPATH": str(Path(optchain.__file__).parents[1])}  # of all copies this one
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert process.returncode == 2
    assert re.fullmatch(rf'optchain: [^\n]*{package}[^\n]* pip install "optchain\[demo\]"\n', process.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seed: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "load", interrupt)


@pytest.mark.usefixtures("interrupted_at_once")
def test_ctrl_c_before_the_first_step_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "interrupted; no step was made\n"
    assert list(tmp_path.iterdir()) == []


def test_help_documents_what_resuming_keeps_and_changes(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("--steps", "--resume", "--learning-rate", "--schedule-steps", "Ctrl-C", "The schedule stays"):
        assert word in shown
