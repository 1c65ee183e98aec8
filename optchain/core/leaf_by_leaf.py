"""A step that is computed leaf by leaf on a CPU, so that it needs room for the temporaries of one leaf, and not of all.

    new params, new state = run(params, state)

A link makes all updates, and then the next link goes on with them. XLA is free to compute one leaf to the end before it begins
another, and mostly does. Its CPU compiler does not where a leaf has several results and a reduction among them, as state in
codes has: it keeps what is in between for all leaves at once, 15 bytes a parameter and more.

So the program of the step is taken apart. What several leaves need, such as a rate or the norm of all gradients, comes first.
What one leaf alone needs becomes a loop of one round, which changes the leaf and its state in place.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from optchain.core import arguments, kernel, memory, storage
from optchain.core.branch import once, runs_step_by_step
from optchain.core.by_platform import by_platform
from optchain.core.programs import run_equation, value_in
from optchain.core.trees import Tree

_CHEAP = frozenset({"add", "broadcast_in_dim", "convert_element_type", "div", "mul"})
"""What is rather computed again for a leaf than kept from when it was computed for all."""


def leaf_by_leaf(
    run: Callable[[Tree, Tree], tuple[Tree, Tree]], leaves: Tree, state: Tree, *, in_kernels: bool = False
) -> tuple[Tree, Tree]:
    """`run(leaves, state)`, which on a CPU is computed one leaf after the other.

    Args:
      run: a function that returns a pair of trees like those that it is given, of the same shapes and dtypes. It may close over
        traced values, such as gradients.
      leaves: the parameters.
      state: what changes with them. A count in it, which the compiler cannot know to be >= 0, keeps the loops from being undone.
    """
    given, treedef = jax.tree.flatten((leaves, state))
    counts = [x for x in given if jnp.issubdtype(x.dtype, jnp.integer) and not x.ndim]
    if not counts or runs_step_by_step() or any(map(memory.on_host, given)) or not any(map(arguments.is_traced, given)):
        return run(leaves, state)
    program, made = jax.make_jaxpr(run, return_shape=True)(leaves, state)
    parts = _Parts(program.jaxpr, len(jax.tree.leaves(leaves)))
    to_be_done_once = program.effects or any(hasattr(jax.typeof(x), "inner_aval") for x in program.consts)
    if to_be_done_once or not parts.of_leaves:
        return jax.tree.structure(made).unflatten(jaxpr_as_fun(program)(*given))

    def at_once(captured: list[Any], given: list[Any], count: jax.Array) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, captured))(*given)

    def one_by_one(captured: list[Any], given: list[Any], count: jax.Array) -> list[Any]:
        return parts.run(captured, given, count >= 0)

    length = len(program.consts)

    def by_kernel(platform: kernel.Platform, *operands: Any, interpret: bool = False) -> list[Any]:
        captured, given = operands[:length], operands[length:-1]
        return parts.run_in_kernels([*captured], [*given], platform, interpret=interpret)

    config: Any = jax.config
    kernels = {"in_kernels": by_kernel} if in_kernels and not config.jax_enable_x64 else {}
    return treedef.unflatten(by_platform(at_once, program.consts, given, counts[0], cpu=one_by_one, **kernels))


def leaf_by_leaf_if_packed(
    run: Callable[[Tree, Tree], tuple[Tree, Tree]], leaves: Tree, state: Tree
) -> tuple[Tree, Tree]:
    """`run(leaves, state)`, leaf by leaf if any of the state is stored in codes."""
    if any(map(storage.is_packed, jax.tree.leaves(state, is_leaf=storage.is_packed))):
        return leaf_by_leaf(run, leaves, state)
    return run(leaves, state)


class _Parts:
    """A program `(leaves, state) -> (leaves, state)`, as what all leaves need and what each needs.

    Args:
      jaxpr: the program.
      leaves: how many leaves there are; the rest of what it is given is the state.
    """

    def __init__(self, jaxpr: Any, leaves: int):
        self._jaxpr = jaxpr
        self._maker = {var: index for index, eqn in enumerate(jaxpr.eqns) for var in eqn.outvars}
        owners = [*range(leaves), *self._owners_of_state(leaves)]
        users = self._users([1 << owner for owner in owners], jaxpr.outvars)
        masks = [_mask(eqn, users) for eqn in jaxpr.eqns]
        of_all = 1 << leaves
        self._shared = [i for i, mask in enumerate(masks) if mask & of_all or mask.bit_count() > 1]
        self._outputs = {leaf: [i for i, owner in enumerate(owners) if owner == leaf] for leaf in range(leaves + 1)}
        own = {leaf: self._needed(self._outputs[leaf], set(self._shared)) for leaf in range(leaves)}
        self.of_leaves = {leaf: equations for leaf, equations in own.items() if equations}
        """For each leaf the equations that it alone needs; not of leaves without any, such as those that a gate has made."""

    def run(self, captured: list[Any], given: list[Any], always: jax.Array) -> list[Any]:
        jaxpr = self._jaxpr
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*captured, *given], strict=True))
        self._run_equations(self._shared, known)
        made = dict[int, Any]()
        for leaf, equations in self.of_leaves.items():
            places = self._outputs[leaf]

            def change(old: list[Any], places: list[int] = places, equations: list[int] = equations) -> list[Any]:
                inside = {**known, **{jaxpr.invars[i]: x for i, x in zip(places, old, strict=True)}}
                self._run_equations(equations, inside)
                return [value_in(inside, jaxpr.outvars[i]) for i in places]

            new = once(always, change, [given[i] for i in places])
            made |= dict(zip(places, new, strict=True))
        return [made[i] if i in made else value_in(known, var) for i, var in enumerate(jaxpr.outvars)]

    def run_in_kernels(
        self, captured: list[Any], given: list[Any], platform: kernel.Platform, *, interpret: bool = False
    ) -> list[Any]:
        """Each leaf by a kernel of its own, where there can be one."""
        jaxpr = self._jaxpr
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*captured, *given], strict=True))
        self._run_equations(self._shared, known)
        made = dict[int, Any]()
        for leaf, equations in self.of_leaves.items():
            places = self._outputs[leaf]
            own = {jaxpr.invars[i]: given[i] for i in places}
            new = kernel.run(
                kernel.Leaf([jaxpr.eqns[i] for i in equations], own, [jaxpr.outvars[i] for i in places], known),
                platform,
                interpret=interpret,
            )
            if new is None:
                inside = dict(known)
                self._run_equations(equations, inside)
                new = [value_in(inside, jaxpr.outvars[i]) for i in places]
            made |= dict(zip(places, new, strict=True))
        return [made[i] if i in made else value_in(known, var) for i, var in enumerate(jaxpr.outvars)]

    def _run_equations(self, indices: Iterable[int], known: dict[Any, Any]) -> None:
        for index in indices:
            eqn = self._jaxpr.eqns[index]
            outputs = run_equation(eqn, [value_in(known, atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, outputs, strict=True))

    def _users(self, masks: Iterable[int], outputs: Iterable[Any]) -> dict[Any, int]:
        """For each variable which outputs need it, as the bits of an integer."""
        users: dict[Any, int] = {}

        def add(atom: Any, mask: int) -> None:
            if not isinstance(atom, Literal):
                users[atom] = users.get(atom, 0) | mask

        for var, mask in zip(outputs, masks, strict=True):
            add(var, mask)
        for eqn in reversed(self._jaxpr.eqns):
            mask = _mask(eqn, users)
            for atom in eqn.invars:
                add(atom, mask)
        return users

    def _owners_of_state(self, leaves: int) -> list[int]:
        """For each part of the state the leaf to which it belongs; the number of leaves if it belongs to none or several.

        It belongs to the leaf whose new value needs the old part, or from whose new value the new part is made.
        """
        jaxpr = self._jaxpr
        users = self._users([1 << i for i in range(leaves)], jaxpr.outvars[:leaves])
        sources = {var: mask for var, mask in users.items() if mask.bit_count() == 1}
        for eqn in jaxpr.eqns:
            mask = 0
            for atom in eqn.invars:
                mask |= 0 if isinstance(atom, Literal) else sources.get(atom, 0)
            for var in eqn.outvars:
                sources[var] = sources.get(var, 0) | mask

        def owner(old: Any, new: Any) -> int:
            masks = [users.get(old, 0), 0 if isinstance(new, Literal) else sources.get(new, 0)]
            found = [mask for mask in masks if mask]
            return found[0].bit_length() - 1 if found and found[0].bit_count() == 1 else leaves

        return [owner(old, new) for old, new in zip(jaxpr.invars[leaves:], jaxpr.outvars[leaves:], strict=True)]

    def _needed(self, outputs: Iterable[int], shared: set[int]) -> list[int]:
        """The equations that make some outputs: those of no other, and what is cheap to make again."""
        needed = set[int]()
        pending = [self._jaxpr.outvars[i] for i in outputs]
        while pending:
            atom = pending.pop()
            index = None if isinstance(atom, Literal) else self._maker.get(atom)
            if index is None or index in needed or (index in shared and not self._is_cheap(index)):
                continue
            needed.add(index)
            pending += self._jaxpr.eqns[index].invars
        return sorted(needed)

    def _is_cheap(self, index: int) -> bool:
        eqn = self._jaxpr.eqns[index]
        return eqn.primitive.name in _CHEAP and bool(eqn.outvars[0].aval.shape)


def _mask(eqn: Any, users: dict[Any, int]) -> int:
    mask = 0
    for var in eqn.outvars:
        mask |= users.get(var, 0)
    return mask
