"""The search for a learning rate: half decades around the rate with which a recipe is built, and on where the best is an end."""

from collections.abc import Mapping, Sequence

import numpy as np

FIRST = (-1, 0, 1, 2)
"""The half decades that are tried first."""
FURTHEST = 8
"""Four decades either way."""

Losses = Mapping[int, Sequence[float]]
"""The last losses of the seeds, by place on the grid."""


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
    means = {place: np.mean(values) for place, values in losses.items()}
    best, lowest, highest = min(means, key=lambda place: (means[place], place)), min(means), max(means)
    if best == highest:
        return list(range(highest + 1, min(highest + len(FIRST), FURTHEST) + 1))
    if best == lowest:
        return list(range(max(lowest - len(FIRST), -FURTHEST), lowest))
    return []


def best_place(losses: Losses) -> int:
    """The lowest rate whose mean loss is within one standard error of the least.

    In a flat valley the least of a few noisy means may lie anywhere, at the edge of divergence too. The standard error is that of
    the least mean.

    Source: Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3, the one-standard-error rule.

    Example:
      >>> from optchain.race.rates import best_place
      >>> best_place({0: [0.9, 1.1], 1: [0.52, 0.50], 2: [0.48, 0.52], 3: [0.7, 3.0]})
      1
    """
    means = {place: float(np.mean(values)) for place, values in losses.items()}
    best = losses[min(means, key=lambda place: (means[place], place))]
    error = float(np.std(best, ddof=1) / np.sqrt(len(best))) if len(best) > 1 else 0.0
    return min(place for place, mean in means.items() if mean <= min(means.values()) + error)
