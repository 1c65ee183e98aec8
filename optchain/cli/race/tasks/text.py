"""The text that ships inside CPython: what `help()` says of the language, some 465,000 characters of English and code.

It is another text in another version of Python, a little; a race records which version it was run by.
"""

import functools
import re
from collections import Counter

import numpy as np

HELD_OUT = 0.1
"""The share at the end that no batch is drawn from."""
FEWEST = 5
"""How often a word has to stand in the text to have a row of its own."""


@functools.cache
def text() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def characters() -> tuple[np.ndarray, int]:
    """The text as numbers, and how many different characters there are."""
    alphabet = sorted(set(text()))
    number = {character: i for i, character in enumerate(alphabet)}
    return np.array([number[character] for character in text()], np.uint8), len(alphabet)


def words() -> tuple[np.ndarray, np.ndarray]:
    """The words that are not rare as numbers, the most frequent first, in the order of the text; and how often each stands there."""
    found = re.findall(r"[a-z_]+", text().lower())
    counts = [(word, count) for word, count in Counter(found).most_common() if count >= FEWEST]
    number = {word: i for i, (word, _) in enumerate(counts)}
    return np.array([number[word] for word in found if word in number], np.int32), np.array([n for _, n in counts])


def split(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part to train on, and the held-out end."""
    cut = int(len(numbers) * (1 - HELD_OUT))
    return numbers[:cut], numbers[cut:]
