"""`optchain train`, ended at any moment: one command goes on, one process writes, and a terminal stays tidy."""

import logging
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from optchain.cli import main
from optchain.cli.train import checkpoints, digits
from optchain.cli.train.folder import locked
from tests.sampling import others_thorough

from .runs import assert_same_run, contents, in_silence, lines
from .terminal import Terminal

KILLS = int(os.environ.get("OPTCHAIN_KILLS", "2"))
"""How often a run is killed: 100 by hand."""
SIGTERMS = round(0.3 * KILLS)
IN_A_ROW = 2
"""How often one run is ended before it is let go on to its last step."""
LAST, EVERY = 21, 3
STEPS = ["--steps", str(LAST), "--checkpoint-every", str(EVERY)]
"""At every second checkpoint an update is half accumulated."""


def started(folder: Path) -> ForkServerProcess:
    """The one command, in a process of its own, which finds compiled what another one beside it has compiled."""
    context = multiprocessing.get_context("forkserver")  # which imports once, and forks what is then ended
    context.set_forkserver_preload(["cli.runs"])
    process = context.Process(
        target=in_silence, args=(command(folder), str(folder.parent.parent / "compiled")), daemon=True
    )
    process.start()
    return process


def command(folder: Path) -> list[str]:
    return ["train", "--resume-or-start", str(folder), *STEPS]


def progress(folder: Path) -> int:
    """How far a run is: there is nothing, it writes its first checkpoint, it has written so many of them."""
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
    return 2 + max(steps) // EVERY if steps else int(folder.exists())


def wait_for_a_moment(process: ForkServerProcess, folder: Path, moments: random.Random) -> None:
    """Waits until the run has come to a random place, and a random time more, about that to the next place: by the clock alone
    most moments are before the first step, on a machine that is busier than it was.
    """
    place = moments.randint(progress(folder), 2 + LAST // EVERY)
    while progress(folder) < place and process.is_alive():
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.3))


def ended(process: ForkServerProcess) -> int | None:
    process.join(300)
    return process.exitcode


@pytest.fixture(scope="session")  # not of the module: a worker may come back to it
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert ended(started(folder)) == 0
    return folder


@pytest.mark.long
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("end", "codes", "times"),
    [("kill", {-9, 0}, KILLS), ("terminate", {143, -15, 0}, SIGTERMS)],
    ids=["SIGKILL", "SIGTERM"],
)
def test_after_an_end_at_any_moment_the_same_command_ends_in_the_same_bits(
    end: str,
    codes: set[int],
    times: int,
    whole: Path,
    tmp_path: Path,
):
    moments = random.Random(0)
    at: dict[str, int] = {}
    for attempt in range(times):
        folder = tmp_path / str(attempt // IN_A_ROW)
        process = started(folder)
        wait_for_a_moment(process, folder, moments)
        getattr(process, end)()
        code = ended(process)
        assert code in codes
        steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
        where = f"step {max(steps)}" if steps else "the first checkpoint" if folder.exists() else "nothing yet"
        at[where] = at.get(where, 0) + 1
        if code == 143 and steps:
            assert len(lines(folder)) == max(steps)  # stopped in order: no step is made twice
        if (attempt + 1) % IN_A_ROW == 0 or attempt + 1 == times:
            assert ended(started(folder)) == 0
            assert_same_run(folder, whole)
    logging.getLogger(__name__).info("%s, %s times, at %s", end, times, at)  # shown by --log-cli-level=INFO


def killed_in_the_first_checkpoint(folder: Path) -> None:
    partial = folder / "checkpoints" / ".0.partial" / "arrays.orbax-checkpoint-tmp" / "d"
    partial.mkdir(parents=True)
    (partial / "0123").write_bytes(b"half")
    (folder / ".lock").write_text("process 1 on a machine that is gone")


@pytest.mark.thorough
@pytest.mark.parametrize("option", ["--out", "--resume-or-start"])
def test_what_a_kill_during_the_first_checkpoint_leaves_is_begun_anew(option: str, tmp_path: Path):
    killed_in_the_first_checkpoint(tmp_path / "run")
    assert main(["train", option, str(tmp_path / "run"), "--steps", "2"]) == 0
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "checkpoints",
        "metrics.jsonl",
        "report.png",
    ]


def test_resume_says_what_begins_a_run_that_was_killed_in_its_first_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    killed_in_the_first_checkpoint(tmp_path / "run")
    before = contents(tmp_path)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "holds no checkpoint of optchain train; --resume-or-start begins a run" in capsys.readouterr().err
    before.pop(str(tmp_path / "run" / ".lock"))
    assert contents(tmp_path) == before


