"""Keras's ScheduleFreeAdamW."""

from typing import Any, Unpack

from optchain import schedules
from optchain.core import arguments
from optchain.core.chain import chain
from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.presets.shared import Shared, assemble, link_for_argument, preset
from optchain.rules.rms import scale_by_rms
from optchain.transforms.learning_rate import scale_by_learning_rate
from optchain.transforms.scaling import scale
from optchain.wrappers.schedule_free import schedule_free


@preset
def schedule_free_adamw(
    learning_rate: Hyperparam = 0.0025,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-8,
    warmup_steps: int = 0,
    *,
    moment_dtype: Any = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """Keras's ScheduleFreeAdamW: Adam without its first moment, on iterates whose average is what is learned.

        nu ← nu + (1 − β₂)(|g|² − nu)
        z' = z − lr · min(t / warmup_steps, 1) · g / (√(nu / (1 − β₂ᵗ)) + ε), with t counting updates from 1
        p' = (1 − β₁) · z' + β₁ · x', with x' the average of the z so far

    The parameters are the points at which gradients are taken. Evaluate a model at `schedule_free_params(params, state)`, the
    average. Decay acts on the parameters, at the learning rate without its warmup.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: the weight of the average in the point at which gradients are taken, in [0, 1). Keras's update is NaN with 0.
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the denominator, >= 0.
      warmup_steps: over how many updates the learning rate grows from 0, >= 0.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Defazio et al., "The Road Less Scheduled", 2024, arXiv:2405.15682; `keras.optimizers.ScheduleFreeAdamW`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.schedule_free_adamw(0.5)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> params
      Array([-0.5], dtype=float32)
    """
    warmup_steps = arguments.check_integer("warmup_steps", warmup_steps, minimum=0)
    second_moment = link_for_argument(
        "beta_2",
        lambda rho: scale_by_rms(rho, epsilon, epsilon_in_root=False, bias_correction=True, moment_dtype=moment_dtype),
        beta_2,
    )
    # t / warmup_steps, from 1 / warmup_steps at the first update to 1 at the last.
    ramp = schedules.PolynomialDecay(1 / warmup_steps, warmup_steps - 1, 1.0) if warmup_steps > 1 else None
    warmup = [scale(ramp)] if ramp else []
    iterates = chain(second_moment, *warmup, scale_by_learning_rate(), name="iterates")
    return assemble([schedule_free(iterates, beta_1)], learning_rate, **shared)
