"""The search for a learning rate: half decades around the rate with which a recipe is built, and on where the best is an end."""

from collections.abc import Mapping, Sequence

import numpy as np

FIRST = (-1, 0, 1, 2)
"""The half decades that are tried first."""
FURTHEST = 8
"""Four decades either way."""


def factor(half_decades: int) -> float:
    """The factor of a place on the grid, in three digits: 0.316, 1, 3.16, 10."""
    return float(f"{10 ** (half_decades / 2):.3g}")


class Search:
    """Which places of the grid to try next, by the mean losses of those that were tried.

    Example:
      >>> from optchain.race import Search
      >>> search = Search()
      >>> search.next({})
      [-1, 0, 1, 2]
      >>> losses = {-1: 4.0, 0: 3.0, 1: 2.0, 2: 1.0}
      >>> search.next(losses)  # the best is the last: on upwards
      [3, 4, 5, 6]
      >>> search.next(losses | {3: 0.5, 4: 0.7, 5: 4.0, 6: 4.0})
      []
    """

    def next(self, losses: Mapping[int, float]) -> list[int]:
        """The places to try, none if the best is not at an end of those that were."""
        if not losses:
            return list(FIRST)
        best, lowest, highest = self.best(losses), min(losses), max(losses)
        if best == highest:
            return list(range(highest + 1, min(highest + len(FIRST), FURTHEST) + 1))
        if best == lowest:
            return list(range(max(lowest - len(FIRST), -FURTHEST), lowest))
        return []

    @staticmethod
    def best(losses: Mapping[int, float]) -> int:
        """The place of the least loss; of equal ones the lowest rate."""
        return min(losses, key=lambda place: (losses[place], place))

    @staticmethod
    def losses(places: Sequence[int], finals: Sequence[float]) -> dict[int, float]:
        """The mean of the final losses at each place, over the seeds."""
        by_place: dict[int, list[float]] = {}
        for place, final in zip(places, finals, strict=True):
            by_place.setdefault(place, []).append(float(final))
        return {place: float(np.mean(values)) for place, values in by_place.items()}
