"""Which cases of a parametrized test a quick run takes: every value of every parameter, but not their whole product."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pytest

Value = tuple[str, Hashable]
"""A parameter's name and which of its values."""


def others_thorough(values: Iterable[Hashable], *quick: Hashable) -> list[Any]:
    """Values of a parameter of which a quick run takes the named ones alone, where a case takes seconds and is like the others."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.thorough) for value in values]


def others_for_release(values: Iterable[Hashable], *kept: Hashable) -> list[Any]:
    """Values of a parameter of which a release alone takes more than the named ones."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.for_release) for value in values]


def each_value(cases: Sequence[Iterable[Value]]) -> list[int]:
    """The indices of cases that together have every value.

    Of a product of 84 rows and 42 checks these are 84 cases: each row once, each check twice. The cases are taken in order,
    first those of which every value is still wanted, so that the same ones are taken in every run.
    """
    values = [list(dict.fromkeys(case)) for case in cases]  # no set: its order would differ from run to run
    having = defaultdict[Value, list[int]](list)
    for index, case in enumerate(values):
        for value in case:
            having[value].append(index)
    seen = Counter[Value]()
    taken = set[int]()

    def take(index: int) -> None:
        taken.add(index)
        seen.update(values[index])

    for index, case in enumerate(values):
        if not any(seen[value] for value in case):
            take(index)
    for value, indices in having.items():
        if not seen[value]:
            take(min(indices, key=lambda i: sum(seen[other] for other in values[i])))
    return sorted(taken)
