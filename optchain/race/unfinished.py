"""A group that was stopped, on the disk: what is saved of it, and how it is known again."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optchain.core.trees import Tree

SAVE_EVERY = 30.0
"""Seconds between checkpoints within a group. Where they fall changes no number."""


class Unfinished:
    """A group that is not done yet, on the disk. `about` says what the group is; it is asked only if there is something."""

    def __init__(self, folder: Path, about: Callable[[], dict[str, Any]]):
        from optchain.interop import orbax

        self.folder, self.about, self.orbax = folder, about, orbax
        with self._named():
            self.found = orbax.latest(folder) if folder.is_dir() and orbax.steps(folder) else None
        self.last = time.monotonic()
        if self.found is not None and (kept := self.found.metadata.get("about")) != about():
            raise ValueError(f"{folder} holds another group, {kept}: it was of another task, recipe or version of JAX")

    def state(self) -> tuple[int, list[Any], list[float]]:
        if self.found is None:
            return 0, [], []
        return self.found.step, self.found.metadata["held_out"], self.found.metadata["seconds"]

    def is_due(self) -> bool:
        return time.monotonic() - self.last > SAVE_EVERY

    def save(self, done: int, arrays: tuple[Tree, Any], curves: list[Any], seconds: list[float]) -> None:
        about = {"about": self.about(), "held_out": curves, "seconds": seconds}
        self.orbax.save(self.folder, done, {"params": arrays[0], "state": arrays[1]}, metadata=about, keep=1)
        self.last = time.monotonic()

    def restore(self, arrays: tuple[Tree, Any]) -> tuple[Tree, Any]:
        target = {"params": arrays[0], "state": arrays[1]}
        with self._named():
            tree = self.orbax.restore(self.found, target, hyperparams="saved")[0]
        return tree["params"], tree["state"]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{error}. Delete {self.folder}, and the group is run again") from error
