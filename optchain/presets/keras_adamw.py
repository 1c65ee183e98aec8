"""keras-adamw's optimizers: AdamW, NadamW and SGDW with annealing, restarts, decays and multipliers by layer.

    p ← p − η · multiplier · update − η · √(1/T) · (l1 · sign(p) + l2 · p)

where `update` holds the learning rate and the decay does not. Checked against recorded runs of keras-adamw 1.38, whose betas
are float32: 1 − 0.999 is smaller by 1.3e-5 of itself than in double precision.

What differs on purpose: `weight_decays` and `lr_multipliers` are regular expressions searched in paths, where keras-adamw
has names and substrings, and one that decides for no parameter is an error; `total_iterations` below 2 is an error where it
is needed, where keras-adamw warns and goes on without annealing and decay. Its `decay` is not here: of AdamW it ignores it.
Clips are links: `chain(clip_by_norm(1.0), presets.keras_adamw.adamw())`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optchain.core import arguments
from optchain.core.chain import Link, chain
from optchain.core.hyperparams import Hyperparam
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.rules.adam import scale_by_adam
from optchain.rules.momentum import momentum_unless_zero
from optchain.rules.nadam import scale_by_nadam
from optchain.schedules import CosineMultiplier
from optchain.transforms.decay_by_path import check_decays, decay_by_path
from optchain.transforms.learning_rate import scale_by_learning_rate
from optchain.transforms.scaling import scale, scale_by_path


@register(name="presets.keras_adamw.adamw", ordered=["lr_multipliers", "weight_decays"])
def adamw(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    amsgrad: bool = False,
    total_iterations: int = 0,
    total_iterations_wd: int | None = None,
    use_cosine_annealing: bool = False,
    lr_multipliers: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, tuple[float, float]] | None = None,
    autorestart: bool | None = None,
    eta_min: float = 0,
    eta_max: float = 1,
    t_cur: int = 0,
) -> Transformation:
    """keras-adamw's AdamW: Keras's Adam times η and a multiplier by layer, with decay by layer.

        p ← p − η · multiplier · lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · mu / (√nu + ε) − η · √(1/T) · (l1 · sign(p) + l2 · p)

    with the moments of `scale_by_adam`, and η of `schedules.CosineMultiplier`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the denominator, >= 0.
      amsgrad: whether to divide by the largest second moment so far.
      total_iterations: the number of updates from one restart to the next, >= 2; needed for annealing and for decay.
      total_iterations_wd: T in the decay; `total_iterations` if None.
      use_cosine_annealing: whether η falls along half a cosine; else it is 1.
      lr_multipliers: a factor >= 0 of the update for each regular expression searched in a parameter's path; the first
        one found decides.
      weight_decays: `(l1, l2)`, numbers >= 0, for each regular expression, likewise.
      autorestart: whether η starts again after `total_iterations`; None for whether there is annealing.
      eta_min: the lowest η, >= 0.
      eta_max: the η of a restart, >= 0. As in keras-adamw the first update has an η of 1 whatever this is.
      t_cur: where in its period the run starts, >= 0.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind, or one that has no effect without another; at init,
        a pattern that decides for no parameter.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101; keras-adamw.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.keras_adamw.adamw(
      ...     0.1,
      ...     total_iterations=4,
      ...     use_cosine_annealing=True,
      ...     lr_multipliers={"head": 2.0},
      ...     weight_decays={"kernel": (0.0, 0.1)},
      ... )
      >>> params = {"kernel": jnp.ones(1), "head": jnp.ones(1)}
      >>> params, state = tx.apply(params, tx.init(params), grads=params)
      >>> {name: round(float(p[0]), 3) for name, p in params.items()}
      {'head': 0.8, 'kernel': 0.85}
    """
    rule = scale_by_adam(*_in_float32(beta_1, beta_2), epsilon, amsgrad=amsgrad)
    return _assemble(
        learning_rate,
        [rule],
        [],
        total_iterations,
        total_iterations_wd,
        use_cosine_annealing,
        lr_multipliers,
        weight_decays,
        autorestart,
        eta_min,
        eta_max,
        t_cur,
    )


@register(name="presets.keras_adamw.nadamw", ordered=["lr_multipliers", "weight_decays"])
def nadamw(
    learning_rate: Hyperparam = 0.001,
    beta_1: Hyperparam = 0.9,
    beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    *,
    schedule_decay: Hyperparam = 0.004,
    total_iterations: int = 0,
    total_iterations_wd: int | None = None,
    use_cosine_annealing: bool = False,
    lr_multipliers: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, tuple[float, float]] | None = None,
    autorestart: bool | None = None,
    eta_min: float = 0,
    eta_max: float = 1,
    t_cur: int = 0,
) -> Transformation:
    """keras-adamw's NadamW: Nadam times η and a multiplier by layer, with decay by layer.

    The rule is that of `scale_by_nadam(momentum_decay=schedule_decay, epsilon_in_root=True, next_momentum=False)`, and η
    that of `schedules.CosineMultiplier`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the squares under the root, >= 0.
      schedule_decay: how fast the momentum warms up, >= 0.
      total_iterations: the number of updates from one restart to the next, >= 2; needed for annealing and for decay.
      total_iterations_wd: T in the decay; `total_iterations` if None.
      use_cosine_annealing: whether η falls along half a cosine; else it is 1.
      lr_multipliers: a factor >= 0 of the update for each regular expression searched in a parameter's path; the first
        one found decides.
      weight_decays: `(l1, l2)`, numbers >= 0, for each regular expression, likewise.
      autorestart: whether η starts again after `total_iterations`; None for whether there is annealing.
      eta_min: the lowest η, >= 0.
      eta_max: the η of a restart, >= 0. As in keras-adamw the first update has an η of 1 whatever this is.
      t_cur: where in its period the run starts, >= 0.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind, or one that has no effect without another; at init,
        a pattern that decides for no parameter.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016; keras-adamw.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.keras_adamw.nadamw(0.1)
      >>> params, state = tx.apply(jnp.zeros(1), tx.init(jnp.zeros(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      -0.106
    """
    arguments.check_hyperparam("schedule_decay", schedule_decay)
    rule = scale_by_nadam(
        *_in_float32(beta_1, beta_2), epsilon, momentum_decay=schedule_decay, epsilon_in_root=True, next_momentum=False
    )
    return _assemble(
        learning_rate,
        [rule],
        [],
        total_iterations,
        total_iterations_wd,
        use_cosine_annealing,
        lr_multipliers,
        weight_decays,
        autorestart,
        eta_min,
        eta_max,
        t_cur,
    )


@register(name="presets.keras_adamw.sgdw", ordered=["lr_multipliers", "weight_decays"])
def sgdw(
    learning_rate: Hyperparam = 0.01,
    momentum: Hyperparam = 0.0,
    nesterov: bool = False,
    *,
    total_iterations: int = 0,
    total_iterations_wd: int | None = None,
    use_cosine_annealing: bool = False,
    lr_multipliers: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, tuple[float, float]] | None = None,
    autorestart: bool | None = None,
    eta_min: float = 0,
    eta_max: float = 1,
    t_cur: int = 0,
) -> Transformation:
    """keras-adamw's SGDW: Keras's SGD, with η and a multiplier by layer inside the velocity, and decay by layer.

        velocity ← momentum · velocity − η · multiplier · lr · g
        p ← p + velocity − η · √(1/T) · (l1 · sign(p) + l2 · p)

    and with `nesterov` `momentum · velocity − η · multiplier · lr · g` in place of the velocity in the second line; η is that
    of `schedules.CosineMultiplier`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      momentum: decay of the velocity, in [0, 1].
      nesterov: whether to look ahead.
      total_iterations: the number of updates from one restart to the next, >= 2; needed for annealing and for decay.
      total_iterations_wd: T in the decay; `total_iterations` if None.
      use_cosine_annealing: whether η falls along half a cosine; else it is 1.
      lr_multipliers: a factor >= 0 of the update for each regular expression searched in a parameter's path; the first
        one found decides.
      weight_decays: `(l1, l2)`, numbers >= 0, for each regular expression, likewise.
      autorestart: whether η starts again after `total_iterations`; None for whether there is annealing.
      eta_min: the lowest η, >= 0.
      eta_max: the η of a restart, >= 0. As in keras-adamw the first update has an η of 1 whatever this is.
      t_cur: where in its period the run starts, >= 0.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind, or one that has no effect without another; at init,
        a pattern that decides for no parameter.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101, Algorithm 1; keras-adamw.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.presets.keras_adamw.sgdw(0.1, total_iterations=4, weight_decays={"": (0.0, 0.1)})
      >>> params, state = tx.apply(jnp.ones(1), tx.init(jnp.ones(1)), grads=jnp.ones(1))
      >>> round(float(params[0]), 3)
      0.85
    """
    return _assemble(
        learning_rate,
        [],
        momentum_unless_zero(momentum, nesterov),
        total_iterations,
        total_iterations_wd,
        use_cosine_annealing,
        lr_multipliers,
        weight_decays,
        autorestart,
        eta_min,
        eta_max,
        t_cur,
    )


# What they share -----------------------------------------------------------------------------------------------------


def _assemble(
    learning_rate: Hyperparam,
    before: Sequence[Transformation],
    after: Sequence[Transformation],
    total_iterations: int,
    total_iterations_wd: int | None,
    use_cosine_annealing: bool,
    lr_multipliers: Mapping[str, float] | None,
    weight_decays: Mapping[str, tuple[float, float]] | None,
    autorestart: bool | None,
    eta_min: float,
    eta_max: float,
    t_cur: int,
) -> Transformation:
    """`before → learning rate → η → multipliers → after → decay`, where η multiplies the decay too."""
    arguments.check_hyperparam("learning_rate", learning_rate)
    total = arguments.check_integer("total_iterations", total_iterations, minimum=0)
    if total_iterations_wd is not None:
        arguments.check_integer("total_iterations_wd", total_iterations_wd, minimum=1)
    annealing = arguments.check_bool("use_cosine_annealing", use_cosine_annealing)
    restarts = annealing if autorestart is None else arguments.check_bool("autorestart", autorestart)
    decays = check_decays("weight_decays", weight_decays) if weight_decays else {}
    if (annealing or decays) and total < 2:
        raise ValueError(f"total_iterations must be >= 2 for use_cosine_annealing and weight_decays; got {total}")
    if not annealing and (restarts or (eta_min, eta_max, t_cur) != (0, 1, 0)):
        raise ValueError(
            "autorestart, eta_min, eta_max and t_cur have no effect without use_cosine_annealing; "
            f"got {autorestart=}, {eta_min=}, {eta_max=}, {t_cur=}"
        )
    links: list[Link] = [*before, scale_by_learning_rate()]
    eta: Hyperparam = 1.0
    if annealing:
        eta = CosineMultiplier(total, eta_min, eta_max, t_cur, restarts)
        links.append(("cosine_annealing", scale(eta)))
    if lr_multipliers:
        links.append(("lr_multipliers", scale_by_path(lr_multipliers)))
    links += after
    if decays:
        norm = (1 / (total_iterations_wd or total)) ** 0.5
        normalized = {pattern: (l1 * norm, l2 * norm) for pattern, (l1, l2) in decays.items()}
        links.append(decay_by_path(normalized, learning_rate=eta))
    return chain(*links, learning_rate=learning_rate)


def _in_float32(beta_1: Hyperparam, beta_2: Hyperparam) -> tuple[Hyperparam, Hyperparam]:
    """The betas as TensorFlow has them; `1 − β` is exact then, in whatever precision it is computed."""
    for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
        arguments.check_hyperparam(name, beta)
    return _rounded(beta_1), _rounded(beta_2)


def _rounded(beta: Any) -> Hyperparam:
    return float(np.float32(beta)) if arguments.is_number(beta) else beta
