"""The optimizer of a run, from its settings, and a recipe file that goes into them."""

from pathlib import Path
from typing import Any

import optchain
from optchain.cli import recipes
from optchain.cli.train.settings import Optimizer, Settings, Shape

# Anchored at the last part of the path: a layer that is called "bias_free" decays.
NOT_DECAYED = [r"(^|/)bias$", r"(^|/)scale$"]


def learning_rate(settings: Settings) -> float | optchain.schedules.Schedule:
    """The constant rate, or a linear warmup and half a cosine. Schedules count batches, not updates, as Keras's do."""
    if settings.schedule is Shape.CONSTANT:
        return settings.learning_rate
    return optchain.schedules.CosineDecay(
        0.0,
        decay_steps=settings.schedule_steps - settings.warmup_steps,
        alpha=settings.final_share,
        warmup_target=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
    )


def read(path: Path) -> dict[str, Any]:
    """The config in the file of `--recipe`."""
    return recipes.read(path, "--recipe")


def rate_at(settings: Settings, step: int) -> float:
    """The learning rate of the batch after `step` batches."""
    rate = learning_rate(settings)
    return float(rate(step)) if callable(rate) else rate


def optimizer(settings: Settings) -> optchain.Transformation:
    """What the recipe says; without one clipping, the rule, decay of the kernels alone, accumulation, an average."""
    if settings.recipe is not None:
        return optchain.from_config(settings.recipe)
    rate = learning_rate(settings)
    common = {
        "global_clipnorm": settings.clip_norm,
        "gradient_accumulation_steps": settings.accumulation_steps,
        "use_ema": True,
        "ema_momentum": settings.ema_momentum,
    }
    if settings.optimizer is Optimizer.ADAMW:
        decay = settings.weight_decay
        return optchain.adamw(rate, weight_decay=decay, exclude_from_weight_decay=NOT_DECAYED, **common)
    if settings.optimizer is Optimizer.ADAM:
        return optchain.adam(rate, **common)
    return optchain.sgd(rate, momentum=0.9, nesterov=True, **common)
