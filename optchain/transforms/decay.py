"""Decoupled weight decay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def decay_weights(
    weight_decay: Hyperparam, *, learning_rate: Hyperparam | None = None, mask: Mask | None = None
) -> Transformation:
    """Subtracts a fraction of the parameters: `u ← u − learning_rate · weight_decay · params`.

    It stands after the learning rate, and reads the parameters as they were before the step: the convention of Keras and
    PyTorch. With `learning_rate=1.0` it is the paper's, whose decay is not multiplied by the learning rate (Algorithm 2 of
    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101); a schedule as `weight_decay`
    then gives the paper's multiplier η.

    Args:
      weight_decay: the fraction, >= 0, without unit. A schedule is followed, and multiplied by the rate of the step, as a number
        is. With 0, a number or an array, `update` needs no parameters; if an array is set to another value later, a call
        without them is an error, or NaN where it is compiled.
      learning_rate: None for the rate of the chain; or a rate of its own.
      mask: which parameters decay: a tree of bools (or a prefix of one), or a callable of the parameters that returns one,
        such as `~matching("bias")`. None for all.

    Raises:
      ValueError: when called without parameters that it needs, or with a mask that does not fit them.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.decay_weights(0.5, learning_rate=0.1, mask=~optchain.matching("bias"))
      >>> params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
      >>> zero = {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}
      >>> tx.update(zero, tx.init(params), params)[0]
      {'bias': Array([0.], dtype=float32), 'kernel': Array([-0.1], dtype=float32)}

      The paper's Algorithm 2, `p ← p − η (α · mu / (√nu + ε) + λ p)`, whose decay λ is that of no learning rate α, and
      whose η multiplies both:

      >>> optchain.chain(
      ...     optchain.scale_by_adam(epsilon_hat=False),
      ...     optchain.scale_by_learning_rate(),
      ...     optchain.decay_weights(0.01, learning_rate=1.0),
      ...     ("eta", optchain.scale(optchain.schedules.CosineAnnealingLR(1.0, T_max=1000))),
      ...     learning_rate=0.001,
      ... )
      chain(
          scale_by_adam(epsilon_hat=False),
          scale_by_learning_rate(),
          decay_weights(0.01, learning_rate=1.0),
          ('eta', scale(CosineAnnealingLR(1.0, 1000))),
          learning_rate=0.001,
      )
    """
    own = {} if learning_rate is None else {"learning_rate": learning_rate}
    hyperparams = Hyperparams(weight_decay=weight_decay, **own)
    if mask is not None:
        check_mask("mask", mask)

    def init(params: Tree) -> dict:
        resolve_mask("mask", mask, params)
        return {}

    def update(
        updates: Tree, state: dict, params: Tree, *, learning_rate: jax.Array, weight_decay: jax.Array
    ) -> tuple[Tree, dict]:
        if params is None:
            return check_still_zero(weight_decay, updates), state

        flags = resolve_mask("mask", mask, params)
        updates = each_leaf(step, updates, params, flags, learning_rate=learning_rate, weight_decay=weight_decay)
        return updates, state

    def step(learning_rate: jax.Array, weight_decay: jax.Array) -> Callable[..., jax.Array]:
        rate = learning_rate * weight_decay
        return lambda u, p, decays: u - rate * p if decays else u

    return Transformation(
        init, update, hyperparams=hyperparams, stage="decay", needs_params=not is_zero(weight_decay), rowwise=True
    ).with_effects(lambda params: {"weight_decay": resolve_mask("mask", mask, params)})


def is_zero(weight_decay: Hyperparam) -> bool:
    """Whether it is 0, a number or an array of which the value is known: there is nothing to read the parameters for."""
    if callable(weight_decay) or arguments.is_traced(weight_decay):
        return False
    return float(weight_decay) == 0


def check_still_zero(weight_decay: Any, updates: Tree) -> Tree:
    """The updates of a call without parameters, for which the decay must be 0 as it was when the link was built.

    A value that was set since is refused; where it is traced, and cannot be looked at, the updates are NaN.
    """
    if not arguments.is_traced(weight_decay):
        if float(weight_decay) != 0:
            raise ValueError(f"a weight_decay of {float(weight_decay)} needs the parameters, and update() got none")
        return updates
    return each_leaf(lambda decay: lambda u: jnp.where(decay == 0, u, jnp.nan), updates, decay=weight_decay)
