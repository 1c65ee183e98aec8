"""The state of PyTorch's optimizers, brought in."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.core import arguments, trees
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import State
from optchain.core.trees import Tree, dtype_of, leaves_with_paths, path_names
from optchain.interop import checks
from optchain.interop.links import Place, places, schedule_entries
from optchain.interop.mapping import Entry, match, parameter_entries
from optchain.interop.merging import check_choice, merge_entries
from optchain.interop.report import Choice, Names, Report, join_paths
from optchain.interop.torch.layouts import Transforms, check_outputs, factor_names, layouts, to_array, transposed
from optchain.interop.torch.recipes import CONSTANTS, DECOUPLED, INITIAL, class_name, plain, to_group
from optchain.interop.torch.rules import (
    COUNT,
    DERIVED,
    FACTORS,
    OPTIONAL,
    SCALARS,
    name_in_group,
    names_in_torch,
    split_betas,
)

DRIVEN = "a scheduler drove"

Correspondence = Mapping[str, str] | Sequence[str]


def load_state_dict(
    tx: optax.GradientTransformation,
    params: Tree,
    state_dict: Mapping[str, Any],
    names: Correspondence,
    transforms: Transforms | None = None,
    *,
    hyperparams: Choice = "saved",
    step: int | None = None,
) -> State:
    """The state with which `tx` goes on where an optimizer of PyTorch stopped.

    `step`, `exp_avg`, `exp_avg_sq`, `max_exp_avg_sq`, `momentum_buffer` and what else the optimizers of `presets.torch`
    keep, transposed where the weight is. An average of the parameters, which PyTorch's optimizers do not keep, starts anew.

    Args:
      tx: the recipe: what `from_torch` made of the optimizer, a preset of `presets.torch`, or a chain with the same
        rule in it.
      params: the parameters as they are now, in our layout.
      state_dict: `optimizer.state_dict()`, or what `read(path).optimizer` found in a file.
      names: which parameters the optimizer has: our paths, `dense/kernel`, in the order in which it was given them,
        group by group; or a table of our paths to PyTorch's names. The optimizer knows names if it was made of
        `named_parameters()`; if not, the table is taken to be in its order.
      transforms: how weights are laid out, where their paths do not tell: patterns of our paths to a kind of `LAYOUTS`,
        or to the order in which we have PyTorch's axes. A `kernel` of two axes is that of a Linear layer, of more a
        convolution's.
      hyperparams: `"saved"`, as PyTorch does: the learning rate is that of the groups, and a constant that differs from
        theirs is an error; or `"configured"`: those of `tx`, whatever was saved. A schedule is the recipe's own in both
        cases.
      step: the number of calls made, for the schedules of `tx`, where PyTorch does not know: SGD does not count its
        steps.

    Returns:
      The state, all of it fresh arrays.

    Warns:
      UserWarning: a scheduler drove the rate in PyTorch (the groups have `initial_lr`), and the rate of `tx` is a number. An
        optimizer's state does not hold its scheduler: `tx` needs the schedule, which then goes on at the step saved.

    Raises:
      ValueError: something else than the state of an optimizer, a `step`, a rate or a second moment that cannot be one,
        parameters that only one side has (the message prints
        both), a shape that differs, moments that only one side has, hyperparameters that differ, steps that differ
        within a group.

    Example:
      >>> import jax.numpy as jnp, torch
      >>> from optchain.interop.torch import from_torch, load_state_dict
      >>> layer = torch.nn.Linear(3, 2)
      >>> optimizer = torch.optim.AdamW(layer.parameters())
      >>> layer(torch.ones(1, 3)).sum().backward()
      >>> optimizer.step()
      >>> params = {"kernel": jnp.array(layer.weight.detach().T), "bias": jnp.array(layer.bias.detach())}
      >>> tx = from_torch(optimizer)
      >>> state = load_state_dict(tx, params, optimizer.state_dict(), ["kernel", "bias"])
      >>> state["scale_by_adam"]["count"], state["scale_by_adam"]["mu"]["kernel"].shape
      (Array(1, dtype=int32), (3, 2))
    """
    state, report = load_with_report(tx, params, state_dict, names, transforms, hyperparams=hyperparams, step=step)
    driven = [f"{'/'.join(row.path)}: {row.note}" for row in report.rows if DRIVEN in row.note]
    if driven:
        warnings.warn("; ".join(driven), stacklevel=2)
    return state


def load_with_report(
    tx: optax.GradientTransformation,
    params: Tree,
    state_dict: Mapping[str, Any],
    names: Correspondence,
    transforms: Transforms | None = None,
    *,
    hyperparams: Choice = "saved",
    step: int | None = None,
) -> tuple[State, Report]:
    """`load_state_dict`, with a report of what became of each entry, which also says what that warns of."""
    check_choice(hyperparams)
    if step is not None:
        step = arguments.check_integer("step", step, minimum=0)
    link = as_transformation(tx, "tx")
    found = places(link, params)
    fresh = link.init(params)
    source = _Source(params, found, state_dict, names, transforms)
    saved: dict[Names, Any] = {}
    for place in found:
        saved |= _rule_entries(place, fresh, source)
        if place.link.hyperparams.schedules:
            saved |= schedule_entries(place, source.calls(place, step))
        if "updates" in place.state_in(fresh):  # of an accumulation whose window is a schedule of the updates made
            saved[(*place.path, "updates")] = source.updates(place, step)
        if hyperparams == "saved":
            _check_constants(place, source)
        saved |= _hyperparam_entries(place, source, hyperparams)
    source.check_all_used(link.name)
    state, report = merge_entries(saved, fresh, hyperparams=hyperparams)
    return state, report if hyperparams == "configured" else _with_schedulers(report, found, source)


class _Source:
    """What PyTorch's optimizer has of each parameter, by our paths."""

    def __init__(
        self,
        params: Tree,
        found: list[Place],
        state_dict: Mapping[str, Any],
        names: Correspondence,
        transforms: Transforms | None,
    ):
        _check_state_dict(state_dict)
        groups = state_dict["param_groups"]
        ids = [number for group in groups for number in group["params"]]
        trained = {path for place in found if not place.link.links for path in place.parameters}
        leaves = {path_names(path): leaf for path, leaf in leaves_with_paths(params)}
        ours = [entry for entry, path in zip(parameter_entries(params), leaves, strict=True) if path in trained]
        paths = [path for path in leaves if path in trained]
        labels = _labels(groups, names, len(ids))
        slots = [
            {
                field: value
                for field, value in state_dict["state"].get(number, {}).items()
                if value is not None or field not in OPTIONAL
            }
            for number in ids
        ]
        theirs = [Entry(label, _shape(slot)) for label, slot in zip(labels, slots, strict=True)]
        order = [paths[position] for position in match(ours, theirs, names, "PyTorch's optimizer")]
        plain_groups = [plain_group(group, f"group {number}") for number, group in enumerate(groups)]
        arguments_of = [
            split_betas(own) for own, group in zip(plain_groups, groups, strict=True) for _ in group["params"]
        ]
        self.params = leaves
        self.axes = layouts(params, transforms)
        self.labels = dict(zip(order, labels, strict=True))
        self.slots: dict[Names, dict[str, Any]] = dict(zip(order, slots, strict=True))
        self.groups = dict(zip(order, arguments_of, strict=True))
        self.used: set[tuple[Names, str]] = {(path, COUNT) for path in paths}

    def array(self, path: Names, field: str, entry: str) -> np.ndarray | None:
        """A tensor in our layout; None where PyTorch has not made it yet."""
        self.used.add((path, field))
        slot = self.slots[path]
        if field not in slot and (not slot or field in OPTIONAL):
            return None
        name = f"{field} of {self.labels[path]}"
        value, param = to_array(self._field(path, field), name), self.params[path]
        shape = np.shape(param)
        if entry in FACTORS and entry != "v":
            shape = (*shape[:-1], 1) if entry == "v_row" else (*shape[:-2], 1, shape[-1])
        # As wide as a moment can be kept, which may be wider than the parameter.
        like = jax.ShapeDtypeStruct(shape, jnp.promote_types(dtype_of(param), trees.default_float()))
        checks.kind(f"{name} of PyTorch's", value.dtype, like.dtype)
        checks.moment(name, entry, value, like.dtype)
        return transposed(value, self.axes[path], like, "/".join(path), name)

    def number(self, place: Place, field: str, allowed: arguments.Range) -> float | None:
        """A number that PyTorch has of each parameter, and we of all those of a link; None before the first step.

        Raises:
          ValueError: a parameter does not have it, or they differ.
        """
        numbers: dict[str, float] = {}
        for path in place.parameters:
            self.used.add((path, field))
            if self.slots[path]:
                name = f"{field} of {self.labels[path]}"
                value = to_array(self._field(path, field), name)
                checks.number(name, value, allowed)
                numbers["/".join(path)] = float(value)
        if len(set(numbers.values())) > 1:
            found = join_paths(f"{path} {number:g}" for path, number in numbers.items())
            raise ValueError(
                f"{place} has one {field} for its parameters, and in PyTorch they have different ones: {found}. Give those that "
                "differ groups of their own: multi_optimizer"
            )
        return next(iter(numbers.values()), None)

    def _field(self, path: Names, field: str) -> Any:
        slot = self.slots[path]
        if field not in slot:
            raise ValueError(
                f"the recipe needs {field} of {'/'.join(path)}, and PyTorch's state of {self.labels[path]} has {join_paths(slot)}"
            )
        return slot[field]

    def steps(self, place: Place) -> int | None:
        """How many steps the parameters of a link have made; None if PyTorch does not know.

        Raises:
          ValueError: not all of them as many.
        """
        slots = [self.slots[path] for path in place.parameters]
        if all(COUNT not in slot for slot in slots):
            return None
        steps = {
            path: checks.count(
                f"{COUNT} of {self.labels[path]}",
                to_array(self.slots[path].get(COUNT, 0), f"{COUNT} of {self.labels[path]}"),
            )
            for path in place.parameters
        }
        if len(set(steps.values())) > 1:
            counted = join_paths(f"{'/'.join(path)} {number}" for path, number in steps.items())
            raise ValueError(
                f"{place} has one count for its parameters, and in PyTorch they have made different numbers of steps: {counted}. "
                "Give those that differ groups of their own: multi_optimizer"
            )
        return next(iter(steps.values()))

    def calls(self, place: Place, step: int | None) -> int:
        """How many calls a link with a schedule has seen."""
        counted = None if place.gate else self.steps(place)
        if step is None and counted is None:
            why = (
                f"the gate {place.gate} makes steps of calls"
                if place.gate
                else "PyTorch's state does not tell how many"
            )
            raise ValueError(f"{place} has a schedule that counts calls, and {why}: give step=")
        return counted if step is None else step  # pyright: ignore[reportReturnType]

    def updates(self, place: Place, step: int | None) -> int:
        """How many updates a gate has made."""
        made = self.steps(place)
        if made is None and step is None:
            raise ValueError(f"{place} counts updates, and PyTorch's state does not tell how many: give step=")
        return step if made is None else made  # pyright: ignore[reportReturnType]

    def check_all_used(self, name: str) -> None:
        for path, slot in self.slots.items():
            for field in slot:
                if (path, field) not in self.used:
                    raise ValueError(
                        f"PyTorch's state has {field} of {self.labels[path]}, for which {name} has no place: it is another "
                        "recipe's state"
                    )


