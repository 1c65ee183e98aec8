"""The settings of a run: what is chosen on the command line and saved with every checkpoint."""

import dataclasses
import enum
from typing import Any

from optchain.cli.errors import UserError
from optchain.core import arguments


class Optimizer(enum.StrEnum):
    """The optimizers to choose from."""

    ADAMW = "adamw"
    ADAM = "adam"
    SGD = "sgd"


class Shape(enum.StrEnum):
    """The shapes of the learning rate to choose from."""

    COSINE = "cosine"
    CONSTANT = "constant"


DEFAULT_LEARNING_RATES = {Optimizer.ADAMW: 0.003, Optimizer.ADAM: 0.003, Optimizer.SGD: 0.1}
DEFAULT_STEPS = 1000
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the numbers of a run depend on.

    Those without an option are saved as well, so that a run goes on as it began when a later version has other defaults.
    """

    optimizer: Optimizer = Optimizer.ADAMW
    learning_rate: float = DEFAULT_LEARNING_RATES[Optimizer.ADAMW]
    """The constant rate, or the highest of the schedule."""
    schedule: Shape = Shape.COSINE
    schedule_steps: int = DEFAULT_STEPS
    """The steps over which the schedule is laid out, the warmup included."""
    steps: int = DEFAULT_STEPS
    """Batches, from the beginning of the run. `accumulation_steps` of them make one update."""
    seed: int = 0
    checkpoint_every: int = 250
    evaluate_every: int = 20
    batch_size: int = 64
    accumulation_steps: int = 2
    clip_norm: float = 0.5
    weight_decay: float = 0.05
    ema_momentum: float = 0.99
    label_smoothing: float = 0.1
    warmup_share: float = 0.1
    final_share: float = 0.01
    """The share of the highest rate at which the schedule ends."""
    recipe: dict[str, Any] | None = None
    """A config that takes the place of all that says something of the optimizer above, or None."""

    def __post_init__(self) -> None:
        for field in ("steps", "schedule_steps", "checkpoint_every", "evaluate_every", "batch_size"):
            _check(field, getattr(self, field), minimum=1)
        try:
            arguments.check_number("--learning-rate", self.learning_rate, arguments.POSITIVE)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        _check("seed", self.seed, minimum=0, maximum=LARGEST_SEED)

    @property
    def warmup_steps(self) -> int:
        return int(self.schedule_steps * self.warmup_share)

    @property
    def transformation(self) -> str:
        """The name of the function of optchain that builds the optimizer."""
        return self.recipe["transformation"] if self.recipe else self.optimizer.value

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Settings":
        """The settings that `to_json` wrote.

        Raises:
          ValueError, TypeError: these are not settings of this version.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        values = {"recipe": None} | values  # there were runs before there were recipes
        if set(values) != set(known):
            raise ValueError(f"the settings {', '.join(sorted(set(values) ^ set(known)))} are missing or unknown")
        if not isinstance(values["recipe"], dict | None):
            raise TypeError(f"recipe is {values['recipe']!r}")
        for name, field in known.items():
            if name == "recipe":
                continue
            expected = str if issubclass(type(field.default), str) else type(field.default)
            if type(values[name]) is not expected and not (expected is float and type(values[name]) is int):
                raise TypeError(f"{name} is {values[name]!r}")
        return cls(
            **{**values, "optimizer": Optimizer(values["optimizer"]), "schedule": Shape(values["schedule"])},
        )


def _check(field: str, value: int, minimum: int, maximum: int = arguments.LARGEST_INTEGER) -> None:
    if not minimum <= value <= maximum:
        raise UserError(f"--{field.replace('_', '-')} must be between {minimum} and {maximum}; got {value}")
