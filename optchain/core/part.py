"""A transformation of some leaves only."""

from collections.abc import Callable
from typing import Any, Self

import jax

from optchain.core import trees
from optchain.core.composite import Composite, nonempty_states
from optchain.core.masks import Mask, check_mask, invert, merge, resolve_mask, select, select_extra
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree


class Part(Composite):
    """A transformation of the leaves that `chosen` names; the others' new updates and parameters by a function each.

    Everything here is done when a step is traced: trees are taken apart and put together, and no operation is added.
    """

    _chosen: Callable[[Tree], Tree]
    _update_others: Callable[[Tree], Tree]
    _apply_others: Callable[[Tree, Tree], Tree]

    @classmethod
    def of(
        cls,
        inner: Transformation,
        *,
        chosen: Callable[[Tree], Tree],
        update_others: Callable[[Tree], Tree],
        apply_others: Callable[[Tree, Tree], Tree],
        others: str,
    ) -> Self:
        return cls._of(
            {"inner": inner},
            kind=inner.kind,
            projects=inner.projects,
            labels=lambda params: jax.tree.map(lambda flag: "inner" if flag else others, chosen(params)),
            _chosen=chosen,
            _update_others=update_others,
            _apply_others=apply_others,
        )

    def _init(self, params: Tree) -> dict[str, Any]:
        return super()._init(select(self._chosen(params), params))

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        reference = trees.force(updates) if params is None else params
        mask = self._chosen(reference)
        part = None if params is None else select(mask, params)
        inner_state, extra = state.get("inner", {}), select_extra(mask, extra, reference)
        new, inner_state = self.parts["inner"].run_update(select(mask, updates), inner_state, part, extra)
        rest = self._update_others(select(invert(mask), updates))
        return merge(mask, trees.widened(new), rest), nonempty_states({"inner": inner_state})

    def _apply(self, params: Tree, state: dict[str, Any], grads: Tree, **extra: Any) -> tuple[Tree, dict[str, Any]]:
        mask = self._chosen(params)
        others = invert(mask)
        inner_state, extra = state.get("inner", {}), select_extra(mask, extra, params)
        new, inner_state = self.parts["inner"].run_apply(select(mask, params), inner_state, select(mask, grads), extra)
        rest = self._apply_others(select(others, params), select(others, grads))
        return merge(mask, new, rest), nonempty_states({"inner": inner_state})

    def _project(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._on_part(self.parts["inner"].run_project, params, state, extra)

    def _flush(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._on_part(self.parts["inner"].run_flush, params, state, extra)

    def _on_part(
        self, act: Callable[[Tree, State, Any], tuple[Tree, State]], params: Tree, state: dict[str, Any], extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        mask = self._chosen(params)
        new, inner_state = act(select(mask, params), state.get("inner", {}), select_extra(mask, extra, params))
        return merge(mask, new, params), nonempty_states({"inner": inner_state})


def of_some(link: Transformation, mask: Mask) -> Part:
    """`link` on the leaves where the mask is True; the updates of the others pass through as they are."""
    check_mask("mask", mask)
    return Part.of(
        link,
        chosen=lambda params: resolve_mask("mask", mask, params),
        update_others=trees.widened,
        apply_others=lambda params, grads: trees.add(params, trees.force(grads)),
        others="passed",
    )
