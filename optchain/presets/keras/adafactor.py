"""Keras's Adafactor."""

from typing import Unpack

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, assemble, link_for_argument, preset
from optchain.rules.factored import scale_by_factored_rms
from optchain.transforms.block_rms import clip_by_block_rms, scale_by_param_block_rms
from optchain.transforms.learning_rate import scale_by_relative_step


@preset
def adafactor(
    learning_rate: Hyperparam = 0.001,
    beta_2_decay: float = -0.8,
    epsilon_1: Hyperparam = 1e-30,
    epsilon_2: Hyperparam = 1e-3,
    clip_threshold: Hyperparam = 1.0,
    relative_step: bool = True,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's Adafactor: a factored second moment, and steps relative to the size of the parameters.

        u = g / √v, with v factored as in `scale_by_factored_rms`
        û = u / max(1, rms(u) / clip_threshold)
        p ← p − min(lr, 1/√t) · max(ε₂, rms(p)) · û, with t counting updates from 1

    The learning rate is the largest relative step. Keras takes the minimum with `1/√t` whether `relative_step` is set or
    not, and so does this: the argument is there so that Keras's recipes can be written down, and changes nothing. What
    differs: where a row and a column of a matrix have had no gradient Keras's update is NaN in float32, and 0 here.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_2_decay: the decay of the second moment is `1 − t^beta_2_decay`; a number <= 0.
      epsilon_1: added to the squared gradient, >= 0.
      epsilon_2: the least size of a parameter, >= 0.
      clip_threshold: the largest root mean square of a leaf's update, > 0.
      relative_step: without effect, see above.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, arXiv:1804.04235,
    Algorithms 4 and 5; `keras.optimizers.Adafactor`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.adafactor(0.5)
      >>> params = jnp.array([2.0, -2.0])
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([0.1, 0.1]))
      >>> [round(float(p), 3) for p in params]
      [1.0, -3.0]
    """
    arguments.check_bool("relative_step", relative_step)
    arguments.check_hyperparam("epsilon_1", epsilon_1)
    rule = [
        scale_by_factored_rms(beta_2_decay, epsilon_1),
        link_for_argument("clip_threshold", clip_by_block_rms, clip_threshold),
        link_for_argument("epsilon_2", scale_by_param_block_rms, epsilon_2),
        scale_by_relative_step(),
    ]
    return assemble(rule, learning_rate, **shared)
