"""Lion's rule: the sign of an interpolated momentum."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation

SLOTS = declare(
    mu=Slot(narrowest="bfloat16", decay="beta_2"),  # the average of the gradients
)


@register
def scale_by_lion(beta_1: Hyperparam = 0.9, beta_2: Hyperparam = 0.99, *, moment_dtype: Any = None) -> Transformation:
    """Replaces gradients by the sign of an average, which is then decayed more slowly:

        u = sign(β₁ · mu + (1 − β₁) · g)
        mu ← β₂ · mu + (1 − β₂) · g

    The sign of a complex number is the number over its magnitude; that of 0 is 0. The learning rate is not in it:
    `scale_by_learning_rate` follows.

    Args:
      beta_1: the weight of the average in the step, in [0, 1); with 0 it is the sign of the gradient.
      beta_2: decay of the average, in [0, 1).
      moment_dtype: the dtype in which `mu` is stored; float32 or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `mu`.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv:2302.06675, Algorithm 2.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_lion()
      >>> tx.update(jnp.array([0.1, -10.0, 0.0]), tx.init(jnp.zeros(3)))[0]
      Array([ 1., -1.,  0.], dtype=float32)
    """

    def step(beta_1: jax.Array, beta_2: jax.Array) -> Leaf:
        def leaf(g: jax.Array, mu: jax.Array) -> LeafUpdate:
            b1, b2 = (jnp.asarray(beta, g.dtype) for beta in (beta_1, beta_2))  # 1 − β in this dtype, as Keras's
            return jnp.sign(b1 * mu + (1 - b1) * g), {"mu": b2 * mu + (1 - b2) * g}

        return leaf

    return rule(
        step,
        slots=stored(SLOTS, moment_dtype),
        hyperparams={"beta_1": beta_1, "beta_2": beta_2},
        stage="second_moment",
    )
