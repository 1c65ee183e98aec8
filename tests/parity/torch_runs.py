"""Runs of PyTorch's optimizers, to hold ours against."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import optchain

from .helpers import BOUNDS, FORMS, Tree, precision, random_grads, random_params, run, worst_error

torch = pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")

STEPS = 50


def check(
    name: str,
    dtype: str,
    seed: int,
    ours: optchain.Transformation,
    build: Callable[[list[Any]], Any],
    record_error: Callable,
    rate: Callable[[int], float] | None = None,
) -> None:
    rng = np.random.default_rng(seed)
    params, grads = random_params(rng, dtype), random_grads(rng, dtype, STEPS)
    expected = run_torch(build, params, grads, rate)
    with precision(dtype):
        for form in FORMS:
            error = worst_error(run(ours, params, grads, form)[0], expected)
            record_error(("PyTorch", name, dtype, form), error)
            assert error <= BOUNDS[dtype], form


def run_torch(
    build: Callable[[list[Any]], Any], params: Tree, grads: list[Tree], rate: Callable[[int], float] | None
) -> list[Tree]:
    """The parameters after every step."""
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
    leaves = [torch.tensor(value, requires_grad=True) for value in values]
    optimizer = build(leaves)
    for number, g in enumerate(grads):
        if rate is not None:
            optimizer.param_groups[0]["lr"] = rate(number)
        for leaf, value in zip(leaves, g, strict=True):
            leaf.grad = torch.tensor(value)
        optimizer.step()
        yield [leaf.detach().numpy().copy() for leaf in leaves]
