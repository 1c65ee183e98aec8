"""What a group of members did: their curves, and what the race makes of a curve that is lost."""

import dataclasses
from typing import Any

import numpy as np

from optchain.core import arguments


@dataclasses.dataclass(frozen=True)
class Group:
    """What a group of members did. A loss that is not finite is None."""

    seeds: list[int]
    factors: list[float]
    steps: list[int]
    """At which the held-out loss was taken."""
    held_out: list[list[float | None]]
    """By member, then by step."""
    weights: list[str]
    """A digest of each member's last parameters: equal exactly if they are, to the bit."""
    milliseconds: float
    """Of a step of one member, the median over the pieces between evaluations; compiling is not in it."""
    compile_seconds: float

    @classmethod
    def from_json(cls, values: Any) -> "Group":
        """The group that `dataclasses.asdict` made JSON of.

        Raises:
          TypeError, ValueError: it is of no group.
        """
        if not isinstance(values, dict):
            raise TypeError(f"a group must be an object; got {type(values).__name__}")
        group = cls(**values)
        members, points = len(group.seeds), len(group.steps)
        if not members or not len(group.factors) == len(group.held_out) == len(group.weights) == members:
            raise ValueError("a group must have a seed, a factor, a curve and a digest for each member")
        times = [group.milliseconds, group.compile_seconds]
        for name, numbers in {
            "seeds": group.seeds,
            "factors": group.factors,
            "steps": group.steps,
            "times": times,
        }.items():
            if not all(map(arguments.is_number, numbers)):
                raise TypeError(f"{name} must be numbers; got {numbers}")
        for curve in group.held_out:
            if len(curve) != points or not all(loss is None or arguments.is_number(loss) for loss in curve):
                raise TypeError(f"a curve must have {points} losses; got {curve}")
        return group

    @property
    def lost(self) -> np.ndarray:
        """Whether each member ended worse than where it had begun, or nowhere."""
        losses = np.array(self.held_out, float)
        return ~(losses[:, -1] <= losses[:, 0])

    @property
    def final(self) -> np.ndarray:
        """Each member's last held-out loss. One that is worse off than before its first step counts as before it."""
        return bounded(np.array(self.held_out, float))[:, -1]


def bounded(held_out: np.ndarray) -> np.ndarray:
    """Curves in which a loss that is not finite, or above the first of its member, is the first."""
    first = held_out[:, :1]
    return np.where(np.isfinite(held_out) & (held_out <= first), held_out, first)
