"""Hyperparameters: constants of the program, or values in the state that a run can read and change.

A Python number is a compile-time constant, except the learning rate and a static loss scale. Those, and every array, are
kept in the state under `hyperparams`. A schedule (a callable of the step) or a callable of no arguments is evaluated once
per call of the link that owns it; its value is kept in the state under `scheduled`.
"""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments, trees
from optchain.core.arguments import Range
from optchain.core.calls import closest_name
from optchain.core.lookup import Field, find_fields, replace_fields
from optchain.core.masks import Choice
from optchain.core.trees import path_names

Hyperparam: TypeAlias = float | jax.Array | np.ndarray | Callable[[jax.Array], Any] | Callable[[], Any]
"""A number, a scalar array, a schedule (a callable of the step), or a callable of no arguments."""

ChangeSchedule: TypeAlias = Callable[[str, Callable[[jax.Array], Any]], Callable[[jax.Array], Any]]
"""From the name of a scheduled hyperparameter and its schedule, a function of the step, to another schedule."""

ALWAYS_IN_STATE = frozenset({"learning_rate", "loss_scale"})


class Hyperparams:
    """The hyperparameters of one link, by name, checked against their ranges when built.

    Args:
      ranges: what the hyperparameters of a link of one's own may be, by name; `set_hyperparams` and the readers of checkpoints
        then know it. One that is named neither here nor in `arguments.RANGES` may be any finite number.
      **values: the hyperparameters.
    """

    def __init__(self, ranges: Mapping[str, Range] | None = None, /, **values: Hyperparam):
        for name in ranges or {}:
            if name not in values:
                raise ValueError(
                    f"a range is given for {name!r}; the hyperparameters are {', '.join(map(repr, values))}"
                )
        allowed = {name: (ranges or {}).get(name, arguments.RANGES.get(name, arguments.FINITE)) for name in values}
        for name in values:
            arguments.check_declared(name, allowed[name])
        self.ranges: Mapping[str, Range] = allowed
        self.constants: dict[str, float] = {}
        self.settable: dict[str, Any] = {}
        self.schedules: dict[str, Callable[[jax.Array], Any]] = {}
        self._allowed = allowed
        self.read_on_host: set[str] = set()
        for name, value in values.items():
            if isinstance(value, Choice):  # it is callable, but not with a step
                raise TypeError(
                    f"{name} must be a number, a scalar array or a callable of the step; got the mask {value!r}"
                )
            arguments.check_hyperparam(name, value, allowed[name])
            if callable(value):
                self.schedules[name] = _as_schedule(name, value, allowed[name])
                if self.schedules[name] is not value:  # it is a callable of no arguments
                    self.read_on_host.add(name)
            elif arguments.is_array(value) or name in ALWAYS_IN_STATE:
                # A copy on the host: the caller may donate or delete the array that was given.
                self.settable[name] = value if arguments.is_traced(value) else np.array(value)
            else:
                self.constants[name] = float(value)
        for name in values:
            arguments.declare_range(name, allowed[name])

    @property
    def names(self) -> frozenset[str]:
        return frozenset({*self.constants, *self.settable, *self.schedules})

    @property
    def values(self) -> dict[str, Any]:
        """What each was built with: a number, an array, a schedule."""
        return {**self.constants, **self.settable, **self.schedules}

    @property
    def fields(self) -> frozenset[str]:
        """The names of the state's entries that these hyperparameters need."""
        return frozenset(
            [*["hyperparams"] * bool(self.settable), *["scheduled", "count"] * bool(self.schedules)],
        )

    @property
    def groups(self) -> dict[str, frozenset[str]]:
        """The names in each of the state's groups that these hyperparameters need."""
        groups = {"hyperparams": frozenset(self.settable), "scheduled": frozenset(self.schedules)}
        return {group: names for group, names in groups.items() if names}

    def with_schedules(self, change: ChangeSchedule) -> "Hyperparams":
        """The same hyperparameters, of which the scheduled ones have `change(name, schedule)` as their schedules."""
        changed = copy.copy(self)
        changed.schedules = {name: change(name, schedule) for name, schedule in self.schedules.items()}
        return changed

    def init(self) -> dict[str, Any]:
        """The state's entries: `hyperparams`, and `scheduled` with the values of step 0 and their `count`."""
        state: dict[str, Any] = {}
        if self.settable:
            state["hyperparams"] = {name: _scalar(value) for name, value in self.settable.items()}
        if self.schedules:
            state["count"] = jnp.zeros((), jnp.int32)
            state["scheduled"] = self._scheduled(state["count"])
        return state

    def check_for(self, params: Any) -> None:
        """Requires every number that is known to be in range in the dtypes in which it meets the parameters.

        With JAX's 64-bit mode on, a number that was checked in float64 is used in float32 on a float32 leaf.
        """
        default, checked = trees.default_float(), set[Any]()
        for path, leaf in trees.leaves_with_paths(params):
            dtype = trees.real_dtype(trees.wide_dtype(trees.dtype_of(leaf)))
            if dtype == default or dtype in checked:
                continue
            checked.add(dtype)
            for name, value in (self.constants | self.settable).items():
                where = trees.path_code("params", path)
                arguments.check_range(name, value, self.ranges[name], dtype=dtype, where=where)

    def read(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """This call's values by name, and the state's entries as they are after it (but for `count`)."""
        fields: dict[str, Any] = {}
        if self.settable:
            # A value that was traced at construction is this call's; it would be stale in the state.
            fields["hyperparams"] = {
                name: _scalar(value) if arguments.is_traced(value) else state["hyperparams"][name]
                for name, value in self.settable.items()
            }
        if self.schedules:
            fields["scheduled"] = self._scheduled(state["count"])
        values = self.constants | fields.get("hyperparams", {}) | fields.get("scheduled", {})
        return values, fields

    def _scheduled(self, count: jax.Array) -> dict[str, jax.Array]:
        """What the schedules give at a step. A traced value cannot be looked at; any other must be in range."""
        made = {}
        for name, schedule in self.schedules.items():
            value = scheduled_number(name, schedule, count)
            if not arguments.is_traced(value):
                try:
                    arguments.check_range(name, value, self._allowed[name], computed=True)
                except ValueError as error:
                    raise ValueError(f"{error}, by its schedule {schedule!r}") from None
            made[name] = _scalar(value)
        return made

    def last(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the last call by name."""
        return self.constants | state.get("hyperparams", {}) | state.get("scheduled", {})


def _scalar(value: Any) -> jax.Array:
    """A fresh, strongly typed scalar in JAX's default float, never in a leaf's narrower dtype."""
    return jnp.array(value, trees.default_float(), copy=True)


def scheduled_number(name: str, schedule: Callable[[jax.Array], Any], count: jax.Array) -> Any:
    """What a schedule gives at a step, which must be one real number."""
    value = schedule(count)
    if not arguments.is_number(value) and not (arguments.is_array(value) and _is_real_scalar(value)):
        what = f"an array of shape {value.shape}, dtype {value.dtype}" if arguments.is_array(value) else repr(value)
        raise TypeError(f"{name} must be a real scalar at every step; its schedule {schedule!r} gave {what}")
    return value


def _is_real_scalar(array: jax.Array | np.ndarray) -> bool:
    return array.shape == () and (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer))


def _as_schedule(name: str, function: Callable[..., Any], allowed: Range) -> Callable[[jax.Array], Any]:
    """The callable as a function of the step, which of the two kinds it may be."""
    return function if arguments.takes_step(name, function) else _read_on_host(name, function, allowed)


def _read_on_host(name: str, function: Callable[[], Any], allowed: Range) -> Callable[[jax.Array], jax.Array]:
    """A callable of no arguments as a function of the step, read and checked on the host once per call, under `jit` too.

    The step is an operand although the callable ignores it: without an operand XLA hoists the callback out of a loop.
    """

    def given(dtype: Any) -> np.ndarray:
        value = function()
        if arguments.is_number(value) or (arguments.is_array(value) and _is_real_scalar(value)):
            with np.errstate(over="ignore"):  # what is too large for the dtype is infinite, and refused
                number = np.asarray(value).astype(dtype)
            if allowed.has(number.item(), dtype):
                return number
        raise ValueError(f"{name} must be {allowed}; the callable {function!r} returned {value!r}")

    def read(count: jax.Array) -> jax.Array:
        def call(count: np.ndarray) -> np.ndarray:
            return np.full(np.shape(count), given(dtype))

        dtype = trees.default_float()
        return jax.pure_callback(call, jax.ShapeDtypeStruct((), dtype), count, vmap_method="expand_dims")

    return read


# Reading and writing them in any state that holds one ----------------------------------------------------------------


def get_hyperparams(state: Any) -> dict[str, jax.Array]:
    """The run-time hyperparameters in a state: what was set, and what schedules gave at the last call.

    They are found by their place in the tree, so `state` may be an optchain or Optax state, a Flax `TrainState` or an
    `nnx.Optimizer`. Numbers given to a link as constants are part of the compiled program and are not listed.

    Args:
      state: any pytree with an optchain state in it.

    Returns:
      A dict of copies of shape (), keyed by name (`learning_rate`) where the name is unambiguous, else by path
      (`body/learning_rate`). Before the first call a scheduled one has the value of step 0.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(0.1)
      >>> state = tx.init({"w": jnp.ones(3)})
      >>> optchain.get_hyperparams(state)
      {'learning_rate': Array(0.1, dtype=float32)}
    """
    found = find_fields(state, "hyperparams", "scheduled")
    return {key: jnp.array(field.value, copy=True) for key, field in _keyed(found).items()}


def set_hyperparams(state: Any, values: Mapping[str, Any] | None = None, /, **named: Any) -> Any:
    """A state with other hyperparameters: the same program goes on with them, nothing is compiled again.

    Args:
      state: any pytree with an optchain state in it (see :func:`get_hyperparams`).
      values: new values keyed as `get_hyperparams` keys them, for names that are ambiguous: `{"body/learning_rate": 0.1}`.
      **named: new values by name, `learning_rate=0.1`. Scalars; each keeps the dtype and sharding of the one it replaces. They
        are checked in that dtype, since the parameters are not known: with JAX's 64-bit mode on it is float64, and a number
        beyond float32 is infinite where it meets a float32 leaf.

    Returns:
      The state, of the same structure. The new values are copies; everything else is shared with the old state.

    Raises:
      ValueError: a name that is unknown or ambiguous (the message lists what there is), a hyperparameter that a schedule
        owns, or a value out of range.
      TypeError: a value that is no real number.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(0.1)
      >>> state = tx.init({"w": jnp.ones(3)})
      >>> state = optchain.set_hyperparams(state, learning_rate=0.05)
      >>> float(optchain.get_hyperparams(state)["learning_rate"])  # doctest: +ELLIPSIS
      0.05...
    """
    values = {**(values or {}), **named}
    fields = {key: find_settable(state, key) for key in values}
    return replace_fields(state, {field.path: _replacement(field, values[key]) for key, field in fields.items()})


def find_settable(state: Any, key: str) -> Field:
    """The hyperparameter of a name or path; an error that lists what there is, if it cannot be set."""
    fields = find_fields(state, "hyperparams", "scheduled")
    by_key = _keyed(fields)
    if key not in by_key:
        names = _by_name(fields)
        meant = None if key in names else closest_name(key, list(by_key))
        what = "ambiguous" if key in names else "unknown" if meant is None else f"unknown (did you mean {meant}?)"
        raise ValueError(f"hyperparameter {key!r} is {what}; there are: {', '.join(sorted(by_key)) or 'none'}")
    field = by_key[key]
    if not is_settable(state, field):
        raise ValueError(
            f"{key} is scheduled: its schedule would overwrite the value at the next call. "
            "Build the transformation with a number or an array to be able to set it."
        )
    return field


def is_settable(state: Any, field: Field) -> bool:
    """Whether what is set at a field stays: no schedule overwrites it, of ours or of `optax.inject_hyperparams`.

    Optax keeps what a schedule gives under `hyperparams` too, with the schedule's own state of the same name beside it.
    """
    names = [path_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    of_schedule = (*field.owner, "hyperparams_states", field.name)
    return field.group != "scheduled" and not any(name[: len(of_schedule)] == of_schedule for name in names)


def _replacement(field: Field, value: Any) -> jax.Array:
    if callable(value) or not (arguments.is_number(value) or arguments.is_array(value)):
        raise TypeError(f"{field.name} must be set to a number or an array; got {value!r} ({type(value).__name__})")
    # A state that is vmapped over has one value a member, so the old value says which shape is meant.
    shape = jnp.shape(field.value)
    if jnp.shape(value) not in ((), shape):
        raise ValueError(f"{field.name} must have shape {shape}; got an array of shape {jnp.shape(value)}")
    arguments.check_values(field.name, value)
    if isinstance(value, jax.Array) and not arguments.is_traced(value):
        value = np.asarray(value)  # the new value goes where the old one was, not where this one is
    new = jnp.broadcast_to(jnp.array(value, trees.dtype_of(field.value), copy=True), shape)
    if isinstance(field.value, jax.Array) and not arguments.is_traced(field.value) and not arguments.is_traced(new):
        # An uncommitted scalar must stay uncommitted, or the jitted step would be compiled again.
        return jax.device_put(new, field.value.sharding) if field.value.committed else new
    return new


def _by_name(fields: list[Field]) -> dict[str, list[Field]]:
    by_name: dict[str, list[Field]] = {}
    for field in fields:
        by_name.setdefault(field.name, []).append(field)
    return by_name


def _keyed(fields: list[Field], beside: Mapping[str, str] = MappingProxyType({})) -> dict[str, Field]:
    """Fields by name where that is unambiguous, else by path; the path of a field at the root is its name.

    `beside` has for a name the one that it is read with: it is keyed as that one is.
    """
    by_name = _by_name(fields)

    def is_unambiguous(name: str) -> bool:
        return len(by_name[name]) == 1 and len(by_name.get(beside.get(name, name), ())) == 1

    return {field.name if is_unambiguous(field.name) else field.key: field for field in fields}
