"""Adafactor's second moment: of a matrix, only what its rows and its columns have in common."""

import math
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.slot import Slot, declare
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.rules.moments import unless_infinite


class ScaleByFactoredRmsState(TypedDict):
    count: jax.Array
    """The number of updates made, int32."""
    v_row: Tree
    """The average of the squared gradients over the last axis, real; of one element where a leaf is not factored."""
    v_col: Tree
    """The average over the last axis but one, likewise."""
    v: Tree
    """The average itself, where a leaf is not factored; of one element where it is."""


SLOTS = declare(
    v_row=Slot(
        real=True, nonnegative=True, full=False
    ),  # the average of the squared gradients over the last axis; of one element where a leaf is not factored
    v_col=Slot(real=True, nonnegative=True, full=False),  # the average over the last axis but one, likewise
    v=Slot(
        real=True, nonnegative=True, full=False
    ),  # the average itself, where a leaf is not factored; of one element where it is
)


@register
def scale_by_factored_rms(
    beta_2_decay: float = -0.8, epsilon: Hyperparam | None = 1e-30, *, epsilon_in_average: bool = True
) -> Transformation:
    """Divides gradients by the root of the average of their squares, which is factored over the last two axes:

        β_t = 1 − t^beta_2_decay, with t counting updates from 1
        v_row ← β_t · v_row + (1 − β_t) · mean over columns of (|g|² + ε)
        v_col ← β_t · v_col + (1 − β_t) · mean over rows of (|g|² + ε)
        u_ij = g_ij / √(v_row_i · v_col_j / mean(v_row))

    A leaf of fewer than two axes keeps the whole average `v`, and `u = g / √v`. The first update has no past: β_1 = 0. The
    quotient is taken a factor at a time; Keras multiplies first, and where a row and a column both had no gradient the
    product of two `ε` is 0 in float32, and its update NaN.

    PyTorch has no `ε` in the averages: it is a least value. There `mean(v_row)` is at least ε, and the square by whose root `g`
    is divided at least `ε²`.

    Args:
      beta_2_decay: the exponent that takes the decay towards 1, a number <= 0.
      epsilon: what is added to the squares, >= 0; without `epsilon_in_average` the least root, and None for the distance from 1
        to the next number of the dtype of the arithmetic, float32 or wider.
      epsilon_in_average: whether it is added to the squares, or is a least value as in PyTorch.

    Returns:
      A transformation with state `count, v_row, v_col, v`: n + m numbers for a matrix of n · m.

    Source: Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, arXiv:1804.04235,
    Algorithm 4 and section 7.2.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_factored_rms()
      >>> grads = jnp.array([[1.0, 2.0], [2.0, 4.0]])
      >>> tx.update(grads, tx.init(grads))[0].round(3)
      Array([[1., 1.],
             [1., 1.]], dtype=float32)
    """
    arguments.check_number("beta_2_decay", beta_2_decay, arguments.RANGES["beta_2_decay"])
    epsilon_in_average = arguments.check_bool("epsilon_in_average", epsilon_in_average)
    if epsilon is None and epsilon_in_average:
        raise TypeError("epsilon must be a finite number >= 0 where it is added to the squares; got None")
    own = {} if epsilon is None else {"epsilon": epsilon}

    def init(params: Tree) -> ScaleByFactoredRmsState:
        def zeros(p: jax.Array) -> tuple[jax.Array, ...]:
            dtype = trees.wide_dtype(trees.real_dtype(trees.dtype_of(p)))
            # An entry that a leaf does not use has one element: checkpoints need at least one.
            unused = [jnp.zeros((1,), dtype) for _ in range(2)]
            if not _is_factored(jnp.shape(p)):
                return *unused, jnp.zeros_like(p, dtype)
            return trees.zeros_without(p, -1, dtype), trees.zeros_without(p, -2, dtype), unused[0]

        v_row, v_col, v = trees.map_unzip(zeros, 3, params)
        return {"count": jnp.zeros((), jnp.int32), "v_row": v_row, "v_col": v_col, "v": v}

    def update(
        updates: Tree, state: ScaleByFactoredRmsState, params: Tree, *, epsilon: Any = None
    ) -> tuple[Tree, ScaleByFactoredRmsState]:
        count = trees.increment(state["count"])
        columns = [state[name] for name in ("v_row", "v_col", "v")]
        updates, v_row, v_col, v = each_leaf(
            step, updates, *columns, outputs=4, t=count, **({} if epsilon is None else {"epsilon": epsilon})
        )
        return updates, {"count": count, "v_row": v_row, "v_col": v_col, "v": v}

    def step(t: jax.Array, epsilon: Any = None) -> Callable[..., tuple[jax.Array, ...]]:
        beta = 1 - t**beta_2_decay

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return unless_infinite(old, beta * old + (1 - beta) * new)

        def leaf(g: jax.Array, v_row: jax.Array, v_col: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            if not epsilon_in_average:
                return with_least(g, v_row, v_col, v)
            square = trees.abs_square(g) + epsilon
            if not _is_factored(g.shape):
                v = average(v, square)
                return g / trees.root(v), v_row, v_col, v
            v_row = average(v_row, _mean(square, -1))
            v_col = average(v_col, _mean(square, -2))
            # Roots before the quotient: the derivative of a quotient by 1e-30 would overflow.
            mean = _mean(v_row, -1)[..., None]
            # Of an infinite mean nothing is known but that the whole matrix stands still.
            of_rows = unless_infinite(mean, trees.root(v_row) / trees.root(mean))
            of_columns = trees.root(v_col)
            return g / of_rows[..., :, None] / of_columns[..., None, :], v_row, v_col, v

        def with_least(g: jax.Array, v_row: jax.Array, v_col: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            square = trees.abs_square(g)
            least = jnp.finfo(square.dtype).eps if epsilon is None else epsilon
            if not _is_factored(g.shape):
                v = average(v, square)
                return _quotient(g, jnp.maximum(trees.root(v), least)), v_row, v_col, v
            v_row = average(v_row, _mean(square, -1))
            v_col = average(v_col, _mean(square, -2))
            # Roots of the factors, and their product: the squares of 1e-7 are near the smallest numbers of float32.
            mean = jnp.maximum(_mean(v_row, -1)[..., None], least)
            of_rows = unless_infinite(mean, _quotient(trees.root(v_row), trees.root(mean)))
            root = of_rows[..., :, None] * trees.root(v_col)[..., None, :]
            return _quotient(g, jnp.maximum(root, least)), v_row, v_col, v

        return leaf

    return Transformation(
        init,
        update,
        fields=["count"],
        slots=SLOTS,
        hyperparams=Hyperparams(**own),
        stage="second_moment",
    )


def _quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x / y`, and 0 where `y` is: nothing but zeros came there."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))


def _mean(x: jax.Array, axis: int) -> jax.Array:
    """The mean over an axis, finite where the numbers are.

    They are multiplied by a power of two no greater than 1 / their number, which changes no bit, but of numbers that are
    subnormal then.
    """
    size = x.shape[axis]
    power = 2.0 ** -(size - 1).bit_length()
    return jnp.sum(x * power, axis=axis) / (size * power)


def _is_factored(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and math.prod(shape) > 0
