"""`Slot`: an entry of a link's state that mirrors the parameters, and its properties.

A rule declares once, as data, what a slot holds, how it begins and how it is stored. All code that needs to know which
entries mirror the parameters (checks of shapes, `lazy_rows`, `metrics`, `sweep`, the readers of checkpoints) asks the slots.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.trees import Tree

Narrowest: TypeAlias = Literal["int8", "bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class Slot:
    """An entry of the state that has a leaf for each parameter.

    Args:
      real: whether it is real for complex parameters, as `|g|²` is.
      start: what it begins as: a number, or `"params"` for the parameters' own values.
      decay: the hyperparameter that a zero gradient multiplies it by, and nothing else happens to it; None if there is none.
        `lazy_rows` catches up by it.
      dtype: the dtype in which it is stored; None for the parameter's, float32 or wider. Complex leaves stay complex.
      full: whether its leaves have the parameters' shapes.
      nonnegative: whether its numbers are >= 0, as squares are: `compact` stores them without a sign, and twice as finely.
      narrowest: the narrowest storage that `compact` chooses for it: "int8"; "bfloat16" or "float32" for what a rule takes
        maxima or small differences of, which roundings would bias.

    Raises:
      TypeError, ValueError: something that is none of these, a start that the dtype cannot hold, or one below 0 of a slot that is
        `nonnegative`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optchain import Slot
      >>> Slot(real=True, start=0.5, dtype="bfloat16").init({"w": jnp.zeros(2)})
      {'w': Array([0.5, 0.5], dtype=bfloat16)}
    """

    real: bool = False
    start: float | Literal["params"] = 0.0
    decay: str | None = None
    dtype: str | None = None
    full: bool = True
    nonnegative: bool = False
    narrowest: Narrowest = "int8"

    def __post_init__(self) -> None:
        arguments.check_bool("real", self.real)
        if self.start != "params" and not (arguments.is_number(self.start) and math.isfinite(self.start)):
            raise TypeError(
                f'start must be a finite number or "params"; got {self.start!r} ({type(self.start).__name__})'
            )
        if self.decay is not None:
            arguments.check_identifier("decay", self.decay)
        object.__setattr__(self, "dtype", arguments.check_dtype("dtype", self.dtype))
        arguments.check_bool("full", self.full)
        arguments.check_bool("nonnegative", self.nonnegative)
        arguments.check_choice("narrowest", self.narrowest, get_args(Narrowest))
        if self.start == "params":
            for kind, given, other in (("real", self.real, "complex"), ("nonnegative", self.nonnegative, "negative")):
                if given:
                    raise ValueError(
                        f'{kind} slots cannot start from "params", which may be {other}; give start a number'
                    )
        elif self.nonnegative and self.start < 0:
            raise ValueError(f"start must be >= 0, since the slot is nonnegative; got {self.start!r}")
        else:
            arguments.check_range("start", self.start, arguments.FINITE, dtype=self.dtype)

    def init(self, params: Tree) -> Tree:
        """The entry before the first step: fresh arrays that lie where the parameters lie."""
        start = self.start
        if start == "params":
            return trees.copy(params, self.dtype)
        zeros = trees.zeros_like(params, self.dtype, real=self.real)
        return jax.tree.map(lambda zero: jnp.full_like(zero, start), zeros) if start else zeros

    def load(self, stored: jax.Array, dtype: Any) -> jax.Array:
        """A stored leaf as a rule wants it: in the dtype of the gradient, made wide, or of its real part."""
        return trees.astype(stored, trees.real_dtype(dtype) if self.real else dtype)

    def store(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """What a rule made of a leaf, stored as the old one was."""
        return trees.astype(new, old.dtype)


def stored(slots: Mapping[str, Slot], dtype: Any, *, argument: str = "moment_dtype") -> dict[str, Slot]:
    """The slots, stored in another dtype: one for all, or one by name, where None and what is left out stay wide."""
    by_name = isinstance(dtype, Mapping)
    for name in dtype if by_name else ():
        if name not in slots:
            raise ValueError(f"{argument} has {name!r}; the state has {', '.join(map(repr, slots))}")
    chosen = dtype if by_name else dict.fromkeys(slots, dtype)
    return {
        name: dataclasses.replace(
            slot, dtype=arguments.check_storage(f"{argument}[{name!r}]" if by_name else argument, chosen.get(name))
        )
        for name, slot in slots.items()
    }


def no_narrower(narrowest: Narrowest, **slots: Slot) -> dict[str, Slot]:
    """The slots, as those that `compact` stores no narrower than that."""
    return {name: dataclasses.replace(slot, narrowest=narrowest) for name, slot in slots.items()}


def split_by_rule(dtype: Any, *slots: Mapping[str, Slot]) -> list[Any]:
    """An argument such as `moment_dtype` for several rules: to each what names its slots."""
    if not isinstance(dtype, Mapping):
        return [dtype] * len(slots)
    stored({name: slot for some in slots for name, slot in some.items()}, dtype)  # refuses what none of them has
    return [{name: value for name, value in dtype.items() if name in some} for some in slots]


BY_ANY_NAME = frozenset({"hyperparams", "scheduled", "metrics"})
"""In which links keep numbers under names of their choice: one called `weight` or `count` there is no entry of a gate."""
OWN_ENTRIES = BY_ANY_NAME | {"count"}
"""What links keep beside their slots."""
CONTAINERS = frozenset(
    {
        *("inner", "default", "state", "opt_state"),
        *("inner_state", "inner_states", "inner_opt_state", "adv_state", "base_optimizer_state", "fast_state"),
    }
)
"""Where states of links lie: those of ours, of a Flax `TrainState` and of Optax's wrappers."""
OF_GATES = frozenset({"weight", "updates", "loss_scale", "good_steps", "skipped_steps", "consecutive"})
"""Entries by which a state shows a gate to those who read it, beside its slot `grads`."""
OF_WINDOWS = frozenset({"grads", "count", "weight"})
"""What accumulation keeps of a window."""


