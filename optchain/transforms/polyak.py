"""The mean of the parameters of the later part of a run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.parameter_link import ParameterLink
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.averaging import SLOTS


@register
def polyak_average(t0: float = 1e6) -> Transformation:
    """Keeps the mean of the parameters from the update after `t0` on. A parameter link.

        average ← average + (params − average) / max(1, t − 1 − t0), with t counting calls from 1

    Until then it is the parameters themselves. `averaged_params(state)` and `finalize(params, state)` give the average.

    Args:
      t0: the number of calls before the average begins, a number >= 0; `math.inf` for never.

    Returns:
      A transformation with state `count, average`.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; `torch.optim.ASGD`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.sgd(1.0), optchain.polyak_average(0))
      >>> params, state = jnp.zeros(1), tx.init(jnp.zeros(1))
      >>> for _ in range(3):
      ...     params, state = tx.apply(params, state, grads=-jnp.ones(1))
      >>> optchain.averaged_params(state)  # of 2 and 3
      Array([2.5], dtype=float32)
    """
    arguments.check_number("t0", t0, arguments.NON_NEGATIVE_OR_NEVER)
    slot = SLOTS["average"]

    def init(params: Tree) -> dict[str, Any]:
        return {"count": jnp.zeros((), jnp.int32), "average": slot.init(params)}

    def project(params: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
        share = 1 / jnp.maximum(1.0, trees.floating(state["count"]) - t0)
        average = each_leaf(mean, params, state["average"], share=share)
        stored = jax.tree.map(slot.store, average, state["average"])
        return params, {"count": trees.increment(state["count"]), "average": stored}

    def mean(share: jax.Array) -> Callable[..., jax.Array]:
        # Where all of it is new the old one is out, whatever it was.
        return lambda p, average: jnp.where(share == 1, p, average + (p - average) * share)

    return ParameterLink(project, init, fields=["count"], slots=SLOTS, stage="average", rowwise=True)
