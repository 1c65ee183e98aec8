"""Recipes as data: `to_config` and `from_config`.

A config is JSON: numbers, strings, lists, and objects that name what they are. A name is looked up in the registry of
transformations, schedules and masks, and nowhere else: nothing is imported or evaluated, so a config can run no code that
was not registered before.

    {"optchain": 1, "transformation": "chain", "arguments": {"links": [{"transformation": "clip_by_norm", …}, …]}}

The dictionaries of `keras.optimizers.serialize` are understood too.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optchain.core import arguments
from optchain.core.keys import is_raw_key
from optchain.core.masks import AsMask, Choice, Common, Matching, Matrices, Others, as_mask
from optchain.core.registry import FACTORIES
from optchain.core.transformation import Transformation
from optchain.core.values import Ordered
from optchain.recipes.building import (
    ConfigError,
    built,
    check_arguments,
    key_suggestion,
    look_up,
    registered_schedule,
    text_key,
)
from optchain.recipes.keras import from_keras_config
from optchain.schedules.base import REGISTERED, Schedule

VERSION = 1
KINDS = ("transformation", "schedule", "mask")
"""The keys by which a config names what it is."""
MAX_DEPTH = 64
MAX_NODES = 100_000


def to_config(tx: optax.GradientTransformation) -> dict[str, Any]:
    """The recipe as a dict that JSON can hold, and `from_config` builds it from again.

    Args:
      tx: a transformation built by optchain, or by a function of yours that is decorated with `register`.

    Returns:
      A fresh dict with the `optchain` version of the format, the `transformation`'s name, and its `arguments`.

    Raises:
      TypeError: what is no transformation; something that is not data: an Optax transformation or a function that is not registered, a traced value. The
        message says where it stands.

    Example:
      >>> import optchain
      >>> optchain.to_config(optchain.clip_by_norm(1.0))
      {'optchain': 1, 'transformation': 'clip_by_norm', 'arguments': {'max_norm': 1.0}}
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"a config is of a transformation; got {tx!r}: a schedule goes out, and comes back, within one, such as "
            "scale_by_learning_rate(schedule)"
        )
    return {"optchain": VERSION, **_encode(tx, "config")}


def from_config(config: Mapping[str, Any]) -> Transformation:
    """The transformation of a config, from `to_config` or from `keras.optimizers.serialize`.

    Args:
      config: a mapping as JSON gives it.

    Raises:
      ValueError: a name that is not registered (the message lists the ones that are), an argument that is unknown or out of
        range, a structure that is no config; the message says where. Nothing is built in part.

    Example:
      >>> import json, optchain
      >>> tx = optchain.adamw(1e-3, global_clipnorm=1.0, exclude_from_weight_decay=["bias"])
      >>> optchain.from_config(json.loads(json.dumps(optchain.to_config(tx)))) == tx
      True
      >>> optchain.from_config({"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}})
      sgd(learning_rate=0.1, momentum=0.9)
    """
    _check_size(config)
    if not isinstance(config, Mapping):
        raise ValueError(f"a config must be a mapping; got {type(config).__name__}")
    if "class_name" in config:
        return from_keras_config(config, "config")
    version = config.get("optchain")
    if version != VERSION or isinstance(version, bool):
        hint = "" if "optchain" in config else key_suggestion(config, ["optchain", "class_name", *KINDS, "arguments"])
        raise ValueError(f'config["optchain"] must be {VERSION}, the version of the format; got {version!r}{hint}')
    made = _decode({key: value for key, value in config.items() if key != "optchain"}, "config")
    if not isinstance(made, Transformation):
        raise ValueError(
            'a config must name a transformation: {"optchain": 1, "transformation": "adamw", "arguments": {}}'
        )
    return made


# Encoding ------------------------------------------------------------------------------------------------------------


