"""Heavy-ball and Nesterov momentum."""

from typing import Any, TypedDict

import jax

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


class ApplyMomentumState(TypedDict):
    velocity: Tree
    """The decaying sum of the updates."""


@register
def apply_momentum(momentum: Hyperparam, nesterov: bool = False, *, moment_dtype: Any = None) -> Transformation:
    """Sums updates with decay:

        velocity ← momentum · velocity + u
        u ← velocity, or with `nesterov`: momentum · velocity + u

    After `scale_by_learning_rate`, where `u = −lr · g`, this is Keras's SGD: the learning rate is inside the velocity, and
    a schedule changes only what comes in. Before it, it is PyTorch's.

    Args:
      momentum: the decay, in [0, 1].
      nesterov: whether to look ahead (Sutskever et al., "On the importance of initialization and momentum in deep
        learning", 2013).
      moment_dtype: the dtype in which the velocity is stored; float32 or wider if None.

    Returns:
      A transformation with state `velocity`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.apply_momentum(0.9)
      >>> u, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
      >>> u, state = tx.update(jnp.array([1.0]), state)
      >>> u
      Array([1.9], dtype=float32)
    """
    hyperparams = Hyperparams(momentum=momentum)
    nesterov = arguments.check_bool("nesterov", nesterov)
    dtype = arguments.check_dtype("moment_dtype", moment_dtype)

    def init(params: Tree) -> ApplyMomentumState:
        return {"velocity": trees.zeros_like(params, dtype)}

    def update(
        updates: Tree, state: ApplyMomentumState, params: Tree, *, momentum: jax.Array
    ) -> tuple[Tree, ApplyMomentumState]:
        def step(u: jax.Array, velocity: jax.Array) -> tuple[jax.Array, jax.Array]:
            u = trees.wide(u)
            mu = trees.cast(momentum, u)
            v = mu * trees.astype(velocity, u.dtype) + u
            return mu * v + u if nesterov else v, trees.astype(v, velocity.dtype)

        updates, velocity = trees.map_unzip(step, 2, updates, state["velocity"])
        return updates, {"velocity": velocity}

    return Transformation(init, update, fields=["velocity"], hyperparams=hyperparams)


def momentum_unless_zero(
    momentum: Hyperparam, nesterov: bool = False, *, moment_dtype: Any = None
) -> list[Transformation]:
    """The link `apply_momentum(…)`, or none where the momentum is the number 0: there is no velocity then."""
    link = apply_momentum(momentum, nesterov, moment_dtype=moment_dtype)  # checks its arguments, used or not
    return [] if isinstance(momentum, int | float) and momentum == 0 else [link]
