"""What state and parameters are loaded from: a live optimizer or model, or a file, seen as the same thing."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import jax.numpy as jnp
import numpy as np

from optchain.interop.keras import files, names
from optchain.interop.mapping import Correspondence, Entry, check_shapes, match

ALIASES = {"gamma": "scale", "beta": "bias", "embeddings": "embedding"}
"""Keras's names of parameters, and Flax's."""


def matched(ours: Sequence[Entry], theirs: Sequence[Entry], mapping: Correspondence, name: str) -> list[int]:
    """For each of Keras's variables, the position of its parameter among ours, which has the same shape."""
    positions = match(ours, theirs, mapping, name, aliases=ALIASES)
    check_shapes(ours, theirs, positions, name)
    return positions


class Variable(Protocol):
    """A variable that can be asked for its shape before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Live:
    """A variable of a live Keras object."""

    variable: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    def read(self) -> np.ndarray:
        import keras  # it is there: the variable is one of its

        return np.asarray(keras.ops.convert_to_numpy(self.variable.value))

    def assign(self, value: np.ndarray) -> None:
        self.variable.assign(value.astype(jnp.dtype(str(self.variable.dtype))))


@dataclasses.dataclass(frozen=True)
class Source:
    """A Keras run, as far as it is known.

    Attributes:
      name: what error messages call it.
      recipe: the serialized optimizer; None if it is not known.
      optimizer: the optimizer's variables, in its order; None if there are none.
      model: the trainable variables, each with its name.
      ordered: whether `model` is in the order in which the optimizer knows them.
      unnamed: where names are not known, why.
    """

    name: str
    recipe: Mapping[str, Any] | None
    optimizer: Sequence[Variable] | None
    model: Sequence[tuple[str, Variable]]
    ordered: bool
    unnamed: str = ""

    def variable_entries(self) -> list[Entry]:
        return [Entry(name, variable.shape) for name, variable in self.model]


@contextlib.contextmanager
def source_of(source: Any) -> Iterator[Source]:
    """A source as a `Source`, open while it is read."""
    if isinstance(source, str | Path):
        with files.open_run_file(source) as (weights, config):
            yield _of_file(weights, config)
    else:
        yield of_live(source)


# Live objects ---------------------------------------------------------------------------------------------------------


def of_live(source: Any) -> Source:
    """A live optimizer, or a model with its optimizer."""
    is_model = hasattr(source, "trainable_variables") and hasattr(source, "layers")
    optimizer = getattr(source, "optimizer", None) if is_model else source
    if not is_model:
        _check_optimizer(optimizer)
    # An optimizer keeps what it was built for, in its order.
    trained = source.trainable_variables if is_model else source._trainable_variables
    return Source(
        name=f"the {type(source).__name__} {source.name!r}",
        recipe=None if optimizer is None else recipe_of(optimizer),
        optimizer=None if optimizer is None else [Live(v) for v in optimizer.variables],
        model=[(v.path, Live(v)) for v in trained],
        ordered=True,
    )


def _check_optimizer(optimizer: Any) -> None:
    if not (hasattr(optimizer, "get_config") and hasattr(optimizer, "variables") and hasattr(optimizer, "built")):
        raise TypeError(
            "source must be a Keras optimizer or model, or the path of a file; "
            f"got {optimizer!r} ({type(optimizer).__name__})"
        )
    if not optimizer.built:
        raise ValueError("source must be built, optimizer.build(model.trainable_variables): it has no state yet")


def recipe_of(optimizer: Any) -> Mapping[str, Any]:
    import keras

    with warnings.catch_warnings():  # of how Keras turns its rate into a number, and of rates that are code
        warnings.simplefilter("ignore")
        return cast(Mapping[str, Any], keras.optimizers.serialize(optimizer))


def without_rate(recipe: Mapping[str, Any], *others: str) -> Mapping[str, Any]:
    """The recipe without its learning rate and other arguments, which then have their defaults."""
    config = recipe.get("config")
    if not isinstance(config, Mapping):
        return recipe  # from_config says what is wrong
    inner = config.get("inner_optimizer")
    if isinstance(inner, Mapping):
        plain = {**config, "inner_optimizer": without_rate(inner, *others)}
    else:
        plain = {name: value for name, value in config.items() if name not in ("learning_rate", *others)}
    return {**recipe, "config": plain}


def has_rate(recipe: Mapping[str, Any]) -> bool:
    """Whether the learning rate is a number, and so a variable of Keras's."""
    config = recipe.get("config")
    config = config if isinstance(config, Mapping) else {}
    inner = config.get("inner_optimizer")
    return has_rate(inner) if isinstance(inner, Mapping) else not isinstance(config.get("learning_rate"), Mapping)


# Files ----------------------------------------------------------------------------------------------------------------


def recipe_in(config: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The serialized optimizer in the config of a model."""
    compiled = config.get("compile_config")
    recipe = compiled.get("optimizer") if isinstance(compiled, Mapping) else None
    if recipe is not None and not isinstance(recipe, Mapping):
        raise ValueError(f"{name}: the optimizer in the config must be a mapping; it is {recipe!r}")
    return recipe


def _of_file(weights: files.Weights, config: Mapping[str, Any] | None) -> Source:
    optimizer = weights.variables("optimizer")
    recipe = None if config is None else recipe_in(config, weights.what)
    try:
        if config is None:
            raise names.UnknownLayerError("a .weights.h5 file says neither the names nor the order of the variables")
        return Source(weights.what, recipe, optimizer, names.by_name(weights, config), ordered=True)
    except names.UnknownLayerError as error:
        return Source(weights.what, recipe, optimizer, names.by_place(weights), ordered=False, unnamed=str(error))
