"""Norms of updates and parameters, for a logger."""

import re
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.factors import Factor
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree


@register
def monitor(per_subtree: bool = False) -> Transformation:
    """Notices how large updates are next to the parameters; changes nothing.

        update_norm = ‖u‖,   param_norm = ‖params‖,   update_ratio = ‖u‖ / ‖params‖

    It sees the updates as they are where it stands: last among the gradient links, inside the gate if there is one, they
    are what is added to the parameters. A ratio near 1e-3 is usual; 0 where the parameters are all zero.

    Args:
      per_subtree: whether to notice them for each top-level subtree as well, as `update_norm_<subtree>` and so on. The names then
        depend on the parameters, so that `optax.tree.map_params`, which asks for a state without them, cannot take such a state.

    Returns:
      A transformation whose state is its metrics.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.scale_by_learning_rate(0.1), optchain.monitor())
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
      >>> {name: round(float(value), 3) for name, value in optchain.metrics(state).items() if name != "learning_rate"}
      {'param_norm': 5.0, 'update_norm': 0.5, 'update_ratio': 0.1}
    """
    per_subtree = arguments.check_bool("per_subtree", per_subtree)

    def init(params: Tree) -> dict[str, Any]:
        return {"metrics": {key: jnp.zeros((), trees.default_float()) for key in _measure(params, params, per_subtree)}}

    def update(updates: Tree, state: dict[str, Any], params: Tree) -> tuple[Tree, dict[str, Any]]:
        return updates, {"metrics": _measure(updates, params, per_subtree)}

    return Transformation(init, update, fields=["metrics"], needs_params=True)


def _measure(updates: Tree, params: Tree, per_subtree: bool) -> dict[str, jax.Array]:
    """The metrics, from one pass over each leaf."""
    parts: dict[str, list[int]] = {"": []}
    params_and_paths, updates = trees.leaves_with_paths(params), jax.tree.leaves(updates)
    for place, (path, _) in enumerate(params_and_paths):
        parts[""].append(place)
        if per_subtree and path:
            subtree = re.sub(r"\W", "_", trees.path_names(path)[0])  # a key of a checkpoint
            parts.setdefault(f"_{subtree}", []).append(place)
    both = [
        (leaves, [trees.sum_of_squares(x) for x in leaves]) for leaves in (updates, [p for _, p in params_and_paths])
    ]
    measured = {}
    for suffix, places in parts.items():
        update_norm, param_norm = (
            trees.norm_of([leaves[i] for i in places], [squares[i] for i in places]) for leaves, squares in both
        )
        positive = param_norm.significand > 0
        ratio = update_norm / param_norm.where(positive, Factor.of(jnp.ones_like(param_norm.significand)))
        measured |= {
            f"update_norm{suffix}": update_norm.value,
            f"param_norm{suffix}": param_norm.value,
            f"update_ratio{suffix}": jnp.where(positive, ratio.value, 0),
        }
    return measured