def check_slots(slots: Any, hyperparams: Iterable[str]) -> None:
    """Requires slots of a link by name, which decay by hyperparameters of its own and are called like nothing else."""
    if not isinstance(slots, Mapping):
        raise TypeError(f"slots must be a mapping of names to Slot(…); got {slots!r} ({type(slots).__name__})")
    for name, slot in slots.items():
        arguments.check_identifier("the name of a slot", name)
        if not isinstance(slot, Slot):
            raise TypeError(f"slots[{name!r}] must be a Slot; got {slot!r} ({type(slot).__name__})")
        check_slot_name(name)
        if slot.decay is not None and slot.decay not in hyperparams:
            known = ", ".join(map(repr, hyperparams)) or "none"
            raise ValueError(f"slots[{name!r}] decays by {slot.decay!r}; the hyperparameters are {known}")


# The names of slots --------------------------------------------------------------------------------------------------
#
# A state is plain dicts, so that every serializer takes it, and a parameter may be called anything, `metrics` too. That
# `mu/metrics/scale` is a moment and no metric shows in the name `mu` alone, and there only to those who know that a rule
# has a slot of that name. So the names are noted where slots are declared, and links cannot have them, nor slots those of links.

_declared: dict[str, frozenset["_Kind"]] = {"params": frozenset()}  # what a Flax `TrainState` keeps beside the state
_links: set[str] = {"optax", "transformation"}  # what links are called that nobody has named
_numbered: set[str] = set(_links)  # of them those that a chain numbers where it has several: `clip_by_norm_2`


class _Kind(NamedTuple):
    """What readers of states know of a slot by its name."""

    copies: bool
    nonnegative: bool
    real: bool


def declare(**slots: Slot) -> Mapping[str, Slot]:
    """The slots of a rule by name, which no link may have from here on.

    Raises:
      ValueError: the name is that of a link or of a group, or of an entry that readers of states know as something else.
    """
    kinds = {name: _Kind(slot.start == "params", slot.nonnegative, slot.real) for name, slot in slots.items()}
    for name, kind in kinds.items():
        check_slot_name(name)
        for other in _declared.get(name, ()):
            if kind.copies != other.copies:
                differs = "holds no copies of the parameters" if kind.copies else "holds copies of the parameters"
            elif kind.nonnegative != other.nonnegative:
                differs = "may be negative" if kind.nonnegative else "is nonnegative"
            else:
                continue
            raise ValueError(
                f"a slot cannot be called {name!r} and be another kind: one of that name {differs}, and states are read by names; "
                "choose another name (an earlier form of this rule counts too, until the process ends)"
            )
    for name, kind in kinds.items():
        _declared[name] = _declared.get(name, frozenset()) | {kind}
    return MappingProxyType(dict(slots))


def note_undeclared(names: Iterable[str]) -> None:
    """Notes entries that mirror the parameters, and that a link has not declared. What gates are known by is no slot all the same."""
    for name in names:
        if name in OF_GATES:
            continue
        check_slot_name(name)
        kind = "holds copies of the parameters" if starts_as_params(name) else "is nonnegative"
        if starts_as_params(name) or is_nonnegative(name):
            raise ValueError(f"{name!r} is the name of a slot that {kind}: declare it, or rename it")
        _declared.setdefault(name, frozenset())


def check_slot_name(name: str) -> None:
    """Requires a name that stands for nothing else in a state."""
    if is_link_name(name) or name in OWN_ENTRIES | CONTAINERS | OF_GATES:
        reason = "is the name of a link" if is_link_name(name) else "is an entry that the state may have"
        raise ValueError(f"a slot cannot be called {name!r}: it {reason}; choose another name")


def check_link_name(what: str, name: str) -> None:
    """Requires for a link or a group a name that stands for nothing else in a state, such as the slot of a rule."""
    if name in slot_names() or name in OWN_ENTRIES | OF_GATES | {"inner"}:
        reason = "is the name of a slot" if name in slot_names() else "is an entry that the state may have"
        raise ValueError(f"{what} cannot be called {name!r}: it {reason}; choose another name")


def note_links(names: Iterable[str], *, numbered: bool = False) -> None:
    """Notes what links and groups are called, which no slot may be called from here on, nor with a number after it."""
    names = frozenset(names)
    _links.update(names)
    if numbered:
        _numbered.update(names)


def is_link_name(name: str) -> bool:
    """Whether a link or a group is called so, or is where a chain numbers it."""
    return name in _links or is_registered(name)


def is_registered(name: str) -> bool:
    """Whether links of one kind are called so, with a number where a chain has several, and nothing that a user named."""
    return name.rstrip("_0123456789") in _numbered


def slot_names() -> frozenset[str]:
    """The names of all slots that were declared."""
    return frozenset(_declared)


def starts_as_params(name: str) -> bool:
    """Whether slots of this name begin as copies of the parameters."""
    return any(kind.copies for kind in _declared.get(name, ()))


def is_nonnegative(name: str) -> bool:
    """Whether slots of this name have no numbers below 0."""
    return any(kind.nonnegative for kind in _declared.get(name, ()))


def is_real(name: str) -> bool:
    """Whether all slots of this name are real for complex parameters too."""
    kinds = _declared.get(name, ())
    return bool(kinds) and all(kind.real for kind in kinds)
