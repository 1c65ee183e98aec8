"""Adagrad's rule: the gradient over the root of the sum of its squares."""

import dataclasses

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import abs_square, root

SLOTS = declare(
    sum_of_squares=Slot(real=True, nonnegative=True),  # the initial value and the squares of all gradients
)


@register
def scale_by_rss(
    initial_accumulator_value: float = 0.1, epsilon: Hyperparam = 1e-7, *, epsilon_in_root: bool = True
) -> Transformation:
    """Divides gradients by the root of the sum of their squares:

        sum_of_squares ← sum_of_squares + |g|²
        u = g / √(sum_of_squares + ε), or with `epsilon_in_root=False`: g / (√sum_of_squares + ε)

    Where the denominator is 0, so is `u`. The sign is the gradient's, and the learning rate is not in it: `scale_by_learning_rate` follows.

    Args:
      initial_accumulator_value: the value from which the sum starts, a number >= 0.
      epsilon: what keeps the quotient finite, >= 0; in the units of the squared gradient within the root, of the gradient
        outside it.
      epsilon_in_root: whether ε is added within the root (Keras, TensorFlow) or to it (PyTorch).

    Returns:
      A transformation with state `sum_of_squares`.

    Source: Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011, JMLR 12.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_rss(0.0)
      >>> updates, state = tx.update(jnp.array([3.0]), tx.init(jnp.zeros(1)))
      >>> updates, state = tx.update(jnp.array([4.0]), state)
      >>> updates
      Array([0.8], dtype=float32)
    """
    arguments.check_number(
        "initial_accumulator_value", initial_accumulator_value, arguments.RANGES["initial_accumulator_value"]
    )
    epsilon_in_root = arguments.check_bool("epsilon_in_root", epsilon_in_root)

    def step(epsilon: jax.Array) -> Leaf:
        def leaf(g: jax.Array, sum_of_squares: jax.Array) -> LeafUpdate:
            n = sum_of_squares + abs_square(g)
            size = root(n + epsilon) if epsilon_in_root else root(n) + epsilon
            return jnp.where(size == 0, 0, g / size), {"sum_of_squares": n}

        return leaf

    start = dataclasses.replace(SLOTS["sum_of_squares"], start=initial_accumulator_value)
    return rule(step, slots={"sum_of_squares": start}, hyperparams={"epsilon": epsilon}, stage="second_moment")
