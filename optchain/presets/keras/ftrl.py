"""Keras's Ftrl."""

from typing import Unpack

from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, assemble, preset
from optchain.rules.ftrl import apply_ftrl


@preset
def ftrl(
    learning_rate: Hyperparam = 0.001,
    learning_rate_power: float = -0.5,
    initial_accumulator_value: float = 0.1,
    l1_regularization_strength: Hyperparam = 0.0,
    l2_regularization_strength: Hyperparam = 0.0,
    l2_shrinkage_regularization_strength: Hyperparam = 0.0,
    beta: Hyperparam = 0.0,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Ftrl, follow the regularized leader; the formula is that of `apply_ftrl`.

    A learning rate of 0, or no gradient yet with an `initial_accumulator_value` of 0, leaves the parameters alone; Keras
    divides by 0 there.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      learning_rate_power: the power of the sum of squared gradients, <= 0; 0 for a fixed learning rate.
      initial_accumulator_value: the value from which the sum of the squared gradients starts, >= 0.
      l1_regularization_strength: >= 0; above 0 it makes parameters exactly 0.
      l2_regularization_strength: >= 0.
      l2_shrinkage_regularization_strength: >= 0; added to the gradient, unlike the other.
      beta: >= 0.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013, KDD; `keras.optimizers.Ftrl`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.ftrl(0.5, l1_regularization_strength=0.1)
      >>> params = jnp.zeros(2)
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([1.0, 0.01]))
      >>> [round(float(p), 3) for p in params]
      [-0.429, 0.0]
    """
    rule = apply_ftrl(
        learning_rate_power,
        initial_accumulator_value,
        l1_regularization_strength,
        l2_regularization_strength,
        l2_shrinkage_regularization_strength,
        beta,
    )
    return assemble([rule], learning_rate, **shared)
