"""Gradients without their mean."""

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Path, Tree


@register
def centralize_gradients(output_axis: int = -1) -> Transformation:
    """Takes from the gradient of each unit its mean: `g ← g − mean(g)` over all axes but that of the outputs.

    Leaves of rank 0 and 1, such as biases, stay as they are. It comes before the rule, and before decay.

    Args:
      output_axis: which axis of a kernel counts the outputs: −1, the last, in Keras and Flax; 0 in PyTorch's layout, which
        is what `optax.centralize` assumes.

    Raises:
      ValueError: when called, a leaf of rank 2 or more that has no such axis.

    Source: Yong et al., "Gradient Centralization: A New Optimization Technique for Deep Neural Networks", 2020,
    arXiv:2004.01461, equation 1.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.centralize_gradients()
      >>> grads = {"kernel": jnp.array([[1.0, 2.0], [3.0, 6.0]]), "bias": jnp.array([1.0, 2.0])}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"]
      Array([[-1., -2.],
             [ 1.,  2.]], dtype=float32)
    """
    (output_axis,) = arguments.check_axes("output_axis", output_axis, several=False)

    def update(updates: Tree, state: dict, params: Tree) -> tuple[Tree, dict]:
        def centralize(path: Path, g: jax.Array) -> jax.Array:
            if jnp.ndim(g) < 2 or g.size == 0:
                return trees.centered(g, ())
            trees.check_axes("centralize_gradients", path, g, (output_axis,))
            inputs = tuple(axis for axis in range(jnp.ndim(g)) if axis != output_axis % jnp.ndim(g))
            return trees.centered(g, inputs)

        return jax.tree_util.tree_map_with_path(centralize, updates), state

    return Transformation(update=update)
