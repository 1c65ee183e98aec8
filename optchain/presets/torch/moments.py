"""PyTorch's optimizers with two moments: AdamW, Adam, SparseAdam, NAdam, RAdam, Adamax."""

from collections.abc import Sequence

from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.presets.torch.shared import assemble, check, pair
from optchain.rows.lazy_rows import lazy_rows
from optchain.rules.adam import scale_by_adam
from optchain.rules.adamax import scale_by_adamax
from optchain.rules.nadam import scale_by_nadam
from optchain.rules.radam import scale_by_radam


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
      eps: added to the denominator, >= 0.
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
    return assemble(lr, [rule], weight_decay, maximize=maximize, decoupled=True)


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
      eps: added to the denominator, >= 0.
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
    return assemble(lr, [rule], weight_decay, maximize=maximize, decoupled=decoupled_weight_decay)


def _adam(betas: Sequence[Hyperparam], eps: Hyperparam, amsgrad: bool) -> Transformation:
    check(eps=eps)
    return scale_by_adam(*pair(betas), eps, amsgrad=amsgrad, epsilon_hat=False)


@register(name="presets.torch.nadam")
def nadam(
    lr: Hyperparam = 2e-3,
    betas: Sequence[Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0,
    momentum_decay: Hyperparam = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's NAdam: Adam with Nesterov's momentum, the rule of `scale_by_nadam`.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      betas: the decays of the first and second moment, each in [0, 1).
      eps: added to the denominator, >= 0.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      momentum_decay: how fast the momentum warms up, >= 0.
      decoupled_weight_decay: whether `weight_decay` is decoupled, as in `adamw`.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016; `torch.optim.NAdam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.nadam(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.106
    """
    check(eps=eps)
    rule = scale_by_nadam(*pair(betas), eps, momentum_decay=momentum_decay)
    return assemble(lr, [rule], weight_decay, maximize=maximize, decoupled=decoupled_weight_decay)


@register(name="presets.torch.radam")
def radam(
    lr: Hyperparam = 1e-3,
    betas: Sequence[Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's RAdam: Adam that divides by the second moment once it is known well enough, the rule of `scale_by_radam`.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      betas: the decays of the first and second moment, each in [0, 1).
      eps: added to the denominator, >= 0.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      decoupled_weight_decay: whether `weight_decay` is decoupled, as in `adamw`.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2020, arXiv:1908.03265;
    `torch.optim.RAdam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.radam(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.full(1, 3.0))
      >>> round(float(params[0]), 3)
      -0.3
    """
    check(eps=eps)
    rule = scale_by_radam(*pair(betas), eps)
    return assemble(lr, [rule], weight_decay, maximize=maximize, decoupled=decoupled_weight_decay)


@register(name="presets.torch.adamax")
def adamax(
    lr: Hyperparam = 2e-3,
    betas: Sequence[Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 0,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's Adamax: Adam with the largest magnitude in place of the root mean square.

        nu ← max(β₂ · nu, |g| + ε)
        p ← p − lr · mu / ((1 − β₁ᵗ) nu)

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      betas: the decays of the average and of the largest magnitude, each in [0, 1).
      eps: added to the gradient's magnitude, >= 0.
      weight_decay: an L2 penalty, added to the gradient before the rule, >= 0 (see `add_l2_penalty`).
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980, Algorithm 2;
    `torch.optim.Adamax`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.adamax(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.1
    """
    check(eps=eps)
    rule = scale_by_adamax(*pair(betas), eps, epsilon_in_maximum=True)
    return assemble(lr, [rule], weight_decay, maximize=maximize)


@register(name="presets.torch.sparse_adam")
def sparse_adam(
    lr: Hyperparam = 1e-3,
    betas: Sequence[Hyperparam] = (0.9, 0.999),
    eps: Hyperparam = 1e-8,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's SparseAdam: Adam on the rows that a `RowGradient` names, as if there were no others (see `lazy_rows`).

        p ← p − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · mu / (√nu + ε), with t counting updates of the whole table from 1

    A parameter whose gradient is an array is updated whole, where PyTorch refuses it.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      betas: the decays of the first and second moment, each in [0, 1).
      eps: added to the root of the second moment, >= 0.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980, section 2;
    `torch.optim.SparseAdam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.sparse_adam(0.1)
      >>> table = jnp.zeros((3, 1))
      >>> grads = optchain.RowGradient(jnp.array([2]), jnp.ones((1, 1)), shape=(3, 1))
      >>> table, state = tx.apply(table, tx.init(table), grads=grads)
      >>> table.ravel().round(3)
      Array([ 0. ,  0. , -0.1], dtype=float32)
    """
    check(eps=eps)
    rule = scale_by_adam(*pair(betas), eps)
    return lazy_rows(assemble(lr, [rule], 0, maximize=maximize))
