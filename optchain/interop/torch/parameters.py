"""Parameters: a model's `state_dict` and a tree."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core.trees import Tree, leaves_with_paths, path_names, path_string
from optchain.interop.mapping import Entry, match, parameter_entries
from optchain.interop.torch.layouts import Transforms, inverse, layouts, native, to_array, transposed


def load_params(
    params: Tree, state_dict: Mapping[str, Any], names: Mapping[str, str], transforms: Transforms | None = None
) -> Tree:
    """The parameters of a model of PyTorch, as a tree like `params`.

    Args:
      params: a tree of the wanted structure, shapes and dtypes; arrays or `jax.ShapeDtypeStruct`.
      state_dict: the model's parameters by name: its `state_dict()` without buffers, or
        `dict(model.named_parameters())`.
      names: our path to PyTorch's name, of every parameter: `{"dense/kernel": "fc.weight"}`.
      transforms: how weights are laid out, where their paths do not tell: patterns of our paths to a kind of `LAYOUTS`,
        or to the order in which we have PyTorch's axes.

    Raises:
      ValueError: a parameter that only one side has (the message prints both), or a shape that differs.

    Example:
      >>> import jax.numpy as jnp, torch
      >>> from optchain.interop.torch import load_params
      >>> model = torch.nn.Linear(3, 2)
      >>> params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
      >>> load_params(params, model.state_dict(), {"kernel": "weight", "bias": "bias"})["kernel"].shape
      (3, 2)
    """
    theirs = [Entry(name, tuple(np.shape(tensor))) for name, tensor in state_dict.items()]
    ours = parameter_entries(params)
    position = dict(zip(match(ours, theirs, names, "PyTorch"), state_dict, strict=True))
    axes = layouts(params, transforms)
    leaves = []
    for index, (path, like) in enumerate(leaves_with_paths(params)):
        value = to_array(state_dict[position[index]], position[index])
        leaves.append(transposed(value, axes[path_names(path)], like, path_string(path), position[index]))
    return jax.tree.unflatten(jax.tree.structure(params), [jnp.array(leaf) for leaf in leaves])


def params_to_state_dict(
    params: Tree, names: Mapping[str, str], transforms: Transforms | None = None
) -> dict[str, Any]:
    """The parameters as a `state_dict` for `model.load_state_dict`: the inverse of `load_params`.

    Args:
      params: the parameters.
      names: our path to PyTorch's name, of every parameter.
      transforms: as in `load_params`.

    Raises:
      ValueError: names that are not those of the parameters.
    """
    import torch

    theirs = [Entry(name, ()) for name in names.values()]
    leaves, axes = leaves_with_paths(params), layouts(params, transforms)
    made = {}
    for name, index in zip(names.values(), match(parameter_entries(params), theirs, names, "PyTorch"), strict=True):
        path, leaf = leaves[index]
        made[name] = torch.from_numpy(native(np.asarray(leaf).transpose(inverse(axes[path_names(path)]))))
    return made
