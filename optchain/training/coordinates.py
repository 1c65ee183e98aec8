"""The coordinate check of muP: whether activations move as much in a wide network as in a narrow one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments
from optchain.core.optax_link import as_transformation
from optchain.core.trees import Tree
from optchain.training.step import make_step


def coordinate_sizes(
    tx: optax.GradientTransformation,
    params: Tree,
    loss_fn: Callable[[Tree], Any],
    activations: Callable[[Tree], Mapping[str, jax.Array]],
    steps: int = 4,
) -> dict[str, jax.Array]:
    """How far the numbers of each activation have moved after each step: `mean |h_t − h_0|`.

    Under muP they are about the same at all widths. What grows with the width would blow up in a large network, what falls
    does not learn. Call it once a width, and draw the results over the widths.

    Args:
      tx: the recipe at this width.
      params: the parameters at this width.
      loss_fn: the loss, a function of the parameters to a real scalar: always on the same batch.
      activations: from the parameters to a dict of arrays by name, none of them empty, on a batch of one's choice.
      steps: the number of steps, >= 1.

    Returns:
      For each name the means after steps 1, 2, …, an array of shape (steps,).

    Raises:
      TypeError, ValueError: a `steps` out of range, something that is no function or no transformation, a function that
        returns something else.

    Source: Yang et al., "Tensor Programs V", 2022, arXiv:2203.03466, appendix D.1.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> sizes = optchain.coordinate_sizes(optchain.sgd(0.5), jnp.ones(3), lambda p: p.sum(), lambda p: {"out": p}, steps=2)
      >>> sizes["out"]
      Array([0.5, 1. ], dtype=float32)
    """
    steps = arguments.check_integer("steps", steps, minimum=1)
    arguments.check_function("loss_fn", loss_fn)
    arguments.check_function("activations", activations)
    link = as_transformation(tx, "tx")
    _check_returns(jax.eval_shape(loss_fn, params), jax.eval_shape(activations, params))

    take_step = make_step(loss_fn, link)

    @jax.jit
    def run(params: Tree, state: Tree) -> dict[str, jax.Array]:
        before = dict(activations(params))

        def step(carry: tuple[Tree, Tree], _: None) -> tuple[tuple[Tree, Tree], dict[str, jax.Array]]:
            params, state = take_step(*carry)[:2]
            after = activations(params)
            return (params, state), {name: jnp.mean(jnp.abs(after[name] - before[name])) for name in before}

        return jax.lax.scan(step, (params, state), length=steps)[1]

    return run(params, link.init(params))


def _check_returns(loss: Any, found: Any) -> None:
    if not (hasattr(loss, "dtype") and loss.shape == () and jnp.issubdtype(loss.dtype, jnp.floating)):
        raise TypeError(f"loss_fn must return a real scalar, without auxiliary output; it returned {loss!r}")
    if not isinstance(found, Mapping) or not all(hasattr(array, "dtype") for array in found.values()):
        raise TypeError(f"activations must return a dict of arrays by name; it returned {found!r}")
    if empty := [name for name, array in found.items() if not array.size]:
        raise ValueError(
            f"activations must return arrays that have numbers; {empty[0]!r} has shape {found[empty[0]].shape}"
        )
