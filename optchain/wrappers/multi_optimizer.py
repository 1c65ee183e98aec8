"""Different recipes for different parameters."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax

from optchain.core import arguments, trees
from optchain.core.composite import Composite, nonempty_states
from optchain.core.masks import Mask, Matching, check_mask, matching, resolve_mask, select, select_extra
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.slot import check_link_name, note_links
from optchain.core.transformation import Kind, State, Transformation
from optchain.core.trees import Tree
from optchain.wrappers.masking import refuse_loss_scale

Group: TypeAlias = tuple[str, str | Mask, optax.GradientTransformation]
"""A name, the parameters (a pattern or a mask), and what they are trained by."""


@register
def multi_optimizer(*groups: Group, default: optax.GradientTransformation | None = None) -> Transformation:
    """Trains each group of parameters by a recipe of its own. A parameter belongs to the first group that matches it.

    For a group's recipe the other parameters do not exist: a global norm is the norm of the group, a gate judges the
    group, an average is of the group (`averaged_params` and `finalize` put these together). Keras's `MultiOptimizer` with
    an `OptimizerMap`, whose keys match the whole path: `"^encoder/.*$"`; PyTorch's parameter groups. `describe` shows
    which parameter is in which group.

    Args:
      *groups: `(name, parameters, transformation)`. The name, an identifier, is the group's in the state. The parameters
        are a regular expression that is searched in the paths, a mask (see `matching`), a tree of bools, or a callable of the
        parameters. The transformation is one of optchain or Optax. One that divides by a loss scale is refused: the loss
        is scaled for all parameters, and so belongs around this.
      default: trains what no group matches, as the group `default`; None if each must belong to a group.

    Returns:
      A transformation whose state maps each group's name to the group's state; trees in it have None for the parameters of
      other groups. Where every group is a gradient link it is one too. If one is a gate or a parameter link, so is it: in a
      chain only parameter links may follow, and in an `optax.chain` nothing.

    Raises:
      TypeError, ValueError: a group that is none of the above; when called, a pattern that matches no parameter, or only
        those of earlier groups; a parameter without a group, if there is no default.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.multi_optimizer(
      ...     ("embedding", "^embed", optchain.sgd(0.5)),
      ...     ("vectors", optchain.matching("bias$", "scale$"), optchain.adamw(0.1, weight_decay=None)),
      ...     default=optchain.adamw(0.1),
      ... )
      >>> params = {"embed": jnp.ones(2), "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
      >>> params["embed"], list(state)
      (Array([0.5, 0.5], dtype=float32), ['embedding', 'vectors', 'default'])
    """
    masks, links = _checked(groups, default)

    def labels(params: Tree) -> Tree:
        return _labels(masks, default is not None, params)

    kinds: list[Kind] = ["parameter", "gate", "gradient"]
    return Groups._of(
        {link.name: link for link in links},
        kind=next(kind for kind in kinds if any(link.kind == kind for link in links)),
        projects=all(link.projects for link in links),
        labels=labels,
    )


class Groups(Composite):
    """Transformations of some leaves each, of which `labels` says which."""

    def _init(self, params: Tree) -> dict[str, Any]:
        return self._each(params, {}, lambda link, part, _: (part(params), link.run_init(part(params))))[1]

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        def act(link: Transformation, part: Callable, extra: Mapping[str, Any]) -> tuple[Tree, State]:
            new, link_state = link.run_update(part(updates), state.get(link.name, {}), part(params), extra)
            return trees.widened(new), link_state

        return self._each(trees.force(updates) if params is None else params, extra, act)

    def _apply(self, params: Tree, state: dict[str, Any], grads: Tree, **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._each(
            params,
            extra,
            lambda link, part, extra: link.run_apply(part(params), state.get(link.name, {}), part(grads), extra),
        )

    def _project(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._each(
            params, extra, lambda link, part, extra: link.run_project(part(params), state.get(link.name, {}), extra)
        )

    def _flush(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._each(
            params, extra, lambda link, part, extra: link.run_flush(part(params), state.get(link.name, {}), extra)
        )

    def _each(
        self,
        reference: Tree,
        extra: Mapping[str, Any],
        act: Callable[[Transformation, Callable, Mapping[str, Any]], tuple[Tree, State]],
    ) -> tuple[Tree, dict[str, Any]]:
        """Runs `act(link, part, extra)` for every group, where `part` takes the group's leaves of a tree, and puts it together."""
        assert self.labels is not None
        names = self.labels(reference)
        made, states = [], {}
        for name, link in self.parts.items():
            mask = jax.tree.map(lambda label, own=name: label == own, names)
            part = functools.partial(_part, mask)
            tree, states[name] = act(link, part, select_extra(mask, extra, reference))
            made.append(tree)
        index = {name: i for i, name in enumerate(self.parts)}
        return jax.tree.map(lambda name, *leaves: leaves[index[name]], names, *made), nonempty_states(states)


def _part(mask: Tree, tree: Tree | None) -> Tree | None:
    return None if tree is None else select(mask, tree)


def _checked(
    groups: tuple[Any, ...], default: optax.GradientTransformation | None
) -> tuple[dict[str, Mask], list[Transformation]]:
    """The masks by the groups' names, and the transformations under these."""
    if not groups:
        raise ValueError("multi_optimizer needs at least one group: (name, parameters, transformation)")
    masks: dict[str, Mask] = {}
    links = []
    for position, group in enumerate(groups):
        if not isinstance(group, tuple) or isinstance(group, optax.GradientTransformation) or len(group) != 3:
            raise TypeError(f"group {position} must be a tuple (name, parameters, transformation); got {group!r}")
        name, chosen, tx = group
        arguments.check_identifier("the name of a group", name)
        check_link_name("a group", name)
        if name in masks or name == "default":
            whose = "of another group" if name in masks else "of what takes the rest"
            raise ValueError(f"a group cannot be called {name!r}: it is the name {whose}; choose another name")
        masks[name] = matching(chosen) if isinstance(chosen, str) else chosen
        check_mask(f"the parameters of group {name!r}", masks[name])
        links.append((name, as_transformation(tx, f"the transformation of group {name!r}")))
    if default is not None:
        links.append(("default", as_transformation(default, "default")))
    for _, link in links:
        refuse_loss_scale("multi_optimizer", link)
    note_links(masks)
    return masks, [link.renamed(name) for name, link in links]


def _labels(masks: dict[str, Mask], has_default: bool, params: Tree) -> Tree:
    """For each parameter the name of its group."""
    paths = [trees.path_string(path) for path, _ in trees.leaves_with_paths(params)]
    found: dict[int, str] = {}
    for name, mask in masks.items():
        flags = jax.tree.leaves(resolve_mask(f"the parameters of group {name!r}", mask, params))
        matched = [i for i, flag in enumerate(flags) if flag]
        free = [i for i in matched if i not in found]
        if matched and not free and isinstance(mask, Matching) and not mask.allow_unmatched:
            earlier = ", ".join(f"{paths[i]} ({found[i]})" for i in matched)
            raise ValueError(
                f"group {name!r} has no parameters: what {mask!r} matches belongs to earlier groups: {earlier}"
            )
        found |= dict.fromkeys(free, name)
    missing = [path for i, path in enumerate(paths) if i not in found]
    if missing and not has_default:
        raise ValueError(
            f"no group of multi_optimizer matches {', '.join(missing)}: add one, or default=…. "
            f"The groups are: {', '.join(f'{name} ({mask!r})' for name, mask in masks.items())}"
        )
    names = [found.get(i, "default") for i in range(len(paths))]
    return jax.tree.unflatten(jax.tree.structure(params), names)
