"""A terminal for a command, and what stands on it in the end."""

import os
import pty
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Makes the terminal that of the process, so that it sends Ctrl-C as a signal, and runs Python in it."""


class Terminal:
    """Runs Python in a terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 100, **environment: str):
        import fcntl
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.columns = columns
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=env | {"TERM": "xterm-256color"} | environment,
        )
        os.close(theirs)
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the process has ended
                return
            if not data:
                return
            self.output += data.decode(errors="replace")

    def wait_for(self, condition: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition(self.output):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def end(self) -> int:
        """The exit code."""
        try:
            code = self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            raise
        self._reader.join(10)
        os.close(self._ours)
        return code

    @property
    def lines(self) -> list[str]:
        """What can be read: long lines wrapped, and what was written over or erased gone."""
        screen, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", self.output):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
            elif part == "\x1b[2K":
                screen[row] = ""
            elif part.startswith("\x1b["):
                row -= int(part[2:-1] or 1) if part.endswith("A") else 0
            else:
                if column == self.columns:  # a terminal goes to the next line when there is something to write on it
                    row, column = row + 1, 0
                screen += [""] * (row + 1 - len(screen))
                line = screen[row].ljust(column)
                screen[row], column = line[:column] + part + line[column + 1 :], column + 1
            screen += [""] * (row + 1 - len(screen))
        return [line.rstrip() for line in screen]
