"""One kernel for the whole step of one leaf, made of the program of the step, whatever the rule and the storage.

For a GPU XLA makes several kernels of a step of state in codes: it writes the new moments out in float32, for the largest of each
block, and reads them again to round them; for a TPU it does so where a leaf has an odd size. Here a tile of whole blocks is read
once (parameter, gradient, codes, scales, low bits), the same program runs on it, and what it makes is written over what was read.

A program fits if what it does to a leaf is elementwise, but for the largest or smallest number of each block. What does not fit,
such as the norm of a leaf or a matrix made orthogonal, is computed before, and the kernel reads what came out of it. Numbers
that are the same for all of a leaf are computed before too.

The program is not rewritten. Values have three shapes in it: that of the leaf, with the block axis as one or as two, that of the
scales, with the axis of a block or without, and none. In the kernel each has one form, in which the numbers of a block lie along
an axis of their own; so its reshapes do nothing there, and the rest runs as it stands.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from optchain.core import storage
from optchain.core.programs import run_equation

Platform: TypeAlias = Literal["tpu", "cuda"]

# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "add", "and", "bitcast_convert_type", "ceil", "clamp", "convert_element_type", "div", "eq", "exp", "exp2",
    "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min",
    "mul", "ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sqrt", "square", "sub", "tanh", "xor",
})
# fmt: on
_OF_BLOCKS = frozenset({"reduce_max", "reduce_min"})
"""Reductions whose result does not depend on the order."""
_NOTHING_TO_DO = frozenset({"broadcast_in_dim", "copy", "copy_p", "reshape", "squeeze"})
"""For values in the form that they have in the kernel."""
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "by_platform": "default",
}
_DTYPES = frozenset(map(np.dtype, ("bool", "int8", "uint8", "int16", "int32", "uint32", "float32", jnp.bfloat16)))
_TILE_ON_GPU = 4096
_TILE_ON_TPU = 2**17
_VMEM_ON_TPU = 32 * 2**20
"""Of 64 MB and more that chips have since v4."""


# Programs --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Value:
    """What a program is given or makes; `literal` if it stands in it."""

    aval: Any
    literal: Any = None


@dataclasses.dataclass(eq=False)
class _Operation:
    equation: Any
    inputs: list[Value]
    outputs: list[Value]

    @property
    def name(self) -> str:
        return self.equation.primitive.name


def _inlined(equations: Iterable[Any], known: dict[Any, Value]) -> list[_Operation]:
    """The operations of a program, with those of the functions that it calls. `known` gets the values of its variables."""
    made = []
    for eqn in equations:
        inputs = [Value(atom.aval, atom.val) if isinstance(atom, core.Literal) else known[atom] for atom in eqn.invars]
        called = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        if called is None:
            outputs = [Value(var.aval) for var in eqn.outvars]
            made.append(_Operation(eqn, inputs, outputs))
        else:
            consts = [Value(jax.typeof(x), x) for x in called.consts]
            inner = dict(zip([*called.jaxpr.constvars, *called.jaxpr.invars], [*consts, *inputs], strict=True))
            made += _inlined(called.jaxpr.eqns, inner)
            outputs = [
                Value(atom.aval, atom.val) if isinstance(atom, core.Literal) else inner[atom]
                for atom in called.jaxpr.outvars
            ]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return made


class _Shapes:
    """The shapes that values of a leaf may have."""

    def __init__(self, shape: tuple[int, ...]):
        axis = storage.block_axis(shape)
        assert axis is not None
        self.shape, self.axis = shape, axis
        self.within = len(shape) + axis + 1
        blocks, length = shape[axis] // storage.BLOCK, storage.BLOCK
        before, after = shape[: self.within - 1], shape[self.within :]
        self.in_blocks = (*before, blocks, length, *after)
        self.scales = (*before, blocks, *after)
        self.with_axis = (*before, blocks, 1, *after)

    @property
    def are_distinct(self) -> bool:
        return not {self.shape, self.in_blocks} & {self.scales, self.with_axis}

    def kind(self, aval: Any) -> str | None:
        """Whether a value is a number for all of the leaf, one for each block, or one for each number of it."""
        if aval.dtype not in _DTYPES:
            return None
        if not aval.shape:
            return "one"
        if aval.shape in (self.scales, self.with_axis):
            return "blocks"
        return "all" if aval.shape in (self.shape, self.in_blocks) else None

    def fits(self, operation: _Operation) -> bool:
        """Whether an operation can be done on a tile."""
        avals = [value.aval for value in (*operation.inputs, *operation.outputs)]
        kinds = [self.kind(aval) for aval in avals]
        params, name = operation.equation.params, operation.name
        if None in kinds or len(operation.outputs) != 1:
            return False
        if name in _ELEMENTWISE:
            shapes = {aval.shape for aval in avals if aval.shape}
            narrow = any(aval.dtype.itemsize < 4 and aval.dtype.kind in "iu" for aval in avals)
            casts = name in ("convert_element_type", "select_n")
            same_bits = name != "bitcast_convert_type" or {aval.dtype.itemsize for aval in avals} == {4}
            return (
                (len(shapes) <= 1 or shapes == {self.in_blocks, self.with_axis}) and (casts or not narrow) and same_bits
            )
        if name in _OF_BLOCKS:
            return (
                avals[0].shape == self.in_blocks
                and tuple(params["axes"]) == (self.within,)
                and avals[0].dtype.itemsize == 4
            )
        if name == "iota":
            return avals[0].shape == self.shape
        if name in ("copy", "copy_p"):
            return True
        if name == "broadcast_in_dim":
            dimensions = tuple(params["broadcast_dimensions"])
            without = tuple(i for i in range(len(self.in_blocks)) if i != self.within)
            return len(operation.inputs) == 1 and (
                not avals[0].shape
                or avals[0].shape == avals[1].shape
                or (avals[0].shape == self.scales and dimensions == without)
                or (avals[0].shape == self.with_axis and dimensions == tuple(range(len(self.in_blocks))))
            )
        return name == "squeeze" or (name == "reshape" and params["dimensions"] is None and kinds[0] == kinds[1])


# The kernel ------------------------------------------------------------------------------------------------------------


class _Grid:
    """How a leaf is cut into tiles, and the form that a tile has in the kernel."""

    def __init__(self, shapes: _Shapes, platform: Platform, tile: tuple[int, int]):
        self._shapes, self._tile, self._leading = shapes, tile, len(shapes.shape) - 2
        self._platform = platform
        self._by_rows = shapes.axis == -2
        self._turned = platform == "tpu" and not self._by_rows
        rows, columns = tile
        block = storage.BLOCK
        if self._by_rows:
            self.form, self.axis = (rows // block, block, columns), 1
        elif self._turned:
            self.form, self.axis = (columns // block, block, rows), 1
        else:
            self.form, self.axis = (rows, columns // block, block), 2
        self.grid = (*shapes.shape[:-2], *(-(-n // t) for n, t in zip(shapes.shape[-2:], tile, strict=True)))

    @property
    def form_of_blocks(self) -> tuple[int, ...]:
        return tuple(1 if i == self.axis else n for i, n in enumerate(self.form))

    def spec(self, kind: str) -> Any:
        from jax.experimental import pallas as pl

        rows, columns = self._tile
        if kind == "blocks":
            rows, columns = (rows // storage.BLOCK, columns) if self._by_rows else (rows, columns // storage.BLOCK)
        return pl.BlockSpec((*[None] * self._leading, rows, columns), lambda *place: place)

    def formed(self, x: jax.Array, kind: str) -> jax.Array:
        x = _wide(x)
        x = x.T if self._turned else x
        return x.reshape(self.form if kind == "all" else self.form_of_blocks)

    def unformed(self, x: jax.Array, kind: str, dtype: Any) -> jax.Array:
        rows, columns = self._tile
        if kind == "blocks":
            rows, columns = (rows // storage.BLOCK, columns) if self._by_rows else (rows, columns // storage.BLOCK)
        x = x.reshape((columns, rows) if self._turned else (rows, columns))
        return (x.T if self._turned else x).astype(dtype)

    def place(self, dimension: int) -> jax.Array:
        """Where each number of a tile lies in the leaf, along an axis of the leaf."""
        from jax.experimental import pallas as pl

        at = pl.program_id(dimension)
        if dimension < self._leading:
            return jnp.full(self.form, at, jnp.int32)
        in_tile = dimension - self._leading
        start = at * self._tile[in_tile]
        axis = self._shapes.axis + 2
        counter = functools.partial(lax.broadcasted_iota, jnp.int32, self.form)
        if in_tile != axis:
            return start + counter(2 if self._by_rows or self._turned else 0)
        first = self.axis - 1
        return start + counter(first) * storage.BLOCK + counter(self.axis)


def _wide(x: jax.Array) -> jax.Array:
    """In 32 bits, in which a kernel computes."""
    if x.dtype.itemsize >= 4 or x.dtype == jnp.bool_:
        return x
    return x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """A value in 32 bits, with no more of them than its dtype has."""
    return x.astype(dtype).astype(jnp.float32) if dtype == jnp.bfloat16 else x


def _spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if x.shape == shape:
        return x
    if x.dtype == jnp.bool_:  # bits have no layout of their own on a TPU
        return jnp.broadcast_to(x.astype(jnp.int32), shape) != 0
    return jnp.broadcast_to(x, shape)


def _computed(operation: _Operation, inputs: Sequence[jax.Array], grid: _Grid) -> jax.Array:
    """What an operation makes of values in the form of a tile, or of single numbers."""
    name, params = operation.name, operation.equation.params
    dtype = operation.outputs[0].aval.dtype
    if name == "iota":
        return grid.place(params["dimension"]).astype(dtype)
    if name in _NOTHING_TO_DO:
        return inputs[0]
    if name in _OF_BLOCKS:
        reduce = jnp.max if name == "reduce_max" else jnp.min
        return reduce(_spread(inputs[0], grid.form), grid.axis, keepdims=True)
    if name == "convert_element_type":
        return _converted(inputs[0], operation.inputs[0].aval.dtype, dtype)
    shape = max((x.shape for x in inputs), key=math.prod)
    spread = [_spread(x, shape) for x in inputs]
    if name == "sign" and jnp.issubdtype(dtype, jnp.floating):
        (x,) = spread
        return jnp.where(x > 0, 1.0, jnp.where(x < 0, -1.0, x))  # NaN and zeros as they are
    if name == "is_finite":
        bits = lax.bitcast_convert_type(spread[0], jnp.int32)
        return (bits & np.int32(0x7FFFFFFF)) < np.int32(0x7F800000)
    (made,) = run_equation(operation.equation, spread)
    return _rounded(made, dtype)


def _converted(x: jax.Array, old: Any, new: Any) -> jax.Array:
    narrow = new.itemsize < 4 and new != jnp.bool_
    if new == jnp.bfloat16:
        return _rounded(x.astype(jnp.float32), new)
    if narrow:
        return x.astype(jnp.int32)
    return x.astype(new)


@dataclasses.dataclass
class Leaf:
    """What a program does to one leaf.

    Args:
      equations: those that it needs and no other leaf does, in order.
      given: its own old values, of which the new ones take the place.
      made: the variables of the new ones.
      known: the values of all that is computed before.
    """

    equations: Sequence[Any]
    given: Mapping[Any, jax.Array]
    made: Sequence[Any]
    known: Mapping[Any, Any]


def run(leaf: Leaf, platform: Platform, *, interpret: bool = False) -> list[jax.Array] | None:
    """The new values of a leaf, by one kernel; None where there cannot be one, or XLA needs none."""
    shape = _shape_of(leaf)
    shapes = None if shape is None else _Shapes(shape)
    tile = None if shapes is None else _tile(shapes, platform)
    if shapes is None or tile is None or not shapes.are_distinct:
        return None
    needed = {atom for eqn in leaf.equations for atom in eqn.invars if not isinstance(atom, core.Literal)}
    needed |= {atom for atom in leaf.made if not isinstance(atom, core.Literal)}
    before = {var: leaf.known[var] for var in needed if var in leaf.known} | dict(leaf.given)
    values = {var: Value(jax.typeof(x)) for var, x in before.items()}
    arrays = {values[var]: x for var, x in before.items()}
    operations = _inlined(leaf.equations, values)
    outputs = [Value(atom.aval, atom.val) if isinstance(atom, core.Literal) else values[atom] for atom in leaf.made]
    tiled = [
        i for i, value in enumerate(outputs) if shapes.kind(value.aval) in ("all", "blocks") and value.literal is None
    ]
    plan = _Plan(shapes, operations, [outputs[i] for i in tiled], arrays)
    given = [values[var] for var in leaf.given]
    made = plan.run(_Grid(shapes, platform, tile), platform, [given[i] for i in tiled], interpret=interpret)
    if made is None:
        return None
    by_place = dict(zip(tiled, made, strict=True))
    return [by_place[i] if i in by_place else plan.array(value) for i, value in enumerate(outputs)]


def _shape_of(leaf: Leaf) -> tuple[int, ...] | None:
    """That of its codes, if it has codes in blocks."""
    shapes = {x.shape for x in leaf.given.values() if x.dtype in (jnp.int8, jnp.uint8)}
    shape = shapes.pop() if len(shapes) == 1 else ()
    if len(shape) < 2 or storage.block_axis(shape) not in (-1, -2):
        return None
    scales = storage.block_shape(shape)
    return shape if any(x.shape == scales for x in leaf.given.values()) else None


def _tile(shapes: _Shapes, platform: Platform) -> tuple[int, int] | None:
    """Rows and columns of a tile; None where the shape has no tiles that the compiler takes."""
    (rows, columns), by_rows = shapes.shape[-2:], shapes.axis == -2
    if platform == "cuda":  # powers of two that divide the shape
        most = [n & -n for n in (rows, columns)]
        height = min(most[0], storage.BLOCK)
        width = min(most[1], _TILE_ON_GPU // height)
        return (height, width) if height * width >= 512 else None
    if by_rows:
        height = rows if rows <= 256 else 256
        width = columns if columns <= 512 else 512
        return height, width
    width = columns if columns <= 4096 else 4096
    height = max(32, min(128, _TILE_ON_TPU // width // 32 * 32))
    return min(rows, height), width


class _Plan:
    """Which operations run in the kernel, and what it reads."""

    def __init__(
        self, shapes: _Shapes, operations: list[_Operation], outputs: list[Value], arrays: dict[Value, jax.Array]
    ):
        self._shapes, self._outputs, self._arrays = shapes, outputs, dict(arrays)
        self._maker = {value: operation for operation in operations for value in operation.outputs}
        self._single = set[Value]()
        self._numbers: dict[Value, jax.Array] = {}
        for operation in operations:
            fits = shapes.fits(operation) and operation.name != "iota"
            if fits and all(map(self._is_single, operation.inputs)):
                self._single.update(operation.outputs)
        pending, inside, read = list(outputs), set[int](), dict[Value, None]()
        places = {id(operation): i for i, operation in enumerate(operations)}
        while pending:
            value = pending.pop()
            if value.literal is not None:
                continue
            operation = self._maker.get(value)
            if operation is None or self._is_single(value) or not shapes.fits(operation):
                read[value] = None
            elif places[id(operation)] not in inside:
                inside.add(places[id(operation)])
                pending += operation.inputs
        self._inside = [operations[i] for i in sorted(inside)]
        self._read = list(read)

    def _is_single(self, value: Value) -> bool:
        return not value.aval.shape or value in self._single

    def array(self, value: Value) -> Any:
        """A value in its own shape, computed outside of the kernel."""
        if value.literal is not None:
            return value.literal
        if value not in self._arrays:
            operation = self._maker[value]
            made = run_equation(operation.equation, [self.array(x) for x in operation.inputs])
            self._arrays.update(zip(operation.outputs, made, strict=True))
        return self._arrays[value]

    def _number(self, value: Value, grid: _Grid) -> jax.Array:
        """A value that is the same everywhere, as one number in 32 bits."""
        if value not in self._numbers:
            if not value.aval.shape:
                self._numbers[value] = _wide(jnp.asarray(self.array(value), value.aval.dtype))
            else:
                operation = self._maker[value]
                self._numbers[value] = _computed(operation, [self._number(x, grid) for x in operation.inputs], grid)
        return self._numbers[value]

    def run(
        self, grid: _Grid, platform: Platform, given: Sequence[Value], *, interpret: bool
    ) -> list[jax.Array] | None:
        from jax.experimental import pallas as pl

        numbers = [value for value in self._read if self._is_single(value)]
        read = [*given, *(value for value in self._read if not self._is_single(value) and value not in given)]
        kinds: list[Any] = [self._shapes.kind(value.aval) for value in read]
        stores_blocks = any(operation.name in _OF_BLOCKS for operation in self._inside)
        if not stores_blocks or any(value.aval.dtype == jnp.bool_ for value in read):
            return None
        operands = [self.array(value) for value in read]
        shaped = [self._shapes.shape if k == "all" else self._shapes.scales for k in kinds]
        operands = [x.reshape(shape) for x, shape in zip(operands, shaped, strict=True)]
        singles = [self._number(value, grid) for value in numbers]
        places = [("float" if x.dtype == jnp.float32 else "int", i) for i, x in enumerate(singles)]
        packed = [
            _packed([x for x, (t, _) in zip(singles, places, strict=True) if t == kind], dtype)
            for kind, dtype in (("float", jnp.float32), ("int", jnp.int32))
        ]
        out_kinds: list[Any] = [self._shapes.kind(value.aval) for value in self._outputs]

        def kernel(*refs: Any) -> None:
            floats, ints, *rest = refs
            known: dict[Value, Any] = {}
            counters = {"float": 0, "int": 0}
            for value, x, (kind, _) in zip(numbers, singles, places, strict=True):
                ref = floats if kind == "float" else ints
                number = ref[0, counters[kind]]
                counters[kind] += 1
                known[value] = number != 0 if x.dtype == jnp.bool_ else number.astype(x.dtype)
            needed = {value for operation in self._inside for value in operation.inputs} | set(self._outputs)
            for value, ref, kind in zip(read, rest, kinds, strict=False):
                if value in needed:
                    known[value] = grid.formed(ref[...], kind)
            for operation in self._inside:
                inputs = [
                    _wide(jnp.asarray(x.literal, x.aval.dtype)) if x.literal is not None else known[x]
                    for x in operation.inputs
                ]
                known[operation.outputs[0]] = _computed(operation, inputs, grid)
            for value, ref, kind in zip(self._outputs, rest[len(read) :], out_kinds, strict=True):
                form = grid.form if kind == "all" else grid.form_of_blocks
                ref[...] = grid.unformed(_spread(known[value], form), kind, value.aval.dtype)

        number_spec, options = _options(platform)
        outs = [jax.ShapeDtypeStruct(value.aval.shape, value.aval.dtype) for value in self._outputs]
        return list(
            pl.pallas_call(
                kernel,
                grid=grid.grid,
                in_specs=[*[number_spec(x) for x in packed], *map(grid.spec, kinds)],
                out_specs=[*map(grid.spec, out_kinds)],
                out_shape=outs,
                input_output_aliases={len(packed) + i: i for i in range(len(outs))},
                interpret=interpret,
                name="optchain_leaf",
                **({} if interpret else options),
            )(*packed, *operands)
        )


def _packed(numbers: list[jax.Array], dtype: Any) -> jax.Array:
    """Numbers in a row, whose length is a power of two."""
    length = 1 << max(len(numbers) - 1, 0).bit_length()
    row = [x.astype(dtype) for x in numbers] + [jnp.zeros((), dtype)] * (length - len(numbers))
    return jnp.stack(row)[None]


def _options(platform: Platform) -> tuple[Callable[[jax.Array], Any], dict[str, Any]]:
    """Where the numbers lie, and what the compiler is told."""
    from jax.experimental import pallas as pl

    if platform == "tpu":
        from jax.experimental.pallas import tpu as pltpu

        options = {"compiler_params": pltpu.CompilerParams(vmem_limit_bytes=_VMEM_ON_TPU)}
        return lambda x: pl.BlockSpec(memory_space=pltpu.SMEM), options
    from jax.experimental.pallas import triton

    options = {"compiler_params": triton.CompilerParams(num_warps=4)}
    return lambda x: pl.BlockSpec(x.shape, lambda *place: (0, 0)), options
