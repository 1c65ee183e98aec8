"""Follow the regularized leader: parameters as the solution of a regularized problem, not as a sum of steps."""

from typing import TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.moments import magnitude


class ApplyFtrlState(TypedDict):
    sum_of_squares: Tree
    """The initial value and the squares of all gradients, real: `n` in the paper."""
    linear_term: Tree
    """The linear term of the problem that the parameters solve: `z` in the paper."""


SLOTS = declare(
    sum_of_squares=Slot(real=True),  # the initial value and the squares of all gradients: `n` in the paper
    linear_term=Slot(),  # the linear term of the problem that the parameters solve: `z` in the paper
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
    so does a divisor of 0 the parameters; Keras divides, and gets NaN. The clip of a complex number is by its magnitude.

    Args:
      learning_rate_power: the power of the sum of squares, a number <= 0; 0 for a fixed learning rate.
      initial_accumulator_value: what the sum of squared gradients starts from, a number >= 0.
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
    hyperparams = Hyperparams(
        l1_regularization_strength=l1_regularization_strength,
        l2_regularization_strength=l2_regularization_strength,
        l2_shrinkage_regularization_strength=l2_shrinkage_regularization_strength,
        beta=beta,
    )

    def init(params: Tree) -> ApplyFtrlState:
        zeros = trees.zeros_like(params, real=True)
        start = jax.tree.map(lambda zero: jnp.full_like(zero, initial_accumulator_value), zeros)
        return {"sum_of_squares": start, "linear_term": trees.zeros_like(params)}

    def update(
        updates: Tree,
        state: ApplyFtrlState,
        params: Tree,
        *,
        learning_rate: jax.Array,
        l1_regularization_strength: jax.Array,
        l2_regularization_strength: jax.Array,
        l2_shrinkage_regularization_strength: jax.Array,
        beta: jax.Array,
    ) -> tuple[Tree, ApplyFtrlState]:
        def step(g: jax.Array, p: jax.Array, n: jax.Array, z: jax.Array) -> tuple[jax.Array, ...]:
            g = trees.wide(g)
            p = trees.astype(p, g.dtype)
            l1, l2, shrinkage, b, rate = (
                trees.cast(value, n)
                for value in (
                    l1_regularization_strength,
                    l2_regularization_strength,
                    l2_shrinkage_regularization_strength,
                    beta,
                    learning_rate,
                )
            )
            moves = rate > 0
            lr = jnp.where(moves, rate, jnp.ones_like(rate))
            new_n = n + trees.abs_square(g)
            power = _power(new_n, -learning_rate_power)
            sigma = (power - _power(n, -learning_rate_power)) / lr
            shrunk = g + trees.astype(2 * shrinkage, g.dtype) * p
            new_z = z + (shrunk - trees.astype(sigma, g.dtype) * p)
            divisor = (power + b) / lr + 2 * l2
            solvable = divisor > 0
            solved = (_clip(new_z, l1) - new_z) / trees.astype(
                jnp.where(solvable, divisor, jnp.ones_like(divisor)), g.dtype
            )
            u = jnp.where(moves & solvable, solved - p, jnp.zeros_like(p))
            return u, jnp.where(moves, new_n, n), jnp.where(moves, new_z, z)

        updates, sum_of_squares, linear_term = trees.map_unzip(
            step, 3, updates, params, state["sum_of_squares"], state["linear_term"]
        )
        return updates, {"sum_of_squares": sum_of_squares, "linear_term": linear_term}

    return Transformation(
        init,
        update,
        fields=[],
        slots=SLOTS,
        hyperparams=hyperparams,
        stage="learning_rate",
        needs_params=True,
        rowwise=True,
    )


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """`x ** exponent` of numbers >= 0, whose gradient is no NaN at 0."""
    if exponent == 0.5:
        return trees.root(x)
    positive = x > 0
    at_zero = jnp.ones_like(x) if exponent == 0 else jnp.zeros_like(x)
    return jnp.where(positive, jnp.where(positive, x, jnp.ones_like(x)) ** exponent, at_zero)


def _clip(z: jax.Array, bound: jax.Array | float) -> jax.Array:
    if not trees.is_complex(z):
        return jnp.clip(z, -bound, bound)
    size = magnitude(z)
    above = size > bound
    return z * trees.astype(
        jnp.where(above, bound / jnp.where(above, size, jnp.ones_like(size)), jnp.ones_like(size)), z.dtype
    )
