"""Transformations of some parameters only: `masked` and `freeze`."""

import jax
import jax.numpy as jnp
import optax

from optchain.core import trees
from optchain.core.masks import Mask, check_mask, invert, resolve_mask
from optchain.core.optax_link import as_transformation
from optchain.core.part import Part, of_some
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.core.walk import walk


@register
def masked(inner: optax.GradientTransformation, mask: Mask) -> Transformation:
    """Runs `inner` on the leaves where the mask is True; the updates of the others pass through as they are.

    For `inner` the others do not exist: they have no state, and no part in a norm or in the verdict of a gate. It is
    `optax.masked`, for gates and parameter links too. An average of some parameters is `masked(average_params(), mask)`;
    a recipe for some of them is `freeze`, several recipes are `multi_optimizer`.

    Args:
      inner: a transformation of optchain or Optax. One that divides by a loss scale is refused: the loss is scaled for
        all parameters, and so belongs around this.
      mask: a tree of bools (or a prefix of one), or a callable of the parameters that returns one, such as
        `matching("kernel")`.

    Returns:
      A transformation of the kind of `inner`, with state `inner`: trees in it have None for the leaves left out.

    Raises:
      ValueError: when called, a mask that does not fit the parameters, or of which no pattern matches any.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.masked(optchain.clip_by_global_norm(1.0), optchain.matching("kernel"))
      >>> grads = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([12.0])}
      >>> tx.update(grads, tx.init(grads))[0]
      {'bias': Array([12.], dtype=float32), 'kernel': Array([0.6, 0.8], dtype=float32)}
    """
    wrapped = as_transformation(inner, "inner")
    refuse_loss_scale("masked", wrapped)
    return of_some(wrapped, mask)


@register
def freeze(inner: optax.GradientTransformation, mask: Mask) -> Transformation:
    """Runs `inner` on the leaves where the mask is False; the others are frozen: no step changes a bit of them.

    Frozen parameters do not decay, have no state and no part in a norm or an average; their gradients do not
    matter, not even to a gate that looks for NaN, and a compiled step does not compute them. Put it around a whole recipe:
    a link that comes after it sees their updates, zero, and would let them decay. `averaged_params` has None for them,
    `finalize` takes them from the parameters.

    Args:
      inner: a transformation of optchain or Optax.
      mask: which parameters are frozen: a tree of bools (or a prefix of one), or a callable of the parameters that returns
        one, such as `matching("^encoder/")`.

    Returns:
      A transformation of the kind of `inner`, with state `inner`: trees in it have None for frozen leaves.

    Raises:
      ValueError: when called, a mask that does not fit the parameters, or of which no pattern matches any.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.freeze(optchain.sgd(0.5, weight_decay=0.5), optchain.matching("^encoder/"))
      >>> params = {"encoder": {"kernel": jnp.ones(2)}, "head": jnp.ones(2)}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
      >>> params
      {'encoder': {'kernel': Array([1., 1.], dtype=float32)}, 'head': Array([0.25, 0.25], dtype=float32)}
    """
    check_mask("mask", mask)

    def trained(params: Tree) -> Tree:
        return invert(resolve_mask("mask", mask, params))

    def stand_still(updates: Tree) -> Tree:
        # −0 and not 0: added to a number it leaves every one as it is, −0 too.
        return jax.tree.map(jnp.negative, trees.zeros_like(trees.force(updates)))

    return Part.of(
        as_transformation(inner, "inner"),
        chosen=trained,
        update_others=stand_still,
        apply_others=lambda params, grads: params,
        others="frozen",
    )


def refuse_loss_scale(owner: str, link: Transformation) -> None:
    """Refuses a link that divides by a loss scale where it would not see all gradients: the loss is scaled for all."""
    for below in (node.link for node in walk(link)):
        if below.stage == "unscale" or "loss_scale" in below.fields:
            raise ValueError(
                f"{owner} would unscale the gradients of some parameters only ({below.name}), and the loss is scaled for all: "
                f"put {below.name} around {owner}"
            )
