"""Keras's Lamb."""

from typing import Any, Unpack

from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, assemble, preset
from optchain.rules.adam import scale_by_adam
from optchain.rules.trust_ratio import scale_by_trust_ratio
from optchain.transforms.learning_rate import scale_by_learning_rate


@preset
def lamb(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Lamb: Adam's direction, with the norm of the parameter, leaf by leaf:

        u = mu / (1 − β₁ᵗ) / (√(nu / (1 − β₂ᵗ)) + ε)
        p ← p − lr · ‖p‖ / ‖u‖ · u, or p − lr · u where a norm is 0

    Decay is decoupled and comes first: the norm is that of the decayed parameter. (In the paper it is part of `u`.)

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the denominator, >= 0.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, arXiv:1904.00962;
    `keras.optimizers.Lamb`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.lamb(0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([1.0, 0.0]))
      >>> params.round(3)
      Array([0.5, 4. ], dtype=float32)
    """
    adam_rule = scale_by_adam(beta_1, beta_2, epsilon, epsilon_hat=False, moment_dtype=moment_dtype)
    return assemble([adam_rule, scale_by_trust_ratio(), scale_by_learning_rate()], learning_rate, **shared)
