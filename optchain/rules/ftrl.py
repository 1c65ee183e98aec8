"""Follow the regularized leader: parameters as the solution of a regularized problem, not as a sum of steps."""

import dataclasses

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import abs_square, is_complex, root
from optchain.rules.moments import magnitude

SLOTS = declare(
    sum_of_squares=Slot(
        real=True, nonnegative=True, narrowest="float32"
    ),  # the initial value and the squares of all gradients: `n` in the paper
    linear_term=Slot(narrowest="float32"),  # the linear term of the problem that the parameters solve: `z` in the paper
)


@register
def apply_ftrl(
    learning_rate_power: float = -0.5,
    initial_accumulator_value: float = 0.1,
    l1_regularization_strength: Hyperparam = 0.0,
    l2_regularization_strength: Hyperparam = 0.0,
    l2_shrinkage_regularization_strength: Hyperparam = 0.0,
    beta: Hyperparam = 0.0,
) -> Transformation:
    """Turns gradients into the updates that take the parameters to FTRL-Proximal's, at the chain's learning rate `lr`:

        n' = n + |g|²
        z ← z + g + 2 · l2_shrinkage · p − (n'^−power − n^−power) / lr · p
        n ← n'
        p ← (clip(z, −l1, l1) − z) / ((n^−power + β) / lr + 2 · l2)

    The learning rate is in it: no `scale_by_learning_rate` follows. As in Keras the parameters are made from `z` alone, so
    that the first step shrinks what they were initialized with. A learning rate of 0 leaves parameters and state alone, and
    so does a divisor of 0 the parameters; Keras divides, and gets NaN. Where `n^−power` is infinite, parameters and `z` stay
    as they are from then on; where only the rest is beyond the range, for this step, and `n` too. The clip of a complex number
    is by its magnitude.

    Args:
      learning_rate_power: the power of the sum of squares, a number <= 0; 0 for a fixed learning rate.
      initial_accumulator_value: the value from which the sum of squared gradients starts, a number >= 0.
      l1_regularization_strength: >= 0; above 0 it makes parameters exactly 0.
      l2_regularization_strength: >= 0; it is part of the problem that is solved.
      l2_shrinkage_regularization_strength: >= 0; it is added to the gradient.
      beta: >= 0; as a growth of `l2_regularization_strength` by `beta / (2 · lr)`.

    Returns:
      A transformation with state `sum_of_squares, linear_term`, that needs the parameters.

    Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013, KDD, Algorithm 1; `keras.optimizers.Ftrl`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.apply_ftrl(l1_regularization_strength=0.1), learning_rate=0.5)
      >>> params = jnp.zeros(2)
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([1.0, 0.01]))
      >>> [round(float(p), 3) for p in params]
      [-0.429, 0.0]
    """
    for name, value in [
        ("learning_rate_power", learning_rate_power),
        ("initial_accumulator_value", initial_accumulator_value),
    ]:
        arguments.check_number(name, value, arguments.RANGES[name])

    def step(
        learning_rate: jax.Array,
        l1_regularization_strength: jax.Array,
        l2_regularization_strength: jax.Array,
        l2_shrinkage_regularization_strength: jax.Array,
        beta: jax.Array,
    ) -> Leaf:
        l1, l2, shrinkage = (
            l1_regularization_strength,
            l2_regularization_strength,
            l2_shrinkage_regularization_strength,
        )
        moves = learning_rate > 0
        lr = jnp.where(moves, learning_rate, 1)

        def leaf(g: jax.Array, p: jax.Array, sum_of_squares: jax.Array, linear_term: jax.Array) -> LeafUpdate:
            n, z = sum_of_squares, linear_term
            new_n = n + abs_square(g)
            power = _power(new_n, -learning_rate_power)
            sigma = (power - _power(n, -learning_rate_power)) / lr
            new_z = z + (g + 2 * shrinkage * p - sigma * p)
            divisor = (power + beta) / lr + 2 * l2
            solvable = divisor != 0
            solved = (_clip(new_z, l1) - new_z) / jnp.where(solvable, divisor, 1)
            in_range = jnp.isfinite(divisor) & jnp.isfinite(new_z)
            u = jnp.where(in_range, jnp.where(solvable, solved - p, 0), 0 * g)  # NaN where g is not finite
            counts = in_range | jnp.isinf(power)
            return jnp.where(moves, u, 0), {
                "sum_of_squares": jnp.where(moves & counts, new_n, n),
                "linear_term": jnp.where(moves & in_range, new_z, z),
            }

        return leaf

    start = dataclasses.replace(SLOTS["sum_of_squares"], start=initial_accumulator_value)
    return rule(
        step,
        slots={**SLOTS, "sum_of_squares": start},
        hyperparams={
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
            "beta": beta,
        },
        stage="learning_rate",
        needs_params=True,
    )


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """`x ** exponent` of numbers >= 0, whose gradient is no NaN at 0."""
    if exponent == 0.5:
        return root(x)
    positive = x > 0
    at_zero = jnp.ones_like(x) if exponent == 0 else jnp.zeros_like(x)
    return jnp.where(positive, jnp.where(positive, x, jnp.ones_like(x)) ** exponent, at_zero)


def _clip(z: jax.Array, bound: jax.Array | float) -> jax.Array:
    """The number, its magnitude at most `bound`."""
    if not is_complex(z):
        return jnp.clip(z, -bound, bound)
    size = magnitude(z)
    above = size > bound
    return z * jnp.where(above, bound / jnp.where(above, size, 1), 1)
