"""Optimizers of PyTorch as recipes, and the arguments of recipes as PyTorch's groups."""

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import matching
from optchain.core.transformation import Transformation
from optchain.core.values import NAME
from optchain.interop.torch.layouts import to_array
from optchain.presets import torch as presets
from optchain.wrappers.multi_optimizer import multi_optimizer

PRESETS: dict[str, Callable[..., Transformation]] = {
    "AdamW": presets.adamw,
    "Adam": presets.adam,
    "NAdam": presets.nadam,
    "RAdam": presets.radam,
    "Adamax": presets.adamax,
    "RMSprop": presets.rmsprop,
    "Adagrad": presets.adagrad,
    "Adadelta": presets.adadelta,
    "Adafactor": presets.adafactor,
    "ASGD": presets.asgd,
    "Muon": presets.muon,
    "Rprop": presets.rprop,
    "SGD": presets.sgd,
    "SparseAdam": presets.sparse_adam,
}
SWITCHES: dict[str, dict[str, Any]] = {
    "foreach": dict.fromkeys(PRESETS.keys() - {"Muon", "SparseAdam"}),
    "fused": dict.fromkeys(["AdamW", "Adam", "Adagrad", "SGD"]),
    "capturable": dict.fromkeys(
        ["AdamW", "Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adadelta", "ASGD", "Rprop"], False
    ),
    "differentiable": dict.fromkeys(PRESETS.keys() - {"Muon", "SparseAdam", "Adafactor"}, False),
}
"""What chooses one of PyTorch's implementations and changes no number, with the default of each class that has it."""


OURS = "output_axis"
"""An argument of Muon's that PyTorch has no need of: its matrices have one layout."""
DECOUPLED = "decoupled_weight_decay"
CONSTANTS = {"betas[0]", "betas[1]", DECOUPLED} | {
    name for preset in PRESETS.values() for name in inspect.signature(preset).parameters
} - {"lr", "betas", OURS}
"""The arguments that a state of any class and its recipe must have alike, pairs of betas by themselves."""
INITIAL = "initial_lr"
"""What a scheduler leaves in the groups that it drives: the rate that it began from."""


def from_torch(
    optimizer: Any,
    names: Sequence[str] | Mapping[str, str] | None = None,
    *,
    lr: Hyperparam | Sequence[Hyperparam] | None = None,
) -> Transformation:
    """The recipe of one of PyTorch's optimizers: the preset of its class, with its arguments as they are now.

    Several groups become a `multi_optimizer`, whose groups are `group_0`, `group_1`, …; one group is the preset alone.
    The learning rate is the present one, unless `lr` is given: a scheduler is no part of an optimizer, and has a counterpart
    in `optchain.schedules`.

    Args:
      optimizer: one of `torch.optim`'s but `LBFGS`. `foreach`, `fused`, `capturable` and `differentiable` have no effect.
      names: with several groups, which parameters are in them: our paths, `dense/kernel`, in the order of the
        optimizer's parameters, group by group; or a table of our paths to PyTorch's names, in that order.
      lr: in the place of the groups' learning rates: the counterpart of the scheduler that drove them, such as
        `schedules.StepLR(0.1, step_size=30)`; or several, one a group.

    Warns:
      UserWarning: a scheduler has driven a group (it has `initial_lr`), and no `lr` was given: the recipe keeps the present
        rate.

    Returns:
      A transformation with the same numbers, step for step, but for complex parameters: a second moment is of their modulus
      here, where PyTorch has one each of the real and the imaginary part.

    Raises:
      TypeError: an optimizer of another class.
      ValueError: several groups and no names, or not as many names as parameters, or not as many `lr` as groups.

    Example:
      >>> import torch
      >>> from optchain.interop.torch import from_torch
      >>> from_torch(torch.optim.AdamW([torch.zeros(2, requires_grad=True)], lr=0.1, betas=(0.9, 0.99)))
      presets.torch.adamw(lr=0.1, betas=(0.9, 0.99))
    """
    kind = type(optimizer)
    preset = PRESETS.get(kind.__name__)
    if preset is None or not kind.__module__.startswith("torch.optim"):
        raise TypeError(
            f"optimizer must be one of torch.optim's {', '.join(PRESETS)}; got {kind.__module__}.{kind.__qualname__}"
        )
    groups = optimizer.param_groups
    own = [_arguments(kind.__name__, group, optimizer.defaults) for group in groups]
    if lr is None:
        _warn_of_schedulers(groups)
    else:
        rates = list(lr) if isinstance(lr, Sequence) else [lr] * len(groups)
        if len(rates) != len(groups):
            raise ValueError(
                f"lr must be one, or one for each of the optimizer's {len(groups)} groups; got {len(rates)}"
            )
        own = [arguments | {"lr": rate} for arguments, rate in zip(own, rates, strict=True)]
    links = [preset(**arguments) for arguments in own]
    if len(links) == 1:
        return links[0]
    count = sum(len(group["params"]) for group in groups)
    if names is None or len(names) != count:
        given = "no names" if names is None else f"{len(names)} names"
        raise ValueError(
            f"the optimizer has {len(groups)} groups with {count} parameters, and {given} were given: names must have our paths "
            "in the order of its parameters, group by group"
        )
    paths = iter(names)
    parts = []
    for number, (group, link) in enumerate(zip(groups, links, strict=True)):
        patterns = [f"^{re.escape(next(paths))}$" for _ in group["params"]]
        if patterns:
            parts.append((f"group_{number}", matching(*patterns), link))
    return multi_optimizer(*parts)


