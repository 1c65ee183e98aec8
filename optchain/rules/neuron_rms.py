"""NorMuon's second moment: a number for each neuron, by whose root what a rule makes of its weights is divided."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import devices, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.factors import Factor, near_one
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.matrix_axes import Axes, MatrixAxes, axes_by_pattern, form_in_state, forms_of
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
    mask: Mask | None = None,
    matrices: Mapping[str, tuple[Axes, Axes] | None] | None = None,
) -> Transformation:
    """Divides the update of each neuron by the root of the average of its mean squares, and keeps the norm of each matrix:

        ν ← β₂ · ν + (1 − β₂) · mean of |u|² over the neuron's inputs
        v = u / (√ν + ε)
        u ← v · ‖u‖ / ‖v‖

    After `scale_by_muon` it is NorMuon, as its authors' code has it: what is orthogonal has singular values of one size, and
    neurons of many. (In the paper's Algorithm 1 the norm becomes `0.2 √(n m)`, which it is already after a `scale_by_muon` whose
    singular values are 1.) What is no matrix goes through as it is: give it the `mask` and `matrices` of `scale_by_muon`, so that what goes
    by Adam's rule there is left alone here.

    Args:
      beta_2: decay of the average, in [0, 1).
      epsilon: added to the denominator, >= 0; a neuron whose denominator is 0 keeps its update.
      mask: which matrices: a tree of bools, or a callable of the parameters that returns one, such as `~matching("embedding")`. None for
        all. It is asked when the state is made.
      matrices: which axes are inputs and which outputs, by pattern, as `scale_by_muon` takes them; all other axes count matrices. What
        has None, or is found by no pattern, is no matrix. None for all: parameters of two axes are matrices, inputs first.

    Returns:
      A transformation with state `neuron_nu`: a number for each neuron.

    Raises:
      ValueError: a pattern that decides for no parameter, or that names axes which one has not; in an update, a state that was made for
        other matrices or shapes. The message names the parameter.

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
    if mask is not None:
        check_mask("mask", mask)

    def init(params: Tree) -> ScaleByNeuronRmsState:
        def zeros(p: Any, form: MatrixAxes | bool) -> jax.Array:
            dtype = trees.wide_dtype(trees.real_dtype(trees.dtype_of(p)))
            # Checkpoints need at least one element.
            if not isinstance(form, MatrixAxes):
                return jnp.zeros((1,), dtype)
            return trees.zeros_without(p, form.ins, dtype, keepdims=True)

        return {
            "neuron_nu": jax.tree.map(zeros, params, forms_of(by_pattern, params, resolve_mask("mask", mask, params)))
        }

    def form_of(path: trees.Path, u: jax.Array, nu: jax.Array) -> MatrixAxes | bool:
        form = form_in_state(by_pattern, path, jnp.ndim(nu) > 1, masked=mask is not None)
        ins = {axis % u.ndim for axis in form.ins} if isinstance(form, MatrixAxes) and form.fits(u.shape) else None
        expected = (1,) if ins is None else tuple(1 if axis in ins else n for axis, n in enumerate(u.shape))
        if jnp.shape(nu) != expected:
            raise ValueError(
                f"the state was made for other matrices or shapes: {trees.path_string(path) or 'the array'} has neuron_nu of the shape "
                f"{jnp.shape(nu)} there, and {expected} here; take neuron_nu from a fresh init"
            )
        return form

    def update(
        updates: Tree, state: ScaleByNeuronRmsState, params: Tree, *, beta_2: jax.Array, epsilon: jax.Array
    ) -> tuple[Tree, ScaleByNeuronRmsState]:
        old = state["neuron_nu"]
        if jax.tree.structure(old) != jax.tree.structure(updates):
            trees.check_match('scale_by_neuron_rms state["neuron_nu"]', old, "updates", updates)
        found = jax.tree_util.tree_map_with_path(form_of, updates, old)
        updates, nu = each_leaf(step, updates, old, found, outputs=2, beta_2=beta_2, epsilon=epsilon)
        return updates, {"neuron_nu": trees.cast_tree(nu, old)}

    def step(beta_2: jax.Array, epsilon: jax.Array) -> Callable[..., tuple[jax.Array, jax.Array]]:
        def leaf(u: jax.Array, nu: jax.Array, form: MatrixAxes | bool) -> tuple[jax.Array, jax.Array]:
            if not isinstance(form, MatrixAxes):
                return u, nu
            inputs = math.prod(u.shape[axis] for axis in form.ins)
            mean = trees.sum_of_squares(u, form.ins) / max(inputs, 1)
            old = devices.split_as(nu, jax.typeof(mean))
            new = unless_infinite(old, beta_2 * old + (1 - beta_2) * mean)
            least = trees.root(new) + epsilon
            v = jnp.where(least == 0, u, u / jnp.where(least == 0, 1, least))
            axes = (*form.ins, *form.outs)
            before, after = _norm(u, axes), _norm(v, axes)
            one = Factor.of(jnp.ones_like(after.significand))
            return (before / after.where(after.significand != 0, one)).times(v), devices.split_as(new, jax.typeof(nu))

        return leaf

    return Transformation(init, update, slots=SLOTS, hyperparams=Hyperparams(beta_2=beta_2, epsilon=epsilon))


def _norm(x: jax.Array, axes: tuple[int, ...]) -> Factor:
    """The norm over some axes, which then have length 1."""
    near, power = near_one(x, axes)
    return Factor.of(trees.root(trees.sum_of_squares(near, axes)), -power.exponent)
