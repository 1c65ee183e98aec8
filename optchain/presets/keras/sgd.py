"""Keras's SGD."""

from typing import Any, Unpack

from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, assemble, preset
from optchain.rules.momentum import momentum_unless_zero
from optchain.transforms.learning_rate import scale_by_learning_rate


@preset
def sgd(
    learning_rate: Hyperparam = 0.01,
    momentum: Hyperparam = 0.0,
    nesterov: bool = False,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's SGD, with the learning rate inside the velocity:

        velocity ← momentum · velocity − lr · g
        p ← p + velocity, or with `nesterov`: p + momentum · velocity − lr · g

    With a momentum of 0, a number, there is no velocity: `p ← p − lr · g`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      momentum: decay of the velocity, in [0, 1].
      nesterov: whether to look ahead.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: `keras.optimizers.SGD`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(0.1, momentum=0.9, nesterov=True)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.19
    """
    rule = [scale_by_learning_rate(), *momentum_unless_zero(momentum, nesterov, moment_dtype=moment_dtype)]
    return assemble(rule, learning_rate, **shared)
