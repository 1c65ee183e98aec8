"""`chain`: links run in order, their states side by side under their names.

A chain has up to three stretches, in this order, and `apply` runs them so:

    gradient links      updates, state = link.update(updates, state, params)
    one gate            params, state = gate.apply(params, state, grads=updates)     (else params + updates)
    parameter links     params, state = link.project(params, state)
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeGuard

import optax

from optchain.core import arguments, trees
from optchain.core.composite import Composite, nonempty_states
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.optax_link import as_transformation, is_transformation
from optchain.core.registry import register
from optchain.core.slot import check_link_name, note_links
from optchain.core.transformation import Kind, Stage, State, Transformation
from optchain.core.trees import Tree

Link = optax.GradientTransformation | tuple[str, optax.GradientTransformation]


@register
def chain(*links: Link, learning_rate: Hyperparam | None = None, name: str = "chain") -> Transformation:
    """Links run in order, as one transformation.

    With a `learning_rate` the chain owns the rate: it is resolved once per call, at the chain's own count of calls, and
    handed down to every link without a rate of its own, through gates too. So it stands in the state once, and decay and
    update never see different rates.

    The state maps each link's name to its state: `state["scale_by_adam"]["mu"]`. A link without state has no entry. Equal
    names are made unique in order: `clip_by_norm`, `clip_by_norm_2`.

    Args:
      *links: transformations of optchain or Optax, or pairs `(name, transformation)`. Links on gradients come first, then
        at most one gate, then links on parameters.
      learning_rate: a number >= 0, a scalar array, a schedule (a callable of the count of calls), or a callable of no
        arguments. The first two can be changed with `set_hyperparams`. The value of a callable of no arguments is
        checked when it is read. An error inside a step whose buffers are donated loses the parameters.
      name: what the chain is called in another chain's state; an identifier.

    Returns:
      A `Transformation` of the kind of its last gate or parameter link, or else a gradient link.

    Raises:
      TypeError: something that is not a transformation.
      ValueError: no links, a name that is taken or not an identifier, an invalid order (the message says
        which link stands where and why it cannot), or a learning rate that no link takes.

    Example:
      >>> import optchain
      >>> optchain.chain(
      ...     optchain.clip_by_global_norm(1.0),
      ...     optchain.scale_by_adam(),
      ...     optchain.scale_by_learning_rate(),
      ...     optchain.decay_weights(0.01),
      ...     learning_rate=1e-3,
      ... )
      chain(
          clip_by_global_norm(1.0),
          scale_by_adam(),
          scale_by_learning_rate(),
          decay_weights(0.01),
          learning_rate=0.001,
      )
    """
    arguments.check_identifier("name", name)
    named = _named(links)
    _check_kinds(named)
    _check_stages(named)
    _check_rows(named)
    hyperparams = Hyperparams() if learning_rate is None else Hyperparams(learning_rate=learning_rate)
    if learning_rate is not None and not any("learning_rate" in link.takes for link in named):
        raise ValueError(
            f"the chain was given a learning_rate that none of its links takes ({', '.join(link.name for link in named)}): "
            "add scale_by_learning_rate()"
        )
    note_links(link.name for link in named)
    return Chain.of(named, hyperparams)


class Chain(Composite):
    """Links in order: links on gradients, then at most one gate, then links on parameters."""

    sequential: bool = True

    @classmethod
    def of(cls, links: list[Transformation], hyperparams: Hyperparams) -> Self:
        return cls._of(
            {link.name: link for link in links},
            hyperparams=hyperparams,
            kind=links[-1].kind,
            projects=all(link.projects for link in links),
        )

    @functools.cached_property
    def _gradient_links(self) -> tuple[Transformation, ...]:
        return tuple(itertools.takewhile(lambda link: link.kind == "gradient", self.links))

    @functools.cached_property
    def _gate(self) -> Transformation | None:
        after = self.links[len(self._gradient_links) :]
        return after[0] if after and not after[0].projects else None

    @functools.cached_property
    def _parameter_links(self) -> tuple[Transformation, ...]:
        return self.links[len(self._gradient_links) + (self._gate is not None) :]

    def _update(self, updates: Tree, state: State, params: Tree | None, **extra: Any) -> tuple[Tree, State]:
        updates, new_state = self._run_gradient_links(updates, state, params, extra)
        if gate := self._gate:
            updates, new_state[gate.name] = gate.run_update(updates, state.get(gate.name, {}), params, extra)
        if self._parameter_links:
            assert params is not None
            updates = trees.force(updates)
            applied = trees.add(params, updates)
            projected, projected_state = self._project(applied, state, **extra)
            new_state |= projected_state
            updates = trees.updates_to(projected, applied, params, updates)
        return updates, nonempty_states(new_state)

    def _apply(self, params: Tree, state: State, grads: Tree, **extra: Any) -> tuple[Tree, State]:
        updates, new_state = self._run_gradient_links(grads, state, params, extra)
        if gate := self._gate:
            params, new_state[gate.name] = gate.run_apply(params, state.get(gate.name, {}), updates, extra)
        else:
            params = trees.add(params, trees.force(updates))
        params, projected_state = self._project(params, state, **extra)
        return params, nonempty_states({**new_state, **projected_state})

    def _project(self, params: Tree, state: State, **extra: Any) -> tuple[Tree, State]:
        new_state: dict[str, Any] = {}
        for link in self._parameter_links:
            params, new_state[link.name] = link.run_project(params, state.get(link.name, {}), extra)
        return params, nonempty_states(new_state)

    def _flush(self, params: Tree, state: State, **extra: Any) -> tuple[Tree, State]:
        if gate := self._gate:
            params, gate_state = gate.run_flush(params, state.get(gate.name, {}), extra)
            state = {**state, **nonempty_states({gate.name: gate_state})}
        # Averages pass by, since a flush is no call; projections act.
        for link in self._parameter_links:
            params, _ = link.run_flush(params, state.get(link.name, {}), extra)
        return params, state

    def _run_gradient_links(
        self, updates: Tree, state: State, params: Tree | None, extra: Mapping[str, Any]
    ) -> tuple[Tree, State]:
        new_state: dict[str, Any] = {}
        for link in self._gradient_links:
            updates, new_state[link.name] = link.run_update(updates, state.get(link.name, {}), params, extra)
        return updates, new_state


# Names ---------------------------------------------------------------------------------------------------------------


def _named(links: tuple[Link, ...]) -> list[Transformation]:
    """The links under the names that they have in the state."""
    if not links:
        raise ValueError("chain needs at least one link")
    pairs: list[tuple[str | None, Any]] = [link if _is_pair(link) else (None, link) for link in links]
    chosen = [name for name, _ in pairs if name is not None]
    for name in chosen:
        arguments.check_identifier("the name of a link", name)
        if chosen.count(name) > 1:
            raise ValueError(f"two links of the chain are named {name!r}")
    taken, named = set(chosen), list[Transformation]()
    for position, (name, link) in enumerate(pairs):
        made = _as_link(link, position, name or "optax")
        named.append(made.renamed(name or _unique(made.name, taken)))
        taken.add(named[-1].name)
    for link in named:
        check_link_name("a link", link.name)
    return named


def _is_pair(link: Any) -> TypeGuard[tuple[str, Any]]:
    return isinstance(link, tuple) and not isinstance(link, optax.GradientTransformation) and len(link) == 2


def _as_link(link: Any, position: int, name: str) -> Transformation:
    if not is_transformation(link):
        raise TypeError(
            f"link {position} must be an optchain or Optax transformation, or a pair (name, transformation); "
            f"got {link!r} ({type(link).__name__})"
        )
    return as_transformation(link, name)


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


# Order ---------------------------------------------------------------------------------------------------------------


def elementary(links: list[Transformation] | tuple[Transformation, ...]) -> Iterator[Transformation]:
    """The links in the order in which they run, chains within chains opened, gates closed."""
    for link in links:
        if link.sequential:
            yield from elementary(link.links)
        else:
            yield link


def _check_kinds(links: list[Transformation]) -> None:
    rank: dict[Kind, int] = {"gradient": 0, "gate": 1, "parameter": 2}
    why = {
        "gradient": "a link on gradients cannot follow a gate or a parameter link: it would run on calls that make no update. "
        "Put it inside the gate, gate(chain(…, link)), or before it if it is to see gradients",
        "gate": "a chain has at most one gate, and only parameter links may follow it. Gates nest: put one inside the other",
    }
    previous: Transformation | None = None
    for link in elementary(links):
        if previous and (rank[link.kind] < rank[previous.kind] or link.kind == previous.kind == "gate"):
            raise ValueError(
                f"{link.name} ({link.kind}) stands after {previous.name} ({previous.kind}): {why[link.kind]}."
            )
        if previous and previous.keeps_low_bits:
            raise ValueError(
                f"{link.name} stands after {previous.name}, and cannot: the parameters there are without their low bits. "
                f"Put {link.name} inside compact."
            )
        previous = link


# What must not come after what, and why.
_FORBIDDEN: list[tuple[Stage, Stage, str]] = [
    ("learning_rate", "learning_rate", "the updates would be scaled twice, and their sign flipped twice"),
    ("learning_rate", "second_moment", "a rule that divides by the gradient's own size cancels the learning rate"),
    ("learning_rate", "penalty", "the sign has flipped: weights would grow"),
    ("decay", "learning_rate", "the decay would be scaled again and its sign flipped: weights would grow"),
    ("decay", "second_moment", "the decay would be rescaled with the gradient"),
    ("clip", "unscale", "the threshold would apply to gradients that are still scaled"),
    ("penalty", "unscale", "the penalty is not scaled as the gradients are"),
    ("second_moment", "unscale", "a rule that divides by the gradient's own size cancels the scale"),
    ("learning_rate", "unscale", "the updates are not gradients any more"),
    ("varying_window", "average", "it could not count updates. Put it inside the gate"),
    ("projection", "average", "the average would take the parameters out of the projection"),
]


def _check_stages(links: list[Transformation]) -> None:
    seen: list[tuple[str, Stage, bool]] = []
    for name, stage, partial in stages(links):
        for earlier_name, earlier, earlier_partial in seen:
            if partial and earlier_partial:
                continue  # each acts on leaves of its own; within a part the order was checked when it was built
            for first, second, why in _FORBIDDEN:
                if (earlier, stage) == (first, second):
                    raise ValueError(f"{name} stands after {earlier_name}, and cannot: {why}.")
        seen.append((name, stage, partial))


def _check_rows(links: list[Transformation]) -> None:
    dense: str | None = None
    for link in elementary(links):
        if dense and is_lazy(link):
            raise ValueError(
                f"{link.name} stands after {dense}, and cannot: {dense} hands on dense gradients, and no rows would be named. "
                f"Put {dense} inside lazy_rows."
            )
        dense = dense if link.takes_rows else link.name


def is_lazy(link: Transformation) -> bool:
    """Whether a link updates the rows that a gradient names, and no others, or contains one that does."""
    return any(stage == "lazy" for _, stage, _ in stages((link,)))


def stages(
    links: list[Transformation] | tuple[Transformation, ...], partial: bool = False
) -> Iterator[tuple[str, Stage, bool]]:
    """What each link does, and whether to some leaves only, in the order in which they run, all that hold links opened."""
    for link in links:
        yield from stages(link.links, partial or link.labels is not None)
        if link.stage:
            yield link.name, link.stage, partial
