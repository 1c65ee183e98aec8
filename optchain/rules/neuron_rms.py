"""NorMuon's second moment: a number for each neuron, by whose root what a rule makes of its weights is divided."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import trees
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.matrix_axes import Axes, MatrixAxes, axes_by_pattern, forms_of
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.rules.moments import unless_infinite


class ScaleByNeuronRmsState(TypedDict):
    neuron_nu: Tree
    """The average of each neuron's mean square: of length 1 along its inputs, of one element for what is no matrix."""


SLOTS = declare(neuron_nu=Slot(real=True, nonnegative=True, full=False, narrowest="float32"))


@register(ordered=["matrices"])
def scale_by_neuron_rms(
    beta_2: Hyperparam = 0.95,
    epsilon: Hyperparam = 1e-8,
    *,
    matrices: Mapping[str, tuple[Axes, Axes] | None] | None = None,
) -> Transformation:
    """Divides the update of each neuron by the root of the average of its mean squares, and keeps the norm of each matrix:

        ν ← β₂ · ν + (1 − β₂) · mean of |u|² over the neuron's inputs
        v = u / (√ν + ε)
        u ← v · ‖u‖ / ‖v‖

    After `scale_by_muon` it is NorMuon: what is orthogonal has singular values of one size, and neurons of many. What is no matrix goes
    through as it is.

    Args:
      beta_2: decay of the average, in [0, 1).
      epsilon: added to the denominator, >= 0.
      matrices: which axes are inputs and which outputs, by pattern, as `scale_by_muon` takes them; all other axes count matrices. What
        has None, or is found by no pattern, is no matrix. None for all: parameters of two axes are matrices, inputs first.

    Returns:
      A transformation with state `neuron_nu`: a number for each neuron.

    Raises:
      ValueError: a pattern that decides for no parameter, or that names axes which one has not; in an update, a state that was made for
        other matrices. The message names the parameter.

    Source: Li et al., "NorMuon: Making Muon more efficient and scalable", 2025, arXiv:2510.05491.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_neuron_rms()
      >>> grads = {"kernel": jnp.array([[3.0, 0.3], [4.0, 0.4]]), "bias": jnp.array([10.0])}
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> [f"{u:.2f}" for u in updates["kernel"].ravel()], updates["bias"]
      (['2.13', '2.13', '2.84', '2.84'], Array([10.], dtype=float32))
    """
    by_pattern = None if matrices is None else axes_by_pattern(matrices, may_be_none=True)

    def forms(params: Tree) -> Tree:
        return forms_of(by_pattern, params, jax.tree.map(lambda _: True, params))

    def init(params: Tree) -> ScaleByNeuronRmsState:
        def zeros(p: Any, form: MatrixAxes | bool) -> jax.Array:
            dtype = trees.wide_dtype(trees.real_dtype(trees.dtype_of(p)))
            # Checkpoints need at least one element.
            return trees.zeros_without(p, form.ins, dtype, keepdims=True) if form else jnp.zeros((1,), dtype)

        return {"neuron_nu": jax.tree.map(zeros, params, forms(params))}

    def update(
        updates: Tree, state: ScaleByNeuronRmsState, params: Tree, *, beta_2: jax.Array, epsilon: jax.Array
    ) -> tuple[Tree, ScaleByNeuronRmsState]:
        found = forms(updates)
        jax.tree_util.tree_map_with_path(_check, updates, found, state["neuron_nu"])
        updates, nu = each_leaf(step, updates, state["neuron_nu"], found, outputs=2, beta_2=beta_2, epsilon=epsilon)
        return updates, {"neuron_nu": trees.cast_tree(nu, state["neuron_nu"])}

    def step(beta_2: jax.Array, epsilon: jax.Array) -> Callable[..., tuple[jax.Array, jax.Array]]:
        def leaf(u: jax.Array, nu: jax.Array, form: MatrixAxes | bool) -> tuple[jax.Array, jax.Array]:
            if not isinstance(form, MatrixAxes):
                return u, nu
            mean = jnp.mean(trees.abs_square(u), form.ins, keepdims=True)
            nu = unless_infinite(nu, beta_2 * nu + (1 - beta_2) * mean)
            v = u / (trees.root(nu) + epsilon)
            before, after = (trees.root(trees.sum_of_squares(x, (*form.ins, *form.outs))) for x in (u, v))
            return v * (before / jnp.where(after == 0, 1, after)), nu

        return leaf

    return Transformation(init, update, slots=SLOTS, hyperparams=Hyperparams(beta_2=beta_2, epsilon=epsilon))


def _check(path: trees.Path, u: jax.Array, form: MatrixAxes | bool, nu: jax.Array) -> None:
    ins = {axis % u.ndim for axis in form.ins} if isinstance(form, MatrixAxes) else None
    expected = (1,) if ins is None else tuple(1 if axis in ins else n for axis, n in enumerate(u.shape))
    if nu.shape != expected:
        raise ValueError(
            f"the state was made for other matrices: {trees.path_string(path) or 'the array'} has neuron_nu of the shape {nu.shape} "
            f"there, and {expected} here"
        )
