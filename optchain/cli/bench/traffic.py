"""What a compiled program moves through main memory, read off its text, each branch of a condition for itself, a gate's loop
with no round and with one.

XLA's own count adds up the branches, and counts what stays in a TPU's vector memory.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

from optchain.core.trees import EXTREMES_SCOPE

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%(\S+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([^\s,()]+)")
_CALLED = re.compile(r"(?:to_apply|body|condition)=%([^\s,}]+)")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=(\S+?), false_computation=([^\s,]+)")

_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "conditional", "while", "call", "iota"}
_FREE |= {"after-all", "partition-id", "replica-id", "opt-barrier"}
_OTHER_MEMORY = re.compile(r"S\([1-9]")
"""In an array's layout: it lies in a memory other than the main one."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that a run of the program moves, with the cheapest branch of each condition and with the dearest.

    A gate's loop of at most one round (`core/branch.py`) has two branches, as it were: no round and one.
    """

    least: float
    most: float


@dataclasses.dataclass
class Instruction:
    opcode: str
    type: str
    operands: list[str]
    line: str


def traffic(text: str) -> Traffic:
    """Of `compiled.as_text()`: what each instruction reads and writes; a fusion's inner values stay in registers."""
    return _added(text, _moved)


def kernels(text: str) -> Traffic:
    """Likewise, how many instructions there are that do something."""
    return _added(text, lambda instruction, others: 0 if instruction.opcode in _FREE else 1)


def copied_arrays(text: str) -> int:
    """How many copies of arrays stand in the text, in fusions too; scalars do not count."""
    instructions = (one for computation in parse(text)[0].values() for one in computation.values())
    copies = (one for one in instructions if one.opcode in ("copy", "copy-start"))
    return sum(any(shape for _, shape, _ in arrays(one.type)) for one in copies)


def _added(text: str, weigh: Callable[["Instruction", dict[str, "Instruction"]], float]) -> Traffic:
    computations, entry = parse(text)

    def total(name: str) -> Traffic:
        instructions, least, most = computations[name], 0.0, 0.0
        for instruction in instructions.values():
            weight = weigh(instruction, instructions)
            least, most = least + weight, most + weight
            taken = [total(branch) for branch in branches(instruction)]
            if taken:
                least += min(branch.least for branch in taken)
                # The branch for norms that overflowed is not part of a step as it usually is.
                rarely = EXTREMES_SCOPE in instruction.line
                most += min(branch.least for branch in taken) if rarely else max(branch.most for branch in taken)
            fewest, rounds = runs(instruction)
            for body in called(instruction):
                inner = total(body)
                least, most = least + fewest * inner.least, most + rounds * inner.most
        return Traffic(least, most)

    return total(entry)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current][found[1]] = _instruction(line, found.end())
    return computations, entry


def _instruction(line: str, start: int) -> Instruction:
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode, _, rest = line[end:].strip().partition("(")
    arguments = line[end : _closing(line, line.index("(", end))] if rest else ""
    return Instruction(opcode, line[start:end], _OPERAND.findall(arguments), line)


def _closing(line: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"unbalanced parentheses: {line[:200]}")


def _moved(instruction: Instruction, others: dict[str, Instruction]) -> float:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-start"):
        return 0
    operands = [others[name] for name in instruction.operands if name in others]
    if instruction.opcode.endswith("-done"):  # what was copied, out of the start's source and into the result
        copied = sum(nbytes(*array[:2]) for array in arrays(instruction.type))
        sources = [others[name].type for start in operands for name in start.operands[:1] if name in others]
        into, out_of = (
            all(_is_main(array[2]) for t in types for array in arrays(t)) for types in ([instruction.type], sources)
        )
        return copied * (into + out_of)
    types = [instruction.type, *(operand.type for operand in operands)]
    return sum(nbytes(*array[:2]) for t in types for array in arrays(t) if _is_main(array[2]))


def arrays(type_: str) -> Iterator[tuple[str, str, str]]:
    return ((found[1], found[2], found[3] or "") for found in _ARRAY.finditer(type_))


def _is_main(layout: str) -> bool:
    return not _OTHER_MEMORY.search(layout)


def nbytes(dtype: str, shape: str) -> float:
    bits = re.sub(r"\D", " ", dtype).split()
    width = 1 if dtype == "pred" or not bits else int(bits[0]) / 8
    return width * math.prod(int(n) for n in shape.split(",") if n)


def branches(instruction: Instruction) -> list[str]:
    found = _BRANCHES.search(instruction.line) if instruction.opcode == "conditional" else None
    return _OPERAND.findall(" ".join(group for group in found.groups() if group)) if found else []


def called(instruction: Instruction) -> list[str]:
    return _CALLED.findall(instruction.line) if instruction.opcode in ("call", "while") else []


def runs(instruction: Instruction) -> tuple[int, int]:
    """How often what it calls runs, at the least and at the most: a loop whose length XLA does not know is a gate's."""
    if instruction.opcode != "while":
        return 1, 1
    known = _ROUNDS.search(instruction.line)
    return (int(known[1]), int(known[1])) if known else (0, 1)
