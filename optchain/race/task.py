"""What a race is run on: parameters, batches, a loss, a held-out loss."""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.trees import Tree

Shape: TypeAlias = Callable[[jax.Array], jax.Array]
"""The share of its highest that a learning rate has at a step."""

WARMUP = 0.1


@dataclasses.dataclass(frozen=True)
class Task:
    """A small problem that a recipe can be judged by.

    All of it is traced under `jax.vmap`: several runs are one program. The data of a split that never changes can be
    arrays that the functions close over.

    Args:
      name: what the task is called, in tables and in the names of folders.
      init: `init(key)` makes fresh parameters.
      batch: `batch(key)` draws a batch, a pytree of arrays whose first axis is that of the examples. It is called with
        another key at every step; the same seed gives the same keys whatever the recipe is.
      loss: `loss(params, batch)` is the mean loss of a batch, a scalar. A table that it reads by `optchain.rows_of` has
        gradients that name rows.
      held_out_loss: `held_out_loss(params)` is the loss on examples that no batch has.
      steps: how many batches a run sees; a multiple of `evaluations`.
      evaluations: how often the held-out loss is taken, at equal distances.
      target: the held-out loss to which steps are counted; None counts to where the mean run of the reference ends.
      about: a line that says what it is.

    Raises:
      ValueError: a number out of range; steps that are no multiple of the evaluations.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optchain.race import Task
      >>> line = Task(
      ...     "line",
      ...     init=lambda key: jnp.zeros(2),
      ...     batch=lambda key: jax.random.normal(key, (16, 2)),
      ...     loss=lambda w, x: jnp.mean((x @ (w - 1.0)) ** 2),
      ...     held_out_loss=lambda w: jnp.sum((w - 1.0) ** 2),
      ...     steps=100,
      ... )
      >>> line.shortened(4).steps
      20
    """

    name: str
    init: Callable[[jax.Array], Tree]
    batch: Callable[[jax.Array], Tree]
    loss: Callable[[Tree, Any], jax.Array]
    held_out_loss: Callable[[Tree], jax.Array]
    steps: int
    evaluations: int = 20
    target: float | None = None
    about: str = ""

    def __post_init__(self) -> None:
        for name in ("steps", "evaluations"):
            object.__setattr__(self, name, arguments.check_integer(name, getattr(self, name), minimum=1))
        if self.target is not None:
            if not arguments.is_number(self.target) or not math.isfinite(self.target):
                raise ValueError(f"target must be a finite number or None; got {self.target!r}")
            object.__setattr__(self, "target", float(self.target))
        if self.steps % self.evaluations:
            raise ValueError(f"steps must be a multiple of evaluations, {self.evaluations}; got {self.steps}")
        if not self.name or not all(c.isalnum() or c in "-_.=" for c in self.name) or self.name.startswith("."):
            raise ValueError(f"name must be letters, digits, '-', '_', '.' and '='; got {self.name!r}")

    def shortened(self, times: int) -> "Task":
        """The task with fewer steps, and as many evaluations. Its target is not one to be reached in so few."""
        times = arguments.check_integer("times", times, minimum=1)
        chunks = max(1, self.steps // (times * self.evaluations))
        return dataclasses.replace(self, steps=chunks * self.evaluations, target=None)

    def shapes(self) -> Any:
        """The parameters' shapes and dtypes.

        Raises:
          ValueError: no parameters, no batch, or a loss that is no real scalar.
        """
        params, batch = (jax.eval_shape(function, jax.random.key(0)) for function in (self.init, self.batch))
        for name, made in {"init": params, "batch": batch}.items():
            if not jax.tree.leaves(made):
                raise ValueError(f"{name} must return a pytree with arrays; it returned {made}")
        losses = {
            "loss": jax.eval_shape(self.loss, params, batch),
            "held_out_loss": jax.eval_shape(self.held_out_loss, params),
        }
        for name, made in losses.items():
            if getattr(made, "shape", None) != () or not jnp.issubdtype(made.dtype, jnp.floating):
                raise ValueError(f"{name} must return a real scalar; it returned {made}")
        return params

    def digest(self) -> str:
        """A digest of all that the task computes, data and constants too: another one, and numbers may be others.

        It is that of the compiler's input, so that it depends on the version of JAX.
        """

        def everything(key: jax.Array, params: Tree, batch: Tree) -> Any:
            return self.init(key), self.batch(key), self.loss(params, batch), self.held_out_loss(params)

        key = jax.random.key(0)
        shapes = (jax.eval_shape(function, key) for function in (self.init, self.batch))
        program = jax.jit(everything).trace(key, *shapes).lower(lowering_platforms=("cpu",)).as_text()
        numbers = (self.steps, self.evaluations, self.target)
        return hashlib.sha256(f"{numbers} {program}".encode()).hexdigest()[:16]


def cosine(steps: int) -> Shape:
    """A linear warmup over a tenth of the steps, then half a cosine down to zero after the last."""
    warmup = max(1, int(WARMUP * steps))

    def share(step: jax.Array) -> jax.Array:
        left = 0.5 * (1 + jnp.cos(jnp.pi * (step - warmup) / max(steps - warmup, 1)))
        return jnp.where(step < warmup, (step + 1) / warmup, left)

    return share


def constant(steps: int) -> Shape:
    """A linear warmup over a tenth of the steps, then the highest rate."""
    warmup = max(1, int(WARMUP * steps))
    return lambda step: jnp.minimum((step + 1) / warmup, 1.0)
