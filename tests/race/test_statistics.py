"""What is called real, held against SciPy's tests and against simulations."""

import numpy as np
import pytest
from scipy import stats

from optchain.race import compare, holm
from optchain.race.statistics import BETTER, SAME, WORSE, compare_pairs

LEVEL = 0.05


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("seeds", [2, 8, 30])
def test_p_and_the_interval_are_those_of_scipys_paired_test(seeds: int):
    a, b = noise(0, seeds), noise(1, seeds) + 0.3
    (made,) = compare(a, [b], LEVEL)
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval(1 - LEVEL)
    np.testing.assert_allclose(made.p, expected.pvalue, rtol=1e-12)
    np.testing.assert_allclose([made.low, made.high], interval, rtol=1e-9)
    np.testing.assert_allclose(made.difference, np.mean(b - a))
    np.testing.assert_allclose(made.standard_error, stats.sem(b - a))


def test_holms_correction_by_hand():
    # Holm 1979: the smallest of four times 4, the next times 3, then 2, then 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.thorough
def test_holm_keeps_the_level_over_a_whole_family():
    """Twenty recipes that are all the reference again: at most 5 of 100 races call any of them real."""
    races = [compare(noise(i, 8), noise(1000 + i, 20, 8), LEVEL) for i in range(400)]
    wrong = np.mean([any(c.verdict != SAME for c in race) for race in races])
    assert wrong <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / 400)
    uncorrected = np.mean([any(c.p <= LEVEL for c in race) for race in races])
    assert uncorrected > 0.3


@pytest.mark.thorough
def test_the_smallest_difference_is_seen_in_four_cases_of_five():
    """A true difference of the size that is said to be just visible, many times over."""
    seeds, spread, trials = 8, 0.1, 4000
    truth = spread / np.sqrt(seeds) * 3.2  # about what eight seeds see at 5 %
    differences = truth + spread * noise(3, trials, seeds)
    seen = np.mean([stats.ttest_1samp(row, 0).pvalue <= LEVEL for row in differences])
    (made,) = compare(np.zeros(seeds), [truth + spread * _standardized(noise(4, seeds))], LEVEL)
    assert made.smallest / truth == pytest.approx(1.0, abs=0.06)
    assert seen == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 8, 30])
@pytest.mark.parametrize("level", [0.2, 0.01, 1e-4])
def test_the_smallest_difference_is_that_of_scipys_noncentral_t(seeds: int, level: float):
    differences = noise(9, seeds)
    (made,) = compare(np.zeros(seeds), [differences], level)
    critical = stats.t.ppf(1 - level / 2, seeds - 1)
    noncentrality = made.smallest / stats.sem(differences)
    assert stats.nct.sf(critical, seeds - 1, noncentrality) == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("seeds", [2, 8])
def test_every_level_has_a_smallest_difference_which_falls_as_it_rises(seeds: int):
    levels = [1e-12, 1e-9, 1e-5, 0.01, 0.3, 0.99, 1 - 1e-12]
    found = [compare_pairs([(np.zeros(seeds), noise(9, seeds))] * 3, level)[0].smallest for level in levels]
    assert np.isfinite(found).all()
    assert np.all(np.diff(found) < 0)
    assert found[-1] > 0


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std(ddof=1)


def test_a_luck_that_both_share_is_no_difference_and_hides_none():
    luck = 10 * noise(5, 8)
    little = 0.05 + 0.01 * noise(6, 8)
    worse, better = compare(luck, [luck + little, luck - little])
    assert (worse.verdict, better.verdict) == (WORSE, BETTER)
    assert stats.ttest_ind(luck, luck + little).pvalue > 0.9  # without the pairs it would not be seen


def test_runs_equal_to_the_bit_show_no_difference():
    (made,) = compare([1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]])
    assert (made.verdict, made.p, made.difference, made.low, made.high) == (SAME, 1.0, 0.0, 0.0, 0.0)


def test_the_correction_is_for_all_pairs_of_a_race_and_not_for_those_of_a_task():
    a, b = noise(7, 8), noise(8, 8) + 3
    alone = compare_pairs([(a, b)])[0]
    among = compare_pairs([(a, b), *[(a, a)] * 4])[0]
    assert among.adjusted_p == pytest.approx(5 * alone.p)
    assert among.smallest > alone.smallest


@pytest.mark.parametrize(
    ("a", "b", "level", "message"),
    [
        ([1.0], [1.0], 0.05, "two or more"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], 0.05, r"\(2,\) and \(3,\)"),
        ([1.0, np.nan], [1.0, 2.0], 0.05, "finite"),
        ([1.0, 2.0], [1.0, 2.0], 1.0, r"level must be in \(0, 1\); got 1.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: list[float], b: list[float], level: float, message: str):
    with pytest.raises(ValueError, match=message):
        compare(a, [b], level)