def _rule_entries(place: Place, fresh: State, source: _Source) -> dict[Names, Any]:
    """The entries of a link's state that come from PyTorch, by path."""
    known = names_in_torch(place, fresh)
    saved: dict[Names, Any] = {}
    for entry, field in known.items():
        if entry in SCALARS:
            continue
        for path in place.parameters:
            if place.rule == "scale_by_muon_average":
                shape = tuple(np.shape(source.params[path]))
                check_outputs(place.link.config, source.axes[path], shape, "/".join(path))
            if entry in FACTORS:
                own = factor_names(source.axes[path], "/".join(path)).get(entry)
                array = None if own is None else source.array(path, own, entry)
                array = array if array is None or entry == "v" else array.squeeze(-1 if entry == "v_row" else -2)
            else:
                array = source.array(path, field, entry)
            if array is not None:
                saved[(*place.path, entry, *path)] = array
    if "count" in known:
        steps = source.steps(place)
        if steps is None:  # SGD, which only knows whether a first step was made
            made = {path for path in place.parameters if source.slots[path]}
            if made and made != set(place.parameters):
                raise ValueError(
                    f"{place}: only {join_paths('/'.join(path) for path in made)} have made a step in PyTorch"
                )
            steps = int(bool(made))
        saved[(*place.path, "count")] = steps
    for entry, allowed in (("mu_product", arguments.FRACTION), ("eta", arguments.NON_NEGATIVE)):
        number = source.number(place, entry, allowed) if entry in known else None
        if number is not None:
            saved[(*place.path, entry)] = number
    if place.rule == "polyak_average":
        source.used |= {(path, field) for path in place.parameters for field in DERIVED}
    return saved


