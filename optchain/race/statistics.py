"""Which differences are real: a paired test, Holm's correction, and what the test could have seen.

Two recipes that start from the same seed have the same initial parameters and see the same batches. The luck of a seed is the same
for both and cancels in the difference, so the test is on the differences, seed by seed.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import cast

import numpy as np

Losses = Sequence[float] | np.ndarray

LEVEL = 0.01
"""How often, at most, a difference is called real in a whole race in which there is none."""
POWER = 0.8
NODES = 256
"""Of the quadrature over the estimates of a standard error."""
BETTER, WORSE, SAME = "better", "worse", "no difference seen"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences of a recipe from the reference, loss by loss: below 0 is better."""

    difference: float
    """The mean difference."""
    standard_error: float
    low: float
    """The ends of the confidence interval of the mean difference, at `1 − level`."""
    high: float
    p: float
    """Of the two-sided paired t-test, as if it were the only one."""
    adjusted_p: float
    """The same after Holm's correction for all the comparisons of the race."""
    smallest: float
    """The smallest true difference that these seeds would have shown in four cases of five, after the correction."""
    verdict: str


def compare(reference: Losses, others: Sequence[Losses], level: float = LEVEL) -> list[Comparison]:
    """Each of several recipes against one, as one family of comparisons. See `compare_pairs`."""
    return compare_pairs([(reference, other) for other in others], level)


def compare_pairs(pairs: Sequence[tuple[Losses, Losses]], level: float = LEVEL) -> list[Comparison]:
    """Paired t-tests of `other − reference`, with Holm's correction over all of them.

    Args:
      pairs: `(reference, other)`, two or more losses each, in the same order of seeds.
      level: the probability that any of them is called real although none is, in (0, 1).

    Returns:
      A `Comparison` a pair.

    Raises:
      ValueError: fewer than two seeds, sequences of different lengths, losses that are not finite, a level out of range.

    Source: Student, "The Probable Error of a Mean", 1908; Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

    Example:
      >>> from optchain.race import compare
      >>> same, worse = compare([1.0, 1.2, 0.9, 1.1], [[1.0, 1.2, 0.9, 1.1], [1.5, 1.71, 1.4, 1.62]])
      >>> same.verdict, worse.verdict, round(worse.difference, 3)
      ('no difference seen', 'worse', 0.507)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1); got {level}")
    measured = [_t_test(np.asarray(a, float), np.asarray(b, float)) for a, b in pairs]
    adjusted = holm([p for *_, p in measured])
    made = []
    for (mean, error, degrees, p), corrected in zip(measured, adjusted, strict=True):
        half = error * _critical(level, degrees)
        smallest = error * _noncentrality(level / len(measured), degrees)
        verdict = SAME if corrected > level else BETTER if mean < 0 else WORSE
        made.append(Comparison(mean, error, mean - half, mean + half, p, corrected, smallest, verdict))
    return made


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the i-th smallest of m times m − i + 1, never below the one before it.

    Example:
      >>> from optchain.race import holm
      >>> holm([0.01, 0.04, 0.03])
      [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _t_test(reference: np.ndarray, other: np.ndarray) -> tuple[float, float, int, float]:
    """The mean of the differences, its standard error, the degrees of freedom, p."""
    if reference.shape != other.shape or reference.ndim != 1 or reference.size < 2:
        raise ValueError(f"give two or more losses each, of the same seeds; got {reference.shape} and {other.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        raise ValueError("the losses must be finite")
    differences = other - reference
    count = differences.size
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(count))
    if mean == 0:
        return mean, error, count - 1, 1.0
    if error == 0:
        return mean, error, count - 1, 0.0
    from scipy import stats

    return mean, error, count - 1, float(2 * stats.t.sf(abs(mean) / error, count - 1))


def _critical(level: float, degrees: int) -> float:
    """What the t of a two-sided test of this level must reach."""
    from scipy import stats

    return float(stats.t.isf(level / 2, degrees))


@functools.cache
def _noncentrality(level: float, degrees: int) -> float:
    """The true difference, in standard errors, that a two-sided test of this level sees with the power `POWER`.

    The mean over the estimates of the standard error of how often a normal number beats the critical value: SciPy's noncentral t
    does not end for large ones.
    """
    from scipy import optimize, stats

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    estimates = np.sqrt(stats.chi2.ppf((1 + nodes) / 2, degrees) / degrees)
    to_beat = _critical(level, degrees) * estimates

    def missing(difference: float) -> float:
        # Seen with the wrong sign: next to never.
        return float(weights @ stats.norm.sf(to_beat - difference)) / 2 - POWER

    return cast(float, optimize.brentq(missing, 0.0, float(to_beat.max()) + 2.0))
