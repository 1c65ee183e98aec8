"""Weight decay before a rule that reads the parameters."""

import operator
from typing import Any

import optax

from optchain.core import trees
from optchain.core.composite import Composite, nonempty_states
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import Mask
from optchain.core.optax_link import OptaxLink, as_transformation
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk
from optchain.transforms.decay import decay_weights


@register
def decay_first(
    rule: optax.GradientTransformation,
    weight_decay: Hyperparam,
    *,
    learning_rate: Hyperparam | None = None,
    mask: Mask | None = None,
) -> Transformation:
    """Decays the parameters before a rule that reads them:

        p' = p − learning_rate · weight_decay · p
        u = the rule's update from p'
        p ← p' + u

    This is Keras's order, for every optimizer. For a rule that does not look at the parameters it comes to the same as the
    plainer `decay_weights` after it; for one that does (`scale_by_trust_ratio`, `apply_ftrl`) it does not. The updates are
    `p' + u − p`: a parameter that the rule makes exactly 0 is exactly 0 afterwards.

    Args:
      rule: a transformation of optchain or Optax that makes updates of gradients, its learning rate included.
      weight_decay: the fraction, >= 0, without unit.
      learning_rate: the factor of the decay; None for the rate of the chain, 1.0 for the paper's decay. The rule
        always gets the rate of the chain.
      mask: which parameters decay, as in `decay_weights`. None for all.

    Returns:
      A transformation with the rule's state as `inner`.

    Raises:
      ValueError: a rule that is a gate or acts on parameters: those go around; a mask that does not fit.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> rule = optchain.chain(optchain.scale_by_trust_ratio(), optchain.scale_by_learning_rate())
      >>> tx = optchain.chain(optchain.decay_first(rule, 1.0), learning_rate=0.5)
      >>> params, state = tx.apply(jnp.array([4.0]), tx.init(jnp.zeros(1)), grads=jnp.array([0.1]))
      >>> params
      Array([1.], dtype=float32)
    """
    inner = as_transformation(rule, "rule")
    if inner.kind != "gradient":
        raise ValueError(
            f"rule must act on gradients; {inner.name} is a {inner.kind} transformation: put decay_first within it or before it"
        )
    decay = decay_weights(weight_decay, learning_rate=learning_rate, mask=mask)
    return DecayFirst._of(
        {"inner": inner, "decay_weights": decay},
        accepts=frozenset(),
        _needs_params=True,
        # The states of Optax's links take the dtypes of the parameters that they see.
        _keeps_dtypes=any(isinstance(node.link, OptaxLink) for node in walk(inner)),
    )


class DecayFirst(Composite):
    """A rule that sees the parameters decayed."""

    _keeps_dtypes: bool

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        inner, decay = self.links
        step, decay_state = decay.run_update(trees.zeros_like(params), state.get("decay_weights", {}), params, extra)
        decayed = each_leaf(lambda: operator.add, params, step)
        seen = trees.cast_tree(decayed, params) if self._keeps_dtypes else decayed
        updates, inner_state = inner.run_update(updates, state.get("inner", {}), seen, extra)
        updates = each_leaf(lambda: operator.sub, trees.add(decayed, trees.force(updates)), params)
        return updates, nonempty_states({"inner": inner_state, "decay_weights": decay_state})
