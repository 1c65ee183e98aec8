"""Runs of the live PyTorch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from optchain.verification.runs import Tree


def run_torch(
    build: Callable[[list[Any]], Any],
    params: Tree,
    grads: list[Tree],
    rate: Callable[[int], float] | None = None,
) -> list[Tree]:
    """The parameters after every step of the optimizer that `build` makes of them, at a `rate` of the step."""
    import torch

    values, treedef = jax.tree.flatten(params)
    default = torch.get_default_dtype()
    torch.set_default_dtype(
        torch.float64 if values[0].dtype == np.float64 else torch.float32
    )  # NAdam's scalars have it
    try:
        return [treedef.unflatten(leaves) for leaves in _torch_steps(build, values, map(jax.tree.leaves, grads), rate)]
    finally:
        torch.set_default_dtype(default)


def _torch_steps(
    build: Callable[[list[Any]], Any],
    values: list[np.ndarray],
    grads: Iterable[list[np.ndarray]],
    rate: Callable[[int], float] | None,
) -> Iterator[list[np.ndarray]]:
    import torch

    leaves = [torch.tensor(value, requires_grad=True) for value in values]
    optimizer = build(leaves)
    for number, g in enumerate(grads):
        if rate is not None:
            optimizer.param_groups[0]["lr"] = rate(number)
        for leaf, value in zip(leaves, g, strict=True):
            leaf.grad = torch.tensor(value)
        optimizer.step()
        yield [leaf.detach().numpy().copy() for leaf in leaves]
