"""Settings for every test, and the tables of errors at the end of a run."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest

os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
jax.config.update(
    "jax_num_cpu_devices", 8
)  # read when JAX first looks for devices; the default is still the first of them

for profile, max_examples in {"ci": 100, "full": 840}.items():
    hypothesis.settings.register_profile(
        profile,
        max_examples=max_examples,
        derandomize=profile == "ci",
        deadline=None,  # the first example compiles
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        # A failing recipe is printed as it was found: to simplify one takes minutes of compiling.
        phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.shrink or profile == "full"],
        print_blob=True,
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

ErrorKey = tuple[str, ...]
Record = Callable[[ErrorKey, float], None]

TABLES = {
    "Worst parity error": ("peer", "class", "dtype", "form"),
    "Worst difference from one device": ("recipe", "parallelism", "devices"),
}
"""The tables at the end of a run, and what the keys of each are."""

WORST_ERRORS = pytest.StashKey[dict[str, dict[ErrorKey, float]]]()
CRASHED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[WORST_ERRORS] = {title: {} for title in TABLES}
    config.stash[CRASHED] = []


@pytest.fixture(scope="session")
def record_error(request: pytest.FixtureRequest) -> Record:
    """Keeps the worst error of each kind for the table at the end of the run."""
    return lambda key, error: _record(request.config, "Worst parity error", key, error)


@pytest.fixture(scope="session")
def record_difference(request: pytest.FixtureRequest) -> Record:
    """Likewise for runs over several devices."""
    return lambda key, error: _record(request.config, "Worst difference from one device", key, error)


def _record(config: pytest.Config, title: str, key: ErrorKey, error: float) -> None:
    # pytest-xdist sends strings and floats, and nothing that is derived from them.
    worst, plain = config.stash[WORST_ERRORS][title], tuple(map(str, key))
    worst[plain] = float(np.maximum(error, worst.get(plain, 0.0)))


# Under pytest-xdist the errors travel from the workers to the process that prints the table.


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        worst = session.config.stash[WORST_ERRORS]
        session.config.workeroutput["worst_errors"] = [
            [title, list(key), error] for title, errors in worst.items() for key, error in errors.items()
        ]
    if session.config.stash[CRASHED] and session.exitstatus == pytest.ExitCode.OK:
        # pytest-xdist replaces a worker that crashes, and forgets it where no test was running.
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    if os.environ.get("OPTCHAIN_LEAVE_NOTHING_OUT"):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and reporter.stats.get("skipped"):
            session.exitstatus = (
                pytest.ExitCode.TESTS_FAILED
            )  # a peer that is missing must not look like one that agrees


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    if error:
        node.config.stash[CRASHED].append(node.gateway.id)
    for title, key, error in getattr(node, "workeroutput", {}).get("worst_errors", []):
        _record(node.config, title, tuple(key), error)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[CRASHED]:
        terminalreporter.section("Crashed workers", red=True)
        terminalreporter.write_line(f"{', '.join(config.stash[CRASHED])}: what they had to report is lost")
    for title, worst in config.stash[WORST_ERRORS].items():
        if worst:
            terminalreporter.section(title)
            terminalreporter.write_line("max |a − b| / (max |b| over the run + 1e-3), over leaves and recipes")
            for line in _table(TABLES[title], worst):
                terminalreporter.write_line(line)


def _table(header: tuple[str, ...], worst: dict[ErrorKey, float]) -> Iterator[str]:
    rows = [(*header, "error"), *((*key, f"{worst[key]:.1e}") for key in sorted(worst))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
