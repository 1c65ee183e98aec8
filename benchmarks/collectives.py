"""What the devices of a compiled program tell each other, read off its text, each branch of a condition for itself."""

import collections
import dataclasses
import math
import re
from typing import TypeAlias

from optchain.cli.bench.traffic import Instruction, arrays, branches, called, nbytes, parse, runs

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SCATTERED = re.compile(r"all-reduce-scatter")
"""A TPU's fusion of an all-reduce with the slice of it that a device wants: a reduce-scatter."""


Found: TypeAlias = collections.Counter[tuple[str, str, tuple[int, ...]]]
"""Kind, dtype and shape to how many."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Arrays of one shape and dtype that one kind of collective handles in a run of the program."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    """Of the whole: what goes into a reduction, what comes out of a gather."""
    count: int

    @property
    def bytes(self) -> float:
        return self.count * nbytes(self.dtype, ",".join(map(str, self.shape)))

    @property
    def is_scalar(self) -> bool:
        return math.prod(self.shape) <= 1


def collectives(text: str, *, updates: bool = True) -> list[Collective]:
    """Of `compiled.as_text()`; what is in a loop counts once, and in a gate's loop only with `updates`.

    Args:
      text: the program.
      updates: whether each condition takes the branch that communicates most, or the one that does least.
    """
    computations, entry = parse(text)
    seen: set[str] = set()

    def total(name: str) -> Found:
        found: Found = collections.Counter()
        for instruction in computations.get(name, {}).values():
            found += own(instruction, name)
            below = [total(branch) for branch in branches(instruction)]
            if below:
                found += (max if updates else min)(below, key=lambda counter: counter.total())
            if not updates and runs(instruction)[0] == 0:
                continue
            for inner in {*called(instruction), *_fused(instruction)}:
                found += total(inner)
        return found

    def own(instruction: Instruction, place: str) -> Found:
        kind = instruction.opcode.removesuffix("-start")
        channel = _CHANNEL.search(instruction.line)
        if kind not in KINDS or (channel and channel[1] in seen):
            return collections.Counter()
        if channel:
            seen.add(channel[1])  # a TPU spreads the pieces of one over the fusions that it runs beside
        kind = "reduce-scatter" if _SCATTERED.search(place) else kind
        whole = list(arrays(instruction.type))
        if kind == "reduce-scatter" and instruction.opcode.startswith("reduce"):
            whole = [array for name in instruction.operands for array in type_of(name, place)]
        elif instruction.opcode.endswith("-start") and kind == "all-gather":
            whole = whole[len(whole) // 2 :]  # a pair of what goes in and what comes out
        return collections.Counter((kind, dtype, _lengths(shape)) for dtype, shape, _ in whole)

    def type_of(name: str, place: str) -> list[tuple[str, str, str]]:
        operand = computations[place].get(name)
        return list(arrays(operand.type)) if operand else []

    return [Collective(kind, dtype, shape, count) for (kind, dtype, shape), count in sorted(total(entry).items())]


def _lengths(shape: str) -> tuple[int, ...]:
    return tuple(int(length) for length in shape.split(",") if length)


def _fused(instruction: Instruction) -> list[str]:
    found = re.search(r"calls=%([^\s,}]+)", instruction.line)
    return [found[1]] if found else []
