"""Gates: transformations that decide at each call whether the one within runs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax import lax

from optchain.core import trees
from optchain.core.branch import run_if
from optchain.core.transformation import Stage, State, Transformation
from optchain.core.trees import Tree

Decision = tuple[jax.Array, Callable[[], Tree | trees.Scaled], dict[str, Any]]


def gate(
    inner: Transformation,
    init: Callable[[Tree], Mapping[str, Any]],
    decide: Callable[[Tree, dict[str, Any], Mapping[str, Any]], Decision],
    *,
    fields: Iterable[str],
    flush: Callable[[dict[str, Any]], Decision] | None = None,
    takes: Iterable[str] = (),
    stage: Stage | None = None,
    rowwise: bool = False,
) -> Transformation:
    """A gate from its decision.

    `decide(grads, state, extra) -> (run, gradient, state)` says whether `inner` runs, on which gradient (a function, called
    inside the branch), and what the gate's own state becomes. `flush(state)` decides likewise, without a new gradient.
    `takes` names what `decide` reads from the call's extra arguments; `rowwise` says that `decide` treats rows by themselves.
    Over a mesh a call may give `keep_layout`, a function that puts new parameters where the old ones were: it is called in
    the branch, so that a call that waits gathers nothing.

    The branches return only what they may change, and close over the rest: XLA then leaves the untouched buffers in
    place, where passing an accumulator through the branches would copy it. `run_if` keeps in place what they return, too.
    The `update` form has a `cond`: its branch that waits makes zeros, and nothing of them could stay in place.
    """

    def init_with_inner(params: Tree) -> dict[str, Any]:
        return {**init(params), **inner_entry(inner.run_init(params))}

    def update(updates: Tree, state: dict[str, Any], params: Tree, **extra: Any) -> tuple[Tree, dict[str, Any]]:
        run_now, gradient, own = decide(updates, state, extra)

        def run(inner_state: State) -> tuple[Tree, State]:
            updates, inner_state = inner.run_update(gradient(), inner_state, params, extra)
            return trees.widened(updates), inner_state

        def wait(inner_state: State) -> tuple[Tree, State]:
            return trees.zeros_like(trees.force(updates)), inner_state

        updates, inner_state = lax.cond(run_now, run, wait, state.get("inner", {}))
        return updates, {**own, **inner_entry(inner_state)}

    def apply(params: Tree, state: dict[str, Any], grads: Tree, **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return step(params, state, decide(grads, state, extra), extra)

    def flush_tail(params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        if flush is not None:
            return step(params, state, flush(state), extra)
        params, inner_state = inner.run_flush(params, state.get("inner", {}), extra)
        return params, {**state, **inner_entry(inner_state)}

    def step(
        params: Tree, state: dict[str, Any], decision: Decision, extra: Mapping[str, Any]
    ) -> tuple[Tree, dict[str, Any]]:
        run_now, gradient, own = decision
        keep_layout = extra.get("keep_layout")

        def run(params: Tree, inner_state: State) -> tuple[Tree, State]:
            params, inner_state = inner.run_apply(params, inner_state, gradient(), extra)
            return (keep_layout(params) if keep_layout else params), inner_state

        params, inner_state = run_if(run_now, run, params, state.get("inner", {}))
        return jax.tree.map(_kept_narrow, params), {**own, **inner_entry(inner_state)}

    return Transformation(
        init_with_inner,
        update,
        apply=apply,
        flush=flush_tail,
        fields=fields,
        optional_fields=["inner"],
        links=(inner,),
        takes=takes,
        stage=stage,
        takes_scaled=True,
        takes_rows=True,
        rowwise=rowwise,
    )


def _kept_narrow(p: Any) -> Any:
    """Keeps what widens a parameter after the gate out of the gate's branches.

    XLA would move it there, and both would write the wide parameters out: 8 bytes a parameter of a call that waits, on a TPU.
    """
    return lax.optimization_barrier(p) if trees.wide_dtype(trees.dtype_of(p)) != trees.dtype_of(p) else p


def inner_entry(inner_state: State) -> dict[str, Any]:
    return {} if isinstance(inner_state, dict) and not inner_state else {"inner": inner_state}
