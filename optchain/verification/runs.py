"""A small tree, gradients of many sizes, both forms of a step, and the measure of error."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optchain.core.optax_link import as_transformation

Tree = Any

BOUNDS = {"float32": 5e-6, "float64": 1e-10}
"""The largest error allowed. float64 shows a wrong rule that float32's rounding hides."""

SHAPES = {"dense": {"bias": (2,), "kernel": (3, 2)}, "norm": {"gamma": (2,)}}


def random_params(rng: np.random.Generator, dtype: str) -> Tree:
    """Parameters of unit size, on the host."""
    return jax.tree.map(lambda shape: rng.normal(size=shape).astype(dtype), SHAPES, is_leaf=_is_shape)


def random_grads(rng: np.random.Generator, dtype: str, steps: int, factor: float = 1.0) -> list[Tree]:
    """Gradients of sizes between 1e-3 and 30, every eighth or so of them zero, all times `factor`."""

    def grad(shape: tuple[int, ...]) -> np.ndarray:
        size = 10 ** rng.uniform(-3, 1.5) * (rng.uniform() > 1 / 8)
        return (factor * size * rng.normal(size=shape)).astype(dtype)

    return [jax.tree.map(grad, SHAPES, is_leaf=_is_shape) for _ in range(steps)]


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


# The two forms -------------------------------------------------------------------------------------------------------


def _apply(tx: optax.GradientTransformation, params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
    return as_transformation(tx).apply(params, state, grads=grads)


def _update(tx: optax.GradientTransformation, params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


FORMS: dict[str, Callable[..., tuple[Tree, Tree]]] = {"apply": _apply, "update": _update}


def run(tx: optax.GradientTransformation, params: Tree, grads: Iterable[Tree]) -> list[Tree]:
    """The parameters after every step, on the host, in the `update` form."""
    return _run(tx, ["update"], params, grads)["update"][0]


def run_forms(
    tx: optax.GradientTransformation, params: Tree, grads: Iterable[Tree]
) -> dict[str, tuple[list[Tree], Tree]]:
    """Of each form the parameters after every step, on the host, and the last state. Both are one program: it compiles sooner."""
    return _run(tx, FORMS, params, grads)


def _run(
    tx: optax.GradientTransformation, forms: Iterable[str], params: Tree, grads: Iterable[Tree]
) -> dict[str, tuple[list[Tree], Tree]]:
    @jax.jit
    def step(carries: dict[str, tuple[Tree, Tree]], grads: Tree) -> dict[str, tuple[Tree, Tree]]:
        return {form: FORMS[form](tx, *carry, grads) for form, carry in carries.items()}

    params = jax.device_put(params)
    carries = {form: (params, tx.init(params)) for form in forms}
    history = {form: [] for form in carries}
    for g in grads:
        carries = step(carries, g)
        for form, (params, _) in carries.items():
            history[form].append(jax.device_get(params))
    return {form: (history[form], state) for form, (_, state) in carries.items()}


# The measure ---------------------------------------------------------------------------------------------------------


def worst_error(ours: Sequence[Tree], theirs: Sequence[Tree]) -> float:
    """`max |a − b| / (max |b| over the run + 1e-3)`, of the worst leaf.

    Raises:
      AssertionError: a number that is not finite, or leaves of another shape or dtype.
    """
    return max(_leaf_error(*leaves) for leaves in zip(_stacked(ours), _stacked(theirs), strict=True))


def _leaf_error(a: np.ndarray, b: np.ndarray) -> float:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        raise AssertionError(f"a leaf is {a.dtype}{list(a.shape)}, and the peer's {b.dtype}{list(b.shape)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AssertionError(f"numbers are not finite: ours {_bad(a)}, the peer's {_bad(b)}")
    return float(np.max(np.abs(a - b)) / (np.max(np.abs(b)) + 1e-3))


def _bad(values: np.ndarray) -> int:
    return int((~np.isfinite(values)).sum())


def _stacked(history: Sequence[Tree]) -> list[np.ndarray]:
    return [np.stack(leaves) for leaves in zip(*map(jax.tree.leaves, history), strict=True)]
