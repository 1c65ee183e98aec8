"""Adadelta's rule: the gradient in units of the steps made so far."""

from typing import Any, TypedDict

import jax

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.transforms.moments import scaled_square


class ScaleByAdadeltaState(TypedDict):
    e_g: Tree
    """The average of the squared gradients, real."""
    e_x: Tree
    """The average of the squared steps, real."""


@register
def scale_by_adadelta(
    rho: Hyperparam = 0.95, epsilon: Hyperparam = 1e-7, *, moment_dtype: Any = None
) -> Transformation:
    """Rescales gradients to the size of the steps made so far:

        e_g ← rho · e_g + (1 − rho) · |g|²
        u = √(e_x + ε) / √(e_g + ε) · g
        e_x ← rho · e_x + (1 − rho) · |u|²

    The sign is the gradient's, and the learning rate is not in it (1 in the paper): `scale_by_learning_rate` follows.

    Args:
      rho: decay of the averages, in [0, 1).
      epsilon: what the first steps are made of, >= 0; with 0 there are none.
      moment_dtype: the dtype in which the averages are stored; float32 or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `e_g, e_x`.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, arXiv:1212.5701, Algorithm 1.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_adadelta(0.75, epsilon=1e-4)
      >>> tx.update(jnp.array([10.0]), tx.init(jnp.zeros(1)))[0].round(3)
      Array([0.02], dtype=float32)
    """
    hyperparams = Hyperparams(rho=rho, epsilon=epsilon)
    dtype = arguments.check_dtype("moment_dtype", moment_dtype)

    def init(params: Tree) -> ScaleByAdadeltaState:
        return {"e_g": trees.zeros_like(params, dtype, real=True), "e_x": trees.zeros_like(params, dtype, real=True)}

    def update(
        updates: Tree, state: ScaleByAdadeltaState, params: Tree, *, rho: jax.Array, epsilon: jax.Array
    ) -> tuple[Tree, ScaleByAdadeltaState]:
        def step(g: jax.Array, e_g: jax.Array, e_x: jax.Array) -> tuple[jax.Array, ...]:
            g = trees.wide(g)
            g_square = trees.abs_square(g)
            stored, (e_g, e_x) = e_g.dtype, (trees.astype(e, g_square.dtype) for e in (e_g, e_x))
            decay, eps = trees.cast(rho, g_square), trees.cast(epsilon, g_square)
            e_g = decay * e_g + scaled_square(1 - decay, g)
            u = g * trees.astype(trees.root(e_x + eps) / trees.root(e_g + eps), g.dtype)
            e_x = decay * e_x + (1 - decay) * trees.abs_square(u)
            return u, trees.astype(e_g, stored), trees.astype(e_x, stored)

        steps, e_g, e_x = trees.map_unzip(step, 3, updates, state["e_g"], state["e_x"])
        return steps, {"e_g": e_g, "e_x": e_x}

    return Transformation(
        init,
        update,
        fields=["e_g", "e_x"],
        hyperparams=hyperparams,
        stage="second_moment",
        rowwise=True,
        decays={"e_g": "rho", "e_x": "rho"},
    )
