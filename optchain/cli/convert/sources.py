"""Where a run is read from: its parameters as nested dicts, its state as the recipe's."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import optchain
from optchain.cli.errors import UserError
from optchain.cli.trees import nested
from optchain.interop.merging import by_names, merge
from optchain.interop.report import Choice, Report, Row

Names = Mapping[str, str] | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run between two libraries."""

    params: Any
    state: Any
    report: Report


def read(source: Path, tx: optchain.Transformation, names: Names, hyperparams: Choice, step: int | None) -> Run:
    """Reads whatever SOURCE is, by its ending.

    Raises:
      UserError: it is nothing that is known.
      ValueError, FileNotFoundError: it does not go with the recipe or the names, or it is damaged.
    """
    if source.is_dir():
        return _orbax(source, tx, hyperparams, step)
    match source.suffix.lower():
        case ".pt" | ".pth" | ".bin" | ".safetensors":
            return _torch(source, tx, names, hyperparams, step)
        case ".keras" | ".h5":
            return _keras(source, tx, names, hyperparams)
    if not source.exists():
        raise UserError(f"SOURCE {source}: there is no such file or folder")
    raise UserError(f"SOURCE {source}: expected .keras, .weights.h5, .pt, .pth, .safetensors, or a folder of Orbax")


def recipe_in(source: Path) -> optchain.Transformation:
    """The recipe that SOURCE has itself.

    Raises:
      UserError: it has none.
      ValueError, FileNotFoundError: it is damaged.
    """
    if source.suffix.lower() == ".keras" and source.is_file():
        from optchain.interop.keras import from_keras

        return from_keras(source)
    if source.is_dir():
        from optchain.interop import orbax

        metadata = orbax.latest(source).metadata if orbax.steps(source) else {}
        config = metadata.get("recipe") or metadata.get("settings", {}).get("recipe")
        if config is not None:
            return optchain.from_config(config)
    raise UserError(f"--recipe FILE: {source} does not say which optimizer it is of")


def _torch(source: Path, tx: optchain.Transformation, names: Names, hyperparams: Choice, step: int | None) -> Run:
    from optchain.interop import torch as interop
    from optchain.interop.torch.layouts import check_readable, layouts

    if names is None:
        raise UserError(
            "--names FILE: PyTorch's names say nothing of ours: give a table of the paths here to the names there"
        )
    held = interop.read(source)
    if held.model is None or held.optimizer is None:
        raise UserError(
            f"{source} holds no {'model' if held.model is None else 'optimizer'}: expected the state_dict of both"
        )
    missing = [name for name in names.values() if name not in held.model]
    if missing:
        raise UserError(f"{source} has no {', '.join(missing)}; it has {', '.join(held.model)}")
    model = {name: held.model[name] for name in names.values()}
    for name, tensor in model.items():
        if hasattr(tensor, "detach"):
            check_readable(tensor, name)
    theirs = {path: _shape(model[name].shape, model[name].dtype) for path, name in names.items()}
    axes = layouts(nested(theirs), None)
    ours = {
        path: _shape([like.shape[axis] for axis in axes[tuple(path.split("/"))]], like.dtype)
        for path, like in theirs.items()
    }
    params = interop.load_params(nested(ours), model, names)
    state, report = interop.load_with_report(tx, params, held.optimizer, names, hyperparams=hyperparams, step=step)
    return Run(params, state, _with_params(params, report))


def _keras(source: Path, tx: optchain.Transformation, names: Names, hyperparams: Choice) -> Run:
    from optchain.interop import keras as interop
    from optchain.interop.keras.sources import ALIASES, source_of

    if names is None and source.suffix.lower() == ".h5":
        raise UserError(
            f"--names FILE: {source} has weights alone: give a table of the paths here to its own, in their order"
        )
    with source_of(source) as found:
        shapes = {entry.path: _shape(entry.shape) for entry in found.variable_entries()}
    table = names or {_renamed(name, ALIASES): name for name in shapes}
    missing = [name for name in table.values() if name not in shapes]
    if missing:
        raise UserError(f"{source} has no {', '.join(missing)}; it has {', '.join(shapes)}")
    like = nested({path: shapes[name] for path, name in table.items()})
    params = interop.load_params(like, source, table)
    # A file of weights alone does not know the order of its optimizer's variables: the table has it.
    order = list(table) if source.suffix.lower() == ".h5" else table
    state, report = interop.load_with_report(tx, params, source, order, hyperparams=hyperparams)
    return Run(params, state, _with_params(params, report))


def _orbax(source: Path, tx: optchain.Transformation, hyperparams: Choice, step: int | None) -> Run:
    from optchain.interop import orbax
    from optchain.interop.optax import from_optax_with_report

    held = orbax.read(source)
    params = held.get("params") if isinstance(held, Mapping) else None
    states = [held[name] for name in ("state", "opt_state") if name in held] if params is not None else []
    if len(states) != 1:
        has = ", ".join(map(str, held)) if isinstance(held, Mapping) else type(held).__name__
        raise UserError(f"{source}: expected 'params', and 'state' or 'opt_state'; it has {has}")
    params = jax.tree.map(jnp.asarray, params)
    if _is_optax(states[0]):
        state, report = from_optax_with_report(tx, params, states[0], hyperparams=hyperparams, step=step)
    else:
        state, report = merge(states[0], tx.init(params), hyperparams=hyperparams)
    return Run(params, state, _with_params(params, report))


def _is_optax(state: Any) -> bool:
    """Whether a state has the shape of Optax's, which are tuples or wrappers: ours name their links."""
    if not isinstance(state, Mapping):
        return True
    return all(key.isdecimal() for key in state) or bool({"inner_opt_state", "inner_state"} & state.keys())


def _with_params(params: Any, report: Report) -> Report:
    rows = [Row(("params", *names), "restored", entry=("params",)) for names in by_names(params)]
    return Report((*rows, *report.rows), report.hyperparams)


def _shape(shape: Any, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(str(dtype).removeprefix("torch.")))


def _renamed(name: str, aliases: Mapping[str, str]) -> str:
    *above, last = name.split("/")
    return "/".join([*above, aliases.get(last, last)])
