"""PyTorch's optimizers that look at a matrix as one: Muon, Adafactor."""

from collections.abc import Sequence
from typing import Any, Literal

from optchain.core import arguments
from optchain.core.arguments import Range
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.presets.torch.shared import assemble
from optchain.rules.factored import scale_by_factored_rms
from optchain.rules.muon import QUINTIC
from optchain.rules.muon_average import scale_by_muon_average
from optchain.transforms.block_rms import clip_by_block_rms, scale_by_param_block_rms
from optchain.transforms.learning_rate import scale_by_relative_step


@register(name="presets.torch.muon")
def muon(
    lr: Hyperparam = 1e-3,
    weight_decay: Hyperparam = 0.1,
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_coefficients: Sequence[float] = QUINTIC,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
    *,
    output_axis: int = -1,
) -> Transformation:
    """PyTorch's Muon: the average of each matrix's gradients made orthogonal in bfloat16, with decoupled decay.

        p ← p − lr · weight_decay · p − lr · scale · orthogonal(average of g)

    The formulas are those of `scale_by_muon_average`. As there all parameters must be matrices; `optchain.muon`, Keras's,
    trains the others by Adam's rule.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      weight_decay: decoupled decay, >= 0.
      momentum: decay of the average, in [0, 1].
      nesterov: whether to look ahead.
      ns_coefficients: the three coefficients of the Newton-Schulz iteration, numbers.
      eps: the least norm by which a matrix is divided, a number >= 0.
      ns_steps: the number of iterations, in [1, 99].
      adjust_lr_fn: the scale: "original" or None for `√max(1, outputs / inputs)`, "match_rms_adamw" for
        `0.2 · √max(outputs, inputs)`.
      output_axis: which axis of a matrix is that of the outputs, which PyTorch has first: -1 (or 1) in Flax and Keras, 0 in
        Equinox.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; at `init`, a parameter that is no matrix.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et al., "Muon is Scalable for
    LLM Training", 2025, arXiv:2502.16982; `torch.optim.Muon`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.multi_optimizer(
      ...     ("matrices", optchain.matrices, optchain.presets.torch.muon(0.02)),
      ...     default=optchain.presets.torch.adamw(3e-4),
      ... )
      >>> params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
    """
    rule = scale_by_muon_average(
        momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn or "original", output_axis=output_axis
    )
    return assemble(lr, [rule], weight_decay, maximize=False, decoupled=True)


@register(name="presets.torch.adafactor")
def adafactor(
    lr: Hyperparam = 1e-2,
    beta2_decay: float = -0.8,
    eps: Sequence[float | None] = (None, 1e-3),
    d: Hyperparam = 1.0,
    weight_decay: Hyperparam = 0.0,
    *,
    maximize: bool = False,
) -> Transformation:
    """PyTorch's Adafactor: a factored second moment, and steps relative to the size of the parameters.

        u = g / √v, with v factored as in `scale_by_factored_rms`, and eps[0] its least root
        û = u / max(1, rms(u) / d)
        p ← p − lr · weight_decay · p − min(lr, 1/√t) · max(eps[1], rms(p)) · û, with t counting updates from 1

    It is factored over the last two axes, as everywhere; for kernels of convolutions these are others here than in PyTorch. An
    `eps[0]` of None is the `eps` of float32 for narrower parameters too, in which no arithmetic is done here.

    Args:
      lr: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta2_decay: the decay of the second moment is `1 − t^beta2_decay`; a number <= 0.
      eps: the least root of the second moment, >= 0, None for the distance from 1 to the next number of the dtype; and the
        least size of a parameter, >= 0.
      d: the largest root mean square of a leaf's update, >= 1.
      weight_decay: decoupled decay, >= 0.
      maximize: whether to climb instead of descending.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, arXiv:1804.04235;
    `torch.optim.Adafactor`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.torch.adafactor(0.5)
      >>> params = jnp.array([2.0, -2.0])
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([0.1, 0.1]))
      >>> [round(float(p), 3) for p in params]
      [1.0, -3.0]
    """
    arguments.check_number("beta2_decay", beta2_decay, arguments.NON_POSITIVE)
    first, second = _pair(eps)
    arguments.check_hyperparam("d", d, Range(1.0))
    rule = [scale_by_factored_rms(beta2_decay, first, epsilon_in_average=False), clip_by_block_rms(d)]
    steps = [scale_by_param_block_rms(second), scale_by_relative_step()]
    return assemble(lr, rule, weight_decay, maximize=maximize, decoupled=True, steps=steps)


def _pair(eps: Any) -> tuple[float | None, float]:
    """The two of PyTorch's, each checked."""
    if not isinstance(eps, Sequence) or isinstance(eps, str) or len(eps) != 2:
        raise TypeError(f"eps must be a pair: a number >= 0 or None, and a number >= 0; got {eps!r}")
    if eps[0] is not None:
        arguments.check_number("eps[0]", eps[0], arguments.NON_NEGATIVE)
    arguments.check_number("eps[1]", eps[1], arguments.NON_NEGATIVE)
    return eps[0], eps[1]
