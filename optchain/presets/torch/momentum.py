"""PyTorch's SGD."""

from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.presets.torch.shared import assemble, is_zero
from optchain.rules.momentum import momentum_unless_zero


@register(name="presets.torch.sgd")
def sgd(
    lr: Hyperparam = 1e-3,
    momentum: Hyperparam = 0,
    dampening: Hyperparam = 0,
    weight_decay: Hyperparam = 0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's SGD, with the learning rate outside the velocity:

        velocity ← momentum · velocity + (1 − dampening) · g,   the first time: velocity ← g
        p ← p − lr · velocity, or with `nesterov`: p − lr · (momentum · velocity + g)

    With a momentum of 0, a number, there is no velocity: `p ← p − lr · g`.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      momentum: decay of the velocity, in [0, 1].
      dampening: the share of each gradient but the first that does not enter the velocity, in [0, 1].
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      nesterov: whether to look ahead; needs a momentum and no dampening.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; `nesterov` without momentum or with dampening.

    Source: `torch.optim.SGD`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.sgd(0.1, momentum=0.9, nesterov=True)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.19
    """
    rule = momentum_unless_zero(momentum, nesterov, dampening=dampening)
    if nesterov and (is_zero(momentum) or not is_zero(dampening)):
        raise ValueError(f"nesterov needs a momentum > 0 and no dampening; got {momentum=}, {dampening=}")
    return assemble(lr, rule, weight_decay, maximize=maximize)
