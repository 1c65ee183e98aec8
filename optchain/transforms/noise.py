"""Noise on gradients."""

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.keys import GENERATOR, check_seed, key_data
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.core.values import on_host


class AddNoiseState(TypedDict):
    count: jax.Array
    """The number of calls, int32."""
    key: jax.Array
    """The key of the generator, as its data: two values of uint32, which any checkpoint can hold."""


@register
def add_noise(eta: Hyperparam, gamma: Hyperparam = 0.55, seed: Any = 0) -> Transformation:
    """Adds normal noise that fades: `g ← g + σₜ · n`, `σₜ² = eta / (1 + t)^gamma`, with t counting calls from 0.

    The noise of a call follows from the seed, the count of calls and the place of the leaf, so that the same call gives the
    same bits, and a run that is resumed goes on with the noise it would have had. On several devices it is the same on
    each. It is drawn in float32 or wider. Drawing it moves more bytes than all else in a step and takes 16 bytes of scratch
    a value on the CPU, as `optax.add_noise` does.

    Args:
      eta: the variance at the first call, >= 0, in the square of the gradient's units; 0.01, 0.3 and 1 in the paper.
      gamma: how fast it fades, >= 0; 0.55 in the paper.
      seed: an integer >= 0, or a key: `jax.random.key(0)`, or the raw `jax.random.PRNGKey(0)`. It may be traced, so that each
        member of a `vmap` over `init` has its own. The members of a `sweep` have the noise of this seed all alike, unless it
        is given theirs: `sweep(state, seed=jnp.arange(4))`.

    Returns:
      A transformation with state `count, key`.

    Source: Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", 2015, arXiv:1511.06807,
    section 3; `optax.add_noise`, which draws other numbers.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.add_noise(0.01, seed=42)
      >>> g, state = tx.update(jnp.zeros(10_000), tx.init(jnp.zeros(10_000)))
      >>> round(float(g.std()), 2)
      0.1
    """
    check_seed("seed", seed)
    if not arguments.is_traced(seed):
        seed = on_host(seed)  # the caller may donate or delete the key

    def init(params: Tree) -> AddNoiseState:
        return {"count": jnp.zeros((), jnp.int32), "key": key_data(seed)}

    def update(
        updates: Tree, state: AddNoiseState, params: Tree, *, eta: jax.Array, gamma: jax.Array
    ) -> tuple[Tree, AddNoiseState]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"], impl=GENERATOR), state["count"])
        leaves, treedef = jax.tree.flatten(updates)

        def step(t: jax.Array, eta: jax.Array, gamma: jax.Array) -> Callable[..., jax.Array]:
            deviation = trees.root(eta / (1 + t) ** gamma)

            def add(g: jax.Array, place: int) -> jax.Array:
                return g + deviation * jax.random.normal(jax.random.fold_in(key, place), g.shape, g.dtype)

            return add

        places = treedef.unflatten(range(len(leaves)))
        noisy = each_leaf(step, updates, places, t=state["count"], eta=eta, gamma=gamma)
        return noisy, {"count": trees.increment(state["count"]), "key": state["key"]}

    return Transformation(init, update, fields=["count", "key"], hyperparams=Hyperparams(eta=eta, gamma=gamma))
