"""Optax's optimizers: its arguments, in its order, with its defaults and its numbers, of links that do more than Optax's.

    from optchain.presets import optax

    tx = optax.adamw(1e-3, b2=0.95, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))

An `optax.adamw` that is swapped for this one goes on with the same numbers, checked over 50 steps against Optax 0.2.8. The
learning rate becomes a run-time hyperparameter; states have names; `interop.optax.from_optax_state` takes over a run. What differs on
purpose:

- Second moments of parameters narrower than float32 are kept in float32; Optax keeps them in the parameters' dtype.
- No arithmetic is done in the dtype of `mu_dtype` or `accumulator_dtype`; Optax multiplies by `b1` in it.
- In `rmsprop(centered=True)` an average of squares that a rounding has made smaller than the square of the average counts as equal.
- Values out of range are refused, where Optax goes on to NaN.
"""

from typing import Any

from optchain.core import arguments
from optchain.core.chain import Link, chain
from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import Mask
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.rules.adagrad import scale_by_rss
from optchain.rules.adam import scale_by_adam
from optchain.rules.lion import scale_by_lion
from optchain.rules.momentum import apply_momentum
from optchain.rules.rms import scale_by_rms
from optchain.rules.trust_ratio import scale_by_trust_ratio
from optchain.transforms.decay import decay_weights
from optchain.transforms.learning_rate import scale_by_learning_rate
from optchain.transforms.penalty import add_l2_penalty


@register(name="presets.optax.adamw")
def adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyperparam = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Optax's AdamW: Adam with decoupled weight decay, multiplied by the learning rate.

        p ← p − lr · (mu / (1 − b1ᵗ) / (√(nu / (1 − b2ᵗ) + eps_root) + eps) + weight_decay · p)

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator, >= 0.
      eps_root: added within the root, >= 0.
      mu_dtype: the dtype in which the first moment is stored, bfloat16, float32 or float64; float32 or wider if None.
      weight_decay: decoupled decay, >= 0.
      mask: which parameters decay: a tree of bools (or a prefix of one), or a callable of the parameters that returns one;
        None for all. The presets' `exclude_from_weight_decay` has the opposite sense.
      nesterov: whether the first moment looks ahead.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101; `optax.adamw`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.adamw(0.1, weight_decay=0.5)
      >>> tx
      presets.optax.adamw(0.1, weight_decay=0.5)
      >>> tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.ones(1))[0].round(3)
      Array([0.85], dtype=float32)
    """
    rule = _adam(b1, b2, eps, eps_root, mu_dtype, nesterov)
    return _with_rate(learning_rate, rule, after=_decay(weight_decay, mask))


@register(name="presets.optax.adam")
def adam(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Optax's Adam: `p ← p − lr · mu / (1 − b1ᵗ) / (√(nu / (1 − b2ᵗ) + eps_root) + eps)`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator, >= 0.
      eps_root: added within the root, >= 0.
      mu_dtype: the dtype in which the first moment is stored, bfloat16, float32 or float64; float32 or wider if None.
      nesterov: whether the first moment looks ahead.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980; `optax.adam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.adam(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.1
    """
    return _with_rate(learning_rate, _adam(b1, b2, eps, eps_root, mu_dtype, nesterov))


@register(name="presets.optax.nadamw")
def nadamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyperparam = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = True,
) -> Transformation:
    """Optax's NAdamW: its `adamw` with `nesterov=True`. Its momentum does not warm up, as that of Keras's and PyTorch's NAdam does.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator, >= 0.
      eps_root: added within the root, >= 0.
      mu_dtype: the dtype in which the first moment is stored, bfloat16, float32 or float64; float32 or wider if None.
      weight_decay: decoupled decay, >= 0.
      mask: which parameters decay: a tree of bools (or a prefix of one), or a callable of the parameters that returns one;
        None for all. The presets' `exclude_from_weight_decay` has the opposite sense.
      nesterov: whether the first moment looks ahead.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016; `optax.nadamw`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.nadamw(0.1, weight_decay=0.0)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.147
    """
    rule = _adam(b1, b2, eps, eps_root, mu_dtype, nesterov)
    return _with_rate(learning_rate, rule, after=_decay(weight_decay, mask))


