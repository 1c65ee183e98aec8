"""Decoupled decay with strengths of its own for each parameter, L1 and L2."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import check_patterns, first_match
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register(ordered=["weight_decays"])
def decay_by_path(
    weight_decays: Mapping[str, tuple[float, float]], *, learning_rate: Hyperparam | None = None
) -> Transformation:
    """Shrinks each parameter by strengths of its own: `u ← u − learning_rate · (l1 · sign(params) + l2 · params)`.

    The first pattern that is found in a parameter's path decides, searched as `matching` searches; where none is found
    there is no decay. It stands after the learning rate, and reads the parameters as they were before the step.

    Args:
      weight_decays: `(l1, l2)`, numbers >= 0, for each regular expression, in the order in which they are tried.
      learning_rate: None for the rate of the chain; or a rate of its own: 1.0 for none.

    Raises:
      TypeError, ValueError: a pattern that is no regular expression, a strength out of range; at init or update, a
        pattern that decides for no parameter (the message lists the paths); when called without parameters.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.decay_by_path({"kernel": (0.0, 0.5), "gate": (0.1, 0.0)}, learning_rate=1.0)
      >>> params = {"bias": jnp.array([2.0]), "gate": jnp.array([-2.0]), "kernel": jnp.array([2.0])}
      >>> tx.update({name: jnp.zeros(1) for name in params}, tx.init(params), params)[0]
      {'bias': Array([0.], dtype=float32), 'gate': Array([0.1], dtype=float32), 'kernel': Array([-1.], dtype=float32)}
    """
    strengths = check_decays("weight_decays", weight_decays)
    own = {} if learning_rate is None else {"learning_rate": learning_rate}

    def init(params: Tree) -> dict:
        first_match("weight_decays", strengths, None, params)
        return {}

    def update(updates: Tree, state: dict, params: Tree, *, learning_rate: jax.Array) -> tuple[Tree, dict]:
        found = first_match("weight_decays", strengths, (0.0, 0.0), params)
        return each_leaf(step, updates, params, found, learning_rate=learning_rate), state

    def step(learning_rate: jax.Array) -> Callable[..., jax.Array]:
        def decay(u: jax.Array, p: jax.Array, strength: tuple[float, float]) -> jax.Array:
            l1, l2 = strength
            if l1:
                u = u - learning_rate * l1 * jnp.sign(p)
            return u - learning_rate * l2 * p if l2 else u

        return decay

    def effects(params: Tree) -> dict[str, Tree]:
        kinds = enumerate(("l1", "l2"))
        tables = {kind: {pattern: pair[i] for pattern, pair in strengths.items()} for i, kind in kinds}
        return {kind: first_match("weight_decays", table, 0.0, params) for kind, table in tables.items()}

    return Transformation(
        init, update, hyperparams=Hyperparams(**own), stage="decay", needs_params=True, rowwise=True
    ).with_effects(effects)


def check_decays(name: str, weight_decays: Any) -> dict[str, tuple[float, float]]:
    """The table of `(l1, l2)`, each number checked under its place in the argument `name`."""
    check_patterns(name, weight_decays)
    checked = {}
    for pattern, strengths in weight_decays.items():
        if not isinstance(strengths, Sequence) or isinstance(strengths, str) or len(strengths) != 2:
            raise TypeError(f"{name}[{pattern!r}] must be a pair (l1, l2) of numbers >= 0; got {strengths!r}")
        for index, strength in enumerate(strengths):
            arguments.check_number(f"{name}[{pattern!r}][{index}]", strength, arguments.NON_NEGATIVE)
        checked[pattern] = (float(strengths[0]), float(strengths[1]))
    return checked
