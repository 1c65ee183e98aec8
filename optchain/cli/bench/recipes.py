"""The recipes that are measured, and the bytes that each must move."""

import dataclasses
from typing import Any, Literal

from optchain.cli.bench.names import RecipeName

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 4e-3
EPSILON = 1e-7
MAX_NORM = 1.0
AVERAGE_MOMENTUM = 0.99
SGD_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW, or SGD with momentum, and what goes with it; each contender builds its own closest form of it."""

    title: str
    rule: Literal["adamw", "sgd"] = "adamw"
    global_clip: bool = False
    clip_by_norm: bool = False
    average: bool = False
    accumulate: int = 1
    skip_nonfinite: bool = False

    @property
    def keras_arguments(self) -> dict[str, Any]:
        """What Keras, and so our presets, take besides the rule's own arguments."""
        return {
            "clipnorm": MAX_NORM if self.clip_by_norm else None,
            "global_clipnorm": MAX_NORM if self.global_clip else None,
            "use_ema": self.average,
            "ema_momentum": AVERAGE_MOMENTUM,
            "gradient_accumulation_steps": self.accumulate if self.accumulate > 1 else None,
        }

    def floor(self, parameter: int = 4, state: int = 4) -> float:
        """The bytes per parameter that a call must move at the least, on average over a window.

        Args:
          parameter: the bytes of a parameter, and of its gradient.
          state: the bytes of a value of the moments, the accumulator and the average.
        """
        moments = 2 if self.rule == "adamw" else 1
        update = 2 * parameter + 2 * moments * state  # reads and writes parameters and moments
        looks_first = self.global_clip or self.clip_by_norm or self.skip_nonfinite
        if self.accumulate == 1:
            return update + parameter * (2 if looks_first else 1) + 2 * state * self.average
        updating = update + parameter + state
        if looks_first:  # a pass over gradient and accumulator that only looks, and a second that reads them again
            updating += parameter + state
        updating += 2 * state * self.average  # the parameters are at hand
        return ((self.accumulate - 1) * self.waiting_floor(parameter, state) + updating) / self.accumulate

    def waiting_floor(self, parameter: int = 4, state: int = 4) -> float:
        """Likewise for a call that only accumulates: the gradient and the accumulator, the parameters and their average."""
        return (parameter + 2 * state) * (2 if self.average else 1)


RECIPES: dict[RecipeName, Recipe] = {
    RecipeName.ADAMW: Recipe("adamw"),
    RecipeName.GLOBAL_CLIP: Recipe("+ clip by global norm", global_clip=True),
    RecipeName.CLIP_BY_NORM: Recipe("+ clip each leaf by its norm", clip_by_norm=True),
    RecipeName.AVERAGE: Recipe("+ average of the weights", average=True),
    RecipeName.ACCUMULATE: Recipe("+ accumulate 4", accumulate=4),
    RecipeName.SKIP_NONFINITE: Recipe("+ skip non-finite", skip_nonfinite=True),
    RecipeName.KERAS_ARGUMENTS: Recipe("clip, accumulate 4, average", global_clip=True, accumulate=4, average=True),
    RecipeName.EVERYTHING: Recipe(
        "clip, accumulate 4, skip non-finite, average",
        global_clip=True,
        accumulate=4,
        skip_nonfinite=True,
        average=True,
    ),
    RecipeName.SGD: Recipe("sgd with momentum", rule="sgd"),
}
