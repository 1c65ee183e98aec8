"""Transformations that run others."""

from collections.abc import Mapping
from typing import Any, Self

from optchain.core import trees
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree


class Composite(Transformation):
    """A transformation that runs others, its `parts`. Subclasses say how, in terms of their own entries of the state.

    They have `_update`, and where a part may act on parameters `_apply`, `_project` and `_flush`.
    """

    @classmethod
    def _of(cls, parts: Mapping[str, Transformation], **attributes: Any) -> Self:
        """A composite of these parts, which takes what comes as they take it, but for what it says otherwise."""
        defaults: dict[str, Any] = {"accepts": frozenset({"scaled", "rows"}), "rowwise": True}
        return cls._link(parts=parts, **defaults | attributes)

    def _init(self, params: Tree) -> dict[str, Any]:
        return nonempty_states({name: part.run_init(params) for name, part in self.parts.items()})

    def _update(self, updates: Tree, state: State, params: Tree | None, **extra: Any) -> tuple[Tree, State]:
        raise NotImplementedError

    def _apply(self, params: Tree, state: State, grads: Tree, **extra: Any) -> tuple[Tree, State]:
        updates, state = self._update(grads, state, params, **extra)
        return trees.add(params, trees.force(updates)), state

    def _project(self, params: Tree, state: State, **extra: Any) -> tuple[Tree, State]:
        raise NotImplementedError

    def _flush(self, params: Tree, state: State, **extra: Any) -> tuple[Tree, State]:
        return params, state

    def run_apply(self, params: Tree, state: State, grads: Tree, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        grads = self._admitted(grads)
        own, values, kept = self._enter(state, grads, extra)
        params, own = self._apply(params, self._loaded(own), grads, **values)
        return params, {**kept, **self._stored(own, state, extra)}

    def run_project(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        own, values, kept = self._enter(state, params, extra)
        params, own = self._project(params, self._loaded(own), **values)
        return params, {**kept, **self._stored(own, state, extra)}

    def run_flush(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        self._check_state(state, params)
        params, own = self._flush(params, self._loaded(state), **{**extra, **self.hyperparams.last(state)})
        return params, self._stored(own, state, extra)


def nonempty_states(states: Mapping[str, State]) -> dict[str, Any]:
    """The states of parts by name, without those that have none."""
    return {name: state for name, state in states.items() if not (isinstance(state, dict) and not state)}
