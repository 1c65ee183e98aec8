"""The state of PyTorch's optimizers, made of ours."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import optax

from optchain.core import arguments, storage
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import State
from optchain.core.trees import Tree, leaves_with_paths, path_names
from optchain.interop.links import Place, places, without_place
from optchain.interop.mapping import Entry, match, parameter_entries
from optchain.interop.merging import by_names
from optchain.interop.report import Names, join_paths
from optchain.interop.torch.layouts import Axes, Transforms, check_outputs, factor_names, inverse, layouts, native
from optchain.interop.torch.recipes import class_name, to_group
from optchain.interop.torch.rules import COUNT, FACTORS, SCALARS, join_betas, name_in_group, names_in_torch, split_betas
from optchain.interop.torch.state import Correspondence


def to_state_dict(
    tx: optax.GradientTransformation,
    params: Tree,
    state: State,
    names: Correspondence,
    transforms: Transforms | None = None,
    *,
    step: int | None = None,
    lossy: bool = False,
) -> dict[str, Any]:
    """The state for `optimizer.load_state_dict`, with which PyTorch goes on where `tx` stopped.

    Args:
      tx: the recipe: a preset of `presets.torch`, a `multi_optimizer` of these, or a chain with one in it.
      params: the parameters.
      state: their state.
      names: our paths in the order in which PyTorch's optimizer was given its parameters, group by group; or a table of
        our paths to PyTorch's names, in that order: then the groups have `param_names`.
      transforms: as in `load_state_dict`.
      step: the number of steps made, for RMSprop, Adagrad, Adadelta and Rprop, of which our state has none; 0 if None. Nothing depends
        on it but Adagrad's `lr_decay`, with which our state does have it.
      lossy: whether what PyTorch's optimizers have no place for, such as an average of the parameters, may be left
        behind.

    Returns:
      `{"state": …, "param_groups": …}`, with the learning rate that the next call would use.

    Raises:
      ValueError: a parameter that no preset of `presets.torch` trains or that has no name, groups out of order, or
        something that PyTorch has no place for (the message says what).

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from optchain.interop.torch import to_state_dict
      >>> tx, params = optchain.presets.torch.adamw(0.1), {"kernel": jnp.ones((3, 2))}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
      >>> state_dict = to_state_dict(tx, params, state, ["kernel"])
      >>> state_dict["state"][0]["exp_avg"].shape, state_dict["param_groups"][0]["params"]
      (torch.Size([2, 3]), [0])
    """
    if step is not None:
        step = arguments.check_integer("step", step, minimum=0)
    state = storage.widened(state)
    link = as_transformation(tx, "tx")
    found = places(link, params)
    presets = [place for place in found if class_name(place.link)]
    left = [] if lossy else entries_without_counterpart(found, state)
    if left:
        raise ValueError(
            f"PyTorch's optimizers have no place for {join_paths(left)}: read what you need first, such as averaged_params(state), "
            "then pass lossy=True. Gradients that wait in accumulate are applied by flush(tx, params, state)"
        )
    owner = {path: place for place in presets for path in place.parameters}
    slots = {place: _slots(place, found, state, layouts(params, transforms), step or 0) for place in presets}
    made, groups, seen = {}, [], []
    for number, path in enumerate(_ordered(params, owner.keys(), names)):
        preset = owner[path]
        if not seen or preset is not seen[-1]:
            if preset in seen:
                raise ValueError(
                    f"names must be in the order of PyTorch's groups: {'/'.join(path)} belongs to an earlier one"
                )
            seen.append(preset)
            groups.append(_group(preset, found, state) | {"params": []})
            groups[-1] |= {"param_names": []} if isinstance(names, Mapping) else {}
        groups[-1]["params"].append(number)
        if isinstance(names, Mapping):
            groups[-1]["param_names"].append(names["/".join(path)])
        if slots[preset][path]:
            made[number] = slots[preset][path]
    return {"state": made, "param_groups": groups}


def _ordered(params: Tree, trained: Collection[Names], names: Correspondence) -> list[Names]:
    """The paths of the parameters in PyTorch's order."""
    everything = [path_names(path) for path, _ in leaves_with_paths(params)]
    ours = [entry for entry, path in zip(parameter_entries(params), everything, strict=True) if path in trained]
    paths = [path for path in everything if path in trained]
    if not paths:
        raise ValueError("no part of tx is a preset of presets.torch, so that PyTorch has no optimizer for it")
    theirs = [Entry(name, ()) for name in (names.values() if isinstance(names, Mapping) else names)]
    return [paths[position] for position in match(ours, theirs, names, "PyTorch's optimizer")]


