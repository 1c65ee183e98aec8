"""`rule`: a transformation from the math of one leaf.

A rule is written as its paper writes it, for one array, in two steps:

    def step(t, beta_1, beta_2, epsilon):        # once a call: bias corrections, warmups
        ...
        def leaf(g, mu, nu):                     # once a parameter: the gradient and the slots, to the update and the slots
            ...
            return u, {"mu": mu, "nu": nu}
        return leaf

The rest is the same for every rule and stands here: the tree is walked, narrow leaves are made wide, slots are loaded and
stored, `t` is counted, a real number meets a complex array as in NumPy. Leaves of one shape and dtype are traced once.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.slot import Slot
from optchain.core.transformation import Stage, Transformation
from optchain.core.trees import Tree

LeafUpdate: TypeAlias = tuple[jax.Array, Mapping[str, Any]]
"""What a rule makes of one leaf: the update, and the slots by name."""
Leaf: TypeAlias = Callable[..., LeafUpdate]
"""`leaf(g, **slots)`, or `leaf(g, p, **slots)`."""


def rule(
    step: Callable[..., Leaf | tuple[Leaf, Mapping[str, jax.Array]]],
    *,
    slots: Mapping[str, Slot],
    hyperparams: Mapping[str, Hyperparam] | Hyperparams | None = None,
    scalars: Mapping[str, float] | None = None,
    stage: Stage | None = None,
    needs_params: bool = False,
    rowwise: bool = True,
) -> Transformation:
    """A link on gradients from the rule of one leaf.

    `step` gets by name what it asks for: the hyperparameters; `t`, which counts updates from 1; the scalars; an extra
    argument of the call, such as `learning_rate`, which may have a default. It runs once a call for each dtype in the tree, and what it gets has that
    dtype (of complex leaves, their real part's). A hyperparameter that is a constant stays a Python number.

    It returns `leaf(g, **slots) -> (u, new_slots)`, which sees float32 or wider only. Where the rule has scalars of its own
    `step` returns `(leaf, new_scalars)`.

    Args:
      step: the rule.
      slots: what it keeps for each parameter, by the names under which `leaf` gets and returns them.
      hyperparams: its hyperparameters by name: numbers, arrays, schedules.
      scalars: numbers that it keeps from call to call besides `count`, with what they begin as.
      stage: what it does, for the order checks of `chain`: `"second_moment"` where the size of the gradient cancels.
      needs_params: whether `leaf` gets the parameter too: `leaf(g, p, **slots)`.
      rowwise: whether it treats each row of a table by itself, as every elementwise rule does.

    Returns:
      A transformation with the slots, the scalars and, if `step` asks for `t`, a `count` as its state.

    Raises:
      TypeError: a hyperparameter or scalar that `step` does not take; a slot that is no `Slot`.
      ValueError: a slot that decays by what is no hyperparameter; a name that two things have, or that is the rule's or the state's own: `g`, `p` where `leaf` gets the
        parameter, `t`, `count`, `hyperparams`, `scheduled`, `metrics`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> @optchain.register
      ... def sign_of_average(momentum=0.9):
      ...     def step(momentum):
      ...         def leaf(g, mu):
      ...             mu = momentum * mu + (1 - momentum) * g
      ...             return jnp.sign(mu), {"mu": mu}
      ...
      ...         return leaf
      ...
      ...     return optchain.rule(step, slots={"mu": optchain.Slot()}, hyperparams={"momentum": momentum})
      >>> tx = sign_of_average(0.5)
      >>> tx.update(jnp.array([0.1, -10.0]), tx.init(jnp.zeros(2)))[0]
      Array([ 1., -1.], dtype=float32)
    """
    hyperparams = hyperparams if isinstance(hyperparams, Hyperparams) else Hyperparams(**hyperparams or {})
    scalars = dict(scalars or {})
    _check_names(slots=slots, hyperparams=hyperparams.names, scalars=scalars, needs_params=needs_params)
    for name, slot in slots.items():
        arguments.check_identifier("the name of a slot", name)
        if not isinstance(slot, Slot):
            raise TypeError(f"slots[{name!r}] must be a Slot; got {slot!r} ({type(slot).__name__})")
        if slot.decay is not None and slot.decay not in hyperparams.names:
            known = ", ".join(map(repr, hyperparams.names)) or "none"
            raise ValueError(f"slots[{name!r}] decays by {slot.decay!r}; the hyperparameters are {known}")
    taken = inspect.signature(step).parameters
    for name in sorted({*hyperparams.names, *scalars} - taken.keys()):
        raise TypeError(f"step takes no {name!r}, which is among the rule's own; it takes {', '.join(taken)}")
    counts = "t" in taken
    extras = taken.keys() - {"t", *hyperparams.names, *scalars}

    def init(params: Tree) -> dict[str, Any]:
        count = {"count": jnp.zeros((), jnp.int32)} if counts else {}
        numbers = {name: jnp.full((), start, trees.default_float()) for name, start in scalars.items()}
        return {**count, **numbers, **{name: slot.init(params) for name, slot in slots.items()}}

    def update(updates: Tree, state: dict[str, Any], params: Tree, **values: Any) -> tuple[Tree, dict[str, Any]]:
        count = {"count": trees.increment(state["count"])} if counts else {}
        compile_once = jax.jit if _is_traced() else lambda function: function

        @functools.cache
        def prepared(dtype: Any) -> tuple[Leaf, Mapping[str, jax.Array]]:
            like = jax.ShapeDtypeStruct((), dtype)
            given = {name: trees.cast(values[name], like) for name in taken if name in values}
            t = {"t": trees.astype(count["count"], dtype)} if counts else {}
            made = step(**t, **given, **{name: trees.astype(state[name], dtype) for name in scalars})
            return made if isinstance(made, tuple) else (made, {})

        @functools.cache
        def on_leaf(dtype: Any) -> Callable[..., tuple[jax.Array, ...]]:
            leaf, _ = prepared(dtype)

            def act(g: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
                g = trees.wide(g)
                p, old = ([trees.astype(rest[0], g.dtype)], rest[1:]) if needs_params else ([], rest)
                kept = dict(zip(slots, old, strict=True))
                u, new = leaf(g, *p, **{name: slot.load(kept[name], g.dtype) for name, slot in slots.items()})
                return u, *(slot.store(new[name], kept[name]) for name, slot in slots.items())

            return compile_once(act)

        def one(g: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
            return on_leaf(trees.real_dtype(trees.wide_dtype(trees.dtype_of(g))))(g, *rest)

        columns = [*[params] * needs_params, *(state[name] for name in slots)]
        # All operands have the leaf's dtype, its real part's, or are Python's: a real number becomes complex, no more.
        with jax.numpy_dtype_promotion("standard"):
            updates, *new = trees.map_unzip(one, 1 + len(slots), updates, *columns)
            numbers = prepared(trees.default_float())[1] if scalars else {}
        return updates, {**count, **numbers, **dict(zip(slots, new, strict=True))}

    return Transformation._link(
        _init=init,
        _update=update,
        _own_fields=frozenset([*["count"] * counts, *scalars]),
        slots=slots,
        hyperparams=hyperparams,
        stage=stage,
        rowwise=rowwise,
        _needs_params=needs_params,
        _takes=frozenset(extras),
        _requires=frozenset(name for name in extras if taken[name].default is inspect.Parameter.empty),
    )


OWN_ENTRIES = dict.fromkeys(("count", "hyperparams", "scheduled", "metrics"), "is an entry that the state may have")


def _check_names(
    slots: Iterable[str], hyperparams: Iterable[str], scalars: Iterable[str], *, needs_params: bool
) -> None:
    """Requires names that neither the rule's functions nor its state use for something else."""
    counted = {"t": "is what step gets as the number of updates"}
    of_leaf = {"g": "is what leaf gets as the gradient"} | (
        {"p": "is what leaf gets as the parameter"} if needs_params else {}
    )
    taken = {"slot": OWN_ENTRIES | counted | of_leaf, "scalar": OWN_ENTRIES | counted, "hyperparameter": counted}
    owners: dict[str, str] = {}
    for kind, names in (("slot", slots), ("scalar", scalars), ("hyperparameter", hyperparams)):
        for name in names:
            reason = taken[kind].get(name) or (f"is the name of a {owners[name]} too" if name in owners else None)
            if reason:
                raise ValueError(f"a {kind} cannot be called {name!r}: it {reason}; choose another name")
            owners[name] = kind


def _is_traced() -> bool:
    """Whether a `jit` is being traced. Outside of one, a jitted leaf would be compiled anew at every call."""
    return arguments.is_traced(jnp.zeros(()))