def test_what_is_not_of_a_run_is_no_leftover_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    killed_in_the_first_checkpoint(folder)
    for name in ("checkpoints/notes.txt", "todo.txt", "checkpoints/1.partial"):
        (folder / name).write_text("everything")
        before = contents(folder)
        for option in ("--out", "--resume-or-start"):
            assert main(["train", option, str(folder)]) == 2
            assert f"{option} {folder} is not empty" in capsys.readouterr().err
        assert contents(folder) == before
        (folder / name).unlink()


# One process at a time ------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.thorough
def test_of_two_processes_in_one_folder_one_trains_and_the_other_is_refused(whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    both = [started(folder), started(folder)]
    assert sorted([ended(process) or 0 for process in both]) == [0, 2]
    assert_same_run(folder, whole)


@pytest.mark.thorough
@pytest.mark.parametrize("option", ["--resume", "--resume-or-start"])
def test_a_folder_in_use_is_refused_with_who_uses_it_and_left_alone(
    option: str, whole: Path, capsys: pytest.CaptureFixture[str]
):
    with locked(whole):
        before = contents(whole)
        assert main(["train", option, str(whole)]) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(rf"optchain: {whole} is in use: process {os.getpid()} on \S+ trains there\n", said)
        assert contents(whole) == before
    assert not (whole / ".lock").exists()
    assert main(["train", option, str(whole)]) == 0


@pytest.mark.thorough
def test_a_lock_ends_with_its_process_and_not_with_its_file(whole: Path):
    (whole / ".lock").write_text("process 1 on a machine that is gone")
    assert main(["train", "--resume", str(whole)]) == 0
    assert not (whole / ".lock").exists()


def test_the_three_ways_to_name_a_folder_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--out", str(tmp_path), "--resume-or-start", str(tmp_path)]) == 2
    assert "--out and --resume-or-start: " in capsys.readouterr().err


# Ctrl-C and SIGTERM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_both_signals_before_the_first_step_write_nothing(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(digits, "load", lambda seed: signal.raise_signal(number))
    handler = signal.getsignal(number)
    assert main(["train", "--out", str(tmp_path / "run")]) == code
    assert capsys.readouterr().err == "interrupted; no step was made\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is handler


def test_a_signal_whose_exception_is_lost_stops_the_run_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load = digits.load

    def loses_it(seed: int) -> Any:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return load(seed)

    monkeypatch.setattr(digits, "load", loses_it)
    assert main(["train", "--out", str(tmp_path / "run"), "--steps", "5"]) == 143
    assert checkpoints.latest(tmp_path / "run").step == 0


@pytest.mark.parametrize("option", others_thorough(["--out", "--resume", "--resume-or-start"], "--out"))
def test_what_goes_on_after_an_end_is_printed_for_each_way_to_name_a_folder(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "a run"
    given = ["--steps", "5", "--learning-rate", "0.002"]
    if option == "--resume":
        assert main(["train", "--out", str(folder), *given[:1], "2"]) == 0
    load = digits.load

    def ended_meanwhile(seed: int) -> Any:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return load(seed)

    monkeypatch.setattr(digits, "load", ended_meanwhile)
    capsys.readouterr()
    assert main(["train", option, str(folder), *given]) == 143
    command = capsys.readouterr().out.replace("\n", " ").partition("go on with: ")[2].strip()
    again = [option, str(folder), *given] if option == "--resume-or-start" else ["--resume", str(folder)]
    assert shlex.split(command) == ["optchain", "train", *again]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.thorough
def test_sigterm_finishes_the_step_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "optchain.cli", "train", "--out", str(folder), "--steps", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: (folder / "metrics.jsonl").exists() and bool((folder / "metrics.jsonl").read_bytes()))
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (143, "")
    stopped = checkpoints.latest(folder).step
    assert output.splitlines()[-1].startswith(
        f"stopped at step {stopped} of 100000; go on with: optchain train --resume"
    )
    assert len(lines(folder)) == stopped


@pytest.mark.thorough
def test_ctrl_c_leaves_one_bar_on_the_terminal(tmp_path: Path):
    terminal = Terminal("-m", "optchain.cli", "train", "--out", str(tmp_path / "run"), "--steps", "5000")
    terminal.wait_for(lambda output: re.search(r"[1-9]\d*/5000", output) is not None)
    terminal.press("\x03")
    assert terminal.end() == 130
    assert "^C" in terminal.output
    bars = [line for line in terminal.lines if "/5000" in line]
    assert len(bars) == 1, terminal.lines
    assert terminal.lines[terminal.lines.index(bars[0]) + 1].startswith("stopped at step")
