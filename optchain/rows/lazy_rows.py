"""Updates of the rows that a gradient names, and of no others."""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments, memory, trees
from optchain.core.composite import Composite, nonempty_states
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.row_gradient import RowGradient, is_rows, values
from optchain.core.slot import Slot, declare
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Path, Tree

Keys: TypeAlias = tuple[str, ...]
"""The path of a parameter, as plain strings."""
Named: TypeAlias = Mapping[Keys | None, RowGradient]
"""The tables of which only some rows have gradients."""


class LazyRowsState(TypedDict):
    inner: State
    count: NotRequired[jax.Array]
    """With `catch_up`, the number of calls, int32."""
    last_call: NotRequired[Tree]
    """With `catch_up`, for each row of each parameter the last call that updated it, int32; 0 for none."""


SLOTS = declare(
    last_call=Slot(full=False),  # for each row of each parameter the last call that updated it
)


@register
def lazy_rows(inner: optax.GradientTransformation, *, catch_up: bool = False) -> Transformation:
    """Runs `inner` on the rows that gradients name, as if there were no others. A gate.

        rows = the rows that the `RowGradient` of a table names, each once
        table[rows], moments[rows], average[rows] ← inner(table[rows], moments[rows], average[rows], gradient of rows)

    So a step costs what the named rows cost, however long the table. It is another optimizer than the one that it is made
    of: a row that is not named stands still, where its moments, its decay and its average would go on. A parameter whose
    gradient is an array is updated whole, as ever. Norms, counts, schedules and the learning rate are those of `inner` on the
    whole tree: a zero gradient adds nothing to a norm.

    With `adam` it is `torch.optim.SparseAdam`, and it is the same for any rule that treats rows by themselves. Put it around a
    whole recipe; gates that skip steps may go around it or inside. In the `update` form the updates are a dense tree: use
    `apply`, or `make_step`.

    Args:
      inner: a transformation of optchain all of whose links treat each row of a table by itself.
      catch_up: whether the moments of a named row first decay by as many steps as the row has missed, each as a zero gradient
        would do it; with hyperparameters as they were at the last call. Parameters do not make up for what they missed.

    Returns:
      A transformation with state `inner` and, to catch up, `count` and `last_call`.

    Raises:
      ValueError: a link that mixes rows (the message names it), such as `accumulate`, a factored second moment, or a link of
        Optax, which may.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.lazy_rows(optchain.sgd(1.0, momentum=0.5))
      >>> params = jnp.zeros((3, 1))
      >>> state = tx.init(params)
      >>> for row in (0, 2):
      ...     grads = optchain.RowGradient(jnp.array([row]), jnp.ones((1, 1)), shape=(3, 1))
      ...     params, state = tx.apply(params, state, grads=grads)
      >>> params.ravel()
      Array([-1.,  0., -1.], dtype=float32)
    """
    wrapped = as_transformation(inner, "inner")
    catch_up = arguments.check_bool("catch_up", catch_up)
    refusing = wrapped.refuses_rows()
    if refusing is not None:
        raise ValueError(
            f"lazy_rows cannot run {refusing} on some rows of a table only: it does not treat each row by itself, or does "
            "not declare that it does"
        )

    return LazyRows._of(
        {"inner": wrapped},
        kind="parameter" if wrapped.kind == "parameter" else "gate",
        slots=SLOTS if catch_up else {},
        stage="lazy",
        accepts=frozenset({"rows"}),
        rowwise=False,
        _own_fields=frozenset(["count"] * catch_up),
    )


