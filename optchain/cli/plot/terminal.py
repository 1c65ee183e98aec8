"""A curve in characters: two by four dots of Braille in each, or stars where the terminal has no Braille."""

import numpy as np

BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a character, by line and column."""
HEIGHT = 8


def chart(values: np.ndarray, width: int, *, braille: bool = True) -> list[str]:
    """The curve as lines, with the largest and the smallest value and the first and last call at its edges."""
    top, bottom = float(values.max()), min(float(values.min()), 0.0)
    labels = [f"{top:.3g}", f"{bottom:.3g}"]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 8)
    down, across = (4, 2) if braille else (1, 1)
    grid = _filled(values, HEIGHT * down, columns * across, bottom, top)
    blocks = grid.reshape(HEIGHT, down, columns, across)
    rows = ["".join(_character(blocks[row, :, column], braille) for column in range(columns)) for row in range(HEIGHT)]
    sides = [labels[0], *[""] * (HEIGHT - 2), labels[1]]
    last = str(len(values) - 1)
    return [
        *(f"{side:>{margin}} |{row}".rstrip() for side, row in zip(sides, rows, strict=True)),
        f"{'':>{margin}} +{'-' * columns}",
        f"{'':>{margin}}  0{last:>{columns - 1}}",
    ]


def _filled(values: np.ndarray, height: int, width: int, bottom: float, top: float) -> np.ndarray:
    """Which dots the curve goes through: each column's from its least value to its largest."""
    span = top - bottom or 1.0
    lines = np.rint((top - values) / span * (height - 1)).astype(int)
    places = np.arange(len(values)) * width // len(values)
    grid = np.zeros((height, width), bool)
    previous = lines[0]
    for column in range(width):
        here = lines[places == column]
        if not here.size:  # fewer calls than columns: the value holds
            here = np.array([previous])
        low, high = min(here.min(), previous), max(here.max(), previous)
        grid[low : high + 1, column] = True
        previous = here[-1]
    return grid


def _character(block: np.ndarray, braille: bool) -> str:
    if not braille:
        return "*" if block.any() else " "
    bits = sum(DOTS[row][column] for row, column in zip(*np.nonzero(block), strict=True))
    return chr(BRAILLE + bits) if bits else " "