def _hyperparam_entries(place: Place, source: _Source, choice: Choice) -> dict[Names, Any]:
    """The hyperparameters that are values in a link's state, out of the groups of its parameters."""
    values: dict[str, Any] = {}
    for name in sorted(place.settable):
        named = {path: (name_in_group(name, source.groups[path]), source.groups[path]) for path in place.parameters}
        groups = {path: (theirs, group[theirs]) for path, (theirs, group) in named.items() if theirs}
        for path, (theirs, value) in groups.items():
            checks.hyperparam(f"{theirs} of the group of {source.labels[path]}", name, value)
        given = {value for _, value in groups.values()}
        if len(given) > 1 and choice == "saved":
            theirs = next(iter(groups.values()))[0]
            raise ValueError(
                f"PyTorch's groups have the {theirs} {join_paths(map(str, sorted(given)))}, and {place} has one for all: use "
                "multi_optimizer, as from_torch(optimizer, names) does"
            )
        if len(given) == 1:
            values[name] = given.pop()
    return {(*place.path, "hyperparams", name): value for name, value in values.items()}


def _with_schedulers(report: Report, found: list[Place], source: _Source) -> Report:
    """The report, with a note at each rate that a scheduler has driven, and that nothing drives any more."""
    notes: dict[Names, str] = {}
    for place in found:
        initial = {path: source.groups[path][INITIAL] for path in place.parameters if INITIAL in source.groups[path]}
        for path, rate in initial.items():
            checks.hyperparam(f"{INITIAL} of the group of {source.labels[path]}", "learning_rate", rate)
        if initial:
            notes[(*place.path, "hyperparams", "learning_rate")] = (
                f"{DRIVEN} it in PyTorch, from {next(iter(initial.values())):g}; tx keeps it as it is: build tx with the schedule to go on with it"
            )
    rows = [
        dataclasses.replace(row, note=", ".join(filter(None, (row.note, notes.get(row.path, "")))))
        for row in report.rows
    ]
    return Report(tuple(rows), report.hyperparams)


