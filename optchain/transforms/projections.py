"""Projections of the parameters after the update: Keras's constraints, as parameter links.

In a chain they come last: after a gate, so that they act at every call, and after an average, which sees the parameters as
the update left them. That is Keras's order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.factors import Factor, is_factor
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask
from optchain.core.parameter_link import ParameterLink
from optchain.core.part import of_some
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree

EPSILON = 1e-7  # keras.config.epsilon()
Axis = int | Sequence[int]

SLOTS = declare(
    # Of each weight, or along its axes: a number for each norm. Rounded, it would be another norm that weights are brought to.
    initial_norm=Slot(real=True, nonnegative=True, full=False, narrowest="float32"),
)


@register
def project_non_negative(*, mask: Mask | None = None) -> Transformation:
    """Keeps parameters from being negative: `p ← max(p, 0)`. A parameter link; Keras's `NonNeg`.

    Args:
      mask: which parameters: a tree of bools (or a prefix of one), or a callable of the parameters that returns one, such
        as `matching("kernel$")`. None for all.

    Raises:
      TypeError: on complex leaves, which have no order.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.sgd(1.0), optchain.project_non_negative())
      >>> params = jnp.array([1.0, 3.0])
      >>> tx.apply(params, tx.init(params), grads=jnp.array([2.0, 2.0]))[0]
      Array([0., 1.], dtype=float32)
    """
    if mask is not None:
        return of_some(project_non_negative(), mask)

    def check(params: Tree) -> None:
        for path, leaf in trees.leaves_with_paths(params):
            if trees.is_complex(leaf):
                raise TypeError(
                    f"project_non_negative cannot order complex values, and {trees.path_string(path)} is "
                    f"{trees.dtype_of(leaf)}: leave it out by a mask"
                )

    return _projection(
        lambda params: each_leaf(lambda: lambda p: jnp.maximum(p, 0), params), check, Hyperparams(), rowwise=True
    )


@register
def project_unit_norm(axis: Axis = 0, *, mask: Mask | None = None) -> Transformation:
    """Keeps each unit's weights at norm 1: `p ← p / (ε + ‖p‖)`, ε = 1e-7. A parameter link; Keras's `UnitNorm`.

    Args:
      axis: the axis or axes over which norms are taken, those of a unit's inputs: 0 for the kernel of a dense layer,
        `(0, 1, 2)` for a kernel of a two-dimensional convolution.
      mask: which parameters: a tree of bools (or a prefix of one), or a callable of the parameters that returns one, such
        as `matching("kernel$")`. None for all.

    Raises:
      ValueError: when called, a parameter that has no such axis.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.sgd(1.0), optchain.project_unit_norm(mask=optchain.matching("kernel")))
      >>> params = {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.ones(1)}
      >>> tx.apply(params, tx.init(params), grads={"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)})[0]["kernel"]
      Array([[0.6],
             [0.8]], dtype=float32)
    """
    if mask is not None:
        return of_some(project_unit_norm(axis), mask)
    return _norm_projection("project_unit_norm", axis, lambda: jnp.ones_like, Hyperparams())


@register
def project_max_norm(max_value: Hyperparam = 2.0, axis: Axis = 0, *, mask: Mask | None = None) -> Transformation:
    """Keeps the norm of each unit's weights from growing: `p ← p · min(‖p‖, max_value) / (ε + ‖p‖)`, ε = 1e-7.

    A parameter link; Keras's `MaxNorm`. See Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", 2014, section 5.1.

    Args:
      max_value: the largest norm, > 0.
      axis: the axis or axes over which norms are taken, those of a unit's inputs: 0 for the kernel of a dense layer,
        `(0, 1, 2)` for a kernel of a two-dimensional convolution.
      mask: which parameters: a tree of bools (or a prefix of one), or a callable of the parameters that returns one, such
        as `matching("kernel$")`. None for all.

    Raises:
      ValueError: when called, a parameter that has no such axis.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.project_max_norm(1.0)
      >>> params = jnp.array([[3.0, 0.3], [4.0, 0.4]])
      >>> tx.apply(params, tx.init(params), grads=jnp.zeros((2, 2)))[0].round(3)
      Array([[0.6, 0.3],
             [0.8, 0.4]], dtype=float32)
    """
    if mask is not None:
        return of_some(project_max_norm(max_value, axis), mask)

    def desired(max_value: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda norm: jnp.minimum(norm, max_value)

    return _norm_projection("project_max_norm", axis, desired, Hyperparams(max_value=max_value))


@register
def project_min_max_norm(
    min_value: Hyperparam = 0.0,
    max_value: Hyperparam = 1.0,
    rate: Hyperparam = 1.0,
    axis: Axis = 0,
    *,
    mask: Mask | None = None,
) -> Transformation:
    """Moves the norm of each unit's weights into an interval, or, with a `rate` below 1, towards it:

        p ← p · (rate · min(max(‖p‖, min_value), max_value) + (1 − rate) · ‖p‖) / (ε + ‖p‖),   ε = 1e-7

    A parameter link; Keras's `MinMaxNorm`. Weights that are all zero stay zero.

    Args:
      min_value: the smallest norm, >= 0.
      max_value: the largest norm, > 0.
      rate: the part of the way that one call goes, in [0, 1].
      axis: the axis or axes over which norms are taken, those of a unit's inputs: 0 for the kernel of a dense layer,
        `(0, 1, 2)` for a kernel of a two-dimensional convolution.
      mask: which parameters: a tree of bools (or a prefix of one), or a callable of the parameters that returns one, such
        as `matching("kernel$")`. None for all.

    Raises:
      ValueError: `min_value` above `max_value`; when called, a parameter that has no such axis.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.project_min_max_norm(min_value=1.0, max_value=2.0, rate=0.5)
      >>> params = jnp.array([[6.0, 0.0], [0.0, 0.25]])
      >>> tx.apply(params, tx.init(params), grads=jnp.zeros((2, 2)))[0].round(3)
      Array([[4.   , 0.   ],
             [0.   , 0.625]], dtype=float32)
    """
    if mask is not None:
        return of_some(project_min_max_norm(min_value, max_value, rate, axis), mask)
    hyperparams = Hyperparams(min_value=min_value, max_value=max_value, rate=rate)
    constants = hyperparams.constants
    if {"min_value", "max_value"} <= constants.keys() and constants["min_value"] > constants["max_value"]:
        raise ValueError(f"min_value must be at most max_value; got {min_value} and {max_value}")

    def desired(min_value: jax.Array, max_value: jax.Array, rate: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda norm: rate * jnp.clip(norm, min_value, max_value) + (1 - rate) * norm

    return _norm_projection("project_min_max_norm", axis, desired, hyperparams)


@register
def project_initial_norm(axis: Axis | None = None, *, mask: Mask | None = None) -> Transformation:
    """Keeps the norm of each weight what it was when the state was made: `p ← p · ‖p₀‖ / ‖p‖`. A parameter link.

    With `scale_by_trust_ratio`, which makes the update as long as the weight, it is Hyperball, in the place of weight decay:

        W ← R · normalize(W − learning_rate · R · normalize(u)),    R = ‖W₀‖

    Both take an `axis`, for stacks of matrices. Biases and gains, whose norm is not to be kept, are left out by the mask. A weight of
    norm 0 is left alone, and so is one that was all zero then, whose norm is free.

    Args:
      axis: the axis or axes over which norms are taken: `(-2, -1)` for a stack of matrices; None for the whole of each weight.
      mask: which parameters: a tree of bools (or a prefix of one), or a callable of the parameters that returns one, such
        as `matrices`. None for all.

    Returns:
      A transformation with state `initial_norm`, a number for each norm.

    Raises:
      ValueError: when called, a parameter that has no such axis.

    Source: Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization", 2026, arXiv:2606.16899.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(
      ...     optchain.scale_by_adam(),
      ...     optchain.scale_by_trust_ratio(),
      ...     optchain.scale_by_learning_rate(0.1),
      ...     optchain.project_initial_norm(mask=optchain.matrices),
      ... )
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
      >>> params, state = tx.apply(params, tx.init(params), grads={"kernel": jnp.ones((2, 2))})
      >>> print(f"{jnp.linalg.norm(params['kernel']):.4f}")
      5.0000
    """
    if mask is not None:
        return of_some(project_initial_norm(axis), mask)
    axes = None if axis is None else arguments.check_axes("axis", axis)

    def norms(params: Tree) -> Tree:
        along = None if axes is None else jax.tree.map(lambda _: axes, params)
        return trees.norms(params, along)

    def init(params: Tree) -> dict[str, Tree]:
        for path, leaf in trees.leaves_with_paths(params):
            if axes is not None:
                trees.check_axes("project_initial_norm", path, leaf, axes)
        kept = jax.tree.map(lambda norm: trees.floating(norm.value), norms(params), is_leaf=is_factor)
        return {"initial_norm": kept}

    def project(params: Tree, state: dict[str, Tree]) -> tuple[Tree, dict[str, Tree]]:
        def factor(norm: Factor, initial: jax.Array) -> Factor:
            keeps = (norm.significand > 0) & (initial > 0)
            one = Factor.of(jnp.ones_like(norm.significand))
            wanted = Factor.of(trees.astype(initial, norm.significand.dtype))
            return (wanted / norm.where(keeps, one)).where(keeps, one).nan_unless_finite(norm)

        factors = jax.tree.map(factor, norms(params), state["initial_norm"], is_leaf=is_factor)
        return trees.scale_each(params, factors), state

    return ParameterLink(project, init, slots=SLOTS, stage="projection")


def _norm_projection(
    name: str, axis: Axis, desired: Callable[..., Callable[[jax.Array], jax.Array]], hyperparams: Hyperparams
) -> Transformation:
    """Gives each unit's weights the norm `desired(**hyperparams)(norm)`."""
    axes = arguments.check_axes("axis", axis)

    def check(params: Tree) -> None:
        for path, leaf in trees.leaves_with_paths(params):
            trees.check_axes(name, path, leaf, axes)

    def project(params: Tree, **values: Any) -> Tree:
        norms = jax.tree.map(lambda p: trees.root(trees.sum_of_squares(p, axes)), params)
        new = each_leaf(desired, norms, **values)
        return jax.tree.map(lambda p, norm, n: trees.scale_leaf(p, n / (EPSILON + norm)), params, norms, new)

    return _projection(project, check, hyperparams, rowwise=min(axes) > 0)


def _projection(
    rule: Callable[..., Tree], check: Callable[[Tree], None], hyperparams: Hyperparams, *, rowwise: bool
) -> Transformation:
    """A parameter link from a function of the parameters and the hyperparameters, which returns wide leaves."""

    def init(params: Tree) -> dict:
        check(params)
        return {}

    def project(params: Tree, state: dict, **extra: Any) -> tuple[Tree, dict]:
        check(params)
        values = {name: extra[name] for name in hyperparams.names}
        return trees.cast_tree(rule(params, **values), params), state

    return ParameterLink(project, init, hyperparams=hyperparams, stage="projection", rowwise=rowwise)
