"""PyTorch's optimizers that divide by the size of past gradients: RMSprop, Adagrad, Adadelta."""

from optchain.core.arguments import NON_NEGATIVE, check_number
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.presets.torch.shared import assemble, check, is_zero
from optchain.rules.adadelta import scale_by_adadelta
from optchain.rules.adagrad import scale_by_rss
from optchain.rules.momentum import momentum_unless_zero
from optchain.rules.rms import scale_by_rms
from optchain.schedules import legacy_decay
from optchain.transforms.scaling import scale


@register(name="presets.torch.rmsprop")
def rmsprop(
    lr: Hyperparam = 1e-2,
    alpha: Hyperparam = 0.99,
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0,
    momentum: Hyperparam = 0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's RMSprop: the gradient over the root of the average of its squares, with the rate outside the velocity.

        nu ← alpha · nu + (1 − alpha) · g²
        velocity ← momentum · velocity + g / (√nu + ε)
        p ← p − lr · velocity

    With a momentum of 0, a number, there is no velocity. With `centered` the variance stands for `nu` in the second line
    (see `scale_by_rms`).

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      alpha: decay of the averages, in [0, 1).
      eps: added to the denominator, >= 0.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      momentum: decay of the velocity, in [0, 1].
      centered: whether to divide by the standard deviation.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Tieleman & Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012; `torch.optim.RMSprop`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.rmsprop(0.1, alpha=0.75)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.2
    """
    check(alpha=alpha, eps=eps)
    rule = scale_by_rms(alpha, eps, centered=centered, epsilon_in_root=False)
    return assemble(lr, [rule, *momentum_unless_zero(momentum)], weight_decay, maximize=maximize)


@register(name="presets.torch.adagrad")
def adagrad(
    lr: Hyperparam = 1e-2,
    lr_decay: float = 0,
    weight_decay: Hyperparam = 0,
    initial_accumulator_value: float = 0,
    eps: Hyperparam = 1e-10,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's Adagrad: the gradient over the root of the sum of its squares.

        sum_of_squares ← sum_of_squares + g²
        p ← p − lr / (1 + lr_decay · updates) · g / (√sum_of_squares + ε)

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      lr_decay: how fast the rate falls with the number of updates made before, a number >= 0.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      initial_accumulator_value: the value from which the sum starts, a number >= 0.
      eps: added to the denominator, >= 0.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011, JMLR 12;
    `torch.optim.Adagrad`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.adagrad(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.1
    """
    check(eps=eps)
    check_number("lr_decay", lr_decay, NON_NEGATIVE)
    slowing = [] if is_zero(lr_decay) else [("lr_decay", scale(legacy_decay(1.0, lr_decay)))]
    rule = scale_by_rss(initial_accumulator_value, eps, epsilon_in_root=False)
    return assemble(lr, [rule], weight_decay, maximize=maximize, after=slowing)


@register(name="presets.torch.adadelta")
def adadelta(
    lr: Hyperparam = 1.0,
    rho: Hyperparam = 0.9,
    eps: Hyperparam = 1e-6,
    weight_decay: Hyperparam = 0,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's Adadelta: `p ← p − lr · √(e_x + ε) / √(e_g + ε) · g`, with the averages of `scale_by_adadelta`.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      rho: decay of the averages, in [0, 1).
      eps: added to the squares under both roots, >= 0.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, arXiv:1212.5701; `torch.optim.Adadelta`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.adadelta(1.0, rho=0.75, eps=1e-4)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.full(1, 10.0))
      >>> round(float(params[0]), 3)
      -0.02
    """
    check(eps=eps)
    return assemble(lr, [scale_by_adadelta(rho, eps)], weight_decay, maximize=maximize)
