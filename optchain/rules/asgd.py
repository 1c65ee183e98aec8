"""The steps of averaged SGD: a rate that falls by a power, and a decay at the same rate."""

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.transformation import Transformation


@register
def scale_by_asgd(lambd: float = 1e-4, alpha: float = 0.75) -> Transformation:
    """Turns gradients into steps at a rate that falls by a power, with a decay at the same rate:

        u = −eta · (g + lambd · p),   eta = learning_rate at first
        eta ← learning_rate / (1 + lambd · learning_rate · t)^alpha, with t counting updates from 1

    The rate of an update comes from the learning rate of the one before it, as in PyTorch.

    Args:
      lambd: the strength of the decay, and how soon the rate falls, a number >= 0.
      alpha: the power by which it falls, a number >= 0.

    Returns:
      A transformation with state `count, eta`, that needs parameters and the learning rate of the chain.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; `torch.optim.ASGD`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.scale_by_asgd(1.0, 1.0), learning_rate=1.0)
      >>> params, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for _ in range(2):
      ...     params, state = tx.apply(params, state, grads=jnp.ones(1))
      >>> params
      Array([-1.], dtype=float32)
    """
    arguments.check_number("lambd", lambd, arguments.NON_NEGATIVE)
    arguments.check_number("alpha", alpha, arguments.NON_NEGATIVE)

    def step(t: jax.Array, eta: jax.Array, learning_rate: jax.Array) -> tuple[Leaf, dict[str, jax.Array]]:
        rate = jnp.where(t == 1, learning_rate, eta)

        def leaf(g: jax.Array, p: jax.Array) -> LeafUpdate:
            return -rate * (g + lambd * p), {}

        return leaf, {"eta": learning_rate / (1 + lambd * learning_rate * t) ** alpha}

    return rule(step, slots={}, scalars={"eta": 0.0}, stage="learning_rate", needs_params=True)
