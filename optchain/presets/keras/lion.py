"""Keras's Lion."""

from typing import Any, Unpack

from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, assemble, preset
from optchain.rules.lion import scale_by_lion
from optchain.transforms.learning_rate import scale_by_learning_rate


@preset
def lion(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.99,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Lion, every step of which has the size of the learning rate:

        p ← p − lr · sign(β₁ · mu + (1 − β₁) · g)
        mu ← β₂ · mu + (1 − β₂) · g

    Keras takes a `beta_1` in (0, 1]; this takes one in [0, 1).

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: the weight of the average in the step, in [0, 1).
      beta_2: decay of the average, in [0, 1).
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv:2302.06675; `keras.optimizers.Lion`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.lion(0.5)
      >>> params, state = tx.apply(jnp.zeros(2), tx.init(jnp.zeros(2)), grads=jnp.array([0.1, -10.0]))
      >>> params
      Array([-0.5,  0.5], dtype=float32)
    """
    rule = scale_by_lion(beta_1, beta_2, moment_dtype=moment_dtype)
    return assemble([rule, scale_by_learning_rate()], learning_rate, **shared)
