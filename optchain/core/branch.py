"""`run_if`: a branch through which large arrays pass in place, on every device."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

Leaves = list[Any]


def run_if(pred: jax.Array, run: Callable[..., tuple[Any, ...]], *carry: Any) -> Any:
    """`run(*carry)` where `pred` is true, else `carry`: `lax.cond(pred, run, lambda *carry: carry, *carry)`, in place.

    XLA's GPU backend copies the arrays that pass through a `conditional`, before it and in it, whichever branch is taken: AdamW
    that skips a step moves 52 bytes a parameter instead of 4. A loop of at most one round keeps them where they are. A TPU's
    memory is scheduled better through a `conditional`; on a CPU they are the same.

    A loop has no derivative in reverse mode: all derivatives are those of the `cond`.

    Args:
      pred: a scalar bool.
      run: a function of `carry` that returns a tuple of trees like it, of the same dtypes and shapes. It may close over
        traced values.
      *carry: trees of arrays.
    """
    leaves, treedef = jax.tree.flatten(carry)

    def run_leaves(*leaves: Any) -> Leaves:
        return treedef.flatten_up_to(run(*treedef.unflatten(leaves)))

    # A function with a derivative of its own may close over no traced value, and `run` closes over gradients, rates, whatever
    # a user's schedule does. Traced once, they are known, and become operands. The inner `jit` makes what was traced a
    # single operation, which the three functions below repeat for nothing.
    jaxpr = jax.make_jaxpr(jax.jit(run_leaves))(*leaves)

    def traced(captured: Leaves, leaves: Leaves) -> Leaves:
        return jaxpr_as_fun(ClosedJaxpr(jaxpr.jaxpr, captured))(*leaves)

    def cond(pred: jax.Array, captured: Leaves, leaves: Leaves) -> Leaves:
        return lax.cond(pred, lambda leaves: traced(captured, leaves), lambda leaves: leaves, leaves)

    def loop(pred: jax.Array, captured: Leaves, leaves: Leaves) -> Leaves:
        def once(carry: tuple[jax.Array, Leaves]) -> tuple[jax.Array, Leaves]:
            pending, leaves = carry
            return ~pending, traced(captured, leaves)  # `~pending` is False, and varies over devices as `pending` does

        return lax.while_loop(lambda carry: carry[0], once, (pred, leaves))[1]

    @jax.custom_jvp
    def branch(pred: jax.Array, captured: Leaves, leaves: Leaves) -> Leaves:
        return lax.platform_dependent(pred, captured, leaves, cuda=loop, rocm=loop, default=cond)

    def derivative(primals: Any, tangents: Any) -> Any:
        values, structure = jax.tree.flatten(primals)
        directions = jax.tree.leaves(tangents)
        moving = [i for i, direction in enumerate(directions) if not isinstance(direction, SymbolicZero)]

        def of_moving(*moved: Any) -> Leaves:
            given = dict(enumerate(values)) | dict(zip(moving, moved, strict=True))
            return cond(*structure.unflatten(given.values()))

        return jax.jvp(of_moving, [values[i] for i in moving], [directions[i] for i in moving])

    branch.defjvp(derivative, symbolic_zeros=True)
    return treedef.unflatten(branch(pred, jaxpr.consts, leaves))
