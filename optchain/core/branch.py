"""`run_if`: a branch through which large arrays pass in place, on every device.

    run_if(pred, run, *carry) = lax.cond(pred, run, lambda *carry: carry, *carry)

XLA's GPU backend copies the arrays that pass through a `conditional`, before it and in it, whichever branch is taken: AdamW that
skips a step moves 52 bytes a parameter instead of 4. There a loop of at most one round keeps them where they are. On a CPU a loop
copies and a `conditional` does not; on a TPU the compiler schedules memory better through a `conditional`.

A loop has no derivative in reverse mode. So the branch is a primitive of JAX that holds both: it is differentiated as the `cond`,
and which of the two a device runs is decided when it is lowered.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

run_if_p = Primitive("run_if")
run_if_p.multiple_results = True


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

    # Tracing `run` finds the values it closes over (gradients, rates, those of a user's schedule): they become operands.
    # The inner `jit` makes one operation of the trace, so that repeating it in both forms costs nothing.
    traced = jax.make_jaxpr(jax.jit(run_leaves))(*leaves)

    def body(captured: list[Any], leaves: list[Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, captured))(*leaves)

    def cond(pred: jax.Array, captured: list[Any], leaves: list[Any]) -> list[Any]:
        return lax.cond(pred, body, lambda captured, leaves: leaves, captured, leaves)

    def loop(pred: jax.Array, captured: list[Any], leaves: list[Any]) -> list[Any]:
        def run_body(carry: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
            pending, leaves = carry
            return ~pending, body(captured, leaves)  # `~pending` is False, and varies over devices as `pending` does

        return lax.while_loop(lambda carry: carry[0], run_body, (pred, leaves))[1]

    forms = {form.__name__: jax.make_jaxpr(form)(pred, traced.consts, leaves) for form in (cond, loop)}
    return treedef.unflatten(run_if_p.bind(pred, *traced.consts, *leaves, **forms))


def as_cond(*operands: Any, cond: ClosedJaxpr, loop: ClosedJaxpr) -> list[Any]:
    return jaxpr_as_fun(cond)(*operands)


def as_loop(*operands: Any, cond: ClosedJaxpr, loop: ClosedJaxpr) -> list[Any]:
    return jaxpr_as_fun(loop)(*operands)


def _types(*operands: Any, cond: ClosedJaxpr, loop: ClosedJaxpr) -> tuple[Any, Any]:
    return cond.out_avals, cond.effects


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], **forms: ClosedJaxpr) -> tuple[list[Any], list[Any]]:
    perturbed = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def of_perturbed(*perturbed_values: Any) -> list[Any]:
        operands = dict(enumerate(primals)) | dict(zip(perturbed, perturbed_values, strict=True))
        return as_cond(*operands.values(), **forms)

    out, directions = jax.jvp(of_perturbed, [primals[i] for i in perturbed], [tangents[i] for i in perturbed])
    has_no_tangent = [direction.dtype == jax.dtypes.float0 for direction in directions]
    zeros = [ad.Zero(jax.typeof(value).to_tangent_aval()) for value in out]
    return out, [zero if s else d for zero, s, d in zip(zeros, has_no_tangent, directions, strict=True)]


def _batched(
    axis: Any, operands: Sequence[Any], dims: Sequence[int | None], **forms: ClosedJaxpr
) -> tuple[list[Any], list[int | None]]:
    """Keeps a value unbatched that is the same for every member of the batch, such as a count of calls."""
    names = {"axis_name": axis.name if isinstance(axis.name, str) else None, "spmd_axis_name": axis.spmd_name}
    vmap = functools.partial(jax.vmap, in_axes=tuple(dims), axis_size=axis.size, **names)
    out_dims: list[int | None] = []

    def probe(*operands: Any) -> list[Any]:
        out = as_loop(*operands, **forms)
        out_dims[:] = [None if getattr(value, "batch_dim", None) is None else 0 for value in out]
        return out

    jax.make_jaxpr(vmap(probe))(*operands)
    mapped = {
        name: jax.make_jaxpr(vmap(jaxpr_as_fun(form), out_axes=out_dims))(*operands) for name, form in forms.items()
    }
    return run_if_p.bind(*operands, **mapped), out_dims


run_if_p.def_impl(as_cond)
run_if_p.def_effectful_abstract_eval(_types)
ad.primitive_jvps[run_if_p] = _derivative
batching.fancy_primitive_batchers[run_if_p] = _batched
mlir.register_lowering(run_if_p, mlir.lower_fun(as_cond, multiple_results=True))
for _gpu in ("cuda", "rocm"):
    mlir.register_lowering(run_if_p, mlir.lower_fun(as_loop, multiple_results=True), platform=_gpu)
