"""Updates only where they agree with the gradient."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optchain.core import trees
from optchain.core.chain import stages
from optchain.core.composite import Composite, nonempty_states
from optchain.core.each_leaf import each_leaf
from optchain.core.optax_link import OptaxLink, as_transformation
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk

LEAST_SHARE = 1e-3
"""Of a leaf, that its update is divided by."""


@register
def cautious(rule: optax.GradientTransformation) -> Transformation:
    """Leaves out what of a rule's update goes against the gradient of the same call, and makes the rest larger by as much:

        m = 1 where u goes the gradient's way, else 0
        u ← u · m / max(mean(m), 0.001),    the mean over the leaf

    An average of gradients may point uphill for a while; where it does the parameter waits. A gradient of 0 agrees with nothing: of
    a table of which few rows have one, those few move by as much more, and it is better left out by `masked`. What is judged is the
    gradient that reaches `cautious`. For weight decay see `decay_weights(…, cautious=True)`.

    Args:
      rule: a transformation of optchain that makes updates of gradients, with its learning rate or without; or one of Optax's that
        keeps the sign of the gradient, as its `scale_by_…` do: `optax.adam(0.1)` does not.

    Returns:
      A transformation with the rule's state as `inner`.

    Raises:
      ValueError: a rule that is a gate or acts on parameters: those go around; one with a weight decay in it, which is no part of what
        the gradient says: it goes after; one that goes up the gradient, and one of Optax's that turns its sign or makes an update of 0
        of it, as can be seen from one step of a single parameter.

    Source: Liang et al., "Cautious Optimizers: Improving Training with One Line of Code", 2024, arXiv:2411.16085, Algorithm 1, with the
    divisor of the authors' code.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.cautious(optchain.apply_momentum(0.5))
      >>> state = tx.init(jnp.zeros(2))
      >>> _, state = tx.update(jnp.array([1.0, 1.0]), state)
      >>> tx.update(jnp.array([1.0, -0.1]), state)[0]
      Array([3., 0.], dtype=float32)
    """
    inner = as_transformation(rule, "rule")
    if inner.kind != "gradient":
        raise ValueError(
            f"rule must act on gradients; {inner.name} is a {inner.kind} transformation: put cautious within it or before it"
        )
    found = {stage: name for name, stage, _ in stages((inner,))}
    if "decay" in found:
        raise ValueError(
            f"rule must not decay weights, and {found['decay']} does: put it after cautious, where it may be cautious itself "
            "(decay_weights(…, cautious=True))"
        )
    for node in walk(inner):
        if isinstance(node.link, OptaxLink) and _first_update(node.link) <= 0:
            raise ValueError(
                f"rule must keep the gradient's sign where it is Optax's, and {node.link.name} turns it or makes 0 of it: take "
                "optax.scale_by_adam() for optax.adam(0.1), and optchain.scale_by_learning_rate(0.1) after it"
            )
    # After the learning rate an update goes the gradient's way if it has the other sign.
    sign = -1 if "learning_rate" in found else 1
    if _first_update(inner) * sign < 0:
        raise ValueError(
            f"rule must go down the gradient, and {inner.name} goes up: take maximize, or a negative factor, out of it, and turn the "
            "gradients' sign before cautious"
        )
    return Cautious._of({"inner": inner}, accepts=frozenset(), rowwise=False, _sign=sign)


def _first_update(rule: Transformation) -> float:
    """What a rule makes of the gradient 1 of a parameter that is 1.

    NaN where it takes other parameters, or more than a gradient, and where there are no devices to compute on.
    """
    with jax.ensure_compile_time_eval(), warnings.catch_warnings():  # within `jit` too it is known when it is built
        warnings.simplefilter("ignore")
        try:
            params = grads = jnp.ones(1)
            return float(jnp.asarray(rule.update(grads, rule.init(params), params)[0])[0])
        except Exception:  # whatever a rule says of other parameters than its own; it says so at init
            return math.nan


class Cautious(Composite):
    """A rule whose update is masked by the gradient's signs."""

    _sign: int

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        made, inner_state = self.parts["inner"].run_update(updates, state.get("inner", {}), params, extra)
        grads = trees.force(updates)
        return each_leaf(lambda: self._masked, trees.force(made), grads), nonempty_states({"inner": inner_state})

    def _masked(self, u: jax.Array, g: jax.Array) -> jax.Array:
        agrees = trees.agreement(u, self._sign * g) > 0
        share = jnp.sum(agrees, dtype=trees.real_dtype(u.dtype)) / max(u.size, 1)  # an integer's count could wrap round
        factor = 1 / jnp.maximum(share, LEAST_SHARE)
        return u * jnp.where(agrees, factor, 0)  # times 0: what is NaN stays NaN
