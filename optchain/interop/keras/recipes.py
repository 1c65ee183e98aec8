"""Recipes: an optimizer of Keras's as a preset, and a preset as an optimizer of Keras's."""

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from optchain import schedules
from optchain.core import arguments
from optchain.core.masks import Mask, resolve_mask
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.core.values import registered_name
from optchain.interop.keras import files, sources
from optchain.interop.mapping import Correspondence, Entry, match, parameter_entries
from optchain.presets.shared import all_but
from optchain.recipes.config import from_config
from optchain.recipes.keras import KERAS_CLASSES

LOSS_SCALE = "loss_scale_optimizer"
CLASS_NAMES = {registered_name(preset): name for name, preset in KERAS_CLASSES.items()}
"""Our presets' names to Keras's."""
SCHEDULES = (
    schedules.CosineDecay,
    schedules.CosineDecayRestarts,
    schedules.ExponentialDecay,
    schedules.InverseTimeDecay,
    schedules.PiecewiseConstantDecay,
    schedules.PolynomialDecay,
)
"""The schedules that Keras has too, under the same names."""


def from_keras(optimizer: Any, *, exclude_from_weight_decay: Sequence[str] | Mask | None = None) -> Transformation:
    """The preset of a Keras optimizer.

    Args:
      optimizer: a live optimizer, what `keras.optimizers.serialize` made of one, or the path of a `.keras` archive.
      exclude_from_weight_decay: which parameters do not decay, as every preset takes it; None for those that the live
        optimizer excludes by name. Its patterns are searched in variables' own names (`gamma`), and become patterns of the
        last component of a path: where a parameter has another name here (`scale`), give them anew. Neither a serialized
        optimizer nor an archive has them.

    Raises:
      ValueError, TypeError: what has no counterpart here: another class, a schedule of one's own, variables that are excluded
        from decay one by one.

    Example:
      >>> from optchain.interop.keras import from_keras
      >>> from_keras({"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}})
      sgd(learning_rate=0.1, momentum=0.9)
    """
    live = None
    if isinstance(optimizer, str | Path):
        recipe = sources.recipe_in(files.config_of(optimizer), str(optimizer))
        if recipe is None:
            raise ValueError(f"{optimizer} has no optimizer: the model was not compiled, or saved without it")
    elif isinstance(optimizer, Mapping):
        recipe = optimizer
    elif hasattr(optimizer, "get_config") and hasattr(optimizer, "variables"):
        live, recipe = optimizer, sources.recipe_of(optimizer)
    else:
        raise TypeError(
            "optimizer must be a Keras optimizer, its serialized form or the path of a .keras archive; "
            f"got {optimizer!r} ({type(optimizer).__name__})"
        )
    live = getattr(live, "inner_optimizer", live)
    rate = getattr(live, "_learning_rate", None)
    if callable(rate) and not hasattr(rate, "get_config"):  # code, which no config holds
        tx = _with_arguments(from_config(sources.without_rate(recipe)), learning_rate=rate)
    else:
        tx = from_config(recipe)
    if exclude_from_weight_decay is None and live is not None:
        exclude_from_weight_decay = _excluded_by(live)
    return (
        tx
        if exclude_from_weight_decay is None
        else _with_arguments(tx, exclude_from_weight_decay=exclude_from_weight_decay)
    )


def _with_arguments(tx: Transformation, **changes: Any) -> Transformation:
    """The preset, or the one within a `loss_scale_optimizer`, with other arguments."""
    if tx.registered_name == LOSS_SCALE:
        return tx.rebuilt(inner=_with_arguments(tx.config["inner"], **changes))
    return tx.rebuilt(**changes)


def _excluded_by(optimizer: Any) -> list[str] | None:
    """The patterns of a live optimizer, as patterns of the last component of a path."""
    if optimizer.weight_decay is None and getattr(optimizer, "adam_weight_decay", None) is None:
        return None
    if getattr(optimizer, "_exclude_from_weight_decay", None):
        raise ValueError(
            "the optimizer excludes single variables from weight decay (var_list), which a recipe cannot name: "
            "give exclude_from_weight_decay"
        )
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    return None if pattern is None else [_of_last_component(pattern.pattern)]


def _of_last_component(pattern: str) -> str:
    """A pattern that finds in a path what the given one finds in the path's last component."""
    # The match starts where no slash is left; and the beginning of the name, `^`, is where no other character precedes.
    anchored = re.sub(r"(^|[|(])\^", r"\1(?<![^/])", pattern)
    return rf"(?=[^/]*$)(?:{anchored})"


