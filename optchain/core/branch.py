"""Branches through which large arrays pass in place, on every device.

    run_if(pred, run, *carry)          = lax.cond(pred, run, lambda *carry: carry, *carry)
    run_or_zeros(pred, run, like, ...) = the same for a `run` that makes something besides, of which there are zeros else

XLA's GPU backend copies the arrays that pass through a `conditional`, before it and in it, whichever branch is taken: AdamW that
skips a step moves 52 bytes a parameter instead of 4. There a loop of at most one round keeps them where they are. On a CPU a loop
copies and a `conditional` does not; on a TPU the compiler schedules memory better through a `conditional`.

A loop has no derivative in reverse mode. So the branch holds both forms: it is differentiated as the `cond`, and which of the two
a device runs is decided when it is lowered.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from optchain.core import devices
from optchain.core.by_platform import by_platform
from optchain.core.trees.dtypes import wide_dtype


def run_if(pred: jax.Array, run: Callable[..., tuple[Any, ...]], *carry: Any) -> Any:
    """`run(*carry)` where `pred` is true, else `carry` as it is.

    Args:
      pred: a scalar bool.
      run: a function of `carry` that returns a tuple of trees like it, of the same shapes and dtypes. It may close over
        traced values.
      *carry: trees of arrays.
    """
    leaves, treedef = jax.tree.flatten(carry)

    def run_leaves(*leaves: Any) -> list[Any]:
        return treedef.flatten_up_to(run(*treedef.unflatten(leaves)))

    body = None
    if not runs_step_by_step():
        body, leaves = _body_and_carry(run_leaves, leaves)
    if body is None or body.uses_refs:
        return treedef.unflatten(lax.cond(pred, run_leaves, lambda *leaves: list(leaves), *leaves))

    def cond(pred: jax.Array, captured: list[Any], leaves: list[Any]) -> list[Any]:
        return lax.cond(pred, body, lambda captured, leaves: leaves, captured, leaves)

    def on_gpu(pred: jax.Array, captured: list[Any], leaves: list[Any]) -> list[Any]:
        return once(pred, lambda leaves: body(captured, leaves), leaves)

    return treedef.unflatten(by_platform(cond, pred, body.captured, leaves, gpu=on_gpu))


def run_or_zeros(
    pred: jax.Array, run: Callable[..., tuple[Any, ...]], like: Any, *carry: Any, mostly_runs: bool = False
) -> Any:
    """`run(*carry)` where `pred` is true, else zeros and `carry` as it is. `run` returns `(made, *carry)`.

    On a GPU the loop begins with the zeros: they are written, 4 bytes a parameter, and read again where `made` is used. With
    `mostly_runs` there is no branch on a GPU: `run` is always called, and its kernels select between the new and the old values.

    Args:
      pred: a scalar bool.
      run: a function of `carry` that returns `(made, *carry)`. It may close over traced values.
      like: existing arrays with the structure and the shapes of `made`. Their values are not used.
      *carry: trees of arrays.
      mostly_runs: whether `pred` is true but for rare calls, and `run` contains no branch that seldom runs.
    """
    likes, of_made = jax.tree.flatten(like)
    leaves, treedef = jax.tree.flatten(carry)

    def run_leaves(*leaves: Any) -> list[Any]:
        made, *carry = run(*treedef.unflatten(leaves))
        return of_made.flatten_up_to(made) + treedef.flatten_up_to(tuple(carry))

    def unflatten(out: list[Any]) -> Any:
        return of_made.unflatten(out[: len(likes)]), *treedef.unflatten(out[len(likes) :])

    body = None
    if not runs_step_by_step():
        body, leaves = _body_and_carry(run_leaves, leaves, made=len(likes))
        kinds = body.kinds[: len(likes)]
        likes = [devices.placed_as(x, kind) for x, kind in zip(likes, kinds, strict=True)]
        dtypes = [kind.dtype for kind in kinds]
    else:
        dtypes = [wide_dtype(x.dtype) for x in likes]

    def zeros(likes: list[Any]) -> list[Any]:
        return [jnp.zeros_like(x, dtype) for x, dtype in zip(likes, dtypes, strict=True)]

    if body is None or body.uses_refs:
        return unflatten(lax.cond(pred, run_leaves, lambda *leaves: zeros(likes) + list(leaves), *leaves))

    def cond(pred: jax.Array, captured: list[Any], leaves: list[Any], likes: list[Any]) -> list[Any]:
        return lax.cond(pred, body, lambda captured, leaves: zeros(likes) + leaves, captured, leaves)

    def on_gpu(pred: jax.Array, captured: list[Any], leaves: list[Any], likes: list[Any]) -> list[Any]:
        if mostly_runs and not body.has_effects:
            old = zeros(likes) + leaves
            return [jnp.where(pred, x, y) for x, y in zip(body(captured, leaves), old, strict=True)]
        # Zeros of equal shapes are one array to XLA, which would copy it for each. These are arrays of their own, made where the
        # gradients are read anyway; what they hold where `pred` is true is written over.
        wide = [lax.convert_element_type(x, dtype) for x, dtype in zip(likes, dtypes, strict=True)]
        start = [jnp.where(pred, x, zero) for x, zero in zip(wide, zeros(likes), strict=True)]
        return once(pred, lambda out: body(captured, out[len(likes) :]), start + leaves)

    return unflatten(by_platform(cond, pred, body.captured, leaves, likes, gpu=on_gpu))


def runs_step_by_step() -> bool:
    """Under `jax.disable_jit` nothing is traced, so that Python code within sees numbers."""
    config: Any = jax.config
    return config.jax_disable_jit


class _Body:
    """A function of lists of arrays, traced once. The values that it closes over, such as gradients and rates, become operands.

    The inner `jit` makes one operation of the trace, so that repeating it in both forms costs nothing.
    """

    def __init__(self, run: Callable[..., list[Any]], leaves: list[Any]):
        traced = jax.make_jaxpr(jax.jit(run))(*leaves)
        self.captured, self._jaxpr = traced.consts, traced.jaxpr
        self.kinds, self.has_effects = traced.out_avals, bool(traced.effects)
        # That a `jax.Ref` is read or written is an effect on an operand, which JAX's own `cond` hands on.
        self.uses_refs = any(hasattr(jax.typeof(x), "inner_aval") for x in traced.consts)

    def __call__(self, captured: list[Any], leaves: list[Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(self._jaxpr, captured))(*leaves)


def _body_and_carry(run: Callable[..., list[Any]], leaves: list[Any], made: int = 0) -> tuple[_Body, list[Any]]:
    """`run`, which returns `made` arrays and then its carry, and the carry to call it with.

    Inside `shard_map` devices may have another carry after the call and the same before it: a count of their own decisions, say.
    Then it varies over them from the start.
    """

    def run_alike(*leaves: Any) -> list[Any]:
        out = run(*leaves)
        return out[:made] + [
            devices.varying_also_as(new, jax.typeof(old)) for new, old in zip(out[made:], leaves, strict=True)
        ]

    while True:
        body = _Body(run_alike, leaves)
        carry = [devices.varying_also_as(old, new) for old, new in zip(leaves, body.kinds[made:], strict=True)]
        if all(new is old for new, old in zip(carry, leaves, strict=True)):
            return body, leaves
        leaves = carry


def once(pred: jax.Array, run: Callable[[list[Any]], list[Any]], leaves: list[Any]) -> list[Any]:
    """A loop of at most one round. Its end is a constant to the compiler, so that one loop may use the room of another."""

    def run_body(carry: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
        pending, leaves = carry
        return pending ^ pending, run(leaves)  # False, which varies over devices as `pending` does

    return lax.while_loop(lambda carry: carry[0], run_body, (pred, leaves))[1]
