"""State in one or two bytes a number, and weights in two, three or four, for any transformation."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optchain.core import arguments, low_bits, memory, storage, trees
from optchain.core.calls import closest_name
from optchain.core.composite import Composite, nonempty_states
from optchain.core.gates import Gate
from optchain.core.leaf_by_leaf import leaf_by_leaf
from optchain.core.lookup import find_states, leaves_by_path, replace_leaves_by_path
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.optax_link import as_transformation
from optchain.core.registry import register
from optchain.core.transformation import State, Transformation
from optchain.core.trees import Path, Tree, path_names
from optchain.core.walk import Node, walk

Moments: TypeAlias = Literal["float32", "bfloat16", "int8"]
Weights: TypeAlias = Literal[24, 32, "stochastic"]

_MOMENTS = ("float32", "bfloat16", "int8")
_WIDTHS: Mapping[Any, int] = {24: 8, 32: 16}
_MIN_SIZE = 4096


@register
def compact(
    inner: optax.GradientTransformation,
    *,
    moments: Moments | Mapping[str, Moments] = "int8",
    weights: Weights | None = None,
    average: Moments = "float32",
    accumulator: Moments = "float32",
    min_size: int = _MIN_SIZE,
    keep: Mask | None = None,
    kernel: bool = False,
) -> Transformation:
    """`inner`, with its state stored in fewer bytes; and on request with weights of which the model sees bfloat16 only.

    Every entry of the state that has a number for each parameter is stored so, whatever link keeps it: presets, chains, gates,
    groups, links of one's own. Arithmetic is done in float32, and the rules do not know of it. In bytes a number:

        int8        1.06    blocks of 32 with a scale each, their largest number. Codes are 2 to 3 % apart over the four
                            binades below it for squares, 3 to 6 % for others, and further for smaller numbers, up to a
                            factor of 1.5 at 2⁻²⁰ of it. Numbers between two codes become one of them at random, so that
                            averages move on; no square but 0 becomes 0. Of averages of the parameters the codes are evenly
                            spaced, 1/127 of the largest of the block, and take 1.13 bytes.
        bfloat16    2       rounded at random to one of the two neighbours, the nearer the likelier
        float32     4       as without `compact`

    With `weights` the parameters are bfloat16 (`narrow`), and `inner` sees float32 parameters: the bfloat16 and the low bits
    beside it. A step smaller than a rounding of bfloat16 is not lost: with 24 bits down to 2⁻¹⁶ of a weight, or
    half of that just below a power of two.

        24              3 bytes a parameter: 24 bits of each number, an error of at most 2⁻¹⁶ of it
        32              4 bytes a parameter: all bits
        "stochastic"    2 bytes a parameter: no low bits, each step rounded at random

    What stays wide: leaves of fewer than `min_size` numbers, with `"int8"` those with no axis that 32 divides, leaves that are
    not float32, what `keep` names, the state of Optax's links and of `lazy_rows`. `describe` shows what is stored how.

    Args:
      inner: a transformation of optchain or Optax.
      moments: how what rules keep is stored; or a dict by the names of entries, `{"mu": "bfloat16", "nu": "int8"}`, where what is
        left out stays float32.
      weights: 24, 32 or "stochastic"; None for parameters as they are.
      average: how averages of the parameters are stored, and the iterates of `schedule_free`, those in bfloat16 for `"int8"`.
      accumulator: how what `accumulate` sums up is stored, and each slot of a gate of one's own.
      min_size: the least number of values of a leaf that is not stored wide, >= 1.
      keep: a mask of parameters that stay wide, such as `matching("embedding")`.
      kernel: whether on one GPU or TPU `apply` takes one kernel a leaf, which reads and writes each number once, where for a GPU
        XLA's own writes the new moments out and reads them again. Elsewhere (on a CPU, on many devices, under `vmap`, in 64-bit
        mode, in the `update` form, for shapes that do not suit) nothing changes. It compiles for an H100 and a v5e and has the
        same numbers interpreted; it has not been run on either.

    Returns:
      A transformation with state `inner`; with `weights` also `low`, the low bits, and `draws`, the number of steps.

    Raises:
      ValueError: a name in `moments` that no entry has, or one that `average` or `accumulator` stores; `kernel` around a gate, such as
        `accumulate`, which goes around. When called, parameters that are float32 where the state has their low bits: train with
        `narrow(params)`.

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022, arXiv:2110.02861; Gonzalez Ortiz et al.,
    "FlashOptim: Optimizers for Memory Efficient Training", 2026, arXiv:2602.23349.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.compact(optchain.adamw(1e-3), weights=24)
      >>> params = {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}
      >>> state = tx.init(params)
      >>> params = optchain.narrow(params)
      >>> params["kernel"].dtype, state["inner"]["scale_by_adam"]["nu"]["codes"]["kernel"].dtype
      (dtype(bfloat16), dtype('uint8'))
      >>> grads = {"kernel": jnp.full((64, 64), 0.1, jnp.bfloat16), "bias": jnp.ones(64)}
      >>> params, state = tx.apply(params, state, grads=grads)
      >>> round(float(optchain.wide_params(params, state)["kernel"][0, 0]), 4)
      0.999
    """
    wrapped = as_transformation(inner, "inner")
    chosen = _Chosen(
        _checked_moments(moments, wrapped),
        arguments.check_choice("average", average, _MOMENTS),
        arguments.check_choice("accumulator", accumulator, _MOMENTS),
        _Wide(min_size, keep),
    )
    if weights is not None:
        arguments.check_choice("weights", weights, (24, 32, "stochastic"))
    if arguments.check_bool("kernel", kernel):
        _refuse_gates(wrapped)
    return Compact.of(wrapped, chosen, weights, kernel=kernel)


def _refuse_gates(inner: Transformation) -> None:
    """Requires that kernels can be made: what a gate lets through is no part of a leaf's own program."""
    gates = [node.link.name for node in walk(inner) if isinstance(node.link, Gate)]
    if gates:
        raise ValueError(
            f"kernel=True has no effect on what {gates[-1]} lets through: put {gates[-1]} around compact, in the place of in it"
        )


