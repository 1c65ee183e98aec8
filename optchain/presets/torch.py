"""PyTorch's optimizers: its arguments, in its order, with its defaults and its numbers.

    from optchain.presets import torch

    tx = torch.adamw(1e-3, betas=(0.9, 0.95), weight_decay=0.1)

Checked step by step against PyTorch 2.13. Arguments that choose an implementation (`foreach`, `fused`, `capturable`,
`differentiable`) are not here: the numbers do not depend on them. `lr` is the run-time hyperparameter `learning_rate`, and
may be a schedule. What differs on purpose: a momentum above 1 and a negative dampening are refused; a complex leaf is one
number with one second moment, where PyTorch takes its real and imaginary parts for two parameters.
"""

from collections.abc import Sequence
from typing import Any

from optchain.core import arguments
from optchain.core.chain import chain
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.transforms.adam import scale_by_adam
from optchain.transforms.decay import decay_weights
from optchain.transforms.learning_rate import scale_by_learning_rate
from optchain.transforms.momentum import momentum_unless_zero
from optchain.transforms.penalty import add_l2_penalty
from optchain.transforms.scaling import scale


@register(name="presets.torch.adamw")
def adamw(
    lr: Hyperparam = 1e-3,
    betas: Sequence[Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's AdamW: Adam with decoupled weight decay, multiplied by the learning rate.

        p ← p − lr · weight_decay · p
        p ← p − lr · mu / (1 − β₁ᵗ) / (√(nu / (1 − β₂ᵗ)) + ε)

    with the moments of `scale_by_adam`. `tx.links` shows the chain that it is.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      betas: the decays of the first and second moment, each in [0, 1).
      eps: inside the bias correction, >= 0.
      weight_decay: decoupled decay, >= 0.
      amsgrad: whether to divide by the largest second moment so far.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101; `torch.optim.AdamW`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.adamw(0.1, weight_decay=0.5)
      >>> tx
      presets.torch.adamw(lr=0.1, weight_decay=0.5)
      >>> tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.ones(1))[0].round(3)
      Array([0.85], dtype=float32)
    """
    rule = _adam(betas, eps, amsgrad)
    return _assemble(lr, [rule], weight_decay, maximize=maximize, decoupled=True)


@register(name="presets.torch.adam")
def adam(
    lr: Hyperparam = 1e-3,
    betas: Sequence[Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> Transformation:
    """PyTorch's Adam: `p ← p − lr · mu / (1 − β₁ᵗ) / (√(nu / (1 − β₂ᵗ)) + ε)`, with the moments of `scale_by_adam`.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      betas: the decays of the first and second moment, each in [0, 1).
      eps: inside the bias correction, >= 0.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      amsgrad: whether to divide by the largest second moment so far.
      maximize: whether to climb instead of descending.
      decoupled_weight_decay: whether `weight_decay` is decoupled, as in `adamw`.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980; `torch.optim.Adam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.adam(0.1, weight_decay=0.01)
      >>> params, state = tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.zeros(1))
      >>> round(float(params[0]), 3)
      0.9
    """
    rule = _adam(betas, eps, amsgrad)
    return _assemble(lr, [rule], weight_decay, maximize=maximize, decoupled=decoupled_weight_decay)


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
    if nesterov and (_is_zero(momentum) or not _is_zero(dampening)):
        raise ValueError(f"nesterov needs a momentum > 0 and no dampening; got {momentum=}, {dampening=}")
    return _assemble(lr, rule, weight_decay, maximize=maximize)


# What they share -----------------------------------------------------------------------------------------------------


def _assemble(
    lr: Hyperparam,
    rule: Sequence[Transformation],
    weight_decay: Hyperparam,
    *,
    maximize: bool,
    decoupled: bool = False,
) -> Transformation:
    """The chain of a preset, in PyTorch's order: `sign → L2 penalty → rule → learning rate → decoupled decay`."""
    _check(lr=lr, weight_decay=weight_decay)
    decay = decay_weights if arguments.check_bool("decoupled_weight_decay", decoupled) else add_l2_penalty
    decays = [] if _is_zero(weight_decay) else [decay(weight_decay)]
    before, after = ([], decays) if decoupled else (decays, [])
    sign = [("maximize", scale(-1.0))] if arguments.check_bool("maximize", maximize) else []
    return chain(*sign, *before, *rule, scale_by_learning_rate(), *after, learning_rate=lr)


def _adam(betas: Sequence[Hyperparam], eps: Hyperparam, amsgrad: bool) -> Transformation:
    return scale_by_adam(*_pair(betas), _checked(eps=eps), amsgrad=amsgrad, epsilon_hat=False)


def _pair(betas: Any) -> tuple[Hyperparam, Hyperparam]:
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of numbers in [0, 1); got {betas!r}")
    _check(**{f"betas[{i}]": beta for i, beta in enumerate(betas)})
    return betas[0], betas[1]


def _check(**given: Hyperparam) -> None:
    """Checks arguments under the names that they have here."""
    for name, value in given.items():
        arguments.check_hyperparam(name, value)


def _checked(**given: Hyperparam) -> Hyperparam:
    _check(**given)
    return next(iter(given.values()))


def _is_zero(value: Any) -> bool:
    return arguments.is_number(value) and value == 0
