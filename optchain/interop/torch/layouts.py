"""How PyTorch lays out a weight, by kinds of layers, and arrays from its tensors.

| layer | PyTorch | here | kind |
|---|---|---|---|
| Linear, Dense | (out, in) | (in, out) | `linear` |
| Conv1d, Conv2d, Conv3d | (out, in, …) | (…, in, out) | `conv` |
| ConvTranspose, `transpose_kernel=True` in Flax | (in, out, …) | (…, out, in) | `conv` |
| Embedding | (rows, features) | the same | `embedding` |
| norms, biases | (features,) | the same | `norm` |
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core.masks import check_patterns, first_match
from optchain.core.trees import Tree, dtype_of, leaves_with_paths, path_names, path_string
from optchain.interop import checks
from optchain.interop.report import Names

Axes: TypeAlias = tuple[int, ...]
Transforms: TypeAlias = Mapping[str, str | Sequence[int]]
"""Patterns of our paths, to a kind of `LAYOUTS` or to the order in which we have PyTorch's axes."""

LAYOUTS: dict[str, str] = {
    "linear": "a weight of two axes: (out, in) there, (in, out) here",
    "conv": "a kernel: (out, in, …) there, (…, in, out) here",
    "embedding": "rows of features, on both sides",
    "norm": "the same on both sides",
}
SAME = ("embedding", "scale", "bias", "weight")
"""Last components of paths for which both sides agree; `weight` is Equinox's, which has PyTorch's layout."""


def layouts(params: Tree, transforms: Transforms | None) -> dict[Names, Axes]:
    """For each parameter, the order in which it has the axes of PyTorch's: `ours = theirs.transpose(axes)`."""
    chosen: dict[Names, Any] = {}
    if transforms is not None:
        check_patterns("transforms", transforms)
        choices = first_match("transforms", {pattern: (choice,) for pattern, choice in transforms.items()}, (), params)
        chosen = {
            path_names(path): choice[0]
            for (path, _), choice in zip(leaves_with_paths(params), _leaves(choices, params), strict=True)
            if choice
        }
    made = {}
    for path, leaf in leaves_with_paths(params):
        names, ndim = path_names(path), jnp.ndim(leaf)
        kind = chosen[names] if names in chosen else _kind(path_string(path), names, ndim)
        made[names] = _axes(path_string(path), kind, ndim)
    return made


def inverse(axes: Axes) -> Axes:
    return tuple(int(axis) for axis in np.argsort(axes))


def to_array(tensor: Any, name: str = "a tensor") -> np.ndarray:
    """A tensor of PyTorch as an array on the host; anything else as NumPy takes it.

    Raises:
      ValueError: it is sparse, quantized, without numbers, or of numbers that NumPy has not.
    """
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    check_readable(tensor, name)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if str(tensor.dtype) == "torch.bfloat16":  # which NumPy has only through ml_dtypes
        return np.asarray(tensor.float().numpy(), jnp.bfloat16)
    return tensor.numpy()


def check_readable(tensor: Any, name: str) -> None:
    """Requires a tensor of PyTorch that is an array of numbers that NumPy has, or bfloat16."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    kinds = {
        "a meta tensor, which has no numbers": tensor.is_meta,
        "quantized": tensor.is_quantized,
        f"not dense ({tensor.layout})": str(tensor.layout) != "torch.strided",
        f"{dtype}, which NumPy has not": dtype != "bfloat16" and not hasattr(np, dtype.replace("bool", "bool_")),
    }
    wrong = next((kind for kind, holds in kinds.items() if holds), None)
    if wrong is not None:
        raise ValueError(f"{name} is {wrong}: save it dense, as float32 say")


def transposed(value: np.ndarray, axes: tuple[int, ...], like: Any, path: str, name: str) -> np.ndarray:
    """PyTorch's array in our layout and dtype; an error that names both shapes if it has not the shape of ours."""
    checks.kind(f"{name} of PyTorch's", value.dtype, dtype_of(like))
    made = value.transpose(axes) if value.ndim == len(axes) else value
    if made.shape != np.shape(like):
        asked = tuple(np.shape(like)[axis] for axis in inverse(axes))
        raise ValueError(
            f"{name} has shape {value.shape} in PyTorch, and {path}, of shape {np.shape(like)}, needs {asked} there"
        )
    return np.asarray(made, dtype_of(like))


def factor_names(axes: Axes, path: str) -> dict[str, str]:
    """Which factors of PyTorch's second moment are ours; it is factored over the last two axes on both sides.

    Raises:
      ValueError: they are other axes there.
    """
    ndim = len(axes)
    if ndim < 2:
        return {"v": "variance"}
    if {*axes[-2:]} != {ndim - 2, ndim - 1}:
        raise ValueError(
            f"{path}: PyTorch's second moment is factored over the last two of its own axes, which are others here: it is another "
            "optimizer"
        )
    rows, columns = ("row_var", "col_var") if axes[-1] == ndim - 1 else ("col_var", "row_var")
    return {"v_row": rows, "v_col": columns}


def check_outputs(config: Mapping[str, Any], axes: Axes, shape: tuple[int, ...], path: str) -> None:
    """Requires Muon to find a matrix's outputs where they are here; PyTorch has them first.

    Raises:
      ValueError: it takes its inputs for them, and scales by their numbers.
    """
    own = axes.index(0)
    if config["adjust_lr_fn"] == "original" and config["output_axis"] % 2 != own and shape[0] != shape[1]:
        raise ValueError(
            f"{path}: PyTorch's outputs are axis {own} of it here, and Muon's output_axis is {config['output_axis']}: give "
            f"presets.torch.muon(…, output_axis={own}), to this weight's group if there are others"
        )


def native(array: np.ndarray) -> np.ndarray:
    """A fresh array that PyTorch takes: in order, and float32 where NumPy's dtype is none of its own."""
    wide = array.dtype if array.dtype.isbuiltin == 1 else np.float32
    return np.array(array, wide, order="C", copy=True)


def _kind(path: str, names: Names, ndim: int) -> str:
    if ndim < 2 or names[-1] in SAME:
        return "norm"
    if names[-1] == "kernel":
        return "linear" if ndim == 2 else "conv"
    raise ValueError(
        f"{path}: its name does not tell how PyTorch lays it out: give transforms={{{path!r}: kind}}, where kind is one of "
        f"{', '.join(map(repr, LAYOUTS))}, or the order of the axes"
    )


def _axes(path: str, kind: Any, ndim: int) -> Axes:
    match kind:
        case "linear" if ndim == 2:
            return (1, 0)
        case "conv" if ndim >= 3:
            return (*range(2, ndim), 1, 0)
        case "embedding" | "norm":
            return tuple(range(ndim))
        case str():
            known = "; ".join(f"{name!r}, {what}" for name, what in LAYOUTS.items())
            raise ValueError(f"transforms: {path} has {ndim} axes and cannot be {kind!r}; there are: {known}")
    if not isinstance(kind, Sequence) or sorted(kind) != list(range(ndim)):
        raise ValueError(
            f"transforms: {path} needs an order of its {ndim} axes, such as {tuple(range(ndim))}; got {kind!r}"
        )
    return tuple(kind)


def _leaves(choices: Tree, params: Tree) -> list[Any]:
    """One choice for each parameter, which is a tuple and so no leaf by itself."""
    return jax.tree.structure(params).flatten_up_to(choices)
