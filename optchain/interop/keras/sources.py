"""What state and parameters are loaded from: a live optimizer or model, or a file, seen as the same thing."""

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from optchain.interop.keras import files
from optchain.interop.mapping import Entry

ALIASES = {"gamma": "scale", "beta": "bias", "embeddings": "embedding"}
"""Keras's names of parameters, and Flax's."""

MAX_LAYERS = 100_000

# The names of a layer's trainable variables, in Keras's order. The last column is what follows that is not trained.
_KERNEL_BIAS = ("kernel", "bias")
_KERNEL_LAYERS = [
    "Dense",
    "EinsumDense",
    *(f"Conv{n}D" for n in (1, 2, 3)),
    *(f"Conv{n}DTranspose" for n in (1, 2, 3)),
    *(f"DepthwiseConv{n}D" for n in (1, 2)),
]
LAYERS: dict[str, tuple[tuple[str, ...], int]] = {
    **dict.fromkeys(_KERNEL_LAYERS, (_KERNEL_BIAS, 0)),
    **dict.fromkeys(["SeparableConv1D", "SeparableConv2D"], (("depthwise_kernel", "pointwise_kernel", "bias"), 0)),
    "Embedding": (("embeddings",), 0),
    "LayerNormalization": (("gamma", "beta"), 0),
    "GroupNormalization": (("gamma", "beta"), 0),
    "BatchNormalization": (("gamma", "beta"), 2),
    "RMSNormalization": (("scale",), 0),
    "PReLU": (("alpha",), 0),
}
SWITCHES = {"gamma": "scale", "beta": "center", "bias": "use_bias"}
"""The argument of a layer that says whether it has a variable."""


class Variable(Protocol):
    """A variable that can be asked for its shape before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> np.ndarray: ...

    def write(self, value: np.ndarray) -> None: ...


@dataclasses.dataclass(frozen=True)
class Live:
    """A variable of a live Keras object."""

    variable: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    def read(self) -> np.ndarray:
        import keras  # it is there: the variable is one of its

        return keras.ops.convert_to_numpy(self.variable.value)

    def write(self, value: np.ndarray) -> None:
        self.variable.assign(value.astype(jnp.dtype(str(self.variable.dtype))))


@dataclasses.dataclass(frozen=True)
class Source:
    """A Keras run, as far as it is known.

    Attributes:
      name: what error messages call it.
      recipe: the serialized optimizer; None if it is not known.
      optimizer: the optimizer's variables, in its order; None if there are none.
      model: the trainable variables by name.
      ordered: whether `model` is in the order in which the optimizer knows them.
      unnamed: where names are not known, why.
    """

    name: str
    recipe: Mapping[str, Any] | None
    optimizer: Sequence[Variable] | None
    model: Mapping[str, Variable]
    ordered: bool
    unnamed: str = ""

    def entries(self) -> list[Entry]:
        return [Entry(name, variable.shape) for name, variable in self.model.items()]


@contextlib.contextmanager
def source_of(source: Any) -> Iterator[Source]:
    """A source as a `Source`, open while it is read."""
    if isinstance(source, str | Path):
        with files.opened(source) as (weights, config):
            yield _of_file(weights, config)
    else:
        yield of_live(source)


# Live objects ---------------------------------------------------------------------------------------------------------


def of_live(source: Any) -> Source:
    """A live optimizer, or a model with its optimizer."""
    is_model = hasattr(source, "trainable_variables") and hasattr(source, "layers")
    optimizer = getattr(source, "optimizer", None) if is_model else source
    if not is_model:
        check_optimizer("source", optimizer)
    trained = list(source.trainable_variables) if is_model else trained_by(optimizer)
    return Source(
        name=f"the {type(source).__name__} {source.name!r}",
        recipe=None if optimizer is None else recipe_of(optimizer),
        optimizer=None if optimizer is None else [Live(v) for v in optimizer.variables],
        model={v.path: Live(v) for v in trained},
        ordered=True,
    )


def check_optimizer(argument: str, optimizer: Any) -> None:
    """Requires a live optimizer that is built."""
    if not (hasattr(optimizer, "get_config") and hasattr(optimizer, "variables") and hasattr(optimizer, "built")):
        raise TypeError(
            f"{argument} must be a Keras optimizer or model, or the path of a file; "
            f"got {optimizer!r} ({type(optimizer).__name__})"
        )
    if not optimizer.built:
        raise ValueError(f"{argument} must be built, optimizer.build(model.trainable_variables): it has no state yet")


def trained_by(optimizer: Any) -> list[Any]:
    """The model's variables that a live optimizer was built for, in its order."""
    return list(optimizer._trainable_variables)


