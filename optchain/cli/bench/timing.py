"""Times of programs that take turns, so that what else the machine does meets all of them alike."""

import dataclasses
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from optchain.cli.bench.programs import Program

Name = TypeVar("Name")
WARMUP_WINDOWS = 2
REST_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Times(Generic[Name]):
    """Seconds of each call, by program, turn and call of the turn."""

    seconds: Mapping[Name, list[list[float]]]

    def typical(self, name: Name) -> float:
        """The median over the turns of the mean over a turn's calls."""
        return statistics.median(self._means(name))

    def mean(self, name: Name) -> float:
        return statistics.mean(self._means(name))

    def waiting(self, name: Name) -> float | None:
        """The median of the calls that are not the last of their turn."""
        calls = [seconds for turn in self.seconds[name] for seconds in turn[:-1]]
        return statistics.median(calls) if calls else None

    def ratio(self, name: Name, reference: Name) -> float:
        """How many times as long as `reference`: the median of the ratios of their turns."""
        pairs = zip(self._means(name), self._means(reference), strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def _means(self, name: Name) -> list[float]:
        return [statistics.mean(turn) for turn in self.seconds[name]]


def take_turns(
    programs: Mapping[Name, Program], window: int, turns: int, advance: Callable[[], None] = lambda: None
) -> Times[Name]:
    """Each program in turn runs `window` calls, `turns` times, after a warm-up.

    The order is drawn anew at each turn, and a short rest lies between programs: threads of the one before may still
    be spinning. A window is what makes turns alike: the calls up to an update.
    """
    for program in programs.values():
        for _ in range(WARMUP_WINDOWS * window):
            program.call()
    seconds: dict[Name, list[list[float]]] = {name: [] for name in programs}
    order = random.Random(0)  # noqa: S311
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(turns):
            for name in order.sample(list(programs), len(programs)):
                time.sleep(REST_SECONDS)
                seconds[name].append([_timed(programs[name].call) for _ in range(window)])
            advance()
    finally:
        if collects:
            gc.enable()
    return Times(seconds)


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
