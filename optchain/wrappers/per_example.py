"""Gradients of single examples, as the first link of a chain."""

import optax

from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.transformation import Transformation


@register
def per_example(inner: optax.GradientTransformation) -> Transformation:
    """Lets the gradients of single examples into a chain, for a transformation that reduces them.

    Each gradient has the shape of its parameter with an axis of examples before it, as `jax.vmap(jax.grad(loss_fn), (None, 0))`
    makes it; `inner` returns updates of the parameters' shapes. It must be the first link of a chain, and only chains may be
    around it: a gate or a mask would have to know which gradient is whose. Without this mark such gradients are an error.

    Args:
      inner: a transformation of Optax that reduces the leading axis, such as `optax.contrib.differentially_private_aggregate`.

    Returns:
      `inner` as a link, with its own state.

    Raises:
      ValueError: an inner chain or wrapper of optchain; in a chain, a place that is not the first; when called, gradients without the axis, or updates with it (the
        message names the leaf).

    Example:
      >>> import jax, jax.numpy as jnp, optax, optchain
      >>> private = optax.contrib.differentially_private_aggregate(l2_norm_clip=1.0, noise_multiplier=0.0, key=0)
      >>> tx = optchain.chain(optchain.per_example(private), optchain.sgd(1.0))
      >>> params, examples = jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 0.5]])
      >>> grads = jax.vmap(jax.grad(lambda w, x: w @ x), (None, 0))(params, examples)
      >>> tx.apply(params, tx.init(params), grads=grads)[0]
      Array([-0.3 , -0.65], dtype=float32)
    """
    link = as_transformation(inner, "inner")
    if link.links:
        raise ValueError(f"inner must be the one link that reduces the gradients; got {inner!r}: mark its first link")
    return link.with_examples()