def recipe_of(optimizer: Any) -> Mapping[str, Any]:
    import keras

    with warnings.catch_warnings():  # of how Keras turns its rate into a number, and of rates that are code
        warnings.simplefilter("ignore")
        return keras.optimizers.serialize(optimizer)


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
    if config is None:
        places, unnamed = _by_place(weights), "a .weights.h5 file has neither the names nor the order of the variables"
        return Source(weights.what, None, optimizer, places, False, unnamed)
    recipe = recipe_in(config, weights.what)
    try:
        found = list(_by_name(weights, config))
        named = dict(found)
        if len(named) != len(found):
            raise _UnknownLayerError("two layers have one name")
    except _UnknownLayerError as error:
        return Source(weights.what, recipe, optimizer, _by_place(weights), False, str(error))
    return Source(weights.what, recipe, optimizer, named, True)


def _by_place(weights: files.Weights) -> dict[str, Variable]:
    """All variables of the model, trained or not, under the places that the file has for them."""
    return {
        f"{place}/vars/{index}": variable
        for place in weights.places()
        for index, variable in enumerate(weights.variables(place) or ())
    }


class _UnknownLayerError(ValueError):
    """A layer whose variables' names are not known."""


def _by_name(
    weights: files.Weights, model: Mapping[str, Any], place: str = "layers", prefix: str = ""
) -> Iterator[tuple[str, Variable]]:
    """The trainable variables in Keras's order, `conv2d/kernel`, by the layers of a config."""
    layers = _config(model).get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS or place.count("/") > files.MAX_DEPTH:
        raise _UnknownLayerError(f"{model.get('class_name')!r} is not a model of a list of layers")
    taken: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, Mapping):
            raise _UnknownLayerError("a layer is no mapping")
        kind, config = str(layer.get("class_name")), _config(layer)
        base = _snake_case(kind)
        count = taken[base] = taken.get(base, -1) + 1
        inner, name = f"{place}/{base}" + (f"_{count}" if count else ""), f"{prefix}{config.get('name', base)}"
        if isinstance(config.get("layers"), list):
            yield from _by_name(weights, layer, f"{inner}/layers", f"{name}/")
            continue
        variables = weights.variables(inner) or []
        if kind not in LAYERS and not variables and not _holds_variables(weights, inner):
            continue
        if kind not in LAYERS or config.get("quantization_config") or config.get("lora_rank") or config.get("renorm"):
            raise _UnknownLayerError(f"of the variables of the layer {name!r} ({kind}) the names are not known")
        trained, others = LAYERS[kind]
        if kind == "EinsumDense":
            trained = trained[: len(variables)]
        names = [v for v in trained if config.get(SWITCHES.get(v, ""), True)]
        if len(variables) != len(names) + others:
            raise _UnknownLayerError(
                f"the layer {name!r} ({kind}) should have {len(names) + others} variables, and has {len(variables)}"
            )
        if config.get("trainable", True):
            yield from ((f"{name}/{v}", variable) for v, variable in zip(names, variables, strict=False))


def _config(item: Mapping[str, Any]) -> Mapping[str, Any]:
    config = item.get("config")
    return config if isinstance(config, Mapping) else {}


def _holds_variables(weights: files.Weights, place: str) -> bool:
    # Seeds of random layers are variables too, and no one trains them.
    return any("seed_generator" not in found for found in weights.places(place))


def _snake_case(name: str) -> str:
    """The name of a class as Keras writes it in files: `BatchNormalization` is `batch_normalization`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
