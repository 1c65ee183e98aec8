"""A scan in a program, and the program's backward pass with the scan's written out."""

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from optchain.core.programs import is_call, run_equation, value_in

Update = Callable[[jax.Array, Any, Sequence[Any]], Any]
"""`update(i, layer, grads)`: the layer `i`, what belongs to it included, as it is to be after a step with its gradients."""


def inlined(program: ClosedJaxpr, places: Sequence[int]) -> ClosedJaxpr:
    """The program, in which no function under `jit` is called with the arguments at these places."""

    def run(program: Any, inputs: Sequence[Any], layers: set[int]) -> list[Any]:
        known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        known.update(zip(program.jaxpr.invars, inputs, strict=True))
        for equation in program.jaxpr.eqns:
            given = [value_in(known, atom) for atom in equation.invars]
            if is_call(equation) and any(id(x) in layers for x in given):
                made = run(equation.params["jaxpr"], given, layers)
            else:
                made = run_equation(equation, given)
            known.update(zip(equation.outvars, made, strict=True))
        return [value_in(known, atom) for atom in program.jaxpr.outvars]

    return jax.make_jaxpr(lambda *leaves: run(program, leaves, {id(leaves[i]) for i in places}))(*program.in_avals)


@dataclasses.dataclass(frozen=True)
class ScanInProgram:
    """A program that begins with the loss among its results, taken apart at a scan over some of its arguments, the layers."""

    program: ClosedJaxpr
    position: int
    """Which equation is the scan."""
    places: Sequence[int]
    """Which arguments of the program are the layers."""

    @classmethod
    def of(cls, program: ClosedJaxpr, named: Mapping[int, str], owner: str) -> "ScanInProgram":
        """Finds the scan.

        Args:
          program: the program, inlined.
          named: the places of the layers, with what errors call them.
          owner: what errors call the option that asked for this.

        Raises:
          ValueError: layers that are used otherwise than in one scan that runs over them.
        """
        jaxpr = program.jaxpr
        layers = {jaxpr.invars[i]: path for i, path in named.items()}
        position, scanned = None, list[Any]()
        for i, equation in enumerate(jaxpr.eqns):
            used = [k for k, atom in enumerate(equation.invars) if _is_among(layers, atom)]
            if not used:
                continue
            runs_over = equation.primitive.name == "scan" and used[0] >= _row_start(equation)
            if not runs_over or position is not None or len({equation.invars[k] for k in used}) < len(used):
                how = "a second time" if runs_over else f"by {equation.primitive.name}"
                how += ", which closes over it" * (equation.primitive.name == "scan" and not runs_over)
                raise ValueError(
                    f"{owner}: the loss must use the layers as what one jax.lax.scan runs over, and in nothing "
                    f"else; it uses {layers[equation.invars[used[0]]]} {how}. Casts and the like go into the body of the scan"
                )
            position, scanned = i, [equation.invars[k] for k in used]
        for name in [layers[var] for var in layers if var not in scanned]:
            raise ValueError(f"{owner}: no jax.lax.scan of the loss runs over {name}")
        for atom in jaxpr.outvars:
            if _is_among(layers, atom):
                raise ValueError(f"{owner}: the loss returns {layers[atom]}, which the step replaces")
        assert position is not None
        return cls(program, position, list(named))

    def forward(self, others: list[Any], layers: list[Any]) -> "Passed":
        """Runs the program.

        Args:
          others: the arguments that are no layers, in their order.
          layers: the layers, in theirs.
        """
        jaxpr = self.program.jaxpr
        before, scan, after = jaxpr.eqns[: self.position], jaxpr.eqns[self.position], jaxpr.eqns[self.position + 1 :]
        other_vars = [var for i, var in enumerate(jaxpr.invars) if i not in self.places]
        layer_at = {jaxpr.invars[i]: k for k, i in enumerate(self.places)}

        def run(equations: Sequence[Any], given: list[Any], values: list[Any], wanted: list[Any]) -> list[Any]:
            known = dict(zip([*jaxpr.constvars, *given], [*self.program.consts, *values], strict=True))
            for equation in equations:
                made = run_equation(equation, [value_in(known, atom) for atom in equation.invars])
                known.update(zip(equation.outvars, made, strict=True))
            return [value_in(known, atom) for atom in wanted]

        # The part before the scan makes what the scan takes, and what the part after it takes besides.
        operands = [k for k, atom in enumerate(scan.invars) if not _is_among(layer_at, atom)]
        known = {*other_vars, *(var for equation in before for var in equation.outvars)}
        used = [*(atom for equation in after for atom in equation.invars), *jaxpr.outvars]
        crossing = list(dict.fromkeys(atom for atom in used if _is_among(known, atom)))
        wanted = [*(scan.invars[k] for k in operands), *crossing]
        taken, back_before = _vjp(lambda others: run(before, other_vars, others, wanted), others)
        given, crossed = replaced([None] * len(scan.invars), operands, taken[: len(operands)]), taken[len(operands) :]

        rows = scan.invars[_row_start(scan) :]
        loop = _Loop(scan.params, [layer_at[var] if _is_among(layer_at, var) else None for var in rows])
        made, inputs = loop.forward(given, layers)

        later = [*scan.outvars, *crossing]
        results, back_after = _vjp(lambda values: run(after, later, values, jaxpr.outvars), [*made, *crossed])
        loss = results[0]
        if jnp.shape(loss) or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(f"loss_fn must return a real scalar; got shape {jnp.shape(loss)}, dtype {loss.dtype}")

        def backward(stacks: Any, update: Update) -> tuple[Any, list[Any]]:
            cts = back_after([jnp.ones_like(loss), *[None] * (len(results) - 1)])
            stacks, of_given = loop.backward(given, inputs, cts[: len(made)], stacks, update)
            return stacks, back_before([*(of_given[k] for k in operands), *cts[len(made) :]])

        return Passed(results, backward)


