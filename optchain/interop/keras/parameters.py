"""The parameters of a Keras model, as a tree and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import trees
from optchain.core.trees import Tree
from optchain.interop.keras import sources
from optchain.interop.mapping import Correspondence, Entry, both_sides, parameter_entries


def load_params(params: Tree, source: Any, mapping: Correspondence = None) -> Tree:
    """The trainable variables of a Keras model, as a tree like `params`.

    Kernels have the same layout in Keras and in Flax. The running statistics of BatchNormalization are no parameters, and are
    left where they are.

    Args:
      params: the parameters of the same model here, for their paths, shapes and dtypes.
      source: a live model, or the path of a `.keras` archive. Of a `.weights.h5` file too, with a table whose names are the
        file's own, `{"Dense_0/kernel": "layers/dense/vars/0", …}`.
      mapping: which parameter is which variable, as in `load_state`.

    Returns:
      A fresh tree of the structure and the dtypes of `params`.

    Raises:
      ValueError: as `load_state`.
    """
    ours = parameter_entries(params)
    with sources.source_of(source) as found:
        model = list(found.model)
        if not found.ordered:
            table = set(mapping.values()) if isinstance(mapping, Mapping) else set()
            model = [(name, variable) for name, variable in model if name in table]
            if len(model) != len(ours):
                raise ValueError(
                    f"{found.name}: {found.unnamed}. Give a table {{path: place}} of every parameter, with places of the "
                    f"file.\n{both_sides(ours, found.variable_entries(), found.name)}"
                )
        theirs = [Entry(name, variable.shape) for name, variable in model]
        positions = sources.matched(ours, theirs, mapping, found.name)
        values = {position: variable.read() for (_, variable), position in zip(model, positions, strict=True)}
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [jnp.array(values[index], trees.dtype_of(leaf), copy=True) for index, leaf in enumerate(leaves)]
    )


def save_params(params: Tree, model: Any, mapping: Correspondence = None) -> None:
    """Gives a live Keras model the parameters: all, or none if they do not fit.

    Args:
      params: the parameters.
      model: the model, or anything with `trainable_variables`.
      mapping: which parameter is which variable, as in `load_state`.

    Raises:
      ValueError: as `load_state`.
    """
    variables = list(model.trainable_variables)
    ours, theirs = parameter_entries(params), [Entry(v.path, tuple(v.shape)) for v in variables]
    positions = sources.matched(ours, theirs, mapping, "the model")
    leaves = jax.tree.leaves(params)
    for variable, position in zip(variables, positions, strict=True):
        variable.assign(np.asarray(leaves[position]))
