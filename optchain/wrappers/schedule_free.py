"""Schedule-free learning: an average of the iterates in place of a schedule of the learning rate."""

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax

from optchain.core import memory, storage, trees
from optchain.core.composite import Composite, nonempty_states
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.lookup import find_states, leaves_by_path, replace_leaves_by_path
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree


class ScheduleFreeState(TypedDict):
    count: jax.Array
    """The number of updates made, int32."""
    beta_1: jax.Array
    """What the last call used, for `schedule_free_params`."""
    iterates: Tree
    """The iterates `z` of the inner rule."""
    inner: State


SLOTS = declare(
    iterates=Slot(start="params", narrowest="bfloat16"),  # the iterates `z` of the inner rule
)


@register
def schedule_free(inner: optax.GradientTransformation, beta_1: Hyperparam = 0.9) -> Transformation:
    """Runs a rule on iterates `z`, and trains at a point between them and their average:

        z' = z + u, with u the inner rule's update from the gradient at y, the parameters
        x' = (1 − 1/t) · x + 1/t · z', with t counting updates from 1
        y' = (1 − β₁) · z' + β₁ · x'

    The average `x`, at which a model should be evaluated, is not stored: `schedule_free_params` computes it. The rule is
    written so that nothing is divided by β₁. (Keras divides, and a β₁ of 0 is NaN there; here it is the inner rule.)

    Args:
      inner: a rule that acts on gradients, its learning rate included; it has no momentum of its own.
      beta_1: the weight of the average in the point at which gradients are taken, in [0, 1).

    Returns:
      A transformation with state `count, beta_1, iterates, inner`, that needs the parameters.

    Raises:
      ValueError: an inner transformation that is a gate or acts on parameters: those go around.

    Source: Defazio et al., "The Road Less Scheduled", 2024, arXiv:2405.15682, equations 3 to 5, with equal weights.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.schedule_free(optchain.scale_by_learning_rate(1.0), 0.5)
      >>> params, state = jnp.array([4.0]), tx.init(jnp.array([4.0]))
      >>> for _ in range(2):
      ...     params, state = tx.apply(params, state, grads=jnp.array([1.0]))
      >>> params, state["iterates"]
      (Array([2.25], dtype=float32), Array([2.], dtype=float32))
    """
    rule = as_transformation(inner, "inner")
    if rule.kind != "gradient":
        raise ValueError(
            f"inner must act on gradients; {rule.name} is a {rule.kind} transformation: put schedule_free within it or before it"
        )
    return ScheduleFree._of(
        {"inner": rule},
        slots=SLOTS,
        hyperparams=Hyperparams(beta_1=beta_1),
        accepts=frozenset(),
        rowwise=False,
        _own_fields=frozenset({"count", "beta_1"}),
        _needs_params=True,
    )


class ScheduleFree(Composite):
    """A rule on iterates, and the point between them and their average at which it gets gradients."""

    def _init(self, params: Tree) -> dict[str, Any]:
        first = self.hyperparams.last(self.hyperparams.init())["beta_1"]
        own = {"count": jnp.zeros((), jnp.int32), "beta_1": _kept(first), "iterates": SLOTS["iterates"].init(params)}
        return own | super()._init(params)

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        beta = extra.pop("beta_1")
        count = trees.increment(state["count"])
        moves, inner_state = self.parts["inner"].run_update(updates, state.get("inner", {}), params, extra)

        def step(t: jax.Array, b: jax.Array) -> Callable[..., tuple[jax.Array, jax.Array]]:
            share = 1 / t

            def move(z: jax.Array, u: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
                new_z = z + u
                # y' = (1 − β) z' + β x', and β x = y − (1 − β) z
                new_y = (1 - b) * new_z + (1 - share) * (y - (1 - b) * z) + share * b * new_z
                return new_y - y, new_z

            return move

        def move_all(z: Tree) -> tuple[Tree, Tree]:
            return each_leaf(step, z, trees.force(moves), params, outputs=2, t=count, b=beta)

        updates, z = memory.streamed(move_all, state["iterates"])
        return updates, {"count": count, "beta_1": _kept(beta), "iterates": z} | nonempty_states({"inner": inner_state})


def schedule_free_params(params: Tree, state: Any) -> Tree:
    """The parameters at which to evaluate a model trained by `schedule_free`: the average `x = (p − (1 − β₁) · z) / β₁`.

    With a β₁ of 0 the average is not known, and `params` are returned. The parameters to go on training with stay `params`.
    Those that no `schedule_free` trains, frozen ones and those of other groups, are as they are.

    Args:
      params: the parameters, in any container, as for `finalize`.
      state: any pytree with the state of a `schedule_free` in it, or of several, each of parameters of its own.

    Returns:
      A fresh tree in the parameters' dtypes.

    Raises:
      ValueError: no `schedule_free` in the state; two of the same parameter (the message names both); iterates that belong to
        none of the parameters.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.schedule_free(optchain.scale_by_learning_rate(1.0), 0.5)
      >>> params, state = jnp.array([4.0]), tx.init(jnp.array([4.0]))
      >>> for _ in range(2):
      ...     params, state = tx.apply(params, state, grads=jnp.array([1.0]))  # z: 3, 2
      >>> optchain.schedule_free_params(params, state)
      Array([2.5], dtype=float32)
    """
    found = find_states(state, "iterates", "beta_1", "count")
    if not found:
        raise ValueError("the state must have a schedule_free in it; it has none")
    iterates = leaves_by_path(
        "schedule_free of the same parameters", [(place, storage.load(node["iterates"])) for place, node in found]
    )

    def average(y: jax.Array, index: int, z: jax.Array) -> jax.Array:
        (beta,) = jax.tree.leaves(found[index][1]["beta_1"])  # nnx wraps each leaf
        return trees.cast_tree(each_leaf(evaluated, memory.fetched(y), memory.fetched(z), b=beta), y)

    def evaluated(b: jax.Array) -> Callable[..., jax.Array]:
        divisor = jnp.where(b > 0, b, jnp.ones_like(b))
        return lambda y, z: jnp.where(b > 0, (y - (1 - b) * z) / divisor, y)

    return replace_leaves_by_path("iterates", iterates, params, average)


def _kept(value: Hyperparam) -> jax.Array:
    return jnp.array(value, trees.default_float(), copy=True)
