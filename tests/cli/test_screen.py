"""Tables fit the screen, and lose nothing without a word."""

import io
from collections import Counter

import hypothesis
import hypothesis.strategies as st
from rich.console import Console

from optchain.cli.screen import show

word = st.text("abcdefgh", min_size=1, max_size=60)
cell = st.lists(word, min_size=1, max_size=4).map(" ".join)
names = ("first", "second", "third", "fourth")


@hypothesis.given(
    st.lists(st.tuples(*[cell] * len(names)), min_size=1, max_size=4),
    st.integers(30, 160),
    st.sets(st.sampled_from(names[1:])),
)
def test_a_table_fits_and_what_it_has_no_room_for_is_named(
    rows: list[tuple[str, ...]], width: int, right: set[str]
) -> None:
    stream = io.StringIO()
    show(Console(file=stream, width=width), names, rows, right=[*right])
    *lines, last = stream.getvalue().splitlines()
    left_out = last.partition(" columns for: ")[2].split(", ") if last.startswith("no room") else []
    lines = lines if left_out else [*lines, last]
    assert max(map(len, lines)) <= width
    shown = Counter("".join(lines[3:]))
    cells = Counter(
        "".join(text for row in rows for name, text in zip(names, row, strict=True) if name not in left_out)
    )
    assert {letter: shown[letter] for letter in "abcdefgh"} == {letter: cells[letter] for letter in "abcdefgh"}