@register(name="presets.optax.nadam")
def nadam(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
) -> Transformation:
    """Optax's NAdam: its `adam` with `nesterov=True`. Its momentum does not warm up, as that of Keras's and PyTorch's NAdam does.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator, >= 0.
      eps_root: added within the root, >= 0.
      mu_dtype: the dtype in which the first moment is stored, bfloat16, float32 or float64; float32 or wider if None.
      nesterov: whether the first moment looks ahead.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016; `optax.nadam`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.nadam(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.147
    """
    return _with_rate(learning_rate, _adam(b1, b2, eps, eps_root, mu_dtype, nesterov))


@register(name="presets.optax.sgd")
def sgd(
    learning_rate: Hyperparam,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Transformation:
    """Optax's SGD, with the learning rate outside the velocity:

        velocity ← momentum · velocity + g
        p ← p − lr · velocity, or with `nesterov`: p − lr · (momentum · velocity + g)

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      momentum: decay of the velocity, in [0, 1]; None for no velocity.
      nesterov: whether to look ahead; needs a momentum (Optax without one looks at nothing, and says nothing).
      accumulator_dtype: the dtype in which the velocity is stored; float32 or wider if None.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; `nesterov` or `accumulator_dtype` without momentum.

    Source: `optax.sgd`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.sgd(0.1, momentum=0.9, nesterov=True)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.19
    """
    nesterov = arguments.check_bool("nesterov", nesterov)
    arguments.check_storage("accumulator_dtype", accumulator_dtype)
    if momentum is None and (nesterov or accumulator_dtype is not None):
        raise ValueError(f"nesterov and accumulator_dtype need a momentum; got {nesterov=}, {accumulator_dtype=}")
    rule = [] if momentum is None else [apply_momentum(momentum, nesterov, moment_dtype=accumulator_dtype)]
    return _with_rate(learning_rate, *rule)


@register(name="presets.optax.lion")
def lion(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.99,
    mu_dtype: Any = None,
    weight_decay: Hyperparam = 1e-3,
    mask: Mask | None = None,
) -> Transformation:
    """Optax's Lion: the sign of an average, with decoupled weight decay; the rule of `scale_by_lion`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      b1: the weight of the average in the step, in [0, 1).
      b2: decay of the average, in [0, 1).
      mu_dtype: the dtype in which the average is stored; float32 or wider if None.
      weight_decay: decoupled decay, >= 0.
      mask: which parameters decay: a tree of bools (or a prefix of one), or a callable of the parameters that returns one;
        None for all. The presets' `exclude_from_weight_decay` has the opposite sense.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv:2302.06675; `optax.lion`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.lion(0.125, weight_decay=0.0)
      >>> tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.full(1, 7.0))[0]
      Array([-0.125], dtype=float32)
    """
    _check(b1=b1, b2=b2)
    arguments.check_storage("mu_dtype", mu_dtype)
    return _with_rate(learning_rate, scale_by_lion(b1, b2, moment_dtype=mu_dtype), after=_decay(weight_decay, mask))


@register(name="presets.optax.lamb")
def lamb(
    learning_rate: Hyperparam,
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.999,
    eps: Hyperparam = 1e-6,
    eps_root: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    """Optax's LAMB: each leaf's Adam step and its decay together have the norm of the parameter (`scale_by_trust_ratio`).

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator, >= 0.
      eps_root: added within the root, >= 0.
      weight_decay: added to Adam's step before its norm is taken, >= 0.
      mask: which parameters decay: a tree of bools (or a prefix of one), or a callable of the parameters that returns one;
        None for all. The presets' `exclude_from_weight_decay` has the opposite sense.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, arXiv:1904.00962;
    `optax.lamb`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.lamb(0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([1.0, 0.0]))
      >>> params.round(3)
      Array([0.5, 4. ], dtype=float32)
    """
    _check(weight_decay=weight_decay)
    rule = _adam(b1, b2, eps, eps_root, None, False)
    decay = ("add_decayed_weights", add_l2_penalty(weight_decay, mask=mask))
    return _with_rate(learning_rate, rule, decay, scale_by_trust_ratio())


@register(name="presets.optax.rmsprop")
def rmsprop(
    learning_rate: Hyperparam,
    decay: Hyperparam = 0.9,
    eps: Hyperparam = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Transformation:
    """Optax's RMSprop: the gradient over the root of the average of its squares, with the learning rate inside the velocity.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      decay: decay of the averages, in [0, 1).
      eps: what keeps the quotient finite, >= 0.
      initial_scale: the value from which the average of squares starts, a number >= 0.
      eps_in_sqrt: whether `eps` is added within the root or to it.
      centered: whether to divide by the standard deviation.
      momentum: decay of the velocity, in [0, 1]; None for no velocity.
      nesterov: whether to look ahead; needs a momentum (Optax without one looks at nothing, and says nothing).
      bias_correction: whether the averages make up for their start at zero.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; `nesterov` without momentum.

    Source: Tieleman & Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012; `optax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.rmsprop(0.25, decay=0.75)
      >>> tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.full(1, 3.0))[0].round(3)
      Array([-0.5], dtype=float32)
    """
    arguments.check_hyperparam("decay", decay, arguments.BELOW_ONE)
    arguments.check_number("initial_scale", initial_scale, arguments.NON_NEGATIVE)
    arguments.check_bool("eps_in_sqrt", eps_in_sqrt)
    _check(eps=eps)
    nesterov = arguments.check_bool("nesterov", nesterov)
    if nesterov and momentum is None:
        raise ValueError("nesterov needs a momentum; got momentum=None")
    rule = scale_by_rms(
        decay,
        eps,
        centered=centered,
        epsilon_in_root=eps_in_sqrt,
        bias_correction=bias_correction,
        initial_accumulator_value=initial_scale,
    )
    return _with_rate(learning_rate, rule, after=[] if momentum is None else [apply_momentum(momentum, nesterov)])


@register(name="presets.optax.adagrad")
def adagrad(
    learning_rate: Hyperparam, initial_accumulator_value: float = 0.1, eps: Hyperparam = 1e-7
) -> Transformation:
    """Optax's Adagrad: the gradient over the root of the sum of its squares, `eps` within the root.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      initial_accumulator_value: the value from which the sum starts, a number >= 0.
      eps: added within the root, >= 0.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011, JMLR 12;
    `optax.adagrad`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.optax.adagrad(0.5, initial_accumulator_value=0.0)
      >>> tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.full(1, 2.0))[0].round(3)
      Array([-0.5], dtype=float32)
    """
    _check(eps=eps)
    return _with_rate(learning_rate, scale_by_rss(initial_accumulator_value, eps))


def _adam(
    b1: Hyperparam, b2: Hyperparam, eps: Hyperparam, eps_root: Hyperparam, mu_dtype: Any, nesterov: bool
) -> Transformation:
    _check(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    arguments.check_storage("mu_dtype", mu_dtype)
    dtypes = None if mu_dtype is None else {"mu": mu_dtype}
    return scale_by_adam(b1, b2, eps, epsilon_hat=False, epsilon_root=eps_root, nesterov=nesterov, moment_dtype=dtypes)


def _with_rate(learning_rate: Hyperparam, *rule: Link, after: list[Transformation] | None = None) -> Transformation:
    """The chain of a preset: `rule → learning rate → after`."""
    _check(learning_rate=learning_rate)
    return chain(*rule, scale_by_learning_rate(), *(after or []), learning_rate=learning_rate)


def _decay(weight_decay: Hyperparam, mask: Mask | None) -> list[Transformation]:
    """Decay after the learning rate, and multiplied by it: Optax's numbers, which adds it before."""
    _check(weight_decay=weight_decay)
    return [decay_weights(weight_decay, mask=mask)]


def _check(**given: Hyperparam) -> None:
    """Checks arguments under the names that they have here."""
    for name, value in given.items():
        arguments.check_hyperparam(name, value)
