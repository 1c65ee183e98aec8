"""PyTorch: its optimizers with fused or foreach kernels, and what its users write around them."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optchain.cli.bench import recipes
from optchain.cli.bench.contenders.steps import UnavailableError
from optchain.cli.bench.counts import Counts
from optchain.cli.bench.recipes import Recipe
from optchain.core.trees import Tree


class TorchProgram:
    """A recipe in PyTorch: `call()` runs one step, and waits until it is done."""

    def __init__(self, recipe: Recipe, kernel: str, params: Tree, grads: Tree):
        torch: Any = importlib.import_module("torch")
        device = _device(torch, jax.default_backend())
        self._synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

        def tensor(leaf: jax.Array) -> Any:
            wide = torch.from_numpy(np.array(leaf, np.float32))
            return wide.to(device, getattr(torch, str(leaf.dtype)))

        model = torch.nn.ParameterList([torch.nn.Parameter(tensor(leaf)) for leaf in jax.tree.leaves(params)])
        self._parameters = list(model.parameters())
        self._grads = [tensor(leaf) for leaf in jax.tree.leaves(grads)]
        self._optimizer = _optimizer(torch, recipe, self._parameters, kernel)
        self._step = _with_average(torch, recipe, model, self._updating(torch, recipe))
        self._recipe = recipe

    def call(self) -> None:
        self._step()
        self._synchronize()

    def counts(self) -> Counts:
        """The bytes of the moments, the accumulator and the average."""
        moments = [x for state in self._optimizer.state.values() for x in state.values() if hasattr(x, "nbytes")]
        average = self._parameters if self._recipe.average else []  # of their sizes
        accumulators = [p.grad for p in self._parameters] if self._recipe.accumulate > 1 else []
        size = sum(p.numel() for p in self._parameters)
        total = sum(x.nbytes for x in [*moments, *average, *accumulators])
        return Counts(state_bytes=total / size, state_itemsize=max(moments, key=lambda x: x.nbytes).itemsize)

    def _updating(self, torch: Any, recipe: Recipe) -> Callable[[], None]:
        parameters, grads = self._parameters, self._grads

        def update() -> None:
            if recipe.skip_nonfinite:
                largest = torch.nn.utils.get_total_norm([p.grad for p in parameters], norm_type=float("inf"))
                if not torch.isfinite(largest):
                    return
            if recipe.global_clip:
                torch.nn.utils.clip_grad_norm_(parameters, recipes.MAX_NORM, foreach=True)
            if recipe.clip_by_norm:
                for p in parameters:
                    torch.nn.utils.clip_grad_norm_(p, recipes.MAX_NORM)
            self._optimizer.step()

        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        if recipe.accumulate == 1:
            return update

        # What `backward` does to `p.grad`, without a backward pass.
        accumulators = [torch.zeros_like(p) for p in parameters]
        for p, accumulator in zip(parameters, accumulators, strict=True):
            p.grad = accumulator
        count = 0

        def accumulate() -> None:
            nonlocal count
            if count == 0:
                torch._foreach_copy_(accumulators, grads)
            else:
                torch._foreach_add_(accumulators, grads)
            count += 1
            if count == recipe.accumulate:
                count = 0
                torch._foreach_div_(accumulators, recipe.accumulate)
                update()

        return accumulate


def _device(torch: Any, backend: str) -> str:
    """The device that JAX computes on."""
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise UnavailableError(f"PyTorch has no device here that is JAX's ({backend})")


def _optimizer(torch: Any, recipe: Recipe, parameters: list[Any], kernel: str) -> Any:
    kernels = {kernel: True}
    if recipe.rule == "sgd":
        return torch.optim.SGD(parameters, lr=recipes.LEARNING_RATE, momentum=recipes.SGD_MOMENTUM, **kernels)
    return torch.optim.AdamW(
        parameters, lr=recipes.LEARNING_RATE, eps=recipes.EPSILON, weight_decay=recipes.WEIGHT_DECAY, **kernels
    )


def _with_average(torch: Any, recipe: Recipe, model: Any, step: Callable[[], None]) -> Callable[[], None]:
    if not recipe.average:
        return step
    swa_utils = importlib.import_module("torch.optim.swa_utils")
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(recipes.AVERAGE_MOMENTUM))

    def step_and_average() -> None:
        step()
        average.update_parameters(model)

    return step_and_average