def _check_constants(place: Place, source: _Source) -> None:
    """Requires the constants of a preset to be those of PyTorch's groups."""
    kind = class_name(place.link)
    if kind is None:
        return
    configured = split_betas(to_group(place.link))
    changing = {key for key, value in configured.items() if callable(value) or arguments.is_array(value)}
    for path in place.parameters:
        # Of AdamW, older versions of PyTorch do not write that its decay is decoupled.
        saved = ({DECOUPLED: True} if kind == "AdamW" else {}) | source.groups[path]
        dtype = trees.real_dtype(dtype_of(source.params[path]))
        wrong = [
            f"{key} {saved[key]}, configured {configured.get(key, 'none')}"
            for key in sorted(CONSTANTS & saved.keys() - changing)
            if _in_effect(key, saved, dtype) != _in_effect(key, configured, trees.wide_dtype(dtype))
        ]
        if wrong:
            raise ValueError(
                f"{place} has other hyperparameters than PyTorch's group of {source.labels[path]}: saved {'; '.join(wrong)}. "
                'Build it with the saved ones, or choose hyperparams="configured"'
            )


def _in_effect(key: str, group: Mapping[str, Any], dtype: Any) -> Any:
    """An argument as it is used with parameters of a dtype; None if it is off, or none of the class's."""
    if key not in group:
        return None
    value = group[key]
    if key == "adjust_lr_fn" and value is None:
        return "original"
    if key == "eps" and isinstance(value, tuple) and value and value[0] is None:
        value = (float(jnp.finfo(dtype).eps), *value[1:])
    return _rounded(value, trees.wide_dtype(dtype)) or None


