"""The names of the variables in a file: of their own they have only numbers.

A file has `layers/conv2d_1/vars/0`, by the class of a layer and its number among its kind. The config of the model has the
layers' names and their order; the class of a layer gives the names of its variables.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from optchain.interop.keras import files

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
PARTS: dict[str, dict[str, str]] = {
    "MultiHeadAttention": {
        "query_dense": "query",
        "key_dense": "key",
        "value_dense": "value",
        "output_dense": "attention_output",
    }
}
"""Layers made of others, each with kernel and bias: what these are called in the file, and by Keras."""
SWITCHES = {"gamma": "scale", "beta": "center", "bias": "use_bias"}
"""The argument of a layer that says whether it has a variable."""


def by_place(weights: files.Weights) -> list[tuple[str, files.Dataset]]:
    """All variables of the model, trained or not, under the places that the file has for them."""
    return [
        (f"{place}/vars/{index}", variable)
        for place in weights.places()
        for index, variable in enumerate(weights.variables(place) or ())
    ]


class UnknownLayerError(ValueError):
    """A layer whose variables' names are not known."""


def by_name(weights: files.Weights, model: Mapping[str, Any]) -> list[tuple[str, files.Dataset]]:
    """The trainable variables in Keras's order, each with its name, `conv2d/kernel`, by the layers of the model's config.

    Raises:
      UnknownLayerError: a layer that has variables of which the config does not tell the names.
    """
    return list(_of_layers(weights, model, "layers", ""))


def _of_layers(
    weights: files.Weights, model: Mapping[str, Any], place: str, prefix: str
) -> Iterator[tuple[str, files.Dataset]]:
    layers = _config(model).get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS or place.count("/") > files.MAX_DEPTH:
        raise UnknownLayerError(f"{model.get('class_name')!r} is not a model of a list of layers")
    taken: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, Mapping):
            raise UnknownLayerError("a layer is no mapping")
        kind, config = str(layer.get("class_name")), _config(layer)
        base = _snake_case(kind)
        count = taken[base] = taken.get(base, -1) + 1
        inner, name = f"{place}/{base}" + (f"_{count}" if count else ""), f"{prefix}{config.get('name', base)}"
        if isinstance(config.get("layers"), list):
            yield from _of_layers(weights, layer, f"{inner}/layers", f"{name}/")
            continue
        if kind in PARTS:
            parts = {part: weights.variables(f"{inner}/{part}") or [] for part in PARTS[kind]}
            if any(len(variables) > len(_KERNEL_BIAS) for variables in parts.values()):
                raise UnknownLayerError(f"the layer {name!r} ({kind}) has more variables than kernels and biases")
            for part, variables in parts.items() if config.get("trainable", True) else ():
                named = zip(_KERNEL_BIAS, variables, strict=False)
                yield from ((f"{name}/{PARTS[kind][part]}/{v}", variable) for v, variable in named)
            continue
        variables = weights.variables(inner) or []
        if kind not in LAYERS and not variables and not _holds_variables(weights, inner):
            continue
        if kind not in LAYERS or config.get("quantization_config") or config.get("lora_rank") or config.get("renorm"):
            raise UnknownLayerError(f"of the variables of the layer {name!r} ({kind}) the names are not known")
        trained, others = LAYERS[kind]
        if kind == "EinsumDense":
            trained = trained[: len(variables)]
        names = [v for v in trained if config.get(SWITCHES.get(v, ""), True)]
        if len(variables) != len(names) + others:
            raise UnknownLayerError(
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