def _encode(value: Any, where: str) -> Any:
    match value:
        case None | bool() | str():
            return value
        case np.generic():
            return value.item()
        case int() | float():
            return value
        case Transformation() if value.is_registered:
            return {"transformation": value.registered_name, "arguments": _encode_arguments(value, where)}
        case optax.GradientTransformation():
            raise TypeError(
                f"{where} is {value!r}, which has no config: decorate the function that builds it with optchain.register"
            )
        case Schedule():
            if REGISTERED.get(type(value).__name__) is not type(value):
                raise TypeError(
                    f"{where} is {value!r}, a schedule that no config can name: decorate its class with "
                    "optchain.schedules.register"
                )
            fields = {
                field.name: _encode(_as_list(getattr(value, field.name)), f"{where}.{field.name}")
                for field in dataclasses.fields(value)
            }
            return {"schedule": type(value).__name__, "arguments": fields}
        case Matching():
            return {"mask": "matching", "arguments": {k: _encode(_as_list(v), where) for k, v in vars(value).items()}}
        case Matrices():
            return {"mask": "matrices", "arguments": {}}
        case AsMask():
            return {"mask": "as_mask", "arguments": {"mask": _encode(value.mask, where)}}
        case Others():
            return {"mask": "others", "arguments": {"mask": _encode(value.mask, where)}}
        case Common():
            parts = {"first": value.first, "second": value.second}
            return {"mask": "common", "arguments": {name: _encode(part, where) for name, part in parts.items()}}
        case np.ndarray() | jax.Array() if not arguments.is_traced(value) and value.ndim == 0:
            return bool(value) if value.dtype == bool else {"array": value.item(), "dtype": value.dtype.name}
        case np.ndarray() if is_raw_key(value) and value.shape == (2,):
            return {"array": value.tolist(), "dtype": value.dtype.name}
        case Ordered():
            return {"ordered": [[key, _encode(item, f"{where}.{key}")] for key, item in value.items()]}
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise TypeError(f"{where} has keys that are not strings")
            return {"tree": {key: _encode(item, f"{where}.{key}") for key, item in value.items()}}
        case list():
            return [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case tuple():
            return {"tuple": _encode(list(value), where)}
        case _ if callable(value):
            raise TypeError(
                f"{where} is {value!r}, a function, which a config cannot hold: a schedule of optchain.schedules it can, such as "
                "PerEpoch, the table of a function's values, or one of your own with optchain.schedules.register"
            )
    raise TypeError(f"{where} is {value!r} ({type(value).__name__}), which a config cannot hold")


def _encode_arguments(tx: Transformation, where: str) -> dict[str, Any]:
    """The arguments that differ from their defaults; positional ones, and pairs among them, as lists."""
    parameters = inspect.signature(FACTORIES[tx.registered_name]).parameters
    given = {
        name: [_as_list(item) for item in value] if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL else value
        for name, value in tx.given().items()
    }
    return {name: _encode(value, f"{where}.{name}") for name, value in given.items()}


def _as_list(value: Any) -> Any:
    return list(value) if type(value) is tuple else value


# Decoding ------------------------------------------------------------------------------------------------------------


def _decode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_decode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {type(value).__name__}, which a config cannot hold")
    kinds = dict(zip(KINDS, (_transformation, registered_schedule, _mask), strict=True))
    for kind, build in kinds.items():
        if kind in value:
            name, given = _named(value, kind, where)
            return built(where, name, build, name, given, where)
    if set(value) == {"array", "dtype"}:
        return built(where, "array", _array, value)
    if set(value) == {"tuple"} and isinstance(value["tuple"], list | tuple):
        return tuple(_decode(list(value["tuple"]), where))
    if set(value) == {"tree"} and isinstance(value["tree"], Mapping):
        return {text_key(key, where): _decode(item, f"{where}.{key}") for key, item in value["tree"].items()}
    if set(value) == {"ordered"} and isinstance(value["ordered"], list | tuple):
        return _ordered(value["ordered"], where)
    raise ValueError(
        f"{where} must have one of the keys {', '.join(map(repr, kinds))}, 'array', 'ordered', 'tree', 'tuple'; it has "
        f"{sorted(map(str, value))}"
        f"{key_suggestion(value, [*kinds, 'arguments', 'array', 'dtype', 'ordered', 'tree', 'tuple'])}"
    )


def _ordered(pairs: Sequence[Any], where: str) -> dict[str, Any]:
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ConfigError(f"{where}: 'ordered' must be a list of pairs, of a key and a value")
    keys = [text_key(key, where) for key, _ in pairs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"{where}: 'ordered' has a key twice: {', '.join(map(repr, repeated))}")
    return {key: _decode(item, f"{where}.{key}") for key, (_, item) in zip(keys, pairs, strict=True)}


def _named(value: Mapping[str, Any], kind: str, where: str) -> tuple[str, dict[str, Any]]:
    surplus = set(value) - {kind, "arguments"}
    if surplus:
        hint = key_suggestion(surplus, [kind, "arguments"])
        raise ConfigError(f"{where} has keys that are not known: {sorted(map(str, surplus))}{hint}")
    name, given = value[kind], value.get("arguments", {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {kind!r} must be a string and 'arguments' a mapping")
    return name, {text_key(key, where): _decode(item, f"{where}.{key}") for key, item in given.items()}


def _transformation(name: str, given: dict[str, Any], where: str) -> Transformation:
    factory = look_up(FACTORIES, "transformation", name, where)
    signature = inspect.signature(factory)
    positional: list[Any] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL and parameter.name in given:
            items = given.pop(parameter.name)
            if not isinstance(items, list):
                raise ValueError(f"{parameter.name} must be a list")
            positional = [tuple(item) if isinstance(item, list) else item for item in items]
    check_arguments(factory, given)
    return factory(*positional, **given)


MASKS: dict[str, Callable[..., Choice]] = {
    "matching": Matching,
    "matrices": Matrices,
    "as_mask": as_mask,
    "others": lambda mask: ~as_mask(mask),
    "common": lambda first, second: as_mask(first) & as_mask(second),
}


def _mask(name: str, given: dict[str, Any], where: str) -> Choice:
    return look_up(MASKS, "mask", name, where)(**given)


def _array(value: Mapping[str, Any]) -> np.ndarray:
    if value["dtype"] == "uint32" and isinstance(value["array"], list):  # a key
        return np.asarray(
            [arguments.check_integer("array", n, minimum=0, maximum=2**32 - 1) for n in value["array"]], np.uint32
        )
    if not arguments.is_number(value["array"]):
        raise TypeError(f"array must be a number; got {value['array']!r}")
    if isinstance(value["array"], int) and value["dtype"] in INTEGERS:
        return np.asarray(value["array"], value["dtype"])
    dtype = arguments.check_dtype("dtype", value["dtype"])
    return np.asarray(value["array"], jnp.dtype(dtype or "float32"))


INTEGERS = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))


def _check_size(config: Any) -> None:
    """Refuses what is too deep or too large to be a recipe, before anything walks it by recursion."""
    level, nodes = [config], 0
    for _ in range(MAX_DEPTH):
        if not level:
            return
        nodes += len(level)
        if nodes > MAX_NODES:
            raise ValueError(f"the config has more than {MAX_NODES} entries")
        level = [
            child
            for node in level
            for child in (
                node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
            )
        ]
    raise ValueError(f"the config is nested more than {MAX_DEPTH} deep")
