"""Lookups in tables, whose gradients name the rows that were looked up.

JAX differentiates a lookup by scattering into zeros of the table's shape. `value_and_grad` does not differentiate the table:

    table[indices]  becomes  constant(table)[indices] + e,    e = 0

and the gradient of `e` is the gradient of the rows. The lookups are found in the program of the loss, where
`rows_of` leaves its name. A table that is also used in any other way is differentiated as usual.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from optchain.core import arguments
from optchain.core.programs import is_call, run_equation, value_in
from optchain.core.row_gradient import RowGradient
from optchain.core.trees import Tree

NAME = "optchain_rows_of"
"""What the lookup is called in a program."""


def rows_of(table: jax.Array, indices: jax.Array) -> jax.Array:
    """The rows of a table, `table[indices]`, in a way that `value_and_grad` and `make_step` recognize.

    Elsewhere, under `jax.grad` too, it is what `table[indices]` is. The gradient names rows if the table is a parameter as
    it stands (not cast or reshaped before), if all that the loss does with it is lookups, and if no lookup stands inside `scan`,
    `cond`, `while_loop` or `jax.checkpoint`. Otherwise it is dense, and the same.

    Args:
      table: array of shape (rows, ...).
      indices: int array of any shape. Where one is below 0 or beyond the table, the row is zero and has no gradient: pad with
        -1 to a fixed number of indices.

    Returns:
      An array of shape `(*indices.shape, *table.shape[1:])`.

    Raises:
      TypeError: indices that are not integers.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> optchain.rows_of(table, jnp.array([1, -1]))
      Array([[3., 4.],
             [0., 0.]], dtype=float32)
      >>> loss, grad = optchain.value_and_grad(lambda t: optchain.rows_of(t, jnp.array([1, 1])).sum())(table)
      >>> grad.indices, grad.rows.shape
      (Array([1, 1], dtype=int32), (2, 2))
    """
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices must be integers; got dtype {indices.dtype}")
    if jnp.ndim(table) == 0:
        raise ValueError("table must have an axis of rows; got a scalar")
    return _rows_of(table, indices)


def _gather(table: jax.Array, indices: jax.Array) -> jax.Array:
    if indices.dtype.itemsize < 4:
        indices = indices.astype(jnp.int32)
    named = (indices >= 0) & (indices < table.shape[0])
    return jnp.asarray(table).at[jnp.where(named, indices, table.shape[0])].get(mode="fill", fill_value=0)


_gather.__name__ = _gather.__qualname__ = NAME
_rows_of = jax.jit(_gather)


def value_and_grad(loss_fn: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[Any, Tree]]:
    """`jax.value_and_grad` with respect to the first argument, where the gradient of a table names rows.

    The gradient of a parameter that the loss reads by `rows_of` only is a `RowGradient`, and no array of the table's shape is
    made. All others are what JAX makes them.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns the loss, a real scalar, or with `has_aux` a pair of it and a pytree
        of arrays. It is traced once, so that values cannot decide what it does, as under `jit`.
      has_aux: whether `loss_fn` returns a pair.

    Returns:
      A function of the same arguments that returns `(loss, grads)`, or `((loss, aux), grads)`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> params = {"table": jnp.ones((1000, 4)), "head": jnp.ones(4)}
      >>> def loss_fn(params, ids):
      ...     return (optchain.rows_of(params["table"], ids) @ params["head"]).sum()
      >>> loss, grads = optchain.value_and_grad(loss_fn)(params, jnp.array([7, 3, 7]))
      >>> grads["table"].indices, grads["head"]
      (Array([7, 3, 7], dtype=int32), Array([3., 3., 3., 3.], dtype=float32))
    """
    arguments.check_function("loss_fn", loss_fn)
    arguments.check_bool("has_aux", has_aux)

    @functools.wraps(loss_fn)
    def value_and_gradient(params: Tree, *args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        leaves, treedef = jax.tree.flatten(params)
        program, out_shape = jax.make_jaxpr(lambda params: loss_fn(params, *args, **kwargs), return_shape=True)(params)
        result = jax.tree.structure(out_shape)
        lookups = _lookups(program.jaxpr)
        tables = {lookup.table: _Table(leaves[lookup.table]) for lookup in lookups}

        def loss(dense: dict[int, Any], steps: list[jax.Array]) -> tuple[Any, tuple[Any, list[jax.Array]]]:
            values, indices = [tables[i] if i in tables else dense[i] for i in range(len(leaves))], []
            values = _run(program, values, iter(steps), indices) if tables else jaxpr_as_fun(program)(*values)
            out = jax.tree.unflatten(result, values)
            return (out[0] if has_aux else out), (out, indices)

        dense = {i: leaf for i, leaf in enumerate(leaves) if i not in tables}
        steps = [jnp.zeros(lookup.shape, leaves[lookup.table].dtype) for lookup in lookups]
        (grads, rows), (out, indices) = jax.grad(loss, argnums=(0, 1), has_aux=True)(dense, steps)
        for table in tables:
            shape = leaves[table].shape
            mine = [i for i, lookup in enumerate(lookups) if lookup.table == table]
            grads[table] = RowGradient(
                jnp.concatenate([indices[i].reshape(-1).astype(jnp.int32) for i in mine]),
                jnp.concatenate([rows[i].reshape(-1, *shape[1:]) for i in mine]),
                shape,
            )
        return out, jax.tree.unflatten(treedef, [grads[i] for i in range(len(leaves))])

    return value_and_gradient


# The program of the loss ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Lookup:
    table: int
    """Which argument of the program is looked up in."""
    shape: tuple[int, ...]
    """The shape of the rows."""


@dataclasses.dataclass(frozen=True)
class _Table:
    """An argument of the program that is not differentiated."""

    array: jax.Array


def _lookups(program: Jaxpr) -> list[_Lookup]:
    """The lookups in those arguments with which the program does nothing else, in its order."""
    found: list[_Lookup] = []
    used_otherwise: set[int] = set()

    def visit(program: Jaxpr, arguments: Mapping[Any, int]) -> None:
        def argument(atom: Any) -> int | None:
            return None if isinstance(atom, Literal) else arguments.get(atom)

        for equation in program.eqns:
            table, *others = [argument(atom) for atom in equation.invars] or [None]
            if _is_lookup(equation) and table is not None:
                made: Any = equation.outvars[0].aval
                found.append(_Lookup(table, made.shape))
            elif is_call(equation):
                inner = equation.params["jaxpr"].jaxpr
                visit(inner, {var: i for var, i in zip(inner.invars, [table, *others], strict=True) if i is not None})
                continue
            else:
                others.append(table)
            used_otherwise.update(i for i in others if i is not None)
        used_otherwise.update(i for i in map(argument, program.outvars) if i is not None)

    visit(program, {var: i for i, var in enumerate(program.invars)})
    return [lookup for lookup in found if lookup.table not in used_otherwise]


def _run(
    program: ClosedJaxpr, values: Sequence[Any], steps: Iterator[jax.Array], indices: list[jax.Array]
) -> list[Any]:
    """Runs the program, adds a step to the rows of each lookup in a `_Table`, and appends its indices."""
    known: dict[Any, Any] = {}
    value = functools.partial(value_in, known)
    known.update(zip(program.jaxpr.constvars, program.consts, strict=True))
    known.update(zip(program.jaxpr.invars, values, strict=True))
    for equation in program.jaxpr.eqns:
        inputs = [value(atom) for atom in equation.invars]
        if not any(isinstance(x, _Table) for x in inputs):
            outputs = run_equation(equation, inputs)
        elif _is_lookup(equation):
            indices.append(inputs[1])
            outputs = [_rows_of(inputs[0].array, inputs[1]) + next(steps)]
        else:
            outputs = _run(equation.params["jaxpr"], inputs, steps, indices)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in program.jaxpr.outvars]


def _is_lookup(equation: Any) -> bool:
    return is_call(equation) and equation.params["name"] == NAME
