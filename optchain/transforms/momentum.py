"""Heavy-ball and Nesterov momentum."""

from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


class ApplyMomentumState(TypedDict):
    velocity: Tree
    """The decaying sum of the updates."""
    count: NotRequired[jax.Array]
    """With dampening, the number of updates made, int32."""


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
    hyperparams = Hyperparams(momentum=momentum, dampening=dampening)
    nesterov = arguments.check_bool("nesterov", nesterov)
    dtype = arguments.check_dtype("moment_dtype", moment_dtype)
    dampens = not (arguments.is_number(dampening) and dampening == 0)

    def init(params: Tree) -> ApplyMomentumState:
        state: ApplyMomentumState = {"velocity": trees.zeros_like(params, dtype)}
        return {**state, "count": jnp.zeros((), jnp.int32)} if dampens else state

    def update(
        updates: Tree, state: dict[str, Any], params: Tree, *, momentum: jax.Array, dampening: jax.Array
    ) -> tuple[Tree, dict[str, Any]]:
        share = jnp.where(state["count"] == 0, 1.0, 1 - dampening) if dampens else 1.0

        def step(u: jax.Array, velocity: jax.Array) -> tuple[jax.Array, jax.Array]:
            u = trees.wide(u)
            mu = trees.cast(momentum, u)
            incoming = u * trees.cast(share, u) if dampens else u
            v = mu * trees.astype(velocity, u.dtype) + incoming
            return mu * v + u if nesterov else v, trees.astype(v, velocity.dtype)

        updates, velocity = trees.map_unzip(step, 2, updates, state["velocity"])
        count = {"count": trees.increment(state["count"])} if dampens else {}
        return updates, {"velocity": velocity, **count}

    return Transformation(
        init,
        update,
        fields=["count"] * dampens,
        slots=SLOTS,
        hyperparams=hyperparams,
        rowwise=True,
    )


def momentum_unless_zero(momentum: Hyperparam, nesterov: bool = False, **options: Any) -> list[Transformation]:
    """The link `apply_momentum(…)`, or none where the momentum is the number 0: there is no velocity then."""
    link = apply_momentum(momentum, nesterov, **options)  # checks its arguments, used or not
    return [] if arguments.is_number(momentum) and momentum == 0 else [link]
