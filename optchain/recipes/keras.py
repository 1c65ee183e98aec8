"""The dictionaries of `keras.optimizers.serialize`, as our presets."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from optchain.core.transformation import Transformation
from optchain.presets import keras as keras_presets
from optchain.recipes.building import (
    ConfigError,
    built,
    check_arguments,
    key_suggestion,
    registered_schedule,
    suggestion,
    text_key,
)
from optchain.schedules import Schedule

KERAS_CLASSES: dict[str, Callable[..., Transformation]] = {
    "Adadelta": keras_presets.adadelta,
    "Adafactor": keras_presets.adafactor,
    "Adagrad": keras_presets.adagrad,
    "Adam": keras_presets.adam,
    "AdamW": keras_presets.adamw,
    "Adamax": keras_presets.adamax,
    "Ftrl": keras_presets.ftrl,
    "Lamb": keras_presets.lamb,
    "Lion": keras_presets.lion,
    "Muon": keras_presets.muon,
    "Nadam": keras_presets.nadam,
    "RMSprop": keras_presets.rmsprop,
    "SGD": keras_presets.sgd,
    "ScheduleFreeAdamW": keras_presets.schedule_free_adamw,
}


def from_keras_config(config: Mapping[str, Any], where: str) -> Transformation:
    """The preset of one of Keras's dictionaries, which stands at `where` in the data."""
    name, given = _object(config, where)
    if name == "LossScaleOptimizer":
        config, inner_where = _part(given, "inner_optimizer", where), f"{where}.inner_optimizer"
        if config.get("class_name") == name:
            raise ConfigError(f"{inner_where} must not be a {name} too")
        inner = from_keras_config(config, inner_where)
        del given["inner_optimizer"]
        return built(where, name, keras_presets.loss_scale_optimizer, inner, **_with_identifier(given))
    if name not in KERAS_CLASSES:
        known = sorted([*KERAS_CLASSES, "LossScaleOptimizer"])
        raise ConfigError(
            f"{where}: Keras's {name!r} has no counterpart here{suggestion(name, known)}; there are: {', '.join(known)}"
        )
    rate = given.get("learning_rate")
    if isinstance(rate, Mapping):
        given["learning_rate"] = _schedule(rate, f"{where}.learning_rate")
    if given.get("weight_decay") is False:
        given["weight_decay"] = None
    if given.get("exclude_layers") == []:  # what Keras makes of None
        given["exclude_layers"] = None
    built(where, name, check_arguments, KERAS_CLASSES[name], given)
    return built(where, name, KERAS_CLASSES[name], **_with_identifier(given))


def _with_identifier(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the name, which in Keras may be any string, as an identifier."""
    name = given.get("name")
    return given if name is None else given | {"name": re.sub(r"\W", "_", str(name))}


def _schedule(config: Mapping[str, Any], where: str) -> Schedule:
    name, given = _object(config, where)
    given.pop("name", None)
    return built(where, name, registered_schedule, name, given, where)


def _object(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    known = {"module", "class_name", "config", "registered_name", "build_config", "compile_config", "shared_object_id"}
    surplus = set(config) - known
    name, given = config.get("class_name"), config.get("config")
    if surplus or not isinstance(name, str) or not isinstance(given, Mapping):
        hint = key_suggestion(config, known)
        raise ConfigError(f"{where} is not one of Keras's: it has the keys {sorted(map(str, config))}{hint}")
    return name, {text_key(key, where): value for key, value in given.items()}


def _part(given: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    part = given.get(name)
    if not isinstance(part, Mapping):
        raise ConfigError(f"{where}.{name} must be a mapping")
    return part
