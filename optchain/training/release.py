"""Gradient release: each layer's update within the backward pass of the scan over the layers.

The gradient of `lax.scan` over stacked layers is a stack of their size, complete before the first update. Here the scan is found
in the program of the loss, and its backward pass written out: a loop over the layers, last to first, that carries the cotangents,
the layers and their state, and in each turn

    takes the gradient of one layer, from the input that the forward pass kept
    makes its update, and writes the new parameters and the new state where the old ones were

A transformation sees a layer as a slice of length 1, so that masks find the paths and the number of axes of the stack. What
belongs to no layer, counters and all other parameters, comes from one step after the loop.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import memory, storage, trees
from optchain.core.gates import Gate
from optchain.core.masks import is_function
from optchain.core.optax_link import OptaxLink
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Tree
from optchain.core.walk import Node, walk
from optchain.training.scanned import ScanInProgram, inlined, replaced
from optchain.training.sharding import is_in_blocks, mirrored


def released_step(
    loss_fn: Callable[[Tree], Any],
    tx: Transformation,
    layers: str,
    params: Tree,
    state: State,
    extra_of: Callable[[Any], Mapping[str, Any]],
) -> tuple[Any, Tree, State]:
    """A step of `tx` without a gradient of the layers.

    Args:
      loss_fn: of the parameters a pair of what is differentiated, and what else is returned.
      tx: the transformation.
      layers: the path of the stacked parameters.
      params: the parameters.
      state: the state.
      extra_of: what `tx` is called with besides, of what the loss returned besides.

    Returns:
      `(what the loss returned besides, params, state)`.
    """
    check_release(layers, tx, params)
    stack = _Stack.of(layers, params, state)
    param_leaves, treedef = jax.tree.flatten(params)
    state_leaves, state_treedef = jax.tree.flatten(state)
    start = [param_leaves[i] for i in stack.places], [state_leaves[i] for i in stack.state_places]
    first = [[x[:1] for x in stacks] for stacks in start]
    _check_masks(layers, tx, params, treedef.unflatten(replaced(param_leaves, stack.places, first[0])))

    program, out_shape = jax.make_jaxpr(loss_fn, return_shape=True)(params)
    scan = ScanInProgram.of(inlined(program, stack.places), stack.named, f"release={layers!r}")
    other_places = [i for i in range(len(param_leaves)) if i not in stack.places]
    passed = scan.forward([param_leaves[i] for i in other_places], start[0])
    _, aux = jax.tree.unflatten(jax.tree.structure(out_shape), passed.results)
    extra = extra_of(aux)

    def update(
        own: list[Any], own_state: list[Any], grads: Mapping[int, Any], **rows: Any
    ) -> tuple[list[Any], list[Any]]:
        """The leaves after a step with these gradients; what was given none is not used, and so not computed."""
        leaves = replaced(param_leaves, stack.places, own)
        slots = state_treedef.unflatten(replaced(state_leaves, stack.state_places, own_state))
        filled = [grads[i] if i in grads else jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)]
        made = tx.apply(treedef.unflatten(leaves), slots, grads=treedef.unflatten(filled), **extra, **rows)
        return jax.tree.leaves(made[0]), jax.tree.leaves(made[1])

    def update_layer(i: jax.Array, own: Any, grads: Sequence[Any]) -> Any:
        """One layer and its state after a step with its gradient."""
        own_grads = {place: g[None] for place, g in zip(stack.places, grads, strict=True)}
        new = update(own[0], own[1], own_grads, first_row=i)
        return [new[0][place] for place in stack.places], [new[1][place] for place in stack.state_places]

    (new_layers, new_slots), grads = passed.backward(start, update_layer)
    leaves, slots = update(first[0], first[1], dict(zip(other_places, grads, strict=True)))
    new_params = treedef.unflatten(replaced(leaves, stack.places, new_layers))
    return aux, new_params, state_treedef.unflatten(replaced(slots, stack.state_places, new_slots))


# What can be released ------------------------------------------------------------------------------------------------

_ACROSS = frozenset({"clip_by_norm", "clip_by_global_norm", "zclip"})
"""What treats rows alike by a norm of all of them."""


def check_release(layers: Any, tx: Transformation, params: Tree = None) -> None:
    """Refuses what needs more than the gradient of one layer at a time.

    Args:
      layers: the path of the stacked parameters.
      tx: the transformation.
      params: the parameters; None before they are known, when links that act on some of them only pass.
    """
    if not isinstance(layers, str) or not layers:
        raise TypeError(f"release must be the path of the stacked layers, such as 'layers', or None; got {layers!r}")
    for node in walk(tx, params=params):
        own = [] if params is None else _within(layers, node.params)
        if why := _refusal(node, acts=not node.partial or bool(own)):
            name = node.link.name
            if node.link.is_registered and name != node.rule:
                name += f" ({node.rule})"
            if node.partial and own:
                name += f", which acts on {_code_of(node.params, own[0])},"
            raise ValueError(
                f"release={layers!r} hands on the gradient of one layer at a time, and {name} {why}: "
                "leave it out, or take the step without release"
            )


def _refusal(node: Node, *, acts: bool) -> str | None:
    """Why a link cannot be had; None if it can. `acts` says whether it acts on layers."""
    link = node.link
    if link.stage == "lazy":
        return "needs gradients that name rows, which there are none of"
    if not acts:
        return None
    if isinstance(link, OptaxLink):
        return "is Optax's, which does not say what it does across layers"
    if names := sorted(link.hyperparams.read_on_host):
        return (
            f"reads {names[0]} on the host, anew for each layer (a schedule of the step, or set_hyperparams, would do)"
        )
    if link.takes_examples:
        return "needs the gradients of single examples"
    if isinstance(link, Gate):
        return "decides by all gradients, before any update, what is done with them"
    if node.rule in _ACROSS:
        return "needs the norm of whole arrays before the first update"
    if not link.rowwise:
        return "looks across the layers of an array"
    return None


def _check_masks(layers: str, tx: Transformation, params: Tree, layer: Tree) -> None:
    """Requires masks to choose of one layer what they choose of the stack."""
    for whole, part in zip(walk(tx, params=params), walk(tx, params=layer), strict=True):
        link = whole.link
        for mask in (link.labels, link.config.get("mask") if link.is_registered else None):
            if not is_function(mask):
                continue
            assert mask is not None
            chosen = zip(*(jax.tree.leaves(mask(node.params)) for node in (whole, part)), strict=True)
            for i, (of_stack, of_layer) in enumerate(chosen):
                if of_stack != of_layer:
                    raise ValueError(
                        f"release={layers!r} hands on one layer at a time, and the mask of {link.name} says {of_layer!r} of one of "
                        f"{_code_of(whole.params, i)}, and {of_stack!r} of all: let it look at the path or the number of axes"
                    )


def _within(layers: str, params: Tree) -> list[int]:
    """Which leaves lie below a path, by their places."""
    paths = [trees.path_string(path) for path, _ in trees.leaves_with_paths(params)]
    return [i for i, path in enumerate(paths) if f"{path}/".startswith(f"{layers}/")]


def _code_of(params: Tree, place: int) -> str:
    return trees.path_code("params", trees.leaves_with_paths(params)[place][0])


@dataclasses.dataclass(frozen=True)
class _Stack:
    """The stacked layers: which leaves they are, of the parameters and of the state."""

    places: list[int]
    state_places: list[int]
    named: dict[int, str]
    """What errors call the parameters, by place."""

    @classmethod
    def of(cls, layers: str, params: Tree, state: State) -> "_Stack":
        leaves = trees.leaves_with_paths(params)
        paths = [trees.path_code("params", path) for path, _ in leaves]
        places = _within(layers, params)
        if not places:
            raise ValueError(f"release={layers!r} is the path of no parameter; there are {', '.join(paths)}")
        for i in places:
            if not jnp.size(leaves[i][1]):
                raise ValueError(f"release={layers!r}: {paths[i]} of shape {leaves[i][1].shape} has no layers")
        shapes = {trees.path_names(path): leaf.shape for path, leaf in leaves}
        own = {trees.path_names(leaves[i][0]) for i in places}
        owners = mirrored(state, frozenset(shapes))
        state_places = []
        for i, (path, leaf) in enumerate(trees.leaves_with_paths(state)):
            names = trees.path_names(path)
            if memory.on_host(leaf):
                raise ValueError(
                    f"release={layers!r} reads the state layer by layer, and {trees.path_code('state', path)} lies in the host's memory"
                )
            if (owner := owners.get(names)) not in own:
                continue
            assert owner is not None
            shape = shapes[owner]
            in_blocks = is_in_blocks(names, owner, leaf)
            if jnp.shape(leaf)[:1] != shape[:1] or (in_blocks and storage.block_axis(shape) == -len(shape)):
                raise ValueError(
                    f"release={layers!r} needs a part of the state for each layer, and {trees.path_code('state', path)} of shape "
                    f"{jnp.shape(leaf)} has none"
                    + (": its blocks lie across the layers; keep it wide" if in_blocks else "")
                )
            state_places.append(i)
        return cls(places, state_places, {i: paths[i] for i in places})
