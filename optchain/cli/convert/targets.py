"""Where a run is written to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optchain
from optchain.cli.convert.sources import Run
from optchain.cli.errors import UserError

Names = Mapping[str, str] | None


def write(
    to: str,
    out: Path,
    tx: optchain.Transformation,
    run: Run,
    names: Names,
    model: Path | None,
    step: int | None,
    lossy: bool,
) -> list[str]:
    """Writes the run, and returns what was left behind.

    Raises:
      UserError, ValueError: the library has no place for it; nothing is written.
      OSError: it cannot be written.
    """
    match to:
        case "torch":
            return _torch(out, tx, run, names, step, lossy)
        case "optax":
            return _optax(out, tx, run, step, lossy)
        case "keras":
            assert model is not None
            return _keras(out, tx, run, names, model, step)
        case _:
            from optchain.interop import orbax

            orbax.save(out, step or 0, {"params": run.params, "state": run.state}, metadata=_described(tx))
            return []


def _torch(out: Path, tx: optchain.Transformation, run: Run, names: Names, step: int | None, lossy: bool) -> list[str]:
    from optchain.interop import torch as interop
    from optchain.interop.links import places
    from optchain.interop.torch.export import entries_without_counterpart

    if names is None:
        raise UserError("--names FILE: PyTorch's names are its own: give a table of the paths here to the names there")
    optimizer = interop.to_state_dict(tx, run.params, run.state, names, step=step, lossy=lossy)
    interop.write(out, interop.params_to_state_dict(run.params, names), optimizer)
    return entries_without_counterpart(places(tx, run.params), run.state)


def _optax(out: Path, tx: optchain.Transformation, run: Run, step: int | None, lossy: bool) -> list[str]:
    from optchain.interop import orbax
    from optchain.interop.links import places
    from optchain.interop.optax import to_optax, to_optax_state
    from optchain.interop.optax.export import entries_without_counterpart

    opt_state = to_optax_state(tx, run.params, run.state, to_optax(tx), step=step, lossy=lossy)
    orbax.save(out, step or 0, {"params": run.params, "opt_state": opt_state})
    return entries_without_counterpart(places(tx, run.params), run.state)


def _keras(out: Path, tx: optchain.Transformation, run: Run, names: Names, model: Path, step: int | None) -> list[str]:
    import keras

    from optchain.interop import keras as interop

    if out.suffix != ".keras":
        raise UserError(f"--out {out}: the name must end in .keras")
    loaded: Any = keras.models.load_model(model, compile=False, safe_mode=True)
    loaded.compile(optimizer=interop.to_keras(tx))
    loaded.optimizer.build(loaded.trainable_variables)
    interop.save_params(run.params, loaded, names)
    interop.save_state(tx, run.params, run.state, loaded, names, calls=step)
    loaded.save(out)
    return []


def _described(tx: optchain.Transformation) -> dict[str, Any]:
    """The recipe, kept with the state that is its own."""
    return {"recipe": optchain.to_config(tx)}