class LazyRows(Composite):
    """A transformation of the rows that gradients name; with a `count` and `last_call`, their moments catch up first."""

    def _init(self, params: Tree) -> dict[str, Any]:
        state = super()._init(params)
        if not self.slots:
            return state
        last_call = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p)[:1], jnp.int32), params)
        return {**state, "count": jnp.zeros((), jnp.int32), "last_call": last_call}

    def _apply(self, params: Tree, state: dict[str, Any], grads: Tree, **extra: Any) -> tuple[Tree, dict[str, Any]]:
        run = self.parts["inner"].run_apply
        part, state, named = self._on_rows(params, state, grads, extra, lambda p, s, g, e: run(p, s, g, e))
        return _put(params, part, named, trees.path_names), state

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        run = self.parts["inner"].run_update
        part, state, named = self._on_rows(params, state, updates, extra, lambda p, s, g, e: run(g, s, p, e))
        still = jax.tree.map(lambda g, u: jnp.zeros(g.shape, u.dtype), updates, trees.force(part), is_leaf=is_rows)
        return _put(still, trees.force(part), named, trees.path_names), state

    def _flush(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        params, inner_state = self.parts["inner"].run_flush(params, state.get("inner", {}), extra)
        return params, {**state, **nonempty_states({"inner": inner_state})}

    def _on_rows(
        self,
        params: Tree | None,
        state: dict[str, Any],
        grads: Tree,
        extra: Mapping[str, Any],
        act: Callable[[Tree, State, Tree, Mapping[str, Any]], tuple[Tree, State]],
    ) -> tuple[Tree, dict[str, Any], Named]:
        """What `act` makes of the named rows, the new state, and the named rows."""
        inner = self.parts["inner"]
        if any(map(memory.on_host, jax.tree.leaves(state))):
            raise ValueError(
                f"{self.name} reads and writes single rows of its state, which must lie in the device's memory; a part of it lies "
                "in the host's. Leave its slots out of memory_kind"
            )

        def mirrored(path: Path) -> Keys | None:
            return inner.mirrors(trees.path_names(path))

        named: Named = {trees.path_names(path): leaf for path, leaf in trees.leaves_with_paths(grads) if is_rows(leaf)}
        part = None if params is None else _take(params, named, trees.path_names)
        of_rows = trees.map_like(lambda tree: _take(tree, named, trees.path_names), extra, grads)
        inner_state = state.get("inner", {})
        inner_part = _take(inner_state, named, mirrored)
        caught_up = {}
        if self.slots:
            count = trees.increment(state["count"])
            last_call = _take(state["last_call"], named, trees.path_names)
            missed = {
                trees.path_names(path): count - 1 - last
                for path, last in trees.leaves_with_paths(last_call)
                if trees.path_names(path) in named
            }
            inner_part = inner.decayed(inner_part, missed)
            # The largest of both is the count; that it takes the old value keeps XLA from reading that later, from a copy.
            called = jax.tree.map(lambda last: jnp.maximum(last, count), last_call)
            caught_up = {"count": count, "last_call": _put(state["last_call"], called, named, trees.path_names)}
        new, inner_part = act(part, inner_part, values(grads), of_rows)
        inner_state = _put(inner_state, inner_part, named, mirrored)
        return new, {**caught_up, **nonempty_states({"inner": inner_state})}, named


def _take(tree: Tree, named: Named, key: Callable[[Path], Keys | None]) -> Tree:
    """The tree with the named rows in place of the tables."""

    def take(path: Path, x: Any) -> Any:
        indices = _indices(x, named.get(key(path)))
        if indices is None:
            return x
        return jnp.asarray(x).at[indices].get(mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True)

    return jax.tree_util.tree_map_with_path(take, tree)


def _put(tree: Tree, part: Tree, named: Named, key: Callable[[Path], Keys | None]) -> Tree:
    """The tree with rows of `part` in the tables, and all else as it is in `part`."""

    def put(path: Path, x: Any, new: Any) -> Any:
        indices = _indices(x, named.get(key(path)))
        if indices is None:
            return new
        return jnp.asarray(x).at[indices].set(new, mode="drop", unique_indices=True, indices_are_sorted=True)

    return jax.tree_util.tree_map_with_path(put, tree, part)


def _indices(x: Any, rows: RowGradient | None) -> jax.Array | None:
    """The rows of a leaf that are named; None if it has not the rows of a table."""
    return rows.indices if rows is not None and jnp.shape(x)[:1] == rows.shape[:1] else None
