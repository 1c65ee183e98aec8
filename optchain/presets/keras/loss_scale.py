"""Keras's LossScaleOptimizer."""

import optax

from optchain.core import arguments
from optchain.core.chain import stages
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.wrappers.loss_scale import dynamic_loss_scale


@register
def loss_scale_optimizer(
    inner: optax.GradientTransformation,
    initial_scale: float = 2.0**15,
    dynamic_growth_steps: int = 2000,
    name: str | None = None,
) -> Transformation:
    """Keras's LossScaleOptimizer: an optimizer within `dynamic_loss_scale`, which finds the scale of the loss.

        every value finite:   inner runs on g / loss_scale; after dynamic_growth_steps such steps in a row, loss_scale doubles
        otherwise:            nothing is touched, and loss_scale halves

    As in Keras, the inner optimizer's own `loss_scale_factor` is dropped: gradients would be divided twice. Multiply the loss
    with `scale_loss(loss, state)`; `make_step` does. Unlike Keras's, the scale stays within 2⁻²⁴ and 2¹²⁷.

    Args:
      inner: a preset, or a transformation that does not unscale gradients itself.
      initial_scale: the scale to start with, in [2⁻²⁴, 2¹²⁷].
      dynamic_growth_steps: how many good steps in a row double it, >= 1.
      name: what the preset is called in another chain; its own name if None.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; an `inner` with `unscale_gradients` within.

    Source: Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740; `keras.optimizers.LossScaleOptimizer`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.loss_scale_optimizer(optchain.sgd(1.0, loss_scale_factor=8.0), initial_scale=4.0)
      >>> params = jnp.array([1.0])
      >>> params, state = tx.apply(params, tx.init(params), grads=jnp.array([2.0]))
      >>> params
      Array([0.5], dtype=float32)
    """
    if name is not None:
        arguments.check_identifier("name", name)
    growth_steps = arguments.check_integer("dynamic_growth_steps", dynamic_growth_steps, minimum=1)
    if isinstance(inner, Transformation) and inner.config.get("loss_scale_factor") is not None:
        inner = inner.rebuilt(loss_scale_factor=None)
    gate = dynamic_loss_scale(inner, initial_scale, growth_steps)
    for owner, stage, _ in stages(gate.links):
        if stage == "unscale":
            raise ValueError(f"{owner} within the loss_scale_optimizer would divide the gradients a second time")
    return gate
