"""The L2 penalty: weight decay as a part of the gradient."""

from collections.abc import Callable

import jax

from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.decay import check_still_zero, is_zero


@register
def add_l2_penalty(weight_decay: Hyperparam, *, mask: Mask | None = None) -> Transformation:
    """Adds the gradient of an L2 penalty: `g ← g + weight_decay · params`, that of `½ · weight_decay · ‖params‖²`.

    It is the `weight_decay` of PyTorch's Adam and SGD. The penalty passes through the rule with the gradient: momentum
    carries it on, and Adam divides it by the gradient's size, so that it is not the decoupled decay of `decay_weights`.

    Args:
      weight_decay: >= 0. With 0 `update` needs no parameters, as in `decay_weights`.
      mask: which parameters it applies to: a tree of bools (or a prefix of one), or a callable of the parameters that
        returns one, such as `~matching("bias")`. None for all.

    Raises:
      ValueError: when called without parameters that it needs, or with a mask that does not fit them.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.add_l2_penalty(0.1), optchain.sgd(1.0, momentum=0.9))
      >>> params = jnp.array([10.0])
      >>> tx.update(jnp.zeros(1), tx.init(params), params)[0]
      Array([-1.], dtype=float32)
    """
    if mask is not None:
        check_mask("mask", mask)

    def init(params: Tree) -> dict:
        resolve_mask("mask", mask, params)
        return {}

    def update(updates: Tree, state: dict, params: Tree, *, weight_decay: jax.Array) -> tuple[Tree, dict]:
        if params is None:
            return check_still_zero(weight_decay, updates), state

        return each_leaf(step, updates, params, resolve_mask("mask", mask, params), weight_decay=weight_decay), state

    def step(weight_decay: jax.Array) -> Callable[..., jax.Array]:
        return lambda g, p, applies: g + weight_decay * p if applies else g

    hyperparams = Hyperparams(weight_decay=weight_decay)
    return Transformation(
        init, update, hyperparams=hyperparams, stage="penalty", needs_params=not is_zero(weight_decay), rowwise=True
    ).with_effects(lambda params: {"l2_penalty": resolve_mask("mask", mask, params)})
