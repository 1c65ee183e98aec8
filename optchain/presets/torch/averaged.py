"""PyTorch's ASGD."""

from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.presets.torch.shared import assemble
from optchain.rules.asgd import scale_by_asgd
from optchain.transforms.polyak import polyak_average


@register(name="presets.torch.asgd")
def asgd(
    lr: Hyperparam = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: Hyperparam = 0,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's ASGD: SGD at a rate that falls by a power, and the mean of the parameters from the step after `t0` on.

    The formulas are those of `scale_by_asgd` and `polyak_average`. Where PyTorch keeps the average as `ax` in its state,
    `averaged_params(state)` and `finalize(params, state)` give it here.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments; as in PyTorch the rate of a
        step follows from the learning rate of the step before.
      lambd: the strength of the decay, and how soon the rate falls, a number >= 0.
      alpha: the power by which it falls, a number >= 0.
      t0: the number of steps before the average begins, a number >= 0; `math.inf` for never.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; `torch.optim.ASGD`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.asgd(0.1, t0=0)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(optchain.averaged_params(state)[0]), 3)
      -0.1
    """
    steps = [scale_by_asgd(lambd, alpha)]
    return assemble(lr, [], weight_decay, maximize=maximize, steps=steps, after=[polyak_average(t0)])
