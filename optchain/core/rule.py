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
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments, trees
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.slot import CONTAINERS, OF_GATES, OWN_ENTRIES, Slot, check_slots, slot_names
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
    argument of the call, such as `learning_rate`, which may have a default. It runs once a call for each dtype in the tree, and
    the real scalars that it gets have that dtype (of complex leaves, their real part's). A hyperparameter that is a constant
    stays a Python number; what is no real scalar, such as a key, comes as it is.

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
      ValueError: a slot that is not full, or decays by what is no hyperparameter; a name that two things have, or that is the
        rule's, the state's, a gate's or a link's own: `g`, `p` where `leaf` gets the parameter, `t`, `params`, `count`,
        `hyperparams`, `metrics`, `inner`, `grads`, `loss_scale` and the like. When called, something else than an update and
        the slots that `leaf` returns.

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
    scalars, slots = dict[str, Any](scalars or {}), dict(slots) if isinstance(slots, Mapping) else slots
    arguments.check_function("step", step)
    check_slots(slots, hyperparams.names)
    _check_names(slots=slots, hyperparams=hyperparams.names, scalars=scalars, needs_params=needs_params)
    for name, slot in slots.items():
        if not slot.full:
            raise ValueError(f"slots[{name!r}] of a rule must be full: leaf gets it beside the gradient, in its shape")
    for name, start in scalars.items():
        arguments.check_scalar(f"scalars[{name!r}]", start, arguments.FINITE)
        if not arguments.is_traced(start):
            scalars[name] = np.array(start)  # a copy, since the caller may donate the array that was given
    owner = getattr(step, "__qualname__", "rule").split(".")[0]
    taken = inspect.signature(step).parameters
    for parameter in taken.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"step gets all by name, so it cannot take {parameter}; name what it takes")
    for name in sorted({*hyperparams.names, *scalars} - taken.keys()):
        raise TypeError(f"step takes no {name!r}, which is among the rule's own; it takes {', '.join(taken)}")
    counts = "t" in taken
    extras = taken.keys() - {"t", *hyperparams.names, *scalars}
    for name in extras & _OF_CALLS:
        raise TypeError(f"step cannot take {name!r}: leaf gets the gradient, and with needs_params=True the parameter")

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
            given = {name: _meeting(values[name], like) for name in taken if name in values}
            t = {"t": trees.astype(count["count"], dtype)} if counts else {}
            made = step(**t, **given, **{name: trees.astype(state[name], dtype) for name in scalars})
            return _leaf_and_scalars(owner, made, scalars)

        @functools.cache
        def on_leaf(dtype: Any) -> Callable[..., tuple[jax.Array, ...]]:
            leaf, _ = prepared(dtype)
            optional = _parameters_of_leaf(owner, leaf, slots, needs_params=needs_params)

            def act(g: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
                g = trees.wide(g)
                p, old = ([trees.astype(rest[0], g.dtype)], rest[1:]) if needs_params else ([], rest)
                kept = dict(zip(slots, old, strict=True))
                made = leaf(g, *p, **{name: slot.load(kept[name], g.dtype) for name, slot in slots.items()})
                u, new = _update_and_slots(owner, made, kept, optional)
                return u, *(slot.store(jnp.asarray(new[name]), kept[name]) for name, slot in slots.items())

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


def _meeting(value: Any, like: jax.ShapeDtypeStruct) -> Any:
    """A real scalar in the dtype of the leaf; anything else that a call gives a rule, such as a key or a flag, as it is."""
    dtype = getattr(value, "dtype", None)
    is_real = dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.ndim(value) == 0
    return trees.cast(value, like) if is_real else value


def _leaf_and_scalars(owner: str, made: Any, scalars: Mapping[str, float]) -> tuple[Any, Mapping[str, jax.Array]]:
    """What `step` returned, which is a leaf and as many scalars as the rule has."""
    leaf, new = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not callable(leaf):
        raise TypeError(f"{owner}: step must return leaf, a function, or (leaf, scalars); got {made!r}")
    if not isinstance(new, Mapping) or new.keys() != scalars.keys():
        names = ", ".join(map(repr, scalars)) or "none"
        raise ValueError(f"{owner}: step must return (leaf, scalars) with the rule's scalars, {names}; got {new!r}")
    for name, value in new.items():
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"{owner}: step must return a real scalar for {name!r}; got {value!r}")
    return leaf, {name: trees.astype(value, trees.dtype_of(value)) for name, value in new.items()}


def _parameters_of_leaf(owner: str, leaf: Leaf, slots: Iterable[str], *, needs_params: bool) -> Collection[str]:
    """The names of what `leaf` takes, which must be what it is called with."""
    try:
        signature = inspect.signature(leaf)
    except ValueError:  # some builtins have none
        return ()
    expected = ["g", *["p"] * needs_params, *slots]
    try:
        signature.bind(*[None] * (1 + needs_params), **dict.fromkeys(slots))
    except TypeError as error:
        raise TypeError(f"{owner}: leaf must be leaf({', '.join(expected)}); it is leaf{signature}: {error}") from None
    return signature.parameters.keys()


def _update_and_slots(owner: str, made: Any, kept: Mapping[str, jax.Array], optional: Collection[str]) -> LeafUpdate:
    """What `leaf` returned, which is an update and each slot in its own shape; it may return slots that it takes by default."""
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
        raise TypeError(f"{owner}: leaf must return (update, {{slot: new value}}); got {made!r}")
    u, new = made
    if kept.keys() - new.keys() or new.keys() - kept.keys() - optional:
        expected = ", ".join(map(repr, kept)) or "none"
        raise ValueError(f"{owner}: leaf must return the slots {expected}; got {', '.join(map(repr, new)) or 'none'}")
    for name in kept:
        value = new[name]
        if not arguments.is_array(value) or value.shape != kept[name].shape:
            got = f"shape {value.shape}" if arguments.is_array(value) else f"{value!r} ({type(value).__name__})"
            raise ValueError(
                f"{owner}: leaf must return {name!r} as an array of the shape {kept[name].shape}; got {got}"
            )
        if trees.is_complex(value) and not trees.is_complex(kept[name]):
            raise TypeError(f"{owner}: leaf must return real numbers for the slot {name!r}; got {value.dtype}")
    return u, new


_OF_CALLS = frozenset({"updates", "grads", "state", "params"})
"""What a call gives a transformation by position, and in which a rule sees single leaves."""


def _check_names(
    slots: Iterable[str], hyperparams: Iterable[str], scalars: Iterable[str], *, needs_params: bool
) -> None:
    """Requires names that neither the rule's functions nor its state use for something else."""
    counted = {"t": "is what step gets as the number of updates"}
    of_leaf = {"g": "is what leaf gets as the gradient"} | (
        {"p": "is what leaf gets as the parameter"} if needs_params else {}
    )
    own = dict.fromkeys(OWN_ENTRIES | CONTAINERS | OF_GATES | {"grads"}, "is an entry that the state may have")
    of_slots = dict.fromkeys(slot_names(), "is the name of a slot")
    of_calls = dict.fromkeys(_OF_CALLS, "is an argument of the transformation's functions")
    taken = {"slot": own | counted | of_leaf, "scalar": of_slots | own | counted, "hyperparameter": counted | of_calls}
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
