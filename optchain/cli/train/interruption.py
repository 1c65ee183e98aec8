"""Signals that ask a run to stop, held until it can."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Inside it Ctrl-C and SIGTERM are noted in `signal` and stop nothing: whoever asks stops at a step's end."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
