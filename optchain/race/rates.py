"""The search for a learning rate: half decades around the rate with which a recipe is built, and on where the best is an end."""

from collections.abc import Mapping, Sequence

import numpy as np

FIRST = (-1, 0, 1, 2)
"""The half decades that are tried first."""
FURTHEST = 8
"""Four decades either way."""

Losses = Mapping[int, Sequence[float]]
"""The last losses of the seeds, by place on the grid; infinite for a run that was lost."""


def factor(place: int) -> float:
    """The factor of a place on the grid, in three digits: 0.316, 1, 3.16, 10."""
    return float(f"{10 ** (place / 2):.3g}")


def next_places(losses: Losses) -> list[int]:
    """The places to try next, none if the best of those that were tried is not at their end.

    Example:
      >>> from optchain.race.rates import next_places
      >>> next_places({})
      [-1, 0, 1, 2]
      >>> losses = {-1: [4.0], 0: [3.0], 1: [2.0], 2: [1.0]}
      >>> next_places(losses)  # the best is the last: on upwards
      [3, 4, 5, 6]
      >>> next_places(losses | {3: [0.5], 4: [0.7], 5: [4.0], 6: [4.0]})
      []
    """
    if not losses:
        return list(FIRST)
    best, lowest, highest = _best(losses), min(losses), max(losses)
    if best == highest:
        return list(range(highest + 1, min(highest + len(FIRST), FURTHEST) + 1))
    if best == lowest:
        return list(range(max(lowest - len(FIRST), -FURTHEST), lowest))
    return []


def best_place(losses: Losses) -> int:
    """The lowest rate that is worse than the best by no more than one standard error of the difference, seed by seed.

    In a flat valley the least of a few noisy means may lie anywhere, at the edge of divergence too. The luck of a seed is the same at
    every rate, and does not count as noise. A rate at which fewer runs are lost is better than any at which more are.

    Source: Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3, the one-standard-error rule; here of paired
    differences.

    Example:
      >>> from optchain.race.rates import best_place
      >>> best_place({0: [0.9, 1.1], 1: [0.52, 0.50], 2: [0.48, 0.52], 3: [0.7, 3.0]})
      1
    """
    best = losses[_best(losses)]
    return min(place for place, values in losses.items() if _is_as_good(np.array(values), np.array(best)))


def _best(losses: Losses) -> int:
    def rank(place: int) -> tuple[int, float, int]:
        kept = [loss for loss in losses[place] if np.isfinite(loss)]
        return len(losses[place]) - len(kept), float(np.mean(kept)) if kept else 0.0, place

    return min(losses, key=rank)


def _is_as_good(values: np.ndarray, best: np.ndarray) -> bool:
    if np.sum(~np.isfinite(values)) > np.sum(~np.isfinite(best)):
        return False
    both = np.isfinite(values) & np.isfinite(best)
    differences = values[both] - best[both]
    if differences.size < 2:
        return not differences.sum() > 0
    return bool(differences.mean() <= differences.std(ddof=1) / np.sqrt(differences.size))