def _warn_of_schedulers(groups: Sequence[Mapping[str, Any]]) -> None:
    driven = [
        f"group {number}, from {plain(group[INITIAL], INITIAL):g} to {plain(group['lr'], 'lr'):g}"
        for number, group in enumerate(groups)
        if INITIAL in group
    ]
    if driven:
        warnings.warn(
            f"a scheduler drove the learning rate ({'; '.join(driven)}), which is no part of the optimizer: the recipe keeps the "
            "rate as it is now. Bring the schedule as from_torch(…, lr=optchain.schedules.…), with the scheduler's arguments; "
            "load_state_dict takes the step over. If it is done, give the rate itself as lr",
            stacklevel=3,
        )


def to_group(preset: Transformation) -> dict[str, Any]:
    """The arguments of a preset as PyTorch has them in `param_groups`, without the parameters."""
    kind = class_name(preset)
    group = {name: _as_written(value) for name, value in preset.config.items() if name != OURS}
    if kind == "AdamW":
        group[DECOUPLED] = True
    switches = {name: defaults[kind] for name, defaults in SWITCHES.items() if kind in defaults}
    return group | switches


def _as_written(value: Any) -> Any:
    """A constant as PyTorch writes it: lists as tuples, NumPy's numbers as Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_written, value))
    return value.item() if isinstance(value, np.generic) else value


def class_name(link: Transformation) -> str | None:
    """The name of the class in `torch.optim` that a preset has the numbers of; None for anything else."""
    name = link.registered_name if link.is_registered else ""
    return next((kind for kind, preset in PRESETS.items() if name == getattr(preset, NAME)), None)


def _arguments(kind: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the preset, out of a group of PyTorch's."""
    own = {name: group[name] for name in defaults if name not in SWITCHES}
    if kind == "AdamW":
        own.pop(DECOUPLED, None)
    return {name: plain(value, name) for name, value in own.items()}


def plain(value: Any, name: str, whose: str = "") -> Any:
    """An argument without tensors: PyTorch takes them for numbers.

    Raises:
      ValueError: a tensor that is no number.
    """
    if isinstance(value, tuple | list):
        return tuple(plain(part, f"{name}[{place}]", whose) for place, part in enumerate(value))
    if not hasattr(value, "detach"):
        return value
    array = to_array(value, name + whose)
    if array.size != 1:
        raise ValueError(f"{name}{whose} must be a number; it is a tensor of shape {array.shape}")
    return array.item()
