"""Settings for every test, the tiers, and the tables of errors at the end of a run."""

import functools
import gc
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compiler
import hypothesis
import jax
import numpy as np
import pytest
from sampling import Value, each_value

os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
for name in (
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
):  # what is printed is that of a pipe, wherever the tests run
    os.environ.pop(name, None)
jax.config.update(
    "jax_num_cpu_devices", 8
)  # read when JAX first looks for devices; the default is still the first of them

jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads where a line of a test's program is from
gc.set_threshold(200_000, 50, 50)  # what is traced is garbage soon, and to look for it among JAX's objects takes long

for profile, max_examples in {"quick": 30, "ci": 100, "full": 840}.items():
    hypothesis.settings.register_profile(
        profile,
        max_examples=max_examples,
        derandomize=profile != "full",
        deadline=None,  # the first example compiles
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        # A failing recipe is printed as it was found: to simplify one takes minutes of compiling.
        phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.shrink or profile == "full"],
        print_blob=True,
    )

# Tiers ----------------------------------------------------------------------------------------------------------------

TIERS = {
    "quick": "in minutes: each row of each table once, and none that is marked `thorough` or `for_release`",
    "rest": "those marked `thorough`, which take seconds a case, likewise",
    "programs": "those marked `thorough` and `programs`, likewise, compiled as users compile",
    "exhaustive": "for a release, in hours: all that both leave out, and the full product of the contract table",
    "all": "the default: all but test_exhaustive.py, so a file or a test that is named runs whole",
}


WORDS = {"rest": "thorough", "programs": "programs"}
"""The tiers that take marked tests, and the mark that stands in a file with one."""

NO_PARAMETERS = SimpleNamespace(params={})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, default="all", help="; ".join(f"{k}: {v}" for k, v in TIERS.items()))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Sets the number of examples of property tests, before a module is imported that asks for a share of it."""
    tier = session.config.getoption("--tier")
    profile = {"all": "ci", "exhaustive": "full"}.get(tier, "quick")
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves files out of which a tier takes nothing: to collect the full product alone takes half a minute."""
    tier = config.getoption("--tier")
    if collection_path.name == "test_exhaustive.py":
        return tier != "exhaustive" or None
    word = WORDS.get(tier)
    if word is None or collection_path.suffix != ".py":
        return None
    return word not in _text(collection_path) or None


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier = config.getoption("--tier")
    if tier == "all":
        return
    for item in items:
        word = WORDS.get(_tier(item), "")
        if word not in _text(item.path):
            raise pytest.UsageError(
                f"{item.nodeid} is marked {word}: write that word in its file, or its tier leaves it out"
            )
    sampled = set(_sample(items))
    chosen = {item for item in items if (_tier(item) if item in sampled else "exhaustive") == tier}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = sorted((item for item in items if item in chosen), key=lambda item: not item.get_closest_marker("long"))


def _tier(item: pytest.Item) -> str:
    if item.path.name == "test_exhaustive.py" or item.get_closest_marker("for_release"):
        return "exhaustive"
    if not item.get_closest_marker("thorough"):
        return "quick"
    return "programs" if item.get_closest_marker("programs") else "rest"


def _sample(items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """The cases that have each value of each parameter: of one test, or of a file or more that are marked as one product."""
    products = defaultdict[tuple[str, Path | str], list[tuple[pytest.Item, list[Value]]]](list)
    for item in items:
        marker = item.get_closest_marker("each_value")
        product, values = (
            (marker.kwargs.get("of", item.path), _values(item)) if marker else (_function(item), _rows(item))
        )
        products[_tier(item), product].append((item, list(values)))
    for cases in products.values():
        for index in each_value([values for _, values in cases]):
            yield cases[index][0]


def _function(case: pytest.Item) -> str:
    return case.nodeid.partition("[")[0]


def _values(case: pytest.Item) -> Iterator[Value]:
    """The test of a case and its parameters, each by its identity: the cases of a product share their objects."""
    yield "test", _function(case)
    for name, value in getattr(case, "callspec", NO_PARAMETERS).params.items():
        yield name, id(value)


def _rows(case: pytest.Item) -> Iterator[Value]:
    """The parameters of a case, those that were given together as one value: a table has as many as it has rows."""
    values = dict(getattr(case, "callspec", NO_PARAMETERS).params)
    for mark in case.iter_markers("parametrize"):
        given = mark.args[0] if mark.args else mark.kwargs["argnames"]
        names = [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else list(given)
        yield ",".join(names), tuple(id(values.pop(name)) for name in names)
    for name, value in values.items():
        yield name, (id(value),)


# Tables of errors -----------------------------------------------------------------------------------------------------

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
    if config.getoption("--tier") in ("quick", "rest") and (flags := compiler.quick()):
        os.environ.setdefault("XLA_FLAGS", flags)  # workers and the processes that tests begin have it too
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