def _rounded(value: Any, dtype: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_rounded(part, dtype) for part in value)
    with np.errstate(over="ignore"):
        return dtype.type(value) if arguments.is_number(value) else value


def plain_group(group: Mapping[str, Any], name: str) -> dict[str, Any]:
    made = {
        key: plain(value, key, f" of {name}") for key, value in group.items() if key not in ("params", "param_names")
    }
    betas = made.get("betas", (0.0, 0.0))
    if not (isinstance(betas, tuple) and len(betas) == 2 and all(map(arguments.is_number, betas))):
        raise ValueError(f"betas of {name} must be two numbers; they are {made['betas']!r}")
    return made


def _check_state_dict(state_dict: Any) -> None:
    expected = "expected is what optimizer.state_dict() returns, with 'state' and 'param_groups'"
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"{expected}; got {type(state_dict).__name__}")
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"{expected}; got {join_paths(map(str, state_dict))}")
    state, groups = state_dict["state"], state_dict["param_groups"]
    shaped = isinstance(state, Mapping) and all(isinstance(slot, Mapping) for slot in state.values())
    if not shaped or not isinstance(groups, Sequence) or not all(map(_is_group, groups)):
        raise ValueError(
            f"{expected}: a dict by parameter, and a list of groups with 'params', a list of numbers or names"
        )
    numbers = [number for group in groups for number in group["params"]]
    named = Counter(numbers)
    twice = [number for number, times in named.items() if times > 1]
    if twice:
        raise ValueError(f"{expected}: param_groups name {join_paths(map(repr, twice))} more than once")
    unnamed = [key for key in state if key not in named]
    if unnamed:
        raise ValueError(
            f"{expected}: state has {join_paths(map(repr, unnamed))}, which no group names; param_groups name "
            f"{join_paths(map(repr, numbers))}"
        )


def _is_group(group: Any) -> bool:
    if not isinstance(group, Mapping):
        return False
    numbers, names = group.get("params"), group.get("param_names")
    if not (isinstance(numbers, list | tuple) and all(isinstance(number, int | str) for number in numbers)):
        return False
    return names is None or (
        isinstance(names, list | tuple) and len(names) == len(numbers) and all(isinstance(name, str) for name in names)
    )


def _labels(groups: Sequence[Mapping[str, Any]], names: Correspondence, count: int) -> list[str]:
    """What to call PyTorch's parameters: by the names that it has, or those of a table in its order."""
    known = [name for group in groups for name in group.get("param_names") or []]
    if len(known) == count:
        return known
    if isinstance(names, Mapping) and len(names) == count:
        return list(names.values())
    return [f"parameter {number}" for number in range(count)]


def _shape(slot: Mapping[str, Any]) -> tuple[int, ...]:
    without = (COUNT, *SCALARS, *DERIVED, "row_var", "col_var")
    shapes = [tuple(np.shape(value)) for field, value in slot.items() if field not in without]
    return next(iter(shapes), ())
