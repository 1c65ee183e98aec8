"""Signals that ask a run to stop."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Inside it Ctrl-C and SIGTERM, which a scheduler of jobs sends, are one: a `KeyboardInterrupt`, and noted in `signal`.

    While they are `held` they are noted and stop nothing: whoever asks stops at a step's end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Noted first: where an exception gets lost, say in a callback of the garbage collector, the run stops all the same.
        self.signal = number
        if not self._held:
            raise KeyboardInterrupt

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
