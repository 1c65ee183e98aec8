"""What is chosen on the command line, and kept in the folder of a race."""

import dataclasses
import enum
from typing import Any

from optchain.cli.errors import UserError
from optchain.race.statistics import LEVEL

APART = 1_000_000
"""How far the seeds by which rates are chosen lie from those that are compared."""

LEAST_LEVEL = 1e-9
"""Below it an interval of two seeds is endless."""


class ScheduleName(enum.StrEnum):
    COSINE = "cosine"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the numbers of a race depend on, besides the machine and the versions."""

    tasks: list[str]
    recipes: list[str]
    """The first is the reference."""
    seeds: int = 8
    tuning_seeds: int = 2
    first_seed: int = 0
    schedule: str = ScheduleName.COSINE.value
    level: float = LEVEL
    shorter: int = 1
    """By what the steps of each task are divided."""

    def __post_init__(self) -> None:
        _check("tasks", len(self.tasks) > 0, "at least one", self.tasks)
        _check("recipes", len(self.recipes) > 0, "at least one", self.recipes)
        _check("seeds", 2 <= self.seeds <= APART, f"between 2 and {APART}", self.seeds)
        _check("tuning-seeds", 1 <= self.tuning_seeds <= APART, f"between 1 and {APART}", self.tuning_seeds)
        _check("first-seed", 0 <= self.first_seed < APART, f"between 0 and {APART - 1}", self.first_seed)
        _check("level", LEAST_LEVEL <= self.level < 1, f"at least {LEAST_LEVEL:g} and below 1", self.level)

    @property
    def compared(self) -> list[int]:
        return [self.first_seed + number for number in range(self.seeds)]

    @property
    def tuned(self) -> list[int]:
        return [2 * APART + self.first_seed + number for number in range(self.tuning_seeds)]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Settings":
        """The settings that `to_json` wrote.

        Raises:
          TypeError: these are not settings of this version.
        """
        return cls(**values)


def parts(text: str, separator: str) -> list[str]:
    """What stands between separators that are outside of brackets: a value may be a list."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == separator and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return found


def _check(option: str, holds: bool, allowed: str, value: Any) -> None:
    if not holds:
        raise UserError(f"--{option} must be {allowed}; got {value}")
