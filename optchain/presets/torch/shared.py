"""What PyTorch's optimizers share: the order of a step, and checks under the names that arguments have there."""

from collections.abc import Sequence
from typing import Any

from optchain.core import arguments
from optchain.core.chain import Link, chain
from optchain.core.hyperparams import Hyperparam
from optchain.core.transformation import Transformation
from optchain.transforms.decay import decay_weights
from optchain.transforms.learning_rate import scale_by_learning_rate
from optchain.transforms.penalty import add_l2_penalty
from optchain.transforms.scaling import scale


def assemble(
    lr: Hyperparam,
    rule: Sequence[Transformation],
    weight_decay: Hyperparam,
    *,
    maximize: bool,
    decoupled: bool = False,
    after: Sequence[Link] = (),
    steps: Sequence[Transformation] | None = None,
) -> Transformation:
    """The chain of a preset: `sign → L2 penalty → rule → learning rate → after → decoupled decay`.

    `steps` stand in the place of the learning rate for optimizers that have a way of their own with it.
    """
    check(lr=lr, weight_decay=weight_decay)
    sign: list[Link] = [("maximize", scale(-1.0))] if arguments.check_bool("maximize", maximize) else []
    penalty, decay = [], []
    if arguments.check_bool("decoupled_weight_decay", decoupled):
        decay = [] if is_zero(weight_decay) else [decay_weights(weight_decay)]
    else:
        penalty = [] if is_zero(weight_decay) else [add_l2_penalty(weight_decay)]
    rate = [scale_by_learning_rate()] if steps is None else steps
    return chain(*sign, *penalty, *rule, *rate, *after, *decay, learning_rate=lr)


def pair(betas: Any) -> tuple[Hyperparam, Hyperparam]:
    """The two decays of the moments, each checked."""
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of numbers in [0, 1); got {betas!r}")
    check(**{f"betas[{i}]": beta for i, beta in enumerate(betas)})
    return betas[0], betas[1]


def check(**given: Hyperparam) -> None:
    """Checks arguments under the names that they have here."""
    for name, value in given.items():
        arguments.check_hyperparam(name, value)


def is_zero(value: Any) -> bool:
    """Whether it is the number 0, for which PyTorch leaves a part out."""
    return arguments.is_number(value) and value == 0
