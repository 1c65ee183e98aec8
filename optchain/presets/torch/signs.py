"""PyTorch's Rprop."""

from collections.abc import Sequence

from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.presets.torch.shared import assemble
from optchain.rules.rprop import scale_by_rprop


@register(name="presets.torch.rprop")
def rprop(
    lr: Hyperparam = 1e-2,
    etas: Sequence[float] = (0.5, 1.2),
    step_sizes: Sequence[float] = (1e-6, 50),
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's Rprop: steps by the sign of the gradient, of a size for each number, the rule of `scale_by_rprop`.

    Args:
      lr: the first step size, a number >= 0, an array, a schedule or a callable of no arguments: what comes after the first
        step has no effect.
      etas: the factors of a step size whose gradient's sign has turned, in (0, 1), and of one whose sign stays, > 1.
      step_sizes: the smallest and the largest step size, > 0.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Riedmiller & Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm", 1993;
    `torch.optim.Rprop`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.rprop(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.full(1, 3.0))
      >>> round(float(params[0]), 3)
      -0.1
    """
    return assemble(lr, [], 0, maximize=maximize, steps=[scale_by_rprop(etas, step_sizes)])
