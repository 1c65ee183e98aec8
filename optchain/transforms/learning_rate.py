"""The learning rate: where gradients become updates."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def scale_by_learning_rate(learning_rate: Hyperparam | None = None) -> Transformation:
    """Turns gradients into updates: `u = −learning_rate · g`.

    Args:
      learning_rate: >= 0; None for the rate of the chain, `chain(…, learning_rate=…)`. With a rate of its own the link
        keeps it in its own state and evaluates a schedule at its own count of calls; `decay_weights` does not see it.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_learning_rate(0.5)
      >>> tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))[0]
      Array([-1.], dtype=float32)
    """
    own = Hyperparams() if learning_rate is None else Hyperparams(learning_rate=learning_rate)

    def update(updates: Tree, state: dict, params: Tree, *, learning_rate: jax.Array) -> tuple[Tree, dict]:
        return trees.scale(updates, -learning_rate), state

    return Transformation(update=update, hyperparams=own, stage="learning_rate", rowwise=True)


@register
def scale_by_relative_step() -> Transformation:
    """Turns relative steps into updates, at the chain's learning rate or less: `u = −min(learning_rate, 1/√t) · g`.

    `t` counts updates from 1. It is Adafactor's, whose steps are relative to the size of the parameters
    (`scale_by_param_block_rms`).

    Returns:
      A transformation with state `count`, that needs the learning rate of the chain.

    Source: Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, section 9.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.scale_by_relative_step(), learning_rate=2.0)
      >>> tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))[0]
      Array([-1.], dtype=float32)
    """

    def init(params: Tree) -> dict[str, Any]:
        return {"count": jnp.zeros((), jnp.int32)}

    def update(updates: Tree, state: dict, params: Tree, *, learning_rate: jax.Array) -> tuple[Tree, dict]:
        count = trees.increment(state["count"])
        rate = jnp.minimum(trees.floating(learning_rate), 1 / jnp.sqrt(trees.floating(count)))
        return trees.scale(updates, -rate), {"count": count}

    return Transformation(init, update, fields=["count"], stage="learning_rate")
