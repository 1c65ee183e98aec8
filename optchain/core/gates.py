"""Gates: transformations that decide at each call whether the one within runs."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.core import devices, trees
from optchain.core.arguments import is_traced
from optchain.core.branch import run_if, run_or_zeros
from optchain.core.calls import not_given
from optchain.core.chain import is_lazy
from optchain.core.composite import Composite, nonempty_states
from optchain.core.factors import Factor
from optchain.core.leaf_by_leaf import leaf_by_leaf_if_packed
from optchain.core.memory import fetched, placed_like
from optchain.core.optax_link import as_transformation
from optchain.core.row_gradient import densified, is_rows
from optchain.core.slot import Slot
from optchain.core.transformation import Form, Kind, Stage, State, Transformation, check_own
from optchain.core.trees import Tree
from optchain.core.walk import walk

Decision = tuple[jax.Array, Callable[[], Tree | trees.Scaled], dict[str, Any]]


def largest_storable(inner: Transformation) -> dict[str, float]:
    """The largest numbers that the slots of `inner` can store, as `trees.all_usable` wants them.

    A slot that is real for complex parameters holds squares; another holds the values themselves.
    """

    def narrowest(real: bool) -> float:
        slots = [slot for node in walk(inner) for slot in node.link.slots.values() if slot.real == real]
        return min((float(jnp.finfo(slot.dtype).max) for slot in slots if slot.dtype), default=math.inf)

    return {"values_fit": narrowest(False), "squares_fit": narrowest(True)}


def check_no_loss_scale(gate: str, inner: Transformation) -> None:
    """Refuses a loss scale within a gate that keeps from it the gradients that overflow: it would never fall."""
    if any({"loss_scale", "good_steps"} <= set(node.link.fields) for node in walk(inner)):
        raise ValueError(
            f"{gate} would keep from the dynamic_loss_scale within it the gradients that overflow, and the scale would never "
            f"fall: put dynamic_loss_scale around {gate}; it skips such steps too"
        )


class Gate(Composite):
    """A gate from its decision.

    The branches return only what they may change, and close over the rest: XLA then leaves the untouched buffers in
    place, where passing an accumulator through the branches would copy it. A branch keeps structures, shapes and dtypes, and so
    do the states of the gate and of what it runs.

    Args:
      inner: what it runs, a transformation of optchain or Optax.
      init: `params -> dict`, the gate's own state.
      decide: `decide(grads, state, extra) -> (run, gradient, state)`: whether `inner` runs, a scalar bool; on which gradient, a
        function of no arguments that is called inside the branch; what the gate's own state becomes. `extra` are the call's
        extra arguments. Over a mesh a call may give `keep_layout`, a function that puts new parameters where the old ones were:
        it is called in the branch, so that a call that waits gathers nothing.
      fields: the names of the entries that `init` makes and that are no slots.
      slots: the entries that mirror the parameters, each with what is to be known of it.
      flush: `flush(state)` decides likewise, without a new gradient.
      takes: the extra arguments that `decide` reads.
      weighs: for a gate that makes one call of several: of its own new state the weight that this one has, in place of the last
        call's.
      stage: what it does, for the order checks of `chain`.
      accepts: what `decide` can be handed in place of a tree of arrays, as of a `Transformation`.
      rowwise: whether `decide` treats rows by themselves.

    Raises:
      TypeError: an `inner` that is no transformation; when called, something else than a decision, or a state of another form.
      ValueError: `inner` updates named rows, and `decide` does not accept them.
    """

    kind: Kind = "gate"
    _own_init: Callable[[Tree], Mapping[str, Any]]
    _decide: Callable[[Tree, dict[str, Any], Mapping[str, Any]], Decision]
    _decide_flush: Callable[[dict[str, Any]], Decision] | None
    _weighs: Callable[[dict[str, Any]], jax.Array] | None
    _streams: bool = False

    def __new__(
        cls,
        inner: optax.GradientTransformation,
        init: Callable[[Tree], Mapping[str, Any]],
        decide: Callable[[Tree, dict[str, Any], Mapping[str, Any]], Decision],
        *,
        fields: Iterable[str],
        slots: Mapping[str, Slot] | None = None,
        flush: Callable[[dict[str, Any]], Decision] | None = None,
        takes: Iterable[str] = (),
        weighs: Callable[[dict[str, Any]], jax.Array] | None = None,
        stage: Stage | None = None,
        accepts: Iterable[Form] = (),
        rowwise: bool = False,
    ) -> Self:
        check_own(fields=fields, takes=takes, slots=slots or {}, hyperparams=None)
        gated, accepts = as_transformation(inner, "inner"), frozenset(accepts)
        if "rows" not in accepts and is_lazy(gated):
            raise ValueError(
                "a Gate cannot run lazy_rows on the dense gradients that its decide sees: where it takes gradients that name rows, "
                'say accepts=["rows"]'
            )
        return cls._of(
            {"inner": gated},
            _own_init=init,
            _decide=decide,
            _decide_flush=flush,
            _weighs=weighs,
            _own_fields=frozenset(fields),
            slots=slots or {},
            stage=stage,
            accepts=accepts,
            rowwise=rowwise,
            _takes=frozenset(takes),
        )

    def _init(self, params: Tree) -> dict[str, Any]:
        return {**self._own_init(params), **super()._init(params)}

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        inner = self.parts["inner"]
        run_now, gradient, own = self._decided(updates, state, extra)
        extra = self._extra_for_inner(own, extra)

        def run(inner_state: State) -> tuple[Tree, State]:
            updates, new_state = inner.run_update(gradient(), inner_state, params, extra)
            return trees.widened(updates), self._kept_alike(new_state, inner_state)

        like = jax.tree.map(_at_hand, trees.unscaled(updates), is_leaf=is_rows)
        updates, inner_state = run_or_zeros(run_now, run, like, state.get("inner", {}), mostly_runs=self._mostly_runs)
        return updates, {**own, **nonempty_states({"inner": inner_state})}

    def _apply(self, params: Tree, state: dict[str, Any], grads: Tree, **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._step(params, state, self._decided(grads, state, extra), extra)

    def _flush(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        inner = self.parts["inner"]
        if self._decide_flush is not None:
            decision = self._checked(self._decide_flush(self._fetched(state)), state)
            params, state = self._step(params, state, decision, extra)
            if not any(flushing(inner)):
                return params, state
        params, inner_state = inner.run_flush(params, state.get("inner", {}), extra)
        return params, {**state, **nonempty_states({"inner": inner_state})}

    def _step(
        self, params: Tree, state: dict[str, Any], decision: Decision, extra: Mapping[str, Any]
    ) -> tuple[Tree, dict[str, Any]]:
        run_now, gradient, own = decision
        keep_layout = extra.get("keep_layout")
        extra = self._extra_for_inner(own, extra)

        def apply_inner(params: Tree, inner_state: State) -> tuple[Tree, State]:
            params, new_state = self.parts["inner"].run_apply(params, inner_state, gradient(), extra)
            return params, self._kept_alike(new_state, inner_state)

        def run(params: Tree, inner_state: State) -> tuple[Tree, State]:
            params, inner_state = leaf_by_leaf_if_packed(apply_inner, params, inner_state)
            return (keep_layout(params) if keep_layout else params), inner_state

        params, inner_state = run_if(run_now, run, params, state.get("inner", {}))
        return jax.tree.map(trees.barrier_if_narrow, params), {**own, **nonempty_states({"inner": inner_state})}

    def _decided(self, grads: Tree, state: dict[str, Any], extra: Mapping[str, Any]) -> Decision:
        """What `decide` makes of a call.

        Raises:
          TypeError: an extra argument that it reads and the call did not give.
        """
        try:
            made: Any = self._decide(grads, self._fetched(state), extra)
        except KeyError as error:
            name = error.args[0]
            if name in extra or name not in self._takes:
                raise
            raise TypeError(not_given(self.name, name, extra.keys() - self.takes)) from error
        return self._checked(made, state)

    def _fetched(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with its slots in the device's memory, for a gate that does not bring them there leaf by leaf itself."""
        return state if self._streams else state | {name: jax.tree.map(fetched, state[name]) for name in self.slots}

    def _checked(self, made: Any, state: dict[str, Any]) -> Decision:
        """What `decide` or `flush` returned.

        Raises:
          TypeError: something else than its three results, or a state of another form.
        """
        if not (isinstance(made, tuple) and len(made) == 3 and callable(made[1]) and isinstance(made[2], Mapping)):
            raise TypeError(
                f"{self.name}: decide must return (run, gradient, state), with gradient a function of no arguments and state the "
                f"gate's own entries; got {made!r}"
            )
        run_now, gradient, own = made
        if jnp.shape(run_now) or jnp.result_type(run_now) != jnp.bool_:
            raise TypeError(f"{self.name}: decide must return a scalar bool as run; got {run_now!r}")
        old = {name: entry for name, entry in state.items() if name in self._own_fields}
        own = {name: entry for name, entry in own.items() if name not in self.parts}
        _check_alike(self.name, own, old)
        kept = {name: jax.tree.map(placed_like, own[name], old[name]) for name in self.slots if not self._streams}
        return jnp.asarray(run_now), gradient, {**own, **kept}

    def _kept_alike(self, new: State, old: State) -> State:
        """The new state of the one within, which a branch can only keep in the old one's form."""
        _check_alike(f"{self.parts['inner'].name}, in {self.name}", new, old)
        return new

    def streaming(self) -> Self:
        """The same gate as one that brings its slots from the host's memory itself, leaf by leaf."""
        return self._changed(_streams=True)

    @property
    def flushes(self) -> bool:
        """Whether it holds gradients back, which `flush` applies."""
        return self._decide_flush is not None

    @functools.cached_property
    def _mostly_runs(self) -> bool:
        """Whether neither this gate nor one within makes one call of several."""
        return all(getattr(node.link, "_weighs", None) is None for node in walk(self))

    def _extra_for_inner(self, own: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
        """The call's extra arguments as the one within gets them."""
        weighed = self._weighs is not None and ("weight" in extra or "weight" in self.parts["inner"].takes)
        return {**extra, "weight": self._weighs(own)} if self._weighs and weighed else dict(extra)


def count_skipped(state: Mapping[str, jax.Array], good: jax.Array, counts: jax.Array) -> dict[str, jax.Array]:
    """The steps that a gate has skipped, in all and, if the state has them, in a row; a call that does not count changes neither."""
    skipped = jnp.where(good | ~counts, state["skipped_steps"], trees.increment(state["skipped_steps"]))
    if "consecutive" not in state:
        return {"skipped_steps": skipped}
    consecutive = jnp.where(good, jnp.zeros_like(skipped), trees.increment(state["consecutive"]))
    return {"skipped_steps": skipped, "consecutive": jnp.where(counts, consecutive, state["consecutive"])}


def skipped_too_often(metrics: Mapping[str, Any], limit: str) -> Iterator[tuple[int, int, int]]:
    """The limit, the steps skipped in a row and in all, of each gate among the metrics that has reached the limit of this name:
    of each member, where a state is vmapped over.

    Raises:
      TypeError: no metrics; traced ones.
    """
    if not isinstance(metrics, Mapping) or any(isinstance(value, Mapping) for value in metrics.values()):
        raise TypeError(
            f"metrics must be what metrics(state) or a step of make_step gave; got {type(metrics).__name__}"
        )
    if any(is_traced(value) for value in metrics.values()):
        raise TypeError("metrics are traced: they are looked at on the host, outside of jit")
    for key in metrics:
        if key.rpartition("/")[2] == limit:
            names = (limit, "consecutive", "skipped_steps")
            values = np.broadcast_arrays(*(metrics[key.removesuffix(limit) + name] for name in names))
            for most, in_a_row, in_all in zip(*(value.ravel().tolist() for value in values), strict=True):
                if in_a_row >= most:
                    yield most, in_a_row, in_all


def judge(
    gate: str,
    inner: Transformation,
    grads: Tree | trees.Scaled,
    extra: Mapping[str, Any],
    axis_name: str | tuple[str, ...] | None,
    unscaled_by: Factor,
    fits: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array, Tree | trees.Scaled]:
    """Whether a call is good, whether it counts, and its gradients, for a gate that lets bad ones not through.

    A call of weight 0, for an `accumulate` within, does not count: `inner` runs all the same, for it has a place in the window.
    If its gradients are bad, zeros go in their place, since links before the accumulator weigh nothing.
    """
    good = trees.all_usable(grads, axis_name, unscaled_by=unscaled_by, **fits)
    counts = jnp.bool_(True)
    if "weight" in extra and "weight" in inner.takes:
        counts = jnp.asarray(extra["weight"]) != 0
        grads = trees.zeros_unless(good, grads)
    devices.check_same(gate, "whether the gradients are finite", good | ~counts, axis_name)
    return good, counts, grads


def flushing(tx: Transformation) -> Iterator[Transformation]:
    """What the gates within run that hold gradients back."""
    for node in walk(tx):
        if isinstance(node.link, Gate) and node.link.flushes:
            yield node.link.parts["inner"]


def _check_alike(owner: str, new: State, old: State) -> None:
    """Requires a new state of the structure, the shapes and the dtypes of the old one."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise TypeError(
            f"the state of {owner} must keep its structure: it was {jax.tree.structure(old)} and became "
            f"{jax.tree.structure(new)}"
        )
    for (path, was), now in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if (jnp.shape(was), trees.dtype_of(was)) != (jnp.shape(now), trees.dtype_of(now)):
            raise TypeError(
                f"the state of {owner} must keep its shapes and dtypes: {trees.path_code('state', path)} was "
                f"{trees.dtype_of(was)}{list(jnp.shape(was))} and became {trees.dtype_of(now)}{list(jnp.shape(now))}"
            )


def _at_hand(u: Any) -> Any:
    """An array with the shape of an update: the gradient itself, or zeros for a gradient that names rows."""
    return trees.zeros_like(densified(u)) if is_rows(u) else u
