"""Keras's RMSprop, Adagrad and Adadelta: the gradient over the root of its squares."""

from typing import Any, Unpack

from optchain.core.hyperparams import Hyperparam
from optchain.core.slot import split_by_rule
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, assemble, preset
from optchain.rules import momentum as momentum_link
from optchain.rules import rms
from optchain.rules.adadelta import scale_by_adadelta
from optchain.rules.adagrad import scale_by_rss
from optchain.rules.momentum import momentum_unless_zero
from optchain.rules.rms import scale_by_rms
from optchain.transforms.learning_rate import scale_by_learning_rate


@preset
def rmsprop(
    learning_rate: Hyperparam = 0.001,
    rho: Hyperparam = 0.9,
    momentum: Hyperparam = 0.0,
    epsilon: Hyperparam = 1e-7,
    centered: bool = False,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's RMSprop, with ε in the root and the learning rate inside the velocity:

        nu ← rho · nu + (1 − rho) · |g|²
        velocity ← momentum · velocity − lr · g / √(nu + ε)
        p ← p + velocity

    When `centered`, the variance `nu − |mu|²` stands for `nu` in the second line. It is kept from falling below 0, where in
    Keras a rounding can take it: with a `rho` near 0, to NaN. With a momentum of 0, a number, there is no velocity.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      rho: decay of the averages, in [0, 1).
      momentum: decay of the velocity, in [0, 1].
      epsilon: added to the squares under the root, >= 0.
      centered: whether to divide by the standard deviation.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Tieleman & Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012; `keras.optimizers.RMSprop`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.rmsprop(0.1, rho=0.75)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.2
    """
    of_rms, of_momentum = split_by_rule(moment_dtype, rms.SLOTS, momentum_link.SLOTS)
    rms_rule = scale_by_rms(rho, epsilon, centered=centered, moment_dtype=of_rms)
    rule = [rms_rule, scale_by_learning_rate(), *momentum_unless_zero(momentum, moment_dtype=of_momentum)]
    return assemble(rule, learning_rate, **shared)


@preset
def adagrad(
    learning_rate: Hyperparam = 0.001,
    initial_accumulator_value: float = 0.1,
    epsilon: Hyperparam = 1e-7,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Adagrad: `p ← p − lr · g / √(sum_of_squares + ε)`, where the sum starts from `initial_accumulator_value`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      initial_accumulator_value: the value from which the sum of the squared gradients starts, >= 0.
      epsilon: added to the squares under the root, >= 0.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011, JMLR 12;
    `keras.optimizers.Adagrad`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adagrad(0.5, initial_accumulator_value=3.0)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.25
    """
    rule = scale_by_rss(initial_accumulator_value, epsilon)
    return assemble([rule, scale_by_learning_rate()], learning_rate, **shared)


@preset
def adadelta(
    learning_rate: Hyperparam = 0.001,
    rho: Hyperparam = 0.95,
    epsilon: Hyperparam = 1e-7,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Adadelta: `p ← p − lr · √(e_x + ε) / √(e_g + ε) · g`, with the averages of `scale_by_adadelta`.

    The paper has no learning rate: `learning_rate=1.0`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      rho: decay of the averages, in [0, 1).
      epsilon: added to the squares under both roots, >= 0; it sets the size of the first steps.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, arXiv:1212.5701; `keras.optimizers.Adadelta`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adadelta(1.0, rho=0.75, epsilon=1e-4)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=10 * jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.02
    """
    rule = scale_by_adadelta(rho, epsilon, moment_dtype=moment_dtype)
    return assemble([rule, scale_by_learning_rate()], learning_rate, **shared)
