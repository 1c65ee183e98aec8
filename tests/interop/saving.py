"""A process that saves checkpoints until it is killed, for tests that kill it."""

from typing import Any

import numpy as np

from optchain.interop import orbax


def tree_of(step: int) -> dict[str, Any]:
    """Arrays of which every number says of which checkpoint they are."""
    return {f"part_{i}": {"w": np.full((20, 20 * (i + 1)), 100 * step + i, np.float32)} for i in range(4)}


def save_for_ever(folder: str, first: int) -> None:
    step = first
    while True:
        orbax.save(folder, step, tree_of(step))
        step += 1
