"""`Transformation`: `init`, `update`, `apply`, checked at the boundary, and what everything else may ask of a link.

A transformation is built from plain functions by a factory that is decorated with `register`. The functions get resolved
hyperparameters as keyword arguments, and deal with no checks, no run-time values and no dtypes at the boundary. The
class says what kind of link it is:

- a `Transformation` acts on gradients: `update(updates, state, params, *, …) -> (updates, state)`. `rule` makes one of the math
  of one leaf;
- a `ParameterLink` acts on the new parameters: `project(params, state, *, …) -> (params, state)`;
- a `Composite` runs others: chains, gates, masks, groups.

A function gets the keyword arguments that the link does not own (`learning_rate`, `value`) from the call.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias, get_args

import jax
import jax.numpy as jnp

from optchain.core import arguments, memory, storage, trees
from optchain.core.calls import not_given
from optchain.core.hyperparams import ChangeSchedule, Hyperparams
from optchain.core.identity import Identity
from optchain.core.row_gradient import is_rows
from optchain.core.slot import Slot, check_slots, declare, note_undeclared
from optchain.core.trees import Tree

State: TypeAlias = Any
Kind: TypeAlias = Literal["gradient", "gate", "parameter"]
Stage: TypeAlias = Literal[
    "unscale",
    "clip",
    "penalty",
    "second_moment",
    "learning_rate",
    "decay",
    "lazy",
    "varying_window",
    "average",
    "projection",
]
Form: TypeAlias = Literal["scaled", "rows", "examples"]
"""What may come in place of a tree of arrays: a `trees.Scaled`, a `RowGradient`, gradients of single examples."""


class Transformation(Identity):
    """An Optax transformation with a name, a config, a fused `apply`, and a `repr` that is code: a link on gradients.

    It is immutable, a pytree without leaves, and equal to any other that was built from the same arguments: building a
    preset twice does not make a jitted step compile twice. `init, update = tx` works.

    Args:
      init: `params -> dict`, the link's own state; None for a link without state.
      update: the rule, `update(updates, state, params, *, …) -> (updates, state)`.
      fields: the names of the entries that `init` makes and that are no slots. `count` is the number of calls, which the link's
        schedules are functions of.
      slots: the entries that mirror the parameters, each with what is to be known of it.
      hyperparams: the link's hyperparameters; the rule gets their values by keyword.
      stage: what the link does, for the order checks of `chain`.
      needs_params: whether `update` needs the parameters.
      takes: extra arguments that the rule uses without naming them.
      accepts: what `update` can be handed in place of a tree of arrays: `"scaled"`, a `trees.Scaled`; `"rows"`, a
        `RowGradient` in place of an array; `"examples"`, gradients of single examples, with a leading axis of these
        (see `per_example`). Scaled updates are multiplied and rows made dense for a link that does not accept them.
      rowwise: whether it treats each row of a table by itself, so that it may run on the rows that a gradient names
        (`lazy_rows`): its entries for a parameter have the parameter's shape, and zeros for the other rows change nothing.

    Attributes:
      name: what the link is called in a chain's state.
      config: the arguments it was built from.
      kind: `gradient`, `gate` or `parameter`.
      parts: the transformations it is composed of, by the names of their entries in the state.
      links: the same without the names.
      slots: the entries of its own state that mirror the parameters, by name.
    """

    kind: Kind = "gradient"
    sequential: bool = False
    """Whether its parts run one after the other and nothing else does: a chain."""
    projects: bool = False
    """Whether it acts on the new parameters and on nothing else."""
    labels: Callable[[Tree], Tree] | None = None
    """Where leaves are not all treated alike: the parameters to a tree of the names of the parts that act on each, or of what
    is done with it."""
    effects: Callable[[Tree], Mapping[str, Tree]] | None = None
    """Where it acts on each parameter by a strength of its own: the parameters to trees of numbers, by what is done."""
    parts: Mapping[str, "Transformation"]
    slots: Mapping[str, Slot]
    hyperparams: Hyperparams
    """The hyperparameters that it owns itself, not those of its parts."""
    stage: Stage | None
    accepts: frozenset[Form]
    rowwise: bool
    _init: Callable[[Tree], Mapping[str, Any]]
    _update: Callable[..., tuple[Tree, Any]]
    _own_fields: frozenset[str]
    _needs_params: bool
    _takes: frozenset[str]
    _requires: frozenset[str]

    def __new__(
        cls,
        init: Callable[[Tree], Mapping[str, Any]] | None = None,
        update: Callable[..., tuple[Tree, Any]] | None = None,
        *,
        fields: Iterable[str] = (),
        slots: Mapping[str, Slot] | None = None,
        hyperparams: Hyperparams | None = None,
        stage: Stage | None = None,
        needs_params: bool = False,
        takes: Iterable[str] = (),
        accepts: Iterable[Form] = (),
        rowwise: bool = False,
    ) -> Self:
        if update is None:
            raise TypeError("a Transformation needs an update; what acts on the new parameters is a ParameterLink")
        check_own(fields=fields, takes=takes, slots=slots or {}, hyperparams=hyperparams)
        return cls._link(
            update,
            _init=init or no_state,
            _update=select_keywords(update),
            _own_fields=frozenset(fields),
            slots=slots or {},
            hyperparams=hyperparams or Hyperparams(),
            stage=stage,
            _needs_params=needs_params,
            _takes=frozenset(takes),
            accepts=frozenset(accepts),
            rowwise=rowwise,
        )

    @classmethod
    def _link(cls, function: Callable[..., Any] | None = None, **attributes: Any) -> Self:
        """A transformation of this kind. The call gives `function` the keyword arguments that the link does not own."""
        nothing: frozenset[str] = frozenset()
        defaults = {"parts": {}, "slots": {}, "hyperparams": Hyperparams(), "stage": None, "accepts": nothing}
        defaults |= {"rowwise": False, "_needs_params": False}
        defaults |= dict.fromkeys(("_own_fields", "_takes", "_requires"), nothing)
        attributes = defaults | attributes
        _check_declared(**{name: attributes[name] for name in ("stage", "accepts", "rowwise", "_needs_params")})
        asked = [] if function is None else _keyword_only(function)
        attributes["slots"] = declare(**attributes["slots"])
        attributes["parts"] = MappingProxyType(dict(attributes["parts"]))
        attributes["_own_fields"] |= attributes["slots"].keys()
        attributes["_requires"] |= {p.name for p in asked if p.default is p.empty}
        attributes["_takes"] |= attributes["_requires"] | {p.name for p in asked}
        self = cls._build(attributes)
        self._check_examples()
        return self

    @property
    def links(self) -> tuple["Transformation", ...]:
        """The transformations it is composed of."""
        return tuple(self.parts.values())

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        """The entries that a state of this transformation must have."""
        return self._own_fields | self.hyperparams.fields | {name for name, part in self.parts.items() if part.fields}

    @functools.cached_property
    def optional_fields(self) -> frozenset[str]:
        """The entries that it may have: the states of parts of which it is not known whether they have one."""
        return frozenset(name for name, part in self.parts.items() if not part.fields)

    @functools.cached_property
    def takes(self) -> frozenset[str]:
        """The names of extra arguments that the rule, or a part, uses."""
        return self._takes.union(*(part.takes for part in self.links)) - self.hyperparams.names

    @functools.cached_property
    def needs(self) -> Mapping[str, str]:
        """Of these, the ones that it cannot do without, each with the name of the link that needs it."""
        within = {extra: owner for part in self.links for extra, owner in part.needs.items()}
        needed = within | dict.fromkeys(sorted(self._requires), self.name)
        return {extra: owner for extra, owner in needed.items() if extra not in self.hyperparams.names}

    @property
    def takes_examples(self) -> bool:
        """Whether the gradients that it takes have a leading axis of examples, which the updates that it makes have not."""
        return "examples" in self.accepts or any(part.takes_examples for part in self.links)

    @property
    def takes_rows(self) -> bool:
        """Whether a `RowGradient` passes through; every other transformation hands on the dense gradient."""
        return "rows" in self.accepts

    def with_examples(self) -> Self:
        """The same transformation as one that takes the gradients of single examples."""
        return self._changed(accepts=self.accepts | {"examples"})

    def with_labels(self, labels: Callable[[Tree], Tree]) -> Self:
        """The same transformation, with a function that says what it does with each parameter: `describe` shows it."""
        return self._changed(labels=labels)

    def with_effects(self, effects: Callable[[Tree], Mapping[str, Tree]]) -> Self:
        """The same transformation, with a function that says how strongly it acts on each parameter: `describe` shows it.

        Args:
          effects: the parameters to trees of numbers or bools, by what is done: `rate`, a factor of the learning rate;
            `weight_decay` and `l2_penalty`, the shares of the hyperparameter `weight_decay`; `l1` and `l2`, decays. A
            parameter of which all are 0 or False is one that the link leaves alone.

        Returns:
          A transformation whose numbers and state are the same.

        Example:
          >>> import jax, jax.numpy as jnp, optchain
          >>> half = optchain.scale(0.5).with_effects(lambda params: {"rate": jax.tree.map(lambda p: 0.5, params)})
          >>> tx = optchain.chain(optchain.sgd(0.1), ("half", half))
          >>> optchain.describe(tx, {"w": jnp.ones(2)}).per_parameter[0].rate_factor
          0.5
        """
        return self._changed(effects=effects)

    def with_schedules(self, change: ChangeSchedule) -> Self:
        """The same transformation, with other schedules in it and in its parts: `change(name, schedule)` for each.

        It equals itself alone, since its config says nothing of the change.
        """
        parts = {name: part.with_schedules(change) for name, part in self.parts.items()}
        return self._changed(
            parts=MappingProxyType(parts), hyperparams=self.hyperparams.with_schedules(change), _factory=None
        )

    def _check_examples(self) -> None:
        for position, link in enumerate(self.links):
            if link.takes_examples and not (self.sequential and position == 0):
                while link.links:
                    link = link.links[0]
                raise ValueError(
                    f"{link.name} takes the gradients of single examples: it must be the first link of a chain, and nothing but "
                    "chains may be around it"
                )

    # The public forms: checks and dtypes at the boundary ----------------------------------------------------------------

    def _public_init(self, params: Tree) -> State:
        trees.check_leaves("params", params)
        trees.check_arrays("params", params)
        return trees.with_own_buffers(trees.as_arrays(self.run_init(params)), params)

    def _public_update(
        self, updates: Tree, state: State, params: Tree | None, extra: dict[str, Any]
    ) -> tuple[Tree, State]:
        owner = self.owner_needing_params()
        if params is None and owner is not None:
            raise ValueError(
                f"{owner} needs the parameters, and update() got none: call tx.update(updates, state, params). "
                "(In Optax's terms: the link requires the current value of params.)"
            )
        incoming, params = self._check_call("updates", updates, state, params, extra)
        outgoing, state = self.run_update(incoming, state, params, extra)
        outgoing = trees.force(outgoing)
        made = outgoing if self.keeps_low_bits else trees.cast_tree(outgoing, updates)
        return made, trees.with_own_buffers(state, updates, params, extra)

    def apply(self, params: Tree, state: State, *, grads: Tree, **extra: Any) -> tuple[Tree, State]:
        """One step in the fused form: `update` followed by `optax.apply_updates`, up to rounding in the parameters' dtype.

        It returns what it takes, in the same order: keep parameters before state in the function that you `jit`, so that
        donated buffers are reused in place.

        Args:
          params: the parameters, a pytree of floating-point or complex arrays.
          state: what `init` or the last step returned.
          grads: the gradients, of the parameters' structure and shapes.
          **extra: what links ask for by name, such as `value=loss`.

        Returns:
          `(params, state)`: the new parameters in the dtypes of the old ones, and the new state.

        Raises:
          ValueError: gradients of another structure or shape (the message names the leaf), or a state that belongs to
            another transformation (it names the link).
          TypeError: a `weight` that no link takes.

        Example:
          >>> import jax.numpy as jnp, optchain
          >>> tx = optchain.sgd(0.5)
          >>> params = {"w": jnp.array([1.0, 2.0])}
          >>> params, state = tx.apply(params, tx.init(params), grads={"w": jnp.array([1.0, 1.0])})
          >>> params["w"]
          Array([0.5, 1.5], dtype=float32)
        """
        if extra.get("weight") is not None and "weight" not in self.takes and not self.open_ended:
            # `update` takes what nothing within uses, as Optax's do: around it may be a link that does.
            raise TypeError(f"the call gave a weight, and nothing in {self.name} would use it, as accumulate() would")
        incoming, with_gradient = self._check_call("grads", grads, state, params, extra)
        new_params, state = self.run_apply(with_gradient, state, incoming, extra)
        new_params = new_params if with_gradient is params else trees.filled(new_params, params)
        return new_params, trees.with_own_buffers(state, new_params, grads, params, extra)

    def _check_call(
        self, root: str, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, Tree | None]:
        """Checks one call's arguments.

        Returns the updates in the dtypes that the parameters ask for, and of the parameters those that have an update.
        """
        for name, owner in self.needs.items():
            if name not in extra:
                raise TypeError(not_given(owner, name, extra.keys() - self.takes))
        if "weight" in self.takes and extra.get("weight") is not None:
            arguments.check_weight(extra["weight"])
        if "value" in self.takes and extra.get("value") is not None:
            arguments.check_real_scalar("value", extra["value"])
        for name in self.hyperparams.names & extra.keys():
            raise TypeError(f"{self.name} owns {name}: change it with set_hyperparams, not by the call")
        trees.check_leaves(root, updates)
        if params is not None:
            params = trees.with_update(root, updates, params, state)
            trees.check_leaves("params", params)
            trees.check_match(root, updates, "params", params, per_example=self.takes_examples)
            updates = trees.align(root, updates, params)
        return trees.merged(updates), params  # no link meets a row twice

    # The forms without the boundary: for links that contain links --------------------------------------------------------

    def run_init(self, params: Tree) -> State:
        """`init` without the checks at the boundary."""
        self.hyperparams.check_for(params)
        own = self._init(params)
        if not isinstance(own, Mapping):
            raise TypeError(f"{self.name}: init must return a dict of the entries of its state; got {own!r}")
        note_undeclared(self._undeclared(own, params))
        expected = self.fields - (self.hyperparams.fields - self._own_fields)
        if frozenset(own) - self.optional_fields != expected:
            raise ValueError(f"{self.name}: init made the entries {sorted(own)}, fields says {sorted(expected)}")
        return {**self.hyperparams.init(), **own}

    def run_update(
        self, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, State]:
        """`update` without the checks; takes narrow, wide or scaled updates, returns wide or scaled ones."""
        updates = self._admitted(updates)
        own, values, kept = self._enter(state, updates, extra)

        def run(own: State) -> tuple[Tree, State]:
            try:
                results = self._update(updates, self._loaded(own), params, **values)
            except (AttributeError, TypeError, ValueError) as error:
                if params is None and not self.parts:
                    error.add_note(f"{self.name} was given no params: if its update needs them, say needs_params=True")
                raise
            made, new = self._results("update", results, own)
            return made, self._stored(new, own, extra)

        if self.parts:
            made, own = run(own)
        else:
            made, own = memory.streamed(run, own)
            self._check_made(made, updates, params)
        return made, {**kept, **own}

    def run_apply(self, params: Tree, state: State, grads: Tree, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        """`apply` without the checks."""
        updates, state = self.run_update(grads, state, params, extra)
        return trees.add(params, trees.force(updates)), state

    def run_project(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        """A parameter link's rule: the new parameters in, the same leaves out where it leaves them alone."""
        raise TypeError(f"{self.name} acts on gradients, and not on parameters")

    def run_flush(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        """Applies what gates within hold back, with the run-time values of the last call. It is no call: nothing counts it."""
        return params, state

    def _results(self, function: str, made: Any, own: State) -> tuple[Tree, dict[str, Any]]:
        """What the function of a link returned, which is a tree and the entries of the link's own state."""
        what = "updates" if function == "update" else "params"
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
            raise TypeError(
                f"{self.name}: {function} must return ({what}, state), with state a dict like the one that it got; got {made!r}"
            )
        tree, new = made
        if not self.parts and new.keys() != own.keys():
            raise ValueError(
                f"{self.name}: {function} must return a state with the entries {sorted(own)}; got {sorted(new)}"
            )
        return tree, dict(new)

    def _check_made(self, made: Tree, updates: Tree, params: Tree | None) -> None:
        """Requires the updates that a rule returned to fit the parameters: others would be broadcast over them."""
        root, made = f"{self.name} returned updates", trees.unscaled(made)
        reference_root, reference = ("updates", trees.unscaled(updates)) if params is None else ("params", params)
        if params is None and self.takes_examples:
            reference = trees.of_one_example(reference)
        trees.check_leaves(root, made)
        trees.check_match(root, made, reference_root, reference)
        trees.check_real(root, made, reference)

    def _admitted(self, updates: Tree) -> Tree:
        """The updates as the rule accepts them."""
        updates = updates if self.takes_rows else trees.dense(updates)
        return updates if "scaled" in self.accepts else trees.multiplied(updates)

    def _enter(
        self, state: State, reference: Tree, extra: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The link's own entries of a state, this call's arguments, and the entries that are not the link's."""
        self._check_state(state, reference)
        values, kept = self.hyperparams.read(state)
        if "count" in self.hyperparams.fields and "count" not in self._own_fields:
            kept["count"] = trees.increment(state["count"])
        own = {name: entry for name, entry in state.items() if name not in kept}
        return own, {**extra, **values}, kept

    def _loaded(self, own: State) -> dict[str, Any]:
        """The link's own entries, with its slots as it sees them, however they are stored."""
        return {**own, **{name: storage.load(own[name]) for name in self.slots if name in own}}

    def _stored(self, own: State, state: State, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The link's own new entries, with its slots stored as those of the state were.

        A call on some rows of the parameters gives `first_row`, so that what is drawn at random is what all rows would draw.
        """
        first_row = extra.get("first_row")
        new = {name: storage.store(own[name], state[name], name, first_row) for name in self.slots if name in own}
        return {**own, **new}

    def _check_state(self, state: State, reference: Tree) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"the state of {self.name} must be the dict that init returned; got {type(state).__name__}")
        known = self.fields | self.optional_fields
        for name in sorted(self.fields - state.keys()):
            raise ValueError(
                f"the state of {self.name} has no entry {name!r}: it is another transformation's. "
                f"It has {sorted(state)}, {self.name} needs {sorted(self.fields)}. "
                "If the recipe was changed, take this entry from a fresh tx.init(params)."
            )
        for name in sorted(state.keys() - known):
            raise ValueError(
                f"the state of {self.name} has an entry {name!r} that {self.name} does not know: it is another "
                f"transformation's. {self.name} has {sorted(known)}. "
                "If the recipe was changed, leave this entry out of the state."
            )
        for group, names in self.hyperparams.groups.items():
            if names != state[group].keys():
                raise ValueError(
                    f"the state of {self.name} has the {group} {sorted(state[group])}, {self.name} needs {sorted(names)}: it is "
                    f"another transformation's. If the recipe was changed, take {group!r} from a fresh tx.init(params)."
                )
            for name in names if group == "hyperparams" else ():
                self._check_number(f'["{group}"]["{name}"]', state[group][name])
        if "count" in self.hyperparams.fields:
            self._check_number('["count"]', state["count"])
        reference = trees.unscaled(reference)
        full = [name for name, slot in self.slots.items() if slot.full]
        for name in [*full, *(self._undeclared(state, reference) if self.rowwise else [])]:
            storage.check(f'{self.name} state["{name}"]', state[name], "updates", reference)

    def _check_number(self, where: str, value: Any) -> None:
        """Requires one number: several would be broadcast over the updates."""
        if jnp.shape(value):
            raise ValueError(
                f"{self.name} state{where} must have shape (); got {jnp.shape(value)}: the state of several members, as sweep makes "
                "it, goes through jax.vmap with the axes that sweep returned"
            )

    # What may be asked of it ----------------------------------------------------------------------------------------------

    @property
    def schedules(self) -> Mapping[str, Callable[[Any], Any]]:
        """The hyperparameters that are functions of the step, by name; the step counts the calls of this link."""
        return MappingProxyType(self.hyperparams.schedules)

    @property
    def settable(self) -> Mapping[str, Any]:
        """The hyperparameters that `set_hyperparams` can change, with the values that they begin with."""
        return MappingProxyType(self.hyperparams.settable)

    @property
    def keeps_low_bits(self) -> bool:
        """Whether the parameters are a part of the numbers that are trained, so that updates must be wider than they are."""
        return any(part.keeps_low_bits for part in self.links)

    @property
    def open_ended(self) -> bool:
        """Whether a link within may use any extra argument, as Optax's may, and not only those of `takes`."""
        return any(part.open_ended for part in self.links)

    def owner_needing_params(self) -> str | None:
        """The name of the first link within whose `update` needs the parameters."""
        owners = (part.owner_needing_params() for part in self.links)
        return next((owner for owner in owners if owner), self.name if self._needs_params else None)

    def refuses_rows(self) -> str | None:
        """The name of the first link within that does not treat each row of a table by itself."""
        refusing = (part.refuses_rows() for part in self.links)
        return next((name for name in refusing if name), None if self.rowwise else self.name)

    def decayed(self, state: State, steps: Mapping[tuple[str, ...], jax.Array]) -> State:
        """The state as so many zero gradients would leave it: `steps` has a number for each row, by the path of the table."""
        if not isinstance(state, dict):
            return state
        values = self.hyperparams.last(state)
        new = dict(state)
        for entry, slot in self.slots.items():
            if slot.decay is None:
                continue

            def decay(path: trees.Path, x: jax.Array, beta: Any = values[slot.decay]) -> jax.Array:
                k = steps.get(trees.path_names(path))
                return x if k is None else trees.astype(trees.decay_rows(x, beta, k), x.dtype)

            new[entry] = jax.tree_util.tree_map_with_path(decay, state[entry])
        return new | {name: part.decayed(new[name], steps) for name, part in self.parts.items() if name in new}

    def mirrors(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        """The path of the parameter that a leaf of the state belongs to, if it has its shape.

        An entry that was not declared as a slot is taken for one: the caller compares shapes.
        """
        if not names:
            return None
        entry, *below = names
        if entry in self.slots:
            return tuple(below) if self.slots[entry].full else None
        if entry in self.parts:
            return self.parts[entry].mirrors(tuple(below))
        return tuple(below) if entry in self._own_fields - {"metrics"} else None

    def _undeclared(self, own: State, reference: Tree) -> list[str]:
        """Entries that are no slots, and all the same are trees of numbers like the parameters, leaf by leaf of as many axes."""
        others = self._own_fields - self.slots.keys() - {"metrics"}
        if not others:
            return []
        leaves, treedef = jax.tree.flatten(reference, is_leaf=is_rows)
        if treedef == jax.tree.structure(0) and not trees.shape_of(leaves[0]):
            return []  # a single number: nothing tells its moments from the link's own numbers

        def mirrors(entry: Any) -> bool:
            own_leaves, own_treedef = jax.tree.flatten(entry)
            return own_treedef == treedef and all(
                jnp.issubdtype(trees.dtype_of(x), jnp.inexact) and jnp.ndim(x) == len(trees.shape_of(y))
                for x, y in zip(own_leaves, leaves, strict=True)
            )

        return [name for name in sorted(others & own.keys()) if mirrors(own[name])]


def check_own(*, slots: Any, hyperparams: Any, **names: Any) -> None:
    """Refuses what a link of one's own cannot have, where it is written."""
    for argument, given in names.items():
        if isinstance(given, str):
            raise TypeError(f"{argument} must be a sequence of names; got the string {given!r}")
    if hyperparams is not None and not isinstance(hyperparams, Hyperparams):
        raise TypeError(f"hyperparams must be Hyperparams(name=value, …); got {hyperparams!r}")
    check_slots(slots, hyperparams.names if hyperparams else ())


def no_state(params: Tree) -> dict[str, Any]:
    return {}


def _check_declared(stage: Any, accepts: frozenset[Any], rowwise: Any, _needs_params: Any) -> None:
    """Refuses a misspelled stage or form, which would turn off a check or a fast path silently."""
    for name, given, known in (("stage", {stage} - {None}, Stage), ("accepts", accepts, Form)):
        for value in sorted(given - {*get_args(known)}, key=repr):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}; got {value!r}")
    arguments.check_bool("rowwise", rowwise)
    arguments.check_bool("needs_params", _needs_params)


def _keyword_only(rule: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY]


def select_keywords(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule, as a function that accepts any keyword argument and passes on those that the rule names."""
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(rule).parameters.values()):
        return rule
    accepted = {p.name for p in _keyword_only(rule)}
    return lambda *args, **kwargs: rule(*args, **{name: kwargs[name] for name in accepted & kwargs.keys()})