def narrow(params: Tree, *, min_size: int = _MIN_SIZE, keep: Mask | None = None) -> Tree:
    """The parameters to train with under `compact(…, weights=…)`: bfloat16, but for those that stay wide.

    Args:
      params: the parameters.
      min_size: as of `compact`.
      keep: as of `compact`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> params = optchain.narrow({"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)})
      >>> params["kernel"].dtype, params["bias"].dtype
      (dtype(bfloat16), dtype('float32'))
    """
    trees.check_leaves("params", params)
    stays = _Wide(min_size, keep).of(params)

    def narrow_one(path: Path, p: Any) -> Any:
        if trees.dtype_of(p) != jnp.float32 or stays(path, p):
            return p
        if isinstance(p, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(p.shape, jnp.bfloat16, sharding=p.sharding)
        return _narrowed(jnp.asarray(p))

    return jax.tree_util.tree_map_with_path(narrow_one, params)


def wide_params(params: Tree, state: Any) -> Tree:
    """The float32 parameters of a run with `compact(…, weights=…)`: to evaluate, to save, to go on with another recipe.

    Args:
      params: the parameters of the run, in any container, as for `finalize`.
      state: any pytree with its state in it.

    Returns:
      The parameters with their low bits, in float32; those that have none as they are.

    Raises:
      ValueError: low bits that belong to no parameter, or two for the same (the message names them).

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.compact(optchain.sgd(1.0), weights=32)
      >>> params = jnp.full((64, 64), 0.1)
      >>> (optchain.wide_params(optchain.narrow(params), tx.init(params)) == params).all()
      Array(True, dtype=bool)
    """
    found = find_states(state, "low", "draws")
    if not found:
        return params
    lows = leaves_by_path("low bits of the parameters", [(place, node["low"]) for place, node in found])

    def joined(p: Any, _: int, low: jax.Array) -> jax.Array:
        if not _is_narrow(p):
            raise ValueError(
                f"params must be those of the run, bfloat16 where the state has low bits; got {trees.dtype_of(p)}"
            )
        return low_bits.join(memory.fetched(p), memory.fetched(low))

    return replace_leaves_by_path("low", lows, params, joined)


class _Wide:
    """Which parameters stay wide."""

    def __init__(self, min_size: int, keep: Mask | None):
        if keep is not None:
            check_mask("keep", keep)
        self._min_size, self._keep = arguments.check_integer("min_size", min_size, minimum=1), keep

    def of(self, params: Tree) -> Callable[[Path, Any], bool]:
        """Whether the leaf of a path, or of a state at the path of a parameter, stays wide."""
        kept = set[tuple[str, ...]]()
        if self._keep is not None:
            flags = jax.tree.leaves(resolve_mask("keep", self._keep, params))
            paths = [path_names(path) for path, _ in trees.leaves_with_paths(params)]
            kept = {path for path, flag in zip(paths, flags, strict=True) if flag}
        return lambda path, leaf: math.prod(trees.shape_of(leaf)) < self._min_size or path_names(path) in kept


class _Chosen:
    """How each entry of a state is stored."""

    def __init__(self, moments: Any, average: str, accumulator: str, wide: _Wide):
        self._moments, self._average, self._accumulator, self.wide = moments, average, accumulator, wide

    def kind(self, node: Node, name: str) -> str:
        slot, argument = node.link.slots[name], _argument_of(node, name)
        if argument == "average":
            return _wider(self._average, slot.narrowest)
        if argument == "accumulator":
            return self._accumulator
        if isinstance(self._moments, Mapping):
            return self._moments.get(name, "float32")
        return _wider(self._moments, slot.narrowest)

    def pack(self, tx: Transformation, state: State, params: Tree) -> State:
        """The state of a transformation, of which each slot is stored as chosen."""
        stays_wide = self.wide.of(params)
        lazy = list[tuple[str, ...]]()
        for node in walk(tx, state):
            if node.link.stage == "lazy":  # it takes rows out of its state
                lazy.append(node.path)
            if any(node.path[: len(path)] == path for path in lazy):
                continue
            for name, slot in node.link.slots.items():
                kind = self.kind(node, name)
                if kind != "float32":
                    packed = storage.pack(
                        node.state[name],
                        name,
                        kind,
                        signed=not slot.nonnegative,
                        even=slot.start == "params",
                        keep_wide=stays_wide,
                    )
                    state = _replaced(state, (*node.path, name), packed)
        return state


class Compact(Composite):
    """A transformation whose state is packed when it is made, and whose parameters may have low bits in the state."""

    _chosen: _Chosen
    _weights: Weights | None
    _kernel: bool

    @classmethod
    def of(cls, inner: Transformation, chosen: _Chosen, weights: Weights | None, *, kernel: bool) -> Self:
        own = {"draws", *["low"] * (weights in _WIDTHS)} if weights else set[str]()
        return cls._of(
            {"inner": inner},
            # What it makes of narrow parameters is no update that a further link could change.
            kind=inner.kind if weights is None else "parameter",
            projects=inner.projects and weights is None,
            _own_fields=frozenset(own),
            _needs_params=weights is not None,
            _chosen=chosen,
            _weights=weights,
            _kernel=kernel,
        )

    @property
    def keeps_low_bits(self) -> bool:
        return self._weights is not None

    def _init(self, params: Tree) -> dict[str, Any]:
        own: dict[str, Any] = {}
        wide = params
        if self._weights is not None:
            stays_wide = self._chosen.wide.of(params)
            wide = _widened(params)

            def low(path: Path, p: Any) -> jax.Array | None:
                if _is_narrow(p):
                    return jnp.zeros_like(p, f"int{_WIDTHS[self._weights]}")
                if trees.dtype_of(p) != jnp.float32 or stays_wide(path, p):
                    return None
                return low_bits.rest(p, _narrowed(p), _WIDTHS[self._weights])

            own = {"draws": jnp.zeros((), jnp.int32)}
            if self._weights in _WIDTHS:
                own["low"] = jax.tree_util.tree_map_with_path(low, params)
        made = super()._init(wide)
        packed = self._chosen.pack(self.parts["inner"], made.get("inner", {}), wide)
        return {**own, **nonempty_states({"inner": packed})}

    def _update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        inner = self.parts["inner"]
        if self._weights is None:
            updates, inner_state = inner.run_update(updates, state.get("inner", {}), params, extra)
            return updates, nonempty_states({"inner": inner_state})
        old = params
        params, state = self._apply(params, state, updates, **extra)
        updates = trees.difference(params, old)
        if "low" in state:
            state["low"] = _where_reached(params, trees.add(old, updates), state["low"])
        return updates, state

    def _apply(self, params: Tree, state: dict[str, Any], grads: Tree, **extra: Any) -> tuple[Tree, dict[str, Any]]:
        def run(params: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
            return self._on_wide(params, state, extra, lambda p, s: self.parts["inner"].run_apply(p, s, grads, extra))

        return leaf_by_leaf(run, params, state, in_kernels=self._kernel)

    def _project(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._on_wide(params, state, extra, lambda p, s: self.parts["inner"].run_project(p, s, extra))

    def _flush(self, params: Tree, state: dict[str, Any], **extra: Any) -> tuple[Tree, dict[str, Any]]:
        return self._on_wide(params, state, extra, lambda p, s: self.parts["inner"].run_flush(p, s, extra))

    def _on_wide(
        self,
        params: Tree,
        state: dict[str, Any],
        extra: Mapping[str, Any],
        act: Callable[[Tree, State], tuple[Tree, State]],
    ) -> tuple[Tree, dict[str, Any]]:
        """`act` on the wide parameters; of what it makes of them the parameters, and their low bits in the state."""
        inner_state = state.get("inner", {})
        if self._weights is None:
            params, inner_state = act(params, inner_state)
            return params, nonempty_states({"inner": inner_state})
        draws = trees.increment(state["draws"])
        if self._weights == "stochastic":
            wide, inner_state = act(_widened(params), inner_state)
            first_row = extra.get("first_row")
            params = jax.tree.map(
                lambda new, p: _at_random(new, draws, first_row) if _is_narrow(p) else new, wide, params
            )
            return params, {"draws": draws, **nonempty_states({"inner": inner_state})}
        stored = _matched(params, state["low"])
        lows = [memory.fetched(low) for low in stored]
        leaves, treedef = jax.tree.flatten(params)
        joined = [p if low is None else low_bits.join(p, low) for p, low in zip(leaves, lows, strict=True)]
        wide, inner_state = act(treedef.unflatten(joined), inner_state)
        parts = [
            (new, None) if low is None else low_bits.split(new, 8 * low.dtype.itemsize)
            for new, low in zip(treedef.flatten_up_to(wide), lows, strict=True)
        ]
        params = treedef.unflatten([new for new, _ in parts])
        low = treedef.unflatten([memory.placed_like(low, old) for (_, low), old in zip(parts, stored, strict=True)])
        return params, {"draws": draws, "low": low, **nonempty_states({"inner": inner_state})}


def _matched(params: Tree, low: Tree) -> list[jax.Array | None]:
    """The low bits of each parameter, None for one that is wide."""
    found = {path_names(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(low)[0]}  # without the Nones
    lows = []
    for path, p in trees.leaves_with_paths(params):
        bits = found.pop(path_names(path), None)
        where = trees.path_code("params", path)
        if bits is not None and not _is_narrow(p):
            raise ValueError(
                f"{where} is {trees.dtype_of(p)}, and the state has the low bits of a bfloat16: train with narrow(params)"
            )
        if bits is None and _is_narrow(p):
            raise ValueError(
                f"{where} is bfloat16, and the state has no low bits of it: give init and narrow the same parameters, "
                "min_size and keep"
            )
        if bits is not None and bits.shape != p.shape:
            raise ValueError(f"{where} has the shape {p.shape}, and its low bits in the state have {bits.shape}")
        lows.append(bits)
    for path in found:
        raise ValueError(f"the state has low bits of {'/'.join(path)}, which is no parameter")
    return lows


def _where_reached(params: Tree, reached: Tree, low: Tree) -> Tree:
    """The low bits where the sum with the update is the new parameter, and 0 elsewhere: beside a much larger old one.

    There float32 has no update that leads to the new parameter exactly.
    """
    leaves, treedef = jax.tree.flatten(params)
    kept = [
        None if bits is None else jnp.where(new == sum_of_both, bits, jnp.zeros_like(bits))
        for new, sum_of_both, bits in zip(leaves, jax.tree.leaves(reached), treedef.flatten_up_to(low), strict=True)
    ]
    return treedef.unflatten(kept)


def _widened(params: Tree) -> Tree:
    """The parameters, with the bfloat16 ones in float32."""
    return jax.tree.map(lambda p: trees.wide(p) if _is_narrow(p) else p, params)


def _narrowed(p: jax.Array) -> jax.Array:
    """The nearest bfloat16, as steps make it."""
    return low_bits.split(p, 16)[0]


def _argument_of(node: Node, name: str) -> str:
    """Which argument says how an entry is stored."""
    if node.link.slots[name].start == "params":
        return "average"
    return "accumulator" if node.link.kind == "gate" else "moments"


def _wider(*kinds: str) -> str:
    return min(kinds, key=_MOMENTS.index)


def _is_narrow(p: Any) -> bool:
    return trees.dtype_of(p) == jnp.bfloat16


def _at_random(new: jax.Array, draws: jax.Array, first_row: jax.Array | None) -> jax.Array:
    return storage.round_at_random(new, storage.random_bits(new.shape, draws, _SALT, first_row))


_SALT = storage.salt_of("params")


def _replaced(state: State, path: tuple[str, ...], entry: Tree) -> State:
    first, *below = path
    return {**state, first: _replaced(state[first], tuple(below), entry) if below else entry}


def _checked_moments(moments: Any, inner: Transformation) -> Any:
    if not isinstance(moments, Mapping):
        return arguments.check_choice("moments", moments, _MOMENTS)
    entries = [(name, _argument_of(node, name)) for node in walk(inner) for name in node.link.slots]
    known = sorted({name for name, argument in entries if argument == "moments"})
    for name, kind in moments.items():
        if name not in known:
            if name in dict(entries):
                raise ValueError(f"moments has {name!r}, which {dict(entries)[name]}=… stores")
            meant = closest_name(name, known)
            hint = f"; did you mean {meant!r}?" if meant else f"; {inner.name} has {', '.join(known) or 'none'}"
            raise ValueError(f"moments has {name!r}, which no link of {inner.name} keeps{hint}")
        arguments.check_choice(f"moments[{name!r}]", kind, _MOMENTS)
    return dict(moments)
