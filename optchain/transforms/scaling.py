"""Scaling by a factor: one for all parameters, or one for each by its path."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import check_patterns, first_match
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def scale(factor: Hyperparam) -> Transformation:
    """Multiplies by a factor: `u ← factor · u`.

    `scale(-1.0)` before everything else climbs instead of descending, which is PyTorch's `maximize`. A schedule as `factor`
    multiplies the learning rate without owning it; decay that stands after it is not scaled.

    Args:
      factor: a finite number, a scalar array, a schedule of the link's own count of calls (within a gate these are
        updates), or a callable of no arguments.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.scale(-1.0), optchain.sgd(0.5))
      >>> tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))[0]
      Array([1.], dtype=float32)
    """

    def update(updates: Tree, state: dict, params: Tree, *, factor: jax.Array) -> tuple[trees.Scaled, dict]:
        return trees.rescale(updates, jnp.asarray(factor, trees.default_float())), state

    return Transformation(
        update=update, hyperparams=Hyperparams(factor=factor), accepts=["scaled", "rows"], rowwise=True
    )


@register(ordered=["factors"])
def scale_by_path(factors: Mapping[str, float]) -> Transformation:
    """Multiplies each parameter's update by a factor of its own: learning-rate multipliers by layer.

    The first pattern that is found in a parameter's path decides, searched as `matching` searches; where none is found the
    factor is 1. It stands after the learning rate; decay that stands after it is not scaled, decay before it is. Where the
    velocity of `apply_momentum` follows or precedes it makes no difference, since the factors are constant.

    Args:
      factors: a number >= 0 for each regular expression, in the order in which they are tried; 0 holds parameters still.

    Raises:
      TypeError, ValueError: a pattern that is no regular expression, a factor out of range; at init or update, a pattern
        that decides for no parameter (the message lists the paths).

    Source: layer-wise decay of the learning rate, Howard & Ruder, "Universal Language Model Fine-tuning for Text
    Classification", 2018, arXiv:1801.06146, section 3.2.

    Example:
      Each layer below the head learns 0.8 times as fast as the one above it:

      >>> import jax.numpy as jnp, optchain
      >>> layers = ["embed", "blocks/0", "blocks/1", "head"]
      >>> factors = {f"^{layer}": 0.8 ** (len(layers) - 1 - depth) for depth, layer in enumerate(layers)}
      >>> tx = optchain.chain(optchain.sgd(1.0), optchain.scale_by_path(factors))
      >>> params = {"embed": jnp.zeros(1), "blocks": [jnp.zeros(1), jnp.zeros(1)], "head": jnp.zeros(1)}
      >>> params, state = tx.apply(params, tx.init(params), grads={name: jax.tree.map(jnp.ones_like, p) for name, p in params.items()})
      >>> params["blocks"]
      [Array([-0.64], dtype=float32), Array([-0.8], dtype=float32)]
    """
    check_patterns("factors", factors)
    for pattern, factor in factors.items():
        arguments.check_number(f"factors[{pattern!r}]", factor, arguments.NON_NEGATIVE)
    numbers = {pattern: float(factor) for pattern, factor in factors.items()}

    def init(params: Tree) -> dict:
        first_match("factors", numbers, 1.0, params)
        return {}

    def update(updates: Tree, state: dict, params: Tree) -> tuple[Tree, dict]:
        return jax.tree.map(trees.scale_leaf, updates, first_match("factors", numbers, 1.0, updates)), state

    return Transformation(init, update, rowwise=True).with_effects(
        lambda params: {"rate": first_match("factors", numbers, 1.0, params)}
    )
