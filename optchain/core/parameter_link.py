"""Links on the new parameters."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from optchain.core import memory, trees
from optchain.core.hyperparams import Hyperparams
from optchain.core.slot import Slot
from optchain.core.transformation import Kind, Stage, State, Transformation, check_own, no_state, select_keywords
from optchain.core.trees import Tree


class ParameterLink(Transformation):
    """A link on the new parameters, after the update: an average, a projection.

    Args:
      project: the rule, `project(params, state, *, …) -> (params, state)`; it sees the new parameters, and returns the same
        leaves where it leaves them alone.
      init: `params -> dict`, the link's own state; None for a link without state.
      fields: the names of the entries that `init` makes and that are no slots.
      slots: the entries that mirror the parameters, each with what is to be known of it.
      hyperparams: the link's hyperparameters; the rule gets their values by keyword.
      stage: what the link does, for the order checks of `chain`; what is a `"projection"` acts after a `flush` too.
      rowwise: whether it treats each row of a table by itself; see `Transformation`.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> @optchain.register
      ... def keep_below(bound=1.0):
      ...     def project(params, state):
      ...         return jax.tree.map(lambda p: jnp.minimum(p, bound), params), state
      ...
      ...     return optchain.ParameterLink(project, stage="projection")
      >>> tx = optchain.chain(optchain.sgd(1.0), keep_below(0.5))
      >>> tx.apply(jnp.array([0.0]), tx.init(jnp.zeros(1)), grads=jnp.array([-3.0]))[0]
      Array([0.5], dtype=float32)
    """

    kind: Kind = "parameter"
    projects: bool = True
    _project: Callable[..., tuple[Tree, Any]]

    def __new__(
        cls,
        project: Callable[..., tuple[Tree, Any]],
        init: Callable[[Tree], Mapping[str, Any]] | None = None,
        *,
        fields: Iterable[str] = (),
        slots: Mapping[str, Slot] | None = None,
        hyperparams: Hyperparams | None = None,
        stage: Stage | None = None,
        rowwise: bool = False,
    ) -> Self:
        check_own(fields=fields, slots=slots or {}, hyperparams=hyperparams)
        return cls._link(
            project,
            _init=init or no_state,
            _project=select_keywords(project),
            _own_fields=frozenset(fields),
            slots=slots or {},
            hyperparams=hyperparams or Hyperparams(),
            stage=stage,
            _needs_params=True,
            rowwise=rowwise,
        )

    def run_update(
        self, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, State]:
        assert params is not None
        updates = self._admitted(updates)
        applied = trees.add(params, updates)
        projected, state = self.run_project(applied, state, extra)
        return trees.updates_to(projected, applied, params, updates), state

    def run_apply(self, params: Tree, state: State, grads: Tree, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        return self.run_project(trees.add(params, self._admitted(grads)), state, extra)

    def run_project(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        own, values, kept = self._enter(state, params, extra)

        def run(own: State) -> tuple[Tree, State]:
            made, new = self._results("project", self._project(params, self._loaded(own), **values), own)
            return made, self._stored(new, own, extra)

        made, own = memory.streamed(run, own)
        return self._as_parameters(made, params), {**kept, **own}

    def run_flush(self, params: Tree, state: State, extra: Mapping[str, Any]) -> tuple[Tree, State]:
        # A projection holds for the flushed parameters too. An average does not see them.
        if self.stage != "projection":
            return params, state
        self._check_state(state, params)
        values = {**extra, **self.hyperparams.last(state)}
        own = {name: entry for name, entry in state.items() if name in self._own_fields}

        def run(own: State) -> tuple[Tree, State]:
            return self._results("project", self._project(params, self._loaded(own), **values), own)

        made, _ = memory.streamed(run, own)
        return self._as_parameters(made, params), state

    def _as_parameters(self, made: Tree, params: Tree) -> Tree:
        """What `project` made of the parameters, in their dtypes."""
        root = f"{self.name} returned params"
        trees.check_match(root, made, "params", params)
        trees.check_leaves(root, made)
        trees.check_real(root, made, params)
        return trees.cast_tree(made, params)
