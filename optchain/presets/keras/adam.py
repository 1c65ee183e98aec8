"""Keras's Adam and its kin: AdamW, Adamax, Nadam."""

from typing import Any, Unpack

from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, SharedButDecay, assemble, preset
from optchain.rules.adam import scale_by_adam
from optchain.rules.adamax import scale_by_adamax
from optchain.rules.nadam import scale_by_nadam
from optchain.transforms.learning_rate import scale_by_learning_rate


@preset
def adamw(
    learning_rate: Hyperparam = 0.001,
    weight_decay: Hyperparam | None = 0.004,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    amsgrad: bool = False,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[SharedButDecay],
) -> Transformation:
    """Keras's AdamW: Adam with decoupled weight decay, multiplied by the learning rate.

        p ← p − lr · weight_decay · p
        p ← p − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · mu / (√nu + ε)

    with the moments of `scale_by_adam`. `tx.links` shows the chain that it is.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      weight_decay: decoupled decay, `p ← p − learning_rate · weight_decay · p` before the step; >= 0, None for none.
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the denominator, >= 0.
      amsgrad: whether to divide by the largest second moment so far.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101; `keras.optimizers.AdamW`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adamw(1e-3, weight_decay=0.01, global_clipnorm=1.0, exclude_from_weight_decay=["bias"])
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
      >>> params["bias"]
      Array([0., 0.], dtype=float32)
    """
    adam_rule = scale_by_adam(beta_1, beta_2, epsilon, amsgrad=amsgrad, moment_dtype=moment_dtype)
    return assemble([adam_rule, scale_by_learning_rate()], learning_rate, weight_decay, **shared)


@preset
def adam(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    amsgrad: bool = False,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Adam: `p ← p − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · mu / (√nu + ε)`, with the moments of `scale_by_adam`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the denominator, >= 0.
      amsgrad: whether to divide by the largest second moment so far.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980; `keras.optimizers.Adam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adam(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.1
    """
    adam_rule = scale_by_adam(beta_1, beta_2, epsilon, amsgrad=amsgrad, moment_dtype=moment_dtype)
    return assemble([adam_rule, scale_by_learning_rate()], learning_rate, **shared)


@preset
def adamax(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Adamax: `p ← p − lr · mu / ((1 − β₁ᵗ)(nu + ε))`, with the average and the largest of `scale_by_adamax`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the largest magnitude, in [0, 1).
      epsilon: added to the denominator, >= 0.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980, section 7.1;
    `keras.optimizers.Adamax`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adamax(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.1
    """
    rule = scale_by_adamax(beta_1, beta_2, epsilon, moment_dtype=moment_dtype)
    return assemble([rule, scale_by_learning_rate()], learning_rate, **shared)


@preset
def nadam(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Nadam: Adam with Nesterov's momentum and a schedule of it; the formula is that of `scale_by_nadam`.

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

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016; `keras.optimizers.Nadam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.nadam(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.106
    """
    rule = scale_by_nadam(beta_1, beta_2, epsilon, moment_dtype=moment_dtype)
    return assemble([rule, scale_by_learning_rate()], learning_rate, **shared)
