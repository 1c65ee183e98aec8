"""State in the host's memory: it comes to the device leaf by leaf, where a link needs it, and goes back.

JAX knows in which memory an array lies, under `jit` too, and does not compute with one of the host's. So what a link does with
its own state is traced for the device's memory, and run again in the order of the parameters' leaves:

    bring the state of leaf 1;  update leaf 1;  send its new state back;  bring that of leaf 2;  ...

A compiler is free to bring everything first, and does: the device then needs room for the whole state. So a leaf waits until the
leaf before it is back, in one of two lanes: while the state of one leaf comes, that of another goes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Literal

from optchain.core.arguments import is_traced
from optchain.core.devices import fetched, on_host
from optchain.core.programs import run_equation
from optchain.core.trees import Tree, leaves_with_paths, path_code

LANES = 2


def sent(x: Any) -> Any:
    """The array in the host's memory."""
    return x if on_host(x) else jax.device_put(x, jax.memory.Space.Host)


def placed_like(x: Any, other: Any) -> Any:
    """The array in the memory in which another lies."""
    return sent(x) if on_host(other) else fetched(x)


def sent_in_order(tree: Tree, flags: Tree) -> Tree:
    """The leaves whose flag is True in the host's memory, each made when the one before it is there."""
    leaves, treedef = jax.tree.flatten(tree)
    previous: list[jax.Array] = []
    for index, flag in enumerate(treedef.flatten_up_to(flags)):
        if flag:
            value, *_ = lax.optimization_barrier((leaves[index], *previous))
            leaves[index] = sent(value)
            previous = [leaves[index]]
    return treedef.unflatten(leaves)


def check_scalars(state: Any) -> None:
    """Refuses counts, rates and other scalars that lie on the host: many links read them."""
    for path, leaf in leaves_with_paths(state):
        if on_host(leaf) and not leaf.ndim:
            raise ValueError(
                f"{path_code('state', path)} lies in the host's memory, and is a scalar: only what mirrors the parameters may. "
                "init_sharded(tx, params, mesh, memory_kind=…) makes a state so"
            )


def streamed(run: Callable[[Any], tuple[Tree, Any]], state: Any) -> tuple[Tree, Any]:
    """`run(state)`, which is `(made, new state)`, for a state that may lie on the host in part; the new one lies as the old one.

    Args:
      run: a function that computes in the device's memory. What it closes over lies there.
      state: a tree of arrays.
    """
    leaves, treedef = jax.tree.flatten(state)
    if not any(map(on_host, leaves)):
        return run(state)
    if not any(map(is_traced, leaves)):
        made, new = run(jax.tree.map(fetched, state))
        return made, jax.tree.map(placed_like, new, state)
    kinds = [jax.typeof(x).update(memory_space=jax.memory.Space.Device) for x in leaves]
    program, shapes = jax.make_jaxpr(run, return_shape=True)(treedef.unflatten(kinds))
    return jax.tree.structure(shapes).unflatten(_Stream(program, leaves).run())


class _Stream:
    """A traced `run`, which is run leaf by leaf.

    Args:
      program: from the leaves of the state to what is made, and the leaves of the new state.
      leaves: those of the state.
    """

    def __init__(self, program: Any, leaves: list[jax.Array]):
        jaxpr, self._leaves = program.jaxpr, leaves
        made = len(jaxpr.outvars) - len(leaves)
        self._outputs, self._new = jaxpr.outvars, dict(enumerate(jaxpr.outvars[made:]))
        # A leaf of the state belongs to the first output that needs it; its new value is made along with that.
        first = _ranks(jaxpr, zip(jaxpr.outvars[:made], range(made), strict=True))
        new = [first.get(var, made + index) for index, var in enumerate(jaxpr.invars)]
        ranks = _ranks(jaxpr, zip(jaxpr.outvars, [*range(made), *new], strict=True))
        # What an operation reads ranks no higher than what it makes, so a stable sort keeps all before its use.
        self._operations = sorted(jaxpr.eqns, key=lambda eqn: _rank(eqn, ranks))
        self._values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *leaves], strict=True))
        self._to_fetch = {var: index for index, var in enumerate(jaxpr.invars) if on_host(leaves[index])}
        self._before = _lanes({index: ranks.get(var, made) for var, index in self._to_fetch.items()}, leaves)
        self._sent = {index: leaves[index] for var, index in self._to_fetch.items() if self._new[index] is var}
        self._to_send = defaultdict[Any, list[int]](list)
        for index in self._to_fetch.values():
            if not isinstance(self._new[index], Literal):
                self._to_send[self._new[index]].append(index)

    def run(self) -> list[Any]:
        for eqn in self._operations:
            operands = [self._read(atom) for atom in eqn.invars]
            for var, value in zip(eqn.outvars, run_equation(eqn, operands), strict=True):
                self._values[var] = value
                for index in self._to_send.get(var, ()):
                    self._sent[index] = sent(value)
        offset = len(self._outputs) - len(self._leaves)
        made = [self._read(atom) for atom in self._outputs[:offset]]
        return made + [self._new_leaf(index, atom) for index, atom in self._new.items()]

    def _read(self, atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        index = self._to_fetch.pop(atom, None)
        if index is not None:
            waits = [self._sent[other] for other in self._before[index] if other in self._sent]
            value, *_ = lax.optimization_barrier((self._leaves[index], *waits))
            self._values[atom] = fetched(value)
        return self._values[atom]

    def _new_leaf(self, index: int, atom: Any) -> Any:
        return self._sent[index] if index in self._sent else placed_like(self._read(atom), self._leaves[index])


def _ranks(jaxpr: Any, outputs: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    """For each variable the lowest number among the outputs that need it."""
    ranks: dict[Any, int] = {}

    def lower(atom: Any, rank: float) -> None:
        if not isinstance(atom, Literal) and rank < ranks.get(atom, math.inf):
            ranks[atom] = int(rank)

    for var, rank in outputs:
        lower(var, rank)
    for eqn in reversed(jaxpr.eqns):
        for atom in eqn.invars:
            lower(atom, _rank(eqn, ranks))
    return ranks


def _rank(eqn: Any, ranks: dict[Any, int]) -> float:
    return min((ranks.get(var, math.inf) for var in eqn.outvars), default=math.inf)


def _lanes(ranks: dict[int, int], leaves: list[jax.Array]) -> dict[int, list[int]]:
    """For each leaf those that must be back before it comes: the ones of the rank before its own in its lane."""
    groups = defaultdict[int, list[int]](list)
    for index, rank in ranks.items():
        groups[rank].append(index)
    lanes = [(0, list[int]())] * LANES
    before = dict[int, list[int]]()
    for _, group in sorted(groups.items()):
        size, previous = lanes.pop(min(range(LANES), key=lambda lane: lanes[lane][0]))
        before |= dict.fromkeys(group, previous)
        lanes.append(
            (size + sum(math.prod(leaves[index].shape) * leaves[index].dtype.itemsize for index in group), group)
        )
    return before