def _slots(
    preset: Place, found: list[Place], state: State, axes: Mapping[Names, Axes], step: int
) -> dict[Names, dict[str, Any]]:
    """What PyTorch keeps of each parameter of a preset; nothing before the first step."""
    import torch

    slots: dict[Names, dict[str, Any]] = {path: {} for path in preset.parameters}
    scalars: dict[str, Any] = {}
    for place in found:
        if not place.within(preset):
            continue
        own, known = place.state_in(state), names_in_torch(place, state)
        for entry, field in known.items():
            if entry not in SCALARS:
                for path, leaf in by_names(own[entry]).items():
                    array = np.asarray(leaf)
                    if place.rule == "scale_by_muon_average":
                        check_outputs(place.link.config, axes[path], array.shape, "/".join(path))
                    if entry in FACTORS:
                        names = factor_names(axes[path], "/".join(path))
                        if entry not in names:
                            continue
                        field = names[entry]
                        array = array if entry == "v" else np.expand_dims(array, -1 if entry == "v_row" else -2)
                    array = array.transpose(inverse(axes[path]))
                    slots[path][field] = torch.from_numpy(native(array))
        for entry in ("mu_product", "eta"):
            if entry in known:
                scalars[entry] = float(own[entry])
        if place.rule == "polyak_average":
            scalars["mu"] = 1 / max(1.0, float(own["count"]) - place.link.config["t0"])
        if "count" in own and (known or place.link.hyperparams.schedules):
            scalars[COUNT] = float(own["count"])
    if scalars.get(COUNT) == 0:
        return {path: {} for path in slots}
    kind = class_name(preset.link)
    if kind == "Rprop":  # a step size of 0 is none yet
        slots = {path: slot if slot["step_size"].any() else {} for path, slot in slots.items()}
    if kind in ("SGD", "Muon"):
        return slots
    scalars.setdefault(COUNT, float(step))

    def numbers() -> dict[str, Any]:
        """Tensors of each parameter's own, since PyTorch counts in place."""
        made: dict[str, Any] = {name: torch.tensor(value) for name, value in scalars.items()}
        return made | {COUNT: int(scalars[COUNT])} if kind == "SparseAdam" else made

    return {path: slot | numbers() if slot else {} for path, slot in slots.items()}


def _group(preset: Place, found: list[Place], state: State) -> dict[str, Any]:
    """The arguments of a group: the recipe's, and the values that are in the state or that its schedules have next."""
    group = split_betas(to_group(preset.link))
    for place in found:
        if place.within(preset):
            values, _ = place.link.hyperparams.read(place.state_in(state)) if place.state_in(state) else ({}, {})
            changing = place.settable | place.link.hyperparams.schedules.keys()
            group |= {key: float(str(values[name])) for name in changing if (key := name_in_group(name, group))}
    return join_betas(group)


def entries_without_counterpart(found: list[Place], state: State) -> list[str]:
    """The entries of a state that PyTorch's optimizers have no place for."""

    def has_place(place: Place, entry: str) -> bool:
        if place.rule == "accumulate":  # between two windows it holds nothing
            return entry == "updates" or int(place.state_in(state)["count"]) == 0
        return entry in names_in_torch(place, state)

    return without_place(found, state, has_place)