def to_keras(
    tx: Transformation, params: Tree = None, variables: Sequence[Any] | None = None, mapping: Correspondence = None
) -> Any:
    """The Keras optimizer of a preset, not built yet.

    Args:
      tx: a preset of Keras's family, or `loss_scale_optimizer` around one.
      params: the parameters; with `variables` it is known which ones `exclude_from_weight_decay` names.
      variables: the model's trainable variables.
      mapping: which parameter is which variable (see `load_state`).

    Returns:
      A live optimizer. It starts at the rate that `tx` was built with; `save_state` gives it the state's.

    Raises:
      ValueError: what Keras cannot say: a chain of one's own, a schedule that Keras does not have, `decay`,
        `moment_dtype`, `lazy`, a run-time value other than the learning rate, exclusions without `params` and `variables`.

    Example:
      >>> import optchain
      >>> from optchain.interop.keras import to_keras
      >>> to_keras(optchain.chain(optchain.scale_by_lion(), optchain.scale_by_learning_rate(), learning_rate=0.1))
      Traceback (most recent call last):
      ValueError: tx must be one of Keras's presets; got chain(
      ...
    """
    name = keras_class(tx)  # before anything is imported
    import keras

    if name == "LossScaleOptimizer":
        inner = to_keras(tx.config["inner"], params, variables, mapping)
        given = {key: value for key, value in tx.given().items() if key != "inner"}
        return keras.optimizers.LossScaleOptimizer(inner, **given)
    config = dict(tx.config)
    excluded = config.pop("exclude_from_weight_decay", None)
    del config["lazy"]  # False: keras_class has looked
    for argument in ("decay", "moment_dtype"):
        if config.pop(argument, None) is not None:
            raise ValueError(f"Keras's {name} has no {argument}; got {argument}={tx.config[argument]!r}")
    if config["weight_decay"] is None and name == "AdamW":
        raise ValueError("Keras's AdamW needs a weight_decay; got None: build tx with adam")
    if config["gradient_accumulation_steps"] == 1:
        config["gradient_accumulation_steps"] = None
    config = {argument: _keras_value(name, argument, value) for argument, value in config.items()}
    made = getattr(keras.optimizers, name)(**config)
    if excluded is not None:
        if params is None or variables is None:
            raise ValueError(
                "Keras excludes parameters from weight decay variable by variable: give params and the model's trainable "
                f"variables, since tx has exclude_from_weight_decay={excluded!r}"
            )
        decays = jax.tree.leaves(resolve_mask("exclude_from_weight_decay", all_but(excluded), params))
        theirs = [Entry(v.path, tuple(v.shape)) for v in variables]
        positions = match(parameter_entries(params), theirs, mapping, "the variables", aliases=sources.ALIASES)
        undecayed = [v for v, position in zip(variables, positions, strict=True) if not decays[position]]
        made.exclude_from_weight_decay(var_list=undecayed)
    return made


def keras_class(tx: Any) -> str:
    """The name of a preset's class in Keras."""
    names = CLASS_NAMES | {LOSS_SCALE: "LossScaleOptimizer"}
    if isinstance(tx, Transformation) and tx.is_registered and tx.registered_name in names:
        if tx.registered_name == LOSS_SCALE:
            if CLASS_NAMES.get(_name_of(tx.config["inner"])) is None:
                raise ValueError(f"tx must have one of Keras's presets within; got {tx!r}")
            keras_class(tx.config["inner"])
        elif tx.config["lazy"]:
            raise ValueError(f"Keras has no optimizer that updates only the rows that gradients name; got {tx!r}")
        return names[tx.registered_name]
    raise ValueError(f"tx must be one of Keras's presets; got {tx!r}. There are: {', '.join(sorted(names))}")


def inner_of(tx: Transformation) -> Transformation:
    """The preset within a `loss_scale_optimizer`; any other as it is."""
    return tx.config["inner"] if tx.registered_name == LOSS_SCALE else tx


def _name_of(tx: Any) -> str:
    return tx.registered_name if isinstance(tx, Transformation) and tx.is_registered else ""


def _keras_value(name: str, argument: str, value: Any) -> Any:
    """A value as Keras takes it."""
    if argument == "learning_rate":
        if isinstance(value, SCHEDULES):
            return _schedule(value)
        if not callable(value):
            return float(value)
        if not inspect.signature(value).parameters:  # of no arguments: Keras calls it likewise
            return value
        raise ValueError(
            f"Keras has no schedule like learning_rate={value!r}; it has {[s.__name__ for s in SCHEDULES]}"
        )
    if callable(value) or arguments.is_array(value):
        raise ValueError(f"{argument} of Keras's {name} must be a number; got the run-time value {value!r}")
    return value


def _schedule(schedule: schedules.Schedule) -> Any:
    import keras

    fields = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}  # pyright: ignore
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return getattr(keras.optimizers.schedules, type(schedule).__name__)(**fields)
