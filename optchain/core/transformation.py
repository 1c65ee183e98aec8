"""`Transformation`: `init`, `update`, `apply`, and what the object knows of itself.

A transformation is built from plain functions by a factory that is decorated with `register`. The functions get
resolved hyperparameters as keyword arguments, and deal with no checks, no run-time values and no dtypes at the boundary:

- a *gradient* link gives `update(updates, state, params, *, …) -> (updates, state)`;
- a *gate* gives `update` and `apply(params, state, grads, *, …) -> (params, state)`;
- a *parameter* link gives `project(params, state, *, …) -> (params, state)`; it sees the new parameters.

What such a function asks for by keyword and the link does not own (`learning_rate`, `value`) it gets from the call.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optchain.core import trees
from optchain.core.config import call_code, freeze, given_arguments, on_host, registered_name
from optchain.core.hyperparams import Hyperparams
from optchain.core.rows import is_rows
from optchain.core.slot import Slot, declare
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


class Transformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation with a name, a config, a fused `apply`, and a `repr` that is code.

    It is immutable, a pytree without leaves, and equal to any other that was built from the same arguments: building a
    preset twice does not make a jitted step compile twice. `init, update = tx` works.

    Args:
      init: `params -> dict`, the link's own state; None for a link without state.
      update: the rule of a gradient link or a gate.
      apply: a gate's rule in the fused form.
      project: a parameter link's rule.
      flush: what a gate, or what contains one, does when a tail is flushed.
      fields: the names of the entries that `init` makes and that are no slots.
      slots: the entries that mirror the parameters, each with what is to be known of it.
      hyperparams: the link's hyperparameters; the rule gets their values by keyword.
      stage: what the link does, for the order checks of `chain`.
      needs_params: whether `update` needs the parameters.
      links: the transformations it is composed of.
      takes: extra arguments that the rule uses without naming them.
      requires: those that it cannot do without, and does not name either.
      sequential: whether it runs `links` one after the other, and does nothing else.
      labels: where each of the links acts on some leaves only: which, as a function of the parameters.
      takes_scaled: whether the rule accepts a `trees.Scaled` in place of a tree of updates.
      takes_examples: whether it takes the gradients of single examples, with a leading axis of these, and returns updates
        without it; see `per_example`.
      takes_rows: whether it accepts a `RowGradient` in place of an array; every other rule gets the dense gradient.
      rowwise: whether it treats each row of a table by itself, so that it may run on the rows that a gradient names
        (`lazy_rows`): what it keeps for a parameter has the parameter's shape, and zeros for the other rows change nothing.
      name: what error messages call it until a factory names it.

    Attributes:
      name: what the link is called in a chain's state.
      config: the arguments it was built from.
      links: the transformations it is composed of.
      slots: the entries of its own state that mirror the parameters, by name.
      kind: `gradient`, `gate` or `parameter`.
    """

    name: str
    config: Mapping[str, Any]
    links: tuple["Transformation", ...]
    kind: Kind
    stage: Stage | None
    sequential: bool
    """Whether `links` run one after the other and nothing else does: a chain."""
    labels: Callable[[Tree], Tree] | None
    """The parameters to a tree of the names under which the state has the link that acts on each leaf; None: all do on all."""
    fields: frozenset[str]
    """The entries that a state of this transformation must have."""
    optional_fields: frozenset[str]
    """The entries that it may have."""
    takes: frozenset[str]
    """The names of extra arguments that the rule, or a link within, uses."""
    needs: Mapping[str, str]
    """Of these, the ones that it cannot do without, each with the name of the link that needs it."""

    _init: Callable[[Tree], Mapping[str, Any]]
    _update: Callable[..., tuple[Tree, Any]] | None
    _apply: Callable[..., tuple[Tree, Any]] | None
    _project: Callable[..., tuple[Tree, Any]] | None
    _flush: Callable[..., tuple[Tree, Any]] | None
    _hyperparams: Hyperparams
    slots: Mapping[str, Slot]
    _own_fields: frozenset[str]
    _needs_params: bool
    _takes_scaled: bool
    _rowwise: bool
    takes_examples: bool
    """Whether the gradients that it takes have a leading axis of examples, which the updates that it makes have not."""
    takes_rows: bool
    """Whether a `RowGradient` passes through; every other transformation hands on the dense gradient."""
    _factory: Callable[..., "Transformation"] | None
    _arguments: inspect.BoundArguments | None

    def __new__(
        cls,
        init: Callable[[Tree], Mapping[str, Any]] | None = None,
        update: Callable[..., tuple[Tree, Any]] | None = None,
        *,
        apply: Callable[..., tuple[Tree, Any]] | None = None,
        project: Callable[..., tuple[Tree, Any]] | None = None,
        flush: Callable[..., tuple[Tree, Any]] | None = None,
        kind: Kind | None = None,
        fields: Iterable[str] = (),
        slots: Mapping[str, Slot] | None = None,
        optional_fields: Iterable[str] = (),
        hyperparams: Hyperparams | None = None,
        stage: Stage | None = None,
        needs_params: bool = False,
        links: tuple["Transformation", ...] = (),
        sequential: bool = False,
        labels: Callable[[Tree], Tree] | None = None,
        takes: Iterable[str] = (),
        requires: Iterable[str] = (),
        takes_scaled: bool = False,
        takes_examples: bool = False,
        takes_rows: bool = False,
        rowwise: bool = False,
        name: str = "transformation",
    ) -> Self:
        hyperparams = hyperparams or Hyperparams()
        slots, requires = declare(**slots or {}), frozenset(requires)
        own, fields = hyperparams.names, frozenset(fields) | slots.keys()
        for position, link in enumerate(links):
            if link.takes_examples and not (sequential and position == 0):
                while link.links:
                    link = link.links[0]
                raise ValueError(
                    f"{link.name} takes the gradients of single examples: it must be the first link of a chain, and nothing but "
                    "chains may be around it"
                )
        keywords = [p for rule in (update, apply, project) if rule for p in _keyword_only(rule) if p.name not in own]
        needs = {extra: owner for link in links for extra, owner in link.needs.items() if extra not in own}
        taken = {extra for link in links for extra in link.takes if extra not in own}
        return cls._build(
            {
                "_init": init or (lambda params: {}),
                "_update": update and _select_keywords(update),
                "_apply": apply and _select_keywords(apply),
                "_project": project and _select_keywords(project),
                "_flush": flush,
                "_hyperparams": hyperparams,
                "slots": slots,
                "_own_fields": fields,
                "_takes_scaled": takes_scaled,
                "takes_examples": takes_examples or any(link.takes_examples for link in links),
                "takes_rows": takes_rows,
                "_rowwise": rowwise,
                "_needs_params": needs_params or kind == "parameter" or (update is None and project is not None),
                "_factory": None,
                "_arguments": None,
                "name": name,
                "config": MappingProxyType({}),
                "links": links,
                "kind": kind or ("parameter" if project else "gate" if apply else "gradient"),
                "stage": stage,
                "sequential": sequential,
                "labels": labels,
                "fields": fields | hyperparams.fields,
                "optional_fields": frozenset(optional_fields),
                "takes": frozenset(taken.union(takes, requires, (p.name for p in keywords))),
                "needs": needs | dict.fromkeys([*requires, *(p.name for p in keywords if p.default is p.empty)], name),
            }
        )

    @classmethod
    def _build(cls, attributes: dict[str, Any]) -> Self:
        # The two functions of the tuple, and those of no other object: they must find `self`.
        def init(params: Tree) -> State:
            return self._checked_init(params)

        def update(updates: Tree, state: State, params: Tree | None = None, **extra: Any) -> tuple[Tree, State]:
            return self._checked_update(updates, state, params, extra)

        self = tuple.__new__(cls, (init, update))
        vars(self).update({name: value for name, value in attributes.items() if name != "_key"})  # it is cached
        return self

    # The public forms: checks and dtypes at the boundary ----------------------------------------------------------------

    def _checked_init(self, params: Tree) -> State:
        trees.check_leaves("params", params)
        trees.check_arrays("params", params)
        return self.run_init(params)

    def _checked_update(
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
        return trees.cast_tree(trees.force(outgoing), updates), state

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

        Example:
          >>> import jax.numpy as jnp, optchain
          >>> tx = optchain.sgd(0.5)
          >>> params = {"w": jnp.array([1.0, 2.0])}
          >>> params, state = tx.apply(params, tx.init(params), grads={"w": jnp.array([1.0, 1.0])})
          >>> params["w"]
          Array([0.5, 1.5], dtype=float32)
        """
        incoming, with_gradient = self._check_call("grads", grads, state, params, extra)
        new_params, state = self.run_apply(with_gradient, state, incoming, extra)
        return (new_params if with_gradient is params else trees.filled(new_params, params)), state

    def _check_call(
        self, root: str, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, Tree | None]:
        """Checks one call's arguments.

        Returns the updates in the dtypes that the parameters ask for, and of the parameters those that have an update.
        """
        for name, owner in self.needs.items():
            if name not in extra:
                hint = "; give it to the chain, chain(…, learning_rate=…)" if name == "learning_rate" else ""
                raise TypeError(f"{owner} needs {name}, and the call did not give it{hint}")
        if "weight" in extra and "weight" not in self.takes:
            raise TypeError(f"the call gave a weight, and {self.name} has no accumulate() that would use it")
        for name in self._hyperparams.names & extra.keys():
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
        """`init` without the checks."""
        own = self._init(params)
        declare(**{name: Slot() for name in self._undeclared(own, params)})
        if own.keys() - self.optional_fields != self._own_fields:
            raise ValueError(
                f"{self.name}: init made the entries {sorted(own)}, fields says {sorted(self._own_fields)}"
            )
        return {**self._hyperparams.init(), **own}

    def run_update(
        self, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, State]:
        """`update` without the checks; takes narrow, wide or scaled updates, returns wide or scaled ones."""
        updates = self._admitted(updates)
        if self._update is None:
            assert params is not None
            applied = trees.add(params, updates)
            projected, state = self.run_project(applied, state, extra)
            return trees.updates_to(projected, applied, params, updates), state
        own, values, kept = self._enter(state, updates, extra)
        made, own = self._update(updates, own, params, **values)
        if not self.links:
            self._check_made(made, updates, params)
        return made, {**kept, **own}

    def run_apply(self, params: Tree, state: State, grads: Tree, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        """`apply` without the checks."""
        grads = self._admitted(grads)
        if self._apply is not None:
            own, values, kept = self._enter(state, grads, extra)
            params, own = self._apply(params, own, grads, **values)
            return params, {**kept, **own}
        if self._update is None:
            return self.run_project(trees.add(params, grads), state, extra)
        updates, state = self.run_update(grads, state, params, extra)
        return trees.add(params, trees.force(updates)), state

    def _check_made(self, made: Tree, updates: Tree, params: Tree | None) -> None:
        """Requires the updates that a rule returned to fit the parameters: others would be broadcast over them."""
        root, made = f"{self.name} returned updates", trees.unscaled(made)
        reference_root, reference = ("updates", trees.unscaled(updates)) if params is None else ("params", params)
        if params is None and self.takes_examples:
            reference = trees.of_one_example(reference)
        trees.check_leaves(root, made)
        trees.check_match(root, made, reference_root, reference)
        trees.check_real(root, made, reference)

    def run_project(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        """A parameter link's rule: the new parameters in, the same leaves out where it leaves them alone."""
        assert self._project is not None
        own, values, kept = self._enter(state, params, extra)
        made, own = self._project(params, own, **values)
        if not self.links:
            trees.check_match(f"{self.name} returned params", made, "params", params)
        return made, {**kept, **own}

    def run_flush(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        """Applies what gates within hold back, with the run-time values of the last call. It is no call: nothing counts it.

        What must hold for the parameters is made to hold for the new ones: a projection acts.
        """
        projection = self._project if self.stage == "projection" else None
        if self._flush is None and projection is None:
            return params, state
        self._check_state(state, params)
        values = {**extra, **self._hyperparams.last(state)}
        if self._flush is not None:
            return self._flush(params, state, **values)
        assert projection is not None
        return projection(params, state, **values)[0], state

    def _admitted(self, updates: Tree) -> Tree:
        """The updates as the rule accepts them."""
        updates = updates if self.takes_rows else trees.dense(updates)
        return updates if self._takes_scaled else trees.multiplied(updates)

    def refuses_rows(self) -> str | None:
        """The name of the first link within that does not treat each row of a table by itself."""
        refusing = (link.refuses_rows() for link in self.links)
        return next((name for name in refusing if name), None if self._rowwise else self.name)

    def decayed(self, state: State, steps: Mapping[tuple[str, ...], jax.Array]) -> State:
        """The state as so many zero gradients would leave it: `steps` has a number for each row, by the path of the table."""
        if not isinstance(state, dict):
            return state
        values = self._hyperparams.last(state)
        new = dict(state)
        for entry, slot in self.slots.items():
            if slot.decay is None:
                continue

            def decay(path: trees.Path, x: jax.Array, beta: Any = values[slot.decay]) -> jax.Array:
                k = steps.get(trees.path_names(path))
                return x if k is None else trees.astype(trees.decay_rows(x, beta, k), x.dtype)

            new[entry] = jax.tree_util.tree_map_with_path(decay, state[entry])
        for name, link in self.parts:
            if name in state:
                new[name] = link.decayed(new[name], steps)
        return new

    @property
    def parts(self) -> list[tuple[str, "Transformation"]]:
        """The transformations within, each with the name of its entry in the state."""
        entries = self.fields | self.optional_fields
        if len(self.links) == 1 and "inner" in entries:  # whatever its name: a gate has entries of its own
            return [("inner", self.links[0])]
        return [(link.name if link.name in entries else "inner", link) for link in self.links]

    def mirrors(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        """The path of the parameter that a leaf of the state belongs to, if it has its shape.

        An entry that was not declared as a slot is taken for one: the caller compares shapes.
        """
        if not names:
            return None
        if names[0] in self.slots:
            return names[1:] if self.slots[names[0]].full else None
        for name, link in self.parts:
            if name == names[0]:
                return link.mirrors(names[1:])
        return names[1:] if names[0] in self._own_fields - {"metrics"} else None

    def _undeclared(self, own: State, reference: Tree) -> list[str]:
        """Entries that are no slots, and all the same are trees of numbers like the parameters, leaf by leaf of as many axes."""
        others = self._own_fields - self.slots.keys() - {"metrics", *(name for name, _ in self.parts)}
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

    @property
    def schedules(self) -> Mapping[str, Callable[[Any], Any]]:
        """The hyperparameters that are functions of the step, by name; the step counts the calls of this link."""
        return MappingProxyType(self._hyperparams.schedules)

    @property
    def settable(self) -> Mapping[str, Any]:
        """The hyperparameters that `set_hyperparams` can change, with the values that they begin with."""
        return MappingProxyType(self._hyperparams.settable)

    @property
    def projects(self) -> bool:
        """Whether this acts on the new parameters and on nothing else."""
        return self._project is not None

    @property
    def open_ended(self) -> bool:
        """Whether a link within may use any extra argument, as Optax's may, and not only those of `takes`."""
        return any(link.open_ended for link in self.links)

    def owner_needing_params(self) -> str | None:
        """The name of the first link within whose `update` needs the parameters."""
        if self._needs_params and not self.links:
            return self.name
        owners = (link.owner_needing_params() for link in self.links)
        return next((owner for owner in owners if owner), self.name if self._needs_params else None)

    def _enter(
        self, state: State, reference: Tree, extra: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The link's own entries of a state, this call's arguments, and the entries that are not the link's."""
        self._check_state(state, reference)
        values, kept = self._hyperparams.read(state)
        if "count" in self._hyperparams.fields and "count" not in self._own_fields:
            kept["count"] = trees.increment(state["count"])
        own = {name: entry for name, entry in state.items() if name not in kept}
        return own, {**extra, **values}, kept

    def _check_state(self, state: State, reference: Tree) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"the state of {self.name} must be the dict that init returned; got {type(state).__name__}")
        for name in sorted(self.fields - state.keys()):
            raise ValueError(
                f"the state of {self.name} has no entry {name!r}: it is another transformation's. "
                f"It has {sorted(state)}, {self.name} needs {sorted(self.fields)}. "
                "If the recipe was changed, take this entry from a fresh tx.init(params)."
            )
        for name in sorted(state.keys() - self.fields - self.optional_fields):
            raise ValueError(
                f"the state of {self.name} has an entry {name!r} that {self.name} does not know: it is another "
                f"transformation's. {self.name} has {sorted(self.fields | self.optional_fields)}. "
                "If the recipe was changed, leave this entry out of the state."
            )
        for group, names in self._hyperparams.groups.items():
            if names != state[group].keys():
                raise ValueError(
                    f"the state of {self.name} has the {group} {sorted(state[group])}, {self.name} needs {sorted(names)}: it is "
                    f"another transformation's. If the recipe was changed, take {group!r} from a fresh tx.init(params)."
                )
        reference = trees.unscaled(reference)
        full = [name for name, slot in self.slots.items() if slot.full]
        for name in [*full, *(self._undeclared(state, reference) if self._rowwise else [])]:
            trees.check_match(f'{self.name} state["{name}"]', state[name], "updates", reference)

    # The object ---------------------------------------------------------------------------------------------------------

    def built_by(self, factory: Callable[..., "Transformation"], bound: inspect.BoundArguments) -> Self:
        """This transformation as the work of `factory` called with these arguments."""
        values = bound.arguments = {name: on_host(value) for name, value in bound.arguments.items()}
        name = values.get("name") or factory.__name__
        renamed = {extra: name if owner == "transformation" else owner for extra, owner in self.needs.items()}
        return self._build(
            vars(self)
            | {
                "_factory": factory,
                "_arguments": bound,
                "name": name,
                "config": MappingProxyType(values),
                "needs": renamed,
            }
        )

    @property
    def hyperparams(self) -> Hyperparams:
        """The hyperparameters that it owns itself, not those of its links."""
        return self._hyperparams

    @property
    def is_registered(self) -> bool:
        """Whether a registered factory built it, so that it has a config."""
        return self._factory is not None

    @property
    def registered_name(self) -> str:
        """The name of its factory in the registry."""
        assert self._factory is not None
        return registered_name(self._factory)

    def given(self) -> dict[str, Any]:
        """The arguments of `config` that differ from their defaults."""
        assert self._factory is not None
        return given_arguments(inspect.signature(self._factory), self.config)

    def rebuilt(self, **changes: Any) -> "Transformation":
        """The transformation that the same factory builds with some arguments changed."""
        assert self._factory is not None
        return self._factory(**{**self.config, **changes})

    def renamed(self, name: str) -> Self:
        """The same transformation under the name that it has in a chain."""
        renamed = {extra: name if owner == self.name else owner for extra, owner in self.needs.items()}
        return self._build(vars(self) | {"name": name, "needs": renamed})

    def with_examples(self) -> Self:
        """The same transformation as one that takes the gradients of single examples."""
        return self._build(vars(self) | {"takes_examples": True})

    @functools.cached_property
    def _key(self) -> Any:
        return None if self._factory is None else (self._factory, freeze(dict(self.config)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transformation):
            return NotImplemented
        if self._key is None or other._key is None:
            return self is other
        return self._key == other._key

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return id(self) if self._key is None else hash(self._key)

    def __repr__(self) -> str:
        if self._factory is None:
            return f"<{self.kind} transformation {self.name}>"
        return call_code(self.registered_name, inspect.signature(self._factory), self.given())

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Transformation is immutable; build another instead of setting {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Transformation is immutable; {name} cannot be deleted")

    def _replace(self, /, **kwargs: Any) -> Self:  # pyright: ignore  # a NamedTuple's; it would leave `apply` and `config` behind
        raise TypeError(f"a Transformation cannot be taken apart with _replace({', '.join(kwargs)}); build another")

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # pyright: ignore
        raise TypeError("a Transformation cannot be made from a pair of functions; use chain(link) for an Optax link")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._factory is None or self._arguments is None:
            raise TypeError(
                f"{self!r} cannot be pickled: it has no config. Build it by a function decorated with register"
            )
        return _rebuild, (self._factory, self._arguments.args, self._arguments.kwargs)


def _rebuild(factory: Callable[..., Transformation], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Transformation:
    return factory(*args, **kwargs)


jax.tree_util.register_static(Transformation)


def _keyword_only(rule: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _select_keywords(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule, as a function that accepts any keyword argument and passes on those that the rule names."""
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(rule).parameters.values()):
        return rule
    accepted = {p.name for p in _keyword_only(rule)}
    return lambda *args, **kwargs: rule(*args, **{name: kwargs[name] for name in accepted & kwargs.keys()})
