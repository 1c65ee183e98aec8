"""What a recipe does to each parameter: a row each of `describe`."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optchain.core import arguments
from optchain.core.optax_link import OptaxLink
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree, dtype_of, leaves_with_paths, path_names, path_string
from optchain.core.values import holds_link, to_code
from optchain.core.walk import Node, walk
from optchain.training.sharding import beneath, mirrored

Value = float | str
"""A number; or the code of a schedule, or of a callable, which has no number before it is called."""

DECAYS = {"weight_decay": "{}", "l1": "{} (L1)", "l2": "{}", "l2_penalty": "{} (in the gradient)"}
"""The effects that are decays, and how a cell of the table shows them."""


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """What happens to one parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    """The group that it is in, outermost first: `head`, `frozen`; of a rule that treats leaves differently, what it does with
    this one; empty where nothing tells parameters apart."""
    optimizer: str | None
    """The preset that trains it; of a chain made by hand its rules, `scale_by_adam`; None if none does."""
    learning_rate: Value | None
    rate_factor: float
    """What the learning rate is multiplied by for this parameter (`scale_by_path`); 0 if it is frozen."""
    decay: dict[str, Value]
    """Its decays by kind, without those that are 0: `weight_decay` and `l2` are decoupled, `l1` too, `l2_penalty` is part
    of the gradient. A decoupled one is multiplied by the learning rate, and has the factor in it already if it stands before
    `scale_by_path`."""
    clips: dict[str, dict[str, Value]]
    """The links that clip its gradient, each with its bounds."""
    storage: dict[str, str]
    """The dtype of each entry of the state that is kept for it: `{"mu": "float32", "nu": "float32"}`."""
    state_bytes: int
    links: tuple[str, ...]
    """The paths of the links that act on it, in the order in which they run."""


@dataclasses.dataclass
class Facts:
    """What is known of a parameter so far."""

    shape: tuple[int, ...]
    dtype: str
    labels: list[str] = dataclasses.field(default_factory=list)
    optimizer: str | None = None
    rules: list[str] = dataclasses.field(default_factory=list)
    learning_rate: Value | None = None
    factor: float = 1.0
    decay: dict[str, Value] = dataclasses.field(default_factory=dict)
    clips: dict[str, dict[str, Value]] = dataclasses.field(default_factory=dict)
    links: list[str] = dataclasses.field(default_factory=list)


def facts_of(transformation: Transformation, params: Tree) -> dict[str, Facts]:
    """What each parameter meets on its way through the links, by its path. The parameters may be tracers."""
    facts = {path_string(p): Facts(tuple(leaf.shape), dtype_of(leaf).name) for p, leaf in leaves_with_paths(params)}
    for node in walk(transformation, params=params):
        _meet(facts, node, "/".join([transformation.name, *node.path]))
    return facts


def _meet(facts: Mapping[str, Facts], node: Node, place: str) -> None:
    link = node.link
    values = {name: plain(value) for name, value in link.hyperparams.values.items()}
    labels = {} if link.labels is None else _by_path(link.labels(node.params))
    effects = {} if link.effects is None else link.effects(node.params)
    of = {name: _by_path(tree) for name, tree in effects.items()}
    for path in _by_path(node.params):
        seen = facts[path]
        if labels and (label := labels[path]) not in {"inner", "passed"}:
            seen.labels.append(label)
        if link.parts:
            if link.is_registered and not any(map(holds_link, link.config.values())):
                seen.optimizer = node.rule
        elif of and not any(tree[path] or name == "rate" for name, tree in of.items()):
            continue  # a mask leaves it out
        elif isinstance(link, OptaxLink):
            seen.rules.append(link.name)
        elif link.kind == "gradient" and link.slots:
            seen.rules.append(node.rule)
        if not link.parts:
            seen.links.append(place)
        if "learning_rate" in values and link.stage != "decay":
            seen.learning_rate = values["learning_rate"]
        if link.stage == "clip":
            seen.clips[node.rule] = values
        for name, tree in of.items():
            if name in DECAYS:
                _decays(seen.decay, name, values.get(name, values.get("weight_decay", 1.0)), tree[path])
            elif name == "rate":
                seen.factor *= float(tree[path])
                _scale_decays(seen.decay, float(tree[path]))


def _decays(decay: dict[str, Value], name: str, value: Value, share: float) -> None:
    """Adds a decay; of a schedule there is nothing to add up."""
    if not share or value == 0:
        return
    if isinstance(value, str):
        decay[name] = value
    else:
        before = decay.get(name, 0.0)
        decay[name] = value * share + (before if isinstance(before, float) else 0.0)


def _scale_decays(decay: dict[str, Value], share: float) -> None:
    """Multiplies the decays that are in the updates by now; a penalty in the gradient has gone through the rule."""
    for name in [name for name in decay if name != "l2_penalty"]:
        value = decay.pop(name)
        if share and share != 1:
            value = f"{share:g} * {value}" if isinstance(value, str) else value * share
        if share:
            decay[name] = value


def _by_path(tree: Tree) -> dict[str, Any]:
    return {path_string(path): leaf for path, leaf in leaves_with_paths(tree)}


def plain(value: Any) -> Value:
    """A hyperparameter as a number; of a schedule, of a callable and of a tracer the code."""
    if arguments.is_traced(value) or not (arguments.is_number(value) or arguments.is_array(value)):
        return to_code(value)
    return float(value)


