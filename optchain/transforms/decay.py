"""Decoupled weight decay."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments, trees
from optchain.core.composite import Composite, entries
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.optax_link import OptaxLink, as_transformation
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk


@register
def decay_weights(
    weight_decay: Hyperparam, *, learning_rate: Hyperparam | None = None, mask: Mask | None = None
) -> Transformation:
    """Subtracts a fraction of the parameters: `u ← u − learning_rate · weight_decay · params`.

    It stands after the learning rate, and reads the parameters as they were before the step: the convention of Keras and
    PyTorch. With `learning_rate=1.0` it is the paper's, whose decay is not multiplied by the learning rate (Algorithm 2 of
    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101); a schedule as `weight_decay`
    then gives the paper's multiplier η.

    Args:
      weight_decay: the fraction, >= 0, without unit. With 0, a number or an array, `update` needs no parameters; if an array
        is set to another value later, a call without them is an error, or NaN where it is compiled.
      learning_rate: None for the rate of the chain; or a rate of its own.
      mask: which parameters decay: a tree of bools (or a prefix of one), or a callable of the parameters that returns one,
        such as `~matching("bias")`. None for all.

    Raises:
      ValueError: when called without parameters that it needs, or with a mask that does not fit them.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.decay_weights(0.5, learning_rate=0.1, mask=~optchain.matching("bias"))
      >>> params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
      >>> zero = {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}
      >>> tx.update(zero, tx.init(params), params)[0]
      {'bias': Array([0.], dtype=float32), 'kernel': Array([-0.1], dtype=float32)}

      The paper's Algorithm 2, `p ← p − η (α · mu / (√nu + ε) + λ p)`, whose decay λ is that of no learning rate α, and
      whose η multiplies both:

      >>> optchain.chain(
      ...     optchain.scale_by_adam(epsilon_hat=False),
      ...     optchain.scale_by_learning_rate(),
      ...     optchain.decay_weights(0.01, learning_rate=1.0),
      ...     ("eta", optchain.scale(optchain.schedules.CosineAnnealingLR(1.0, T_max=1000))),
      ...     learning_rate=0.001,
      ... )
      chain(
          scale_by_adam(epsilon_hat=False),
          scale_by_learning_rate(),
          decay_weights(0.01, learning_rate=1.0),
          ('eta', scale(CosineAnnealingLR(1.0, 1000))),
          learning_rate=0.001,
      )
    """
    own = {} if learning_rate is None else {"learning_rate": learning_rate}
    hyperparams = Hyperparams(weight_decay=weight_decay, **own)
    if mask is not None:
        check_mask("mask", mask)

    def init(params: Tree) -> dict:
        resolve_mask("mask", mask, params)
        return {}

    def update(
        updates: Tree, state: dict, params: Tree, *, learning_rate: jax.Array, weight_decay: jax.Array
    ) -> tuple[Tree, dict]:
        if params is None:
            return check_still_zero(weight_decay, updates), state

        @functools.cache  # once for each dtype of the tree
        def rate(dtype: Any) -> jax.Array:
            return jnp.asarray(learning_rate, dtype) * jnp.asarray(weight_decay, dtype)

        def decay(u: jax.Array, p: jax.Array, decays: bool) -> jax.Array:
            u = trees.wide(u)
            return u - rate(u.dtype) * trees.astype(p, u.dtype) if decays else u

        return jax.tree.map(decay, updates, params, resolve_mask("mask", mask, params)), state

    return Transformation(
        init, update, hyperparams=hyperparams, stage="decay", needs_params=not is_zero(weight_decay), rowwise=True
    )


def is_zero(weight_decay: Hyperparam) -> bool:
    """Whether it is 0, a number or an array of which the value is known: there is nothing to read the parameters for."""
    if callable(weight_decay) or arguments.is_traced(weight_decay):
        return False
    return float(weight_decay) == 0


def check_still_zero(weight_decay: Any, updates: Tree) -> Tree:
    """The updates of a call without parameters, for which the decay must be 0 as it was when the link was built.

    A value that was set since is refused; where it is traced, and cannot be looked at, the updates are NaN.
    """
    if not arguments.is_traced(weight_decay):
        if float(weight_decay) != 0:
            raise ValueError(f"a weight_decay of {float(weight_decay)} needs the parameters, and update() got none")
        return updates
    return jax.tree.map(lambda u: jnp.where(weight_decay == 0, trees.wide(u), jnp.nan), updates)


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
    `p' + u − p`: what the rule makes exactly 0 is exactly 0 afterwards.

    Args:
      rule: a transformation of optchain or Optax that makes updates of gradients, its learning rate included.
      weight_decay: the fraction, >= 0, without unit.
      learning_rate: what the decay is multiplied by; None for the rate of the chain, 1.0 for the paper's decay. The rule
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
        decayed = jax.tree.map(lambda p, d: trees.wide(p) + d, params, step)
        seen = trees.cast_tree(decayed, params) if self._keeps_dtypes else decayed
        updates, inner_state = inner.run_update(updates, state.get("inner", {}), seen, extra)
        updates = jax.tree.map(
            lambda n, p: trees.wide(n) - trees.wide(p), trees.add(decayed, trees.force(updates)), params
        )
        return updates, entries({"inner": inner_state, "decay_weights": decay_state})
