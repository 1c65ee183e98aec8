"""What came out of a race: for each recipe on each task its rate, its curves, its last losses, how it compares."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from optchain.race import Comparison, Group, Task
from optchain.race.group import bounded
from optchain.race.statistics import compare_pairs


@dataclasses.dataclass(frozen=True)
class Result:
    """A recipe on a task."""

    task: str
    recipe: str
    parameters: int
    state_bytes: float
    """Per parameter."""
    rates: dict[str, float]
    """The learning rates that were run, by their key in the state; the highest of the schedule."""
    factor: float
    """What they are over those that the recipe is built with."""
    tried: dict[str, list[float]]
    """The last losses of the seeds for tuning, by factor."""
    group: Group
    target: float | None = None
    """None where the task has none and a run of the reference is lost."""
    steps_to_target: list[int | None] = dataclasses.field(default_factory=list)
    """Of each member: at which evaluation its held-out loss was at the target first."""
    comparison: Comparison | None = None
    """With the reference; None for the reference."""

    @property
    def mean(self) -> float:
        return float(self.group.final.mean())

    @property
    def standard_error(self) -> float:
        final = self.group.final
        return float(final.std(ddof=1) / np.sqrt(final.size))

    @property
    def lost(self) -> int:
        """How many members ended where they had begun, or worse, or nowhere."""
        return int(self.group.lost.sum())


def judged(results: Sequence[Result], tasks: dict[str, Task], reference: str, level: float) -> list[Result]:
    """The results with the steps to the target, and compared with the reference of their task, all as one family."""
    references = {result.task: result for result in results if result.recipe == reference}
    others = [result for result in results if result.recipe != reference]
    compared = compare_pairs([(references[r.task].group.final, r.group.final) for r in others], level) if others else []
    comparisons = {(r.task, r.recipe): c for r, c in zip(others, compared, strict=True)}
    made = []
    for result in results:
        target = tasks[result.task].target
        if target is None and not references[result.task].lost:  # a reference that is lost ends where it began
            target = references[result.task].mean
        made.append(
            dataclasses.replace(
                result,
                target=target,
                steps_to_target=[]
                if target is None
                else [_first(curve, result.group.steps, target) for curve in bounded(_curves(result))],
                comparison=comparisons.get((result.task, result.recipe)),
            )
        )
    return made


def _curves(result: Result) -> np.ndarray:
    return np.array(result.group.held_out, float)


def _first(curve: np.ndarray, steps: list[int], target: float) -> int | None:
    reached = np.flatnonzero(curve <= target)
    return steps[reached[0]] if reached.size else None


def as_json(result: Result) -> dict[str, Any]:
    return dataclasses.asdict(result) | {"mean": result.mean, "standard_error": result.standard_error}


def from_json(values: dict[str, Any]) -> Result:
    known = {field.name for field in dataclasses.fields(Result)}
    kept = {name: value for name, value in values.items() if name in known}
    comparison = kept["comparison"]
    return Result(
        **kept
        | {
            "group": Group.from_json(kept["group"]),
            "comparison": None if comparison is None else Comparison(**comparison),
        }
    )
