"""A scan in a program, and the program's backward pass with the scan's written out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
        position, scanned = None, set[Any]()
        for i, equation in enumerate(jaxpr.eqns):
            used = [k for k, atom in enumerate(equation.invars) if not isinstance(atom, Literal) and atom in layers]
            if not used:
                continue
            names = {equation.invars[k] for k in used}
            is_scan = equation.primitive.name == "scan" and used[0] >= row_start(equation)
            if not is_scan or position is not None or len(names) < len(used):
                what = "a second time" if is_scan else f"by {equation.primitive.name}"
                raise ValueError(
                    f"{owner}: the loss must use the layers as what one jax.lax.scan runs over, and in nothing "
                    f"else; it uses {layers[equation.invars[used[0]]]} {what}. Casts and the like go into the body of the scan"
                )
            position, scanned = i, names
        for name in [layers[var] for var in layers if var not in scanned]:
            raise ValueError(f"{owner}: no jax.lax.scan of the loss runs over {name}")
        for atom in jaxpr.outvars:
            if not isinstance(atom, Literal) and atom in layers:
                raise ValueError(f"{owner}: the loss returns {layers[atom]}, which the step replaces")
        assert position is not None
        return cls(program, position, list(named))

    @property
    def _scan(self) -> Any:
        return self.program.jaxpr.eqns[self.position]

    def forward(self, others: list[Any], layers: list[Any]) -> "Passed":
        """Runs the program.

        Args:
          others: the arguments that are no layers, in their order.
          layers: the layers, in theirs.
        """
        jaxpr, scan = self.program.jaxpr, self._scan
        before, after = jaxpr.eqns[: self.position], jaxpr.eqns[self.position + 1 :]
        constants = dict(zip(jaxpr.constvars, self.program.consts, strict=True))
        other_vars = [var for i, var in enumerate(jaxpr.invars) if i not in self.places]
        used = {id(atom) for equation in [scan, *after] for atom in equation.invars} | set(map(id, jaxpr.outvars))
        crossing = [var for equation in before for var in equation.outvars if id(var) in used]

        def run(
            equations: Sequence[Any], given: Sequence[Any], values: Sequence[Any], wanted: Sequence[Any]
        ) -> list[Any]:
            known = constants | dict(zip(given, values, strict=True))
            for equation in equations:
                made = run_equation(equation, [value_in(known, atom) for atom in equation.invars])
                known.update(zip(equation.outvars, made, strict=True))
            return [value_in(known, atom) for atom in wanted]

        crossed, back_before = _vjp(lambda others: run(before, other_vars, others, crossing), others)
        layer_vars = [jaxpr.invars[i] for i in self.places]
        given, values = [*layer_vars, *other_vars, *crossing], [*layers, *others, *crossed]
        loop = _Loop.of(scan, run([], given, values, scan.invars), layer_vars)
        made, inputs = loop.forward()

        later = [*scan.outvars, *crossing, *other_vars]
        results, back_after = _vjp(lambda values: run(after, later, values, jaxpr.outvars), [*made, *crossed, *others])
        loss = results[0]
        if jnp.shape(loss) or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(f"loss_fn must return a real scalar; got shape {jnp.shape(loss)}, dtype {loss.dtype}")

        def backward(stacks: Any, update: Update) -> tuple[Any, list[Any]]:
            total = _Sum()
            cts = back_after([jnp.ones_like(loss), *[None] * (len(results) - 1)])
            total.add(later[len(made) :], cts[len(made) :])
            stacks, of_operands = loop.backward(inputs, cts[: len(made)], stacks, update)
            total.add(scan.invars, of_operands)
            total.add(other_vars, back_before([total.of(var) for var in crossing]))
            return stacks, [total.of(var) for var in other_vars]

        return Passed(results, backward)


@dataclasses.dataclass(frozen=True)
class Passed:
    """What a forward pass leaves behind."""

    results: list[Any]
    backward: Callable[[Any, Update], tuple[Any, list[Any]]]
    """`backward(stacks, update)`: the stacks, `update` applied to each layer, and the gradients of what is no layer, None for 0.
    The stacks are a pair: the layers, and what belongs to them."""


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A scan with its operands."""

    params: dict[str, Any]
    operands: list[Any]
    layer_at: list[int | None]
    """For each array that it runs over which layer it is."""

    @classmethod
    def of(cls, scan: Any, operands: list[Any], layer_vars: list[Any]) -> "_Loop":
        which = {id(var): k for k, var in enumerate(layer_vars)}
        return cls(scan.params, operands, [which.get(id(atom)) for atom in scan.invars[row_start(scan) :]])

    @property
    def _parts(self) -> tuple[list[Any], list[Any], list[Any]]:
        return self._split(self.operands)

    def _split(self, values: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Of the operands of a turn, or of the scan: the constants, the carry, the rows."""
        first_carry = self.params["num_consts"]
        first_row = first_carry + self.params["num_carry"]
        return values[:first_carry], values[first_carry:first_row], values[first_row:]

    def _body(self, values: Sequence[Any]) -> list[Any]:
        return jaxpr_as_fun(self.params["jaxpr"])(*values)

    def forward(self) -> tuple[list[Any], list[Any]]:
        """What the scan makes, and the carry that each turn is given."""
        constants, start, rows = self._parts

        def turn(carry: list[Any], rows: list[Any]) -> tuple[list[Any], Any]:
            made = self._body([*constants, *carry, *rows])
            return made[: len(carry)], (carry, made[len(carry) :])

        end, (inputs, stacked) = lax.scan(turn, start, rows, self.params["length"], self.params["reverse"])
        return [*end, *stacked], inputs

    def backward(self, inputs: list[Any], cts: list[Any], stacks: Any, update: Update) -> tuple[Any, list[Any]]:
        """The stacks after the update of each layer, and the cotangents of the operands; None for those of the layers."""
        constants, start, rows = self._parts

        def turn(carried: Any, given: Any) -> tuple[Any, list[Any]]:
            of_end, of_constants, stacks = carried
            i, carry, of_stacked, others = given
            layer = _read(jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i, 1), stacks), i)
            row = [x if k is None else layer[0][k][0] for x, k in zip(others, self.layer_at, strict=True)]
            _, back = _vjp(self._body, [*constants, *carry, *row])
            more, of_carry, of_row = self._split(back([*of_end, *of_stacked]))
            grads = [of_row[self.layer_at.index(k)] for k in range(len(stacks[0]))]
            new = lax.optimization_barrier(update(i, layer, grads))
            stacks = jax.tree.map(lambda x, new: lax.dynamic_update_slice_in_dim(x, new, i, 0), stacks, new)
            of_others = [ct if k is None else None for ct, k in zip(of_row, self.layer_at, strict=True)]
            return (of_carry, jax.tree.map(jnp.add, of_constants, more), stacks), of_others

        none_yet = [jnp.zeros_like(x) if _is_inexact(x) else None for x in constants]
        others = [x if k is None else None for x, k in zip(rows, self.layer_at, strict=True)]
        length, reverse = self.params["length"], self.params["reverse"]
        (of_start, of_constants, stacks), of_rows = lax.scan(
            turn,
            (cts[: len(start)], none_yet, stacks),
            (jnp.arange(length), inputs, cts[len(start) :], others),
            length,
            not reverse,
        )
        return stacks, [*of_constants, *of_start, *of_rows]


def row_start(scan: Any) -> int:
    """Where in the operands of a scan begins what it runs over."""
    return scan.params["num_consts"] + scan.params["num_carry"]


class _Sum:
    """Cotangents, added up by the variable of the program that they belong to."""

    def __init__(self) -> None:
        self._cts: dict[Any, Any] = {}

    def add(self, atoms: Sequence[Any], cts: Sequence[Any]) -> None:
        for atom, ct in zip(atoms, cts, strict=True):
            if not isinstance(atom, Literal) and ct is not None:
                self._cts[atom] = self._cts[atom] + ct if atom in self._cts else ct

    def of(self, var: Any) -> Any:
        return self._cts.get(var)


def _vjp(
    function: Callable[[list[Any]], list[Any]], inputs: list[Any]
) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
    """`jax.vjp` of lists of arrays: the cotangent of what is no real or complex array is None, and so may one that is zero be."""
    places = [i for i, x in enumerate(inputs) if _is_inexact(x)]
    inexact = list[bool]()

    def of_inexact(chosen: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = function(replaced(inputs, places, chosen))
        inexact[:] = map(_is_inexact, outputs)
        return [x for x in outputs if _is_inexact(x)], [x for x in outputs if not _is_inexact(x)]

    made, back, left = jax.vjp(of_inexact, [inputs[i] for i in places], has_aux=True)
    made_left = iter(made), iter(left)
    outputs = [next(made_left[0] if flag else made_left[1]) for flag in inexact]

    def pulled(cts: Sequence[Any]) -> list[Any]:
        filled = [jnp.zeros_like(x) if ct is None else ct for x, ct in zip(outputs, cts, strict=True) if _is_inexact(x)]
        return replaced([None] * len(inputs), places, back(filled)[0])

    return outputs, pulled


def _read(tree: Any, i: jax.Array) -> Any:
    """The tree, made before what follows and no part of it: else XLA reads a stack where it is written, and has to copy it."""

    def by_branch(
        tree: Any,
    ) -> Any:  # XLA for CPUs ignores barriers when it fuses, and no branch; it does not know that i >= 0
        return lax.cond(i >= 0, lambda tree: tree, lambda tree: jax.tree.map(jnp.zeros_like, tree), tree)

    return lax.platform_dependent(tree, cpu=by_branch, default=lax.optimization_barrier)


def _is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x) if not hasattr(x, "dtype") else x.dtype, jnp.inexact)


def replaced(leaves: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    made = list(leaves)
    for place, leaf in zip(places, new, strict=True):
        made[place] = leaf
    return made
