"""Parameters on paper: the shapes and dtypes that a file, a checkpoint or a line of JSON tells of. No array is read."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.cli import recipes
from optchain.cli.errors import UserError
from optchain.cli.trees import nested

SHAPE = re.compile(r"\s*(\w+)\s*\[([\d,\s]*)\]\s*")
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
LARGEST_HEADER = 100_000_000

Shapes = dict[str, Any]
"""A nested dict of `jax.ShapeDtypeStruct`."""


def read(text: str) -> Shapes:
    """The parameters of `--params`.

    Raises:
      UserError: there is no such file, or it tells of no parameters.
    """
    path = Path(text)
    try:
        if text.lstrip().startswith("{"):
            return _parsed(recipes.from_json(text))
        if path.is_dir():
            return _orbax(path)
        match path.suffix.lower():
            case ".json" | ".toml":
                return _parsed(recipes.parsed(path, "--params"))
            case ".safetensors":
                return _safetensors(path)
            case ".npz":
                return _npz(path)
    except OSError as error:
        raise UserError(f"--params {text}: {error.strerror or error}") from error
    except RecursionError as error:
        raise UserError(f"--params {text}: it is nested too deep") from error
    except (ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"--params {text}: {error}") from error
    raise UserError(
        f"--params {text}: it must be a file that ends in .json, .toml, .safetensors or .npz, the folder of an Orbax "
        """checkpoint or of a run of optchain train, or shapes such as '{"kernel": [784, 10], "bias": [10]}'"""
    )


def _parsed(tree: Any) -> Shapes:
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError("shapes must be a mapping of names")
    return {name: _leaf(name, node) for name, node in tree.items()}


def _leaf(path: str, node: Any) -> Any:
    """`[784, 10]`, which is float32, or `"bfloat16[784, 10]"`."""
    if isinstance(node, Mapping):
        return {name: _leaf(f"{path}/{name}", inner) for name, inner in node.items()}
    if isinstance(node, list):
        return _struct(path, node, "float32")
    if isinstance(node, str) and (found := SHAPE.fullmatch(node)):
        return _struct(path, [int(size) for size in found[2].split(",") if size.strip()], found[1])
    raise ValueError(f'{path} must be a shape, [784, 10] or "bfloat16[784, 10]"; got {node!r}')


def _struct(path: str, shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(f"{path} must be a list of integers >= 0; got {shape!r}")
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))


def _nested(flat: Mapping[str, jax.ShapeDtypeStruct]) -> Shapes:
    """Names such as `layers.0.weight` or `dense/kernel` as a tree."""
    leaves: Shapes = {}
    for name, leaf in flat.items():
        path = name.replace(".", "/")
        if path in leaves:
            raise ValueError(f"two parameters are {path}")
        leaves[path] = leaf
    return nested(leaves)


def _safetensors(path: Path) -> Shapes:
    """The header alone: eight bytes of its length, and JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError("it is no safetensors file")
        header = recipes.from_json(file.read(length))
    header.pop("__metadata__", None)
    return _nested({name: _struct(name, about["shape"], _dtype(name, about)) for name, about in header.items()})


def _dtype(name: str, about: Mapping[str, Any]) -> str:
    if about["dtype"] not in SAFETENSORS_DTYPES:
        raise ValueError(f"{name} is {about['dtype']}, which is not trained")
    return SAFETENSORS_DTYPES[about["dtype"]]


def _npz(path: Path) -> Shapes:
    """The headers alone."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = getattr(np.lib.format, f"read_array_header_{version[0]}_0", None)
                if header is None:
                    raise ValueError(f"{member} is of version {version[0]}, which is not known")
                shape, _, dtype = header(file)
            name = member.removesuffix(".npy")
            shapes[name] = _struct(name, shape, dtype)
    return _nested(shapes)


def _orbax(path: Path) -> Shapes:
    """What Orbax's metadata say: of a checkpoint, or of the last one of a run; its `params` if it has such an entry."""
    import orbax.checkpoint as ocp

    from optchain.cli.train import checkpoints
    from optchain.cli.train.folder import holds_run

    folder = checkpoints.latest(path, "--params").path / "arrays" if holds_run(path) else path
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(folder.absolute()).item_metadata
    if metadata is None:
        raise UserError(f"--params {path}: the folder holds no checkpoint")
    tree = metadata.tree
    tree = tree["params"] if isinstance(tree, Mapping) and "params" in tree else tree
    return jax.tree.map(lambda about: jax.ShapeDtypeStruct(tuple(about.shape), about.dtype), tree)
