"""Heavy-ball and Nesterov momentum."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation

SLOTS = declare(
    velocity=Slot(decay="momentum"),  # the decaying sum of the updates
)


@register
def apply_momentum(
    momentum: Hyperparam, nesterov: bool = False, *, dampening: Hyperparam = 0.0, moment_dtype: Any = None
) -> Transformation:
    """Sums updates with decay:

        velocity ← momentum · velocity + (1 − dampening) · u,   the first time: velocity ← u
        u ← velocity, or with `nesterov`: momentum · velocity + u

    After `scale_by_learning_rate`, where `u = −lr · g`, this is Keras's SGD: the learning rate is inside the velocity, and
    a schedule changes only what comes in. Before it, it is PyTorch's.

    Args:
      momentum: the decay, in [0, 1].
      nesterov: whether to look ahead (Sutskever et al., "On the importance of initialization and momentum in deep
        learning", 2013).
      dampening: the share of each update but the first that does not enter the velocity, in [0, 1].
      moment_dtype: the dtype in which the velocity is stored; float32 or wider if None.

    Returns:
      A transformation with state `velocity` and, with dampening, `count`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.apply_momentum(0.9)
      >>> u, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
      >>> u, state = tx.update(jnp.array([1.0]), state)
      >>> u
      Array([1.9], dtype=float32)
    """
    nesterov = arguments.check_bool("nesterov", nesterov)
    dampens = not (arguments.is_number(dampening) and dampening == 0)

    def plain(momentum: jax.Array, dampening: jax.Array) -> Leaf:
        return sums(momentum, 1.0)

    def dampened(t: jax.Array, momentum: jax.Array, dampening: jax.Array) -> Leaf:
        return sums(momentum, jnp.where(t == 1, 1.0, 1 - dampening))

    def sums(momentum: jax.Array, share: jax.Array | float) -> Leaf:
        def leaf(u: jax.Array, velocity: jax.Array) -> LeafUpdate:
            v = momentum * velocity + (u * share if dampens else u)
            return momentum * v + u if nesterov else v, {"velocity": v}

        return leaf

    return rule(
        dampened if dampens else plain,
        slots=stored(SLOTS, moment_dtype),
        hyperparams={"momentum": momentum, "dampening": dampening},
    )


def momentum_unless_zero(momentum: Hyperparam, nesterov: bool = False, **options: Any) -> list[Transformation]:
    """The link `apply_momentum(…)`, or none where the momentum is the number 0: there is no velocity then."""
    link = apply_momentum(momentum, nesterov, **options)  # checks its arguments, used or not
    return [] if arguments.is_number(momentum) and momentum == 0 else [link]