def rows_of(transformation: Transformation, facts: Mapping[str, Facts], state: Tree) -> Iterator[ParameterRow]:
    """A row for each parameter: what it meets, and what the state keeps for it."""
    storage: dict[str, dict[str, str]] = {path: {} for path in facts}
    bytes_of = dict.fromkeys(facts, 0)
    parameters = frozenset(tuple(path.split("/")) if path else () for path in facts)
    for node in walk(transformation, state):
        own = own_entries(node)
        leaves = {path_names(path): leaf for path, leaf in leaves_with_paths(own)}
        for names, owner in mirrored(own, parameters).items():
            path, leaf = "/".join(owner), leaves[names]
            if not owner and not leaf.shape:  # a count beside a model that is a bare array
                continue
            # The places in the tuples of Optax's chains say nothing.
            entry = "/".join(name for name in names[: len(names) - len(owner)] if not name.isdigit())
            known = storage[path]
            key = next(key for n in itertools.count(1) if (key := entry if n == 1 else f"{entry}_{n}") not in known)
            bytes_of[path] += leaf.size * dtype_of(leaf).itemsize
            if not _is_empty_place(leaf, facts[path]):
                known[key] = dtype_of(leaf).name
        for names, owner in beneath(own, parameters).items():
            path, leaf = "/".join(owner), leaves[names]
            bytes_of[path] += leaf.size * dtype_of(leaf).itemsize
            if not _is_empty_place(leaf, facts[path]):
                storage[path][names[0]] = dtype_of(leaf).name
    for path, seen in facts.items():
        frozen = "frozen" in seen.labels
        yield ParameterRow(
            path=path,
            shape=seen.shape,
            dtype=seen.dtype,
            group="/".join(seen.labels),
            optimizer=None if frozen else seen.optimizer or " + ".join(dict.fromkeys(seen.rules)) or None,
            learning_rate=None if frozen else seen.learning_rate,
            rate_factor=0.0 if frozen else seen.factor,
            decay=seen.decay,
            clips=seen.clips,
            storage=storage[path],
            state_bytes=bytes_of[path],
            links=tuple(seen.links),
        )


def _is_empty_place(leaf: Any, parameter: Facts) -> bool:
    """Whether a leaf is one of a rule that keeps something else for this parameter: checkpoints need an element there."""
    return leaf.shape == (1,) and math.prod(parameter.shape) > 1


def own_entries(node: Node) -> Any:
    """What a link keeps itself, without its parts."""
    if not isinstance(node.state, dict):
        return node.state
    return {name: entry for name, entry in node.state.items() if name not in node.link.parts}


# As a table -----------------------------------------------------------------------------------------------------------

DECAY_AND_FACTOR = "The decay is multiplied by the rate without its factor."
"""What stands below a table that has both."""

HEADER = ("parameter", "how many", "group", "rate", "decay", "optimizer", "clip", "keeps")
ALWAYS = {"parameter", "rate", "decay"}


def table(rows: Sequence[ParameterRow]) -> list[tuple[str, ...]]:
    """A line a parameter, and one for those of layers with numbers that are treated alike. Columns that say nothing are left
    out.
    """
    counts: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        counts.setdefault((_starred(row.path), *_cells(row)), []).append(row.path)
    layers = Counter(_starred(row.path) for row in rows)
    lines = [
        (_common_name(paths, of=layers[starred]) or "the array", str(len(paths)), *cells)
        for (starred, *cells), paths in counts.items()
    ]
    nothing = {"-", "1"}
    kept = [i for i, name in enumerate(HEADER) if name in ALWAYS or any(line[i] not in nothing for line in lines)]
    return [tuple(line[i] for i in kept) for line in (HEADER, *lines)]


def _starred(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def _common_name(paths: Sequence[str], of: int) -> str:
    """What a line of several layers is called: `layers/*/w` where these are all, else `layers/0-3,7/w`."""
    pieces = [re.split(r"(\d+)", path) for path in paths]
    varying = [place for place, column in enumerate(zip(*pieces, strict=True)) if len(set(column)) > 1]
    if len(paths) == of > 1 or len(varying) > 1:
        return _starred(paths[0])
    for place in varying:
        pieces[0][place] = _ranges([int(names[place]) for names in pieces])
    return "".join(pieces[0])


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,7` of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _cells(row: ParameterRow) -> Iterator[str]:
    yield row.group or "-"
    yield _rate(row)
    yield ", ".join(DECAYS[kind].format(_short(value)) for kind, value in row.decay.items()) or "-"
    yield row.optimizer or "-"
    yield ", ".join(f"{name}({', '.join(map(_short, bounds.values()))})" for name, bounds in row.clips.items()) or "-"
    yield _kept(row.storage)


def _rate(row: ParameterRow) -> str:
    if row.learning_rate is None:
        return "-" if row.rate_factor in (0, 1) else f"× {row.rate_factor:g}"
    return _short(row.learning_rate) + (f" × {row.rate_factor:g}" if row.rate_factor != 1 else "")


def _short(value: Value) -> str:
    """A number to seven digits, which is float32's; of code the name before the arguments."""
    return value.partition("(")[0] if isinstance(value, str) else f"{value:.7g}"


def _kept(storage: Mapping[str, str]) -> str:
    by_dtype: dict[str, list[str]] = {}
    for entry, dtype in storage.items():
        by_dtype.setdefault(dtype, []).append(entry)
    return "; ".join(f"{', '.join(entries)}: {dtype}" for dtype, entries in by_dtype.items()) or "-"
