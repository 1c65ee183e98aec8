"""Loss scaling: gradients of a loss that was multiplied by a factor, so that small ones survive a narrow dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.lookup import find_fields
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def unscale_gradients(loss_scale: Hyperparam) -> Transformation:
    """Divides gradients by a fixed factor that the loss was multiplied by: `g ← g / loss_scale`.

    Keras's `loss_scale_factor`. It comes before anything that looks at the size of gradients. Multiply the loss with
    `scale_loss(loss, state)`, which reads the same factor; `make_step` does.

    Args:
      loss_scale: the factor, > 0. It is kept in the state.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.unscale_gradients(1024.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> optchain.scale_loss(jnp.array(0.5), state)
      Array(512., dtype=float32)
      >>> tx.update(jnp.array([1024.0]), state)[0]
      Array([1.], dtype=float32)
    """

    def update(updates: Tree, state: dict, params: Tree, *, loss_scale: jax.Array) -> tuple[Tree, dict]:
        return trees.scale(updates, 1 / loss_scale), state

    return Transformation(update=update, hyperparams=Hyperparams(loss_scale=loss_scale), stage="unscale")


def scale_loss(loss: jax.Array, state: Any) -> jax.Array:
    """The loss times every loss scale in the state, for taking the gradient of.

    Args:
      loss: a scalar.
      state: any pytree with an optchain state in it.

    Returns:
      The product, in float32 or wider: in float16 a loss of 2 times the usual scale of 2**15 would be infinite. The loss as it
      is, if the state has no loss scale.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> optchain.scale_loss(jnp.float16(2.0), optchain.sgd(0.1, loss_scale_factor=2.0**15).init(jnp.zeros(1)))
      Array(65536., dtype=float32)
    """
    groups = ("hyperparams", "scheduled")
    scales = [field.value for group in groups for field in find_fields(state, group) if field.name == "loss_scale"]
    loss = jnp.asarray(loss)
    for scale in scales:
        loss = trees.wide(loss)
        loss = loss * trees.cast(scale, loss)
    return loss
