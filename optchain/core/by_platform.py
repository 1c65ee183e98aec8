"""One operation of a program, in the form that suits the device it is compiled for.

`jax.lax.platform_dependent` chooses likewise, and has the derivative of every form. Here all have that of the default, so that
the others may hold loops, which have none in reverse mode.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import checkify  # the public module does not have the rules of primitives
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

by_platform_p = Primitive("by_platform")
by_platform_p.multiple_results = True

_PLATFORMS = {"cpu": ("cpu",), "gpu": ("cuda", "rocm"), "tpu": ("tpu",)}
"""The devices that may have a form of their own, and what JAX calls them."""


def by_platform(
    default: Callable[..., list[Any]],
    *operands: Any,
    in_kernels: Callable[..., list[Any]] | None = None,
    **forms: Callable[..., list[Any]],
) -> list[Any]:
    """`default(*operands)`, as the form of the device computes it.

    Args:
      default: a function of the operands, which closes over nothing that is traced. It returns a list of arrays, and is what is
        differentiated.
      *operands: trees of arrays.
      in_kernels: a function of `"tpu"` or `"cuda"` and of the leaves of the operands, which returns the same numbers by kernels
        that know of one device only. It is traced where the program is lowered for one such device, and not under `vmap`.
      **forms: functions that return the same numbers, by `cpu` or `gpu`.
    """
    programs = {name: jax.make_jaxpr(form)(*operands) for name, form in {"default": default, **forms}.items()}
    kernels = {} if in_kernels is None else {"in_kernels": in_kernels}
    return by_platform_p.bind(*jax.tree.leaves(operands), **programs, **kernels)


def run_form(*operands: Any, form: str, **forms: ClosedJaxpr) -> list[Any]:
    """What one form makes of the operands; the default's, if there is no such form."""
    return jaxpr_as_fun(forms.get(form, forms["default"]))(*operands)


def _run_default(*operands: Any, default: ClosedJaxpr, **forms: ClosedJaxpr) -> list[Any]:
    return jaxpr_as_fun(default)(*operands)


def _types(*operands: Any, default: ClosedJaxpr, **forms: ClosedJaxpr) -> tuple[Any, Any]:
    return default.out_avals, default.effects


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], **forms: ClosedJaxpr) -> tuple[list[Any], list[Any]]:
    perturbed = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def of_perturbed(*perturbed_values: Any) -> list[Any]:
        operands = dict(enumerate(primals)) | dict(zip(perturbed, perturbed_values, strict=True))
        return _run_default(*operands.values(), **forms)

    out, directions = jax.jvp(of_perturbed, [primals[i] for i in perturbed], [tangents[i] for i in perturbed])
    has_no_tangent = [direction.dtype == jax.dtypes.float0 for direction in directions]
    zeros = [ad.Zero(jax.typeof(value).to_tangent_aval()) for value in out]
    return out, [zero if s else d for zero, s, d in zip(zeros, has_no_tangent, directions, strict=True)]


def _transposed(cotangents: Sequence[Any], *operands: Any, **forms: ClosedJaxpr) -> list[Any]:
    """Of an `update` that is linear in the gradients, for `jax.linear_transpose`."""
    linear = [i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    given = {i: cotangent for i, cotangent in enumerate(cotangents) if not isinstance(cotangent, ad.Zero)}

    def of_linear(*values: Any) -> list[Any]:
        full = dict(enumerate(operands)) | dict(zip(linear, values, strict=True))
        out = _run_default(*full.values(), **forms)
        return [out[i] for i in given]

    transpose = jax.linear_transpose(of_linear, *(operands[i].aval for i in linear))
    found = dict(zip(linear, transpose(list(given.values())), strict=True))
    return [found.get(i) for i in range(len(operands))]


def _checkified(*given: Any, default: ClosedJaxpr, **forms: ClosedJaxpr) -> Any:
    # Newer versions of JAX hand a context on, before all else.
    context = () if isinstance(given[0], checkify.Error) else given[:1]
    error, enabled, *operands = given[len(context) :]
    return checkify.checkify_jaxpr(*context, default, enabled, error, *operands)


def _batched(
    axis: Any, operands: Sequence[Any], dims: Sequence[int | None], **forms: ClosedJaxpr
) -> tuple[list[Any], list[int | None]]:
    """Keeps a value unbatched that is the same for every member of the batch, such as a count of calls."""
    names = {"axis_name": axis.name if isinstance(axis.name, str) else None, "spmd_axis_name": axis.spmd_name}
    vmap = functools.partial(jax.vmap, in_axes=tuple(dims), axis_size=axis.size, **names)
    out_dims: list[int | None] = []

    def probe(*operands: Any) -> list[Any]:
        out = run_form(*operands, form=_keeps_most_unbatched(forms), **forms)
        out_dims[:] = [None if getattr(value, "batch_dim", None) is None else 0 for value in out]
        return out

    jax.make_jaxpr(vmap(probe))(*operands)
    mapped = {
        name: jax.make_jaxpr(vmap(jaxpr_as_fun(form), out_axes=out_dims))(*operands)
        for name, form in forms.items()
        if name != "in_kernels"
    }
    return by_platform_p.bind(*operands, **mapped), out_dims


def _keeps_most_unbatched(forms: dict[str, ClosedJaxpr]) -> str:
    """A loop keeps unbatched what is; a `cond` whose predicate is batched makes all of it batched."""
    return "gpu" if "gpu" in forms else "default"


def _lowering(form: str, platform: str) -> Callable[..., Any]:
    def lower(context: Any, *operands: Any, in_kernels: Any = None, **forms: ClosedJaxpr) -> Any:
        run: Callable[..., list[Any]] = functools.partial(run_form, form=form, **forms)
        devices = getattr(context.module_context.axis_context, "num_devices", None)  # not within `shard_map` and `pmap`
        if in_kernels is not None and devices == 1 and platform in ("cuda", "tpu"):
            run = functools.partial(in_kernels, platform)
        return mlir.lower_fun(run, multiple_results=True)(context, *operands)

    return lower


by_platform_p.def_impl(_run_default)
by_platform_p.def_effectful_abstract_eval(_types)
ad.primitive_jvps[by_platform_p] = _derivative
ad.primitive_transposes[by_platform_p] = _transposed
batching.fancy_primitive_batchers[by_platform_p] = _batched
checkify.error_checks[by_platform_p] = _checkified
mlir.register_lowering(by_platform_p, mlir.lower_fun(_run_default, multiple_results=True))
for _form, _names in _PLATFORMS.items():
    for _name in _names:
        mlir.register_lowering(by_platform_p, _lowering(_form, _name), platform=_name)