@dataclasses.dataclass(frozen=True)
class Passed:
    """What a forward pass leaves behind."""

    results: list[Any]
    backward: Callable[[Any, Update], tuple[Any, list[Any]]]
    """`backward(stacks, update)`: the stacks, `update` applied to each layer, and the gradients of what is no layer.
    The stacks are a pair: the layers, and what belongs to them."""


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A scan. Its operands are the constants, the carry, and the rows, in which the layers are None."""

    params: Mapping[str, Any]
    layer_at: list[int | None]
    """For each array that it runs over which layer it is."""

    def _split(self, values: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Of the operands of a turn, or of the scan: the constants, the carry, the rows."""
        first_carry = self.params["num_consts"]
        first_row = first_carry + self.params["num_carry"]
        return values[:first_carry], values[first_carry:first_row], values[first_row:]

    def _filled(self, rows: list[Any], layer: Sequence[Any]) -> list[Any]:
        return [x if k is None else layer[k] for x, k in zip(rows, self.layer_at, strict=True)]

    def _body(self, values: Sequence[Any]) -> list[Any]:
        return jaxpr_as_fun(self.params["jaxpr"])(*values)

    def forward(self, operands: list[Any], layers: list[Any]) -> tuple[list[Any], list[Any]]:
        """What the scan makes, and the carry that each turn is given."""
        constants, start, rows = self._split(operands)

        def turn(carry: list[Any], given: Any) -> tuple[list[Any], Any]:
            made = self._body([*constants, *carry, *self._filled(*given)])
            return made[: len(carry)], (carry, made[len(carry) :])

        length, reverse, unroll = (self.params[name] for name in ("length", "reverse", "unroll"))
        end, (inputs, stacked) = lax.scan(turn, start, (rows, layers), length, reverse, unroll)
        return [*end, *stacked], inputs

    def backward(
        self, operands: list[Any], inputs: list[Any], cts: list[Any], stacks: Any, update: Update
    ) -> tuple[Any, list[Any]]:
        """The stacks after the update of each layer, and the cotangents of the operands."""
        constants, start, rows = self._split(operands)

        def turn(carried: Any, given: Any) -> tuple[Any, list[Any]]:
            of_end, of_constants, stacks = carried
            i, carry, of_stacked, row = given
            layer = _read(jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i, 1), stacks), i)
            _, back = _vjp(self._body, [*constants, *carry, *self._filled(row, [x[0] for x in layer[0]])])
            more, of_carry, of_row = self._split(back([*of_end, *of_stacked]))
            grads = [of_row[self.layer_at.index(k)] for k in range(len(layer[0]))]
            new = update(i, layer, grads)
            stacks = jax.tree.map(lambda x, new: lax.dynamic_update_slice_in_dim(x, new, i, 0), stacks, new)
            of_others = self._filled(of_row, [None] * len(grads))
            return (of_carry, jax.tree.map(jnp.add, of_constants, more), stacks), of_others

        none_yet = [jnp.zeros_like(x) if _is_inexact(x) else None for x in constants]
        length, reverse = self.params["length"], self.params["reverse"]
        (of_start, of_constants, stacks), of_rows = lax.scan(
            turn,
            (cts[: len(start)], none_yet, stacks),
            (jnp.arange(length), inputs, cts[len(start) :], rows),
            length,
            not reverse,
        )
        return stacks, [*of_constants, *of_start, *of_rows]


def _row_start(scan: Any) -> int:
    """Where in the operands of a scan begins what it runs over."""
    return scan.params["num_consts"] + scan.params["num_carry"]


def _is_among(variables: Container[Any], atom: Any) -> bool:
    return not isinstance(atom, Literal) and atom in variables


def _vjp(
    function: Callable[[list[Any]], list[Any]], inputs: list[Any]
) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
    """`jax.vjp` of lists of arrays. The cotangent of what is no real or complex array is None; None is taken for zeros."""
    outputs, back = jax.vjp(function, inputs)

    def zero(x: Any) -> Any:
        return jnp.zeros_like(x) if _is_inexact(x) else np.zeros(jnp.shape(x), jax.dtypes.float0)

    def pulled(cts: Sequence[Any]) -> list[Any]:
        (made,) = back([zero(x) if ct is None else ct for x, ct in zip(outputs, cts, strict=True)])
        return [ct if _is_inexact(x) else None for x, ct in zip(inputs, made, strict=True)]

    return outputs, pulled


def _read(tree: Any, i: jax.Array) -> Any:
    """The tree. On a CPU it is made before what follows: else XLA reads a stack where it is written, and has to copy it.

    XLA for CPUs fuses across barriers, and not across branches; it does not know that i >= 0.
    """

    def by_branch(tree: Any) -> Any:
        return lax.cond(i >= 0, lambda tree: tree, lambda tree: jax.tree.map(jnp.zeros_like, tree), tree)

    return lax.platform_dependent(tree, cpu=by_branch, default=lambda tree: tree)


def _is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact)


def replaced(leaves: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """The leaves, with the new ones at these places."""
    made = list(leaves)
    for place, leaf in zip(places, new, strict=True):
        made[place] = leaf
    return made
