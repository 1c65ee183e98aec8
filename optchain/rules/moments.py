"""What the rules with moments share."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import trees
from optchain.core.hyperparams import Hyperparam


def one_minus_power(beta: Hyperparam, t: jax.Array) -> jax.Array:
    """The bias correction `1 − βᵗ`, with β in the dtype of `t` first, as Keras has it."""
    return 1 - jnp.asarray(beta, t.dtype) ** t


def magnitude(x: jax.Array) -> jax.Array:
    """`|x|`, whose gradient is no NaN at a complex zero."""
    return trees.root(trees.abs_square(x)) if trees.is_complex(x) else jnp.abs(x)


def average(old: jax.Array, new: jax.Array, beta: Any) -> jax.Array:
    """The decaying average one step on: `old + (1 − β)(new − old)`."""
    return old + (new - old) * (1 - beta)


def average_of_squares(old: jax.Array, x: jax.Array, beta: Any) -> jax.Array:
    """The decaying average of `|x|²` one step on: `old + (1 − β)(|x|² − old)`.

    Multiplied in PyTorch's order, `(1 − β) · x · x`, which overflows later than `x²`.
    """
    share = 1 - beta
    return unless_infinite(old, old + (scaled_square(share, x) - share * old))


def unless_infinite(old: jax.Array, new: jax.Array) -> jax.Array:
    """A second moment one step on; one that was infinite stays so.

    A rule that divides by its root makes no step then, where ∞ − ∞ or 0 · ∞ would make it NaN.
    """
    return jnp.where(jnp.isinf(old), old, new)


def scaled_square(factor: Any, x: jax.Array) -> jax.Array:
    """`factor · |x|²`, multiplied in this order, real."""
    if trees.is_complex(x):
        return scaled_square(factor, x.real) + scaled_square(factor, x.imag)
    return factor * x * x
