"""The root mean square of each leaf: a bound for updates, and the scale of parameters."""

import jax
import jax.numpy as jnp

from optchain.core import trees
from optchain.core.each_leaf import each_leaf
from optchain.core.factors import Factor
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def clip_by_block_rms(threshold: Hyperparam) -> Transformation:
    """Clips each leaf by its root mean square: `g ← g / max(1, rms(g) / threshold)`, `rms(g) = ‖g‖ / √size`.

    Unlike `clip_by_norm` it does not clip large leaves harder than small ones. Adafactor clips its updates so: Shazeer &
    Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, arXiv:1804.04235, section 6.
    `optax.clip_by_block_rms`.

    Args:
      threshold: the largest root mean square of a leaf, > 0; in the units of the gradient.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.clip_by_block_rms(1.0)
      >>> tx.update({"a": jnp.full(4, 8.0), "b": jnp.full(4, 0.5)}, {})[0]
      {'a': Array([1., 1., 1., 1.], dtype=float32), 'b': Array([0.5, 0.5, 0.5, 0.5], dtype=float32)}
    """

    def update(updates: Tree, state: dict, params: Tree, *, threshold: jax.Array) -> tuple[Tree, dict]:
        bound = Factor.of(jnp.asarray(threshold, trees.default_float()))

        def factor(g: jax.Array, norm: Factor) -> Factor:
            rms = norm / _root_of_size(g)
            return bound / rms.at_least(bound)

        factors = jax.tree.map(factor, trees.unscaled(updates), trees.norms(updates))
        return trees.scale_each(updates, factors), state

    return Transformation(update=update, hyperparams=Hyperparams(threshold=threshold), stage="clip", accepts=["scaled"])


@register
def scale_by_param_block_rms(min_scale: Hyperparam = 1e-3) -> Transformation:
    """Makes updates relative to the size of the parameters, leaf by leaf: `u ← max(min_scale, rms(p)) · u`.

    Args:
      min_scale: the smallest scale, >= 0, so that parameters can leave 0.

    Source: Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, section 8.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_param_block_rms()
      >>> tx.update(jnp.array([1.0, 0.5]), {}, jnp.array([2.0, -2.0]))[0]
      Array([2., 1.], dtype=float32)
    """

    def update(updates: Tree, state: dict, params: Tree, *, min_scale: jax.Array) -> tuple[Tree, dict]:
        rms = jax.tree.map(lambda p, norm: (norm / _root_of_size(p)).value, params, trees.norms(params))
        factors = each_leaf(lambda least: lambda rms: jnp.maximum(rms, least), rms, least=min_scale)
        return trees.scale_each(updates, factors), state

    return Transformation(update=update, hyperparams=Hyperparams(min_scale=min_scale), needs_params=True)


def _root_of_size(x: jax.Array) -> Factor:
    return Factor.of(jnp.asarray(max(jnp.size(x), 1) ** 0.5, trees.default_float()))
