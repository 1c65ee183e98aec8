"""The arguments that Keras's optimizers share, declared and turned into links in one place."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypedDict, cast

from optchain import schedules
from optchain.core import arguments
from optchain.core.chain import chain
from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import AsMask, Choice, Mask, check_mask, matching
from optchain.core.registry import register
from optchain.core.transformation import Transformation
from optchain.rows.lazy_rows import lazy_rows
from optchain.transforms.averaging import average_params
from optchain.transforms.clipping import clip_by_global_norm, clip_by_norm, clip_by_value
from optchain.transforms.decay import decay_weights
from optchain.wrappers.accumulation import accumulate
from optchain.wrappers.decay_first import decay_first
from optchain.wrappers.loss_scale import unscale_gradients

P = ParamSpec("P")


class SharedButDecay(TypedDict, total=False):
    """The types of the arguments of :func:`assemble`, for type checkers, where a preset declares `weight_decay`."""

    clipnorm: Hyperparam | None
    clipvalue: Hyperparam | None
    global_clipnorm: Hyperparam | None
    use_ema: bool
    ema_momentum: Hyperparam
    ema_overwrite_frequency: int | None
    loss_scale_factor: Hyperparam | None
    gradient_accumulation_steps: int | None
    name: str | None
    exclude_from_weight_decay: Sequence[str] | Mask | None
    decay: float | None
    lazy: bool


class Shared(SharedButDecay, total=False):
    """The types of all the arguments of :func:`assemble`."""

    weight_decay: Hyperparam | None


SHARED_DOC = """
      weight_decay: decoupled decay, `p ← p − learning_rate · weight_decay · p` before the step; >= 0, None for none.
      clipnorm: clips each leaf to this norm, > 0. At most one of the three clips can be set.
      clipvalue: clips every element to this magnitude, > 0.
      global_clipnorm: clips all leaves to this norm together, > 0.
      use_ema: whether to keep an average of the parameters (`averaged_params`, `finalize`).
      ema_momentum: the weight of the old average, in [0, 1].
      ema_overwrite_frequency: every how many updates the average overwrites the parameters, >= 1; None for never.
      loss_scale_factor: the factor of the loss (`scale_loss`), > 0; gradients are divided by it.
      gradient_accumulation_steps: the number of calls that make one update, of the mean of their gradients, >= 1. A schedule
        of the learning rate still counts calls, and the average is updated at every call.
      name: what the preset is called in another chain; its own name if None.
      exclude_from_weight_decay: which parameters do not decay: regular expressions searched in their paths (see
        `matching`), a tree of bools, or a callable of the parameters that returns one.
      decay: the legacy `decay`: the learning rate becomes `learning_rate / (1 + decay · calls)`; >= 0, None for none.
      lazy: whether a `RowGradient` updates the rows that it names and no others (see `lazy_rows`): another optimizer, whose
        step costs what these rows cost. It does not go with accumulation.
"""


def assemble(
    rule: Sequence[Transformation],
    learning_rate: Hyperparam,
    weight_decay: Hyperparam | None = None,
    clipnorm: Hyperparam | None = None,
    clipvalue: Hyperparam | None = None,
    global_clipnorm: Hyperparam | None = None,
    use_ema: bool = False,
    ema_momentum: Hyperparam = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: Hyperparam | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    exclude_from_weight_decay: Sequence[str] | Mask | None = None,
    decay: float | None = None,
    lazy: bool = False,
) -> Transformation:
    """The chain of a preset: what Keras does around a rule, in Keras's order.

        unscale → accumulate( clip → rule → decay ) → average,   lazy: all of it on the rows that gradients name

    Decay reads the parameters as they were before the step, so that it may follow a rule that does not look at them; a rule
    that needs them sees them decayed.
    """
    clips = _clips(clipnorm=clipnorm, clipvalue=clipvalue, global_clipnorm=global_clipnorm)
    unscaling = (
        []
        if loss_scale_factor is None
        else [link_for_argument("loss_scale_factor", unscale_gradients, loss_scale_factor)]
    )
    body = [*clips, *_with_decay(rule, weight_decay, exclude_from_weight_decay)]
    steps = 1
    if gradient_accumulation_steps is not None:
        steps = arguments.check_integer("gradient_accumulation_steps", gradient_accumulation_steps, minimum=1)
    if steps > 1:
        body = [accumulate(chain(*body, name="body"), steps)]
    averages = _averages(use_ema, ema_momentum, ema_overwrite_frequency, steps)
    arguments.check_hyperparam("learning_rate", learning_rate)
    rate = _decayed(learning_rate, decay)
    whole = chain(*unscaling, *body, *averages, learning_rate=rate, name=cast(str, name))
    return lazy_rows(whole) if arguments.check_bool("lazy", lazy) else whole


def _clips(**clips: Hyperparam | None) -> list[Transformation]:
    given = {name: value for name, value in clips.items() if value is not None}
    if len(given) > 1:
        values = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"only one of clipnorm, clipvalue and global_clipnorm can be set; got {values}")
    links = {"clipnorm": clip_by_norm, "clipvalue": clip_by_value, "global_clipnorm": clip_by_global_norm}
    return [link_for_argument(name, links[name], value) for name, value in given.items()]


def _with_decay(
    rule: Sequence[Transformation], weight_decay: Hyperparam | None, exclude: Sequence[str] | Mask | None
) -> list[Transformation]:
    check_exclusions(exclude, weight_decay)
    if weight_decay is None:
        return [*rule]
    mask = None if exclude is None else all_but(exclude)
    if any(link.owner_needing_params() for link in rule):
        return [decay_first(chain(*rule, name="rule"), weight_decay, mask=mask)]
    return [*rule, decay_weights(weight_decay, mask=mask)]


def check_exclusions(exclude: Sequence[str] | Mask | None, *decays: Hyperparam | None) -> None:
    if exclude is not None and all(decay is None for decay in decays):
        raise ValueError("exclude_from_weight_decay was given without a weight_decay")


def all_but(exclude: Sequence[str] | Mask) -> Choice:
    """The mask of the parameters that decay."""
    if isinstance(exclude, str):
        raise TypeError(f"exclude_from_weight_decay must be a list of patterns, not a single string; got {exclude!r}")
    if isinstance(exclude, list | tuple) and all(isinstance(pattern, str) for pattern in exclude):
        return ~matching(*exclude)
    check_mask("exclude_from_weight_decay", exclude)
    return ~(exclude if isinstance(exclude, Choice) else AsMask(exclude, "exclude_from_weight_decay"))


def _averages(use_ema: bool, momentum: Hyperparam, overwrite_every: int | None, steps: int) -> list[Transformation]:
    arguments.check_hyperparam("ema_momentum", momentum)
    if overwrite_every is not None:
        overwrite_every = arguments.check_integer("ema_overwrite_frequency", overwrite_every, minimum=1)
    if not arguments.check_bool("use_ema", use_ema):
        return []
    return [average_params(momentum, overwrite_every=overwrite_every, calls_per_step=steps)]


def _decayed(learning_rate: Hyperparam, decay: float | None) -> Hyperparam:
    if decay is None:
        return learning_rate
    if not arguments.is_number(decay):
        raise TypeError(f"decay must be {arguments.RANGES['decay']}; got {decay!r} ({type(decay).__name__})")
    arguments.check_hyperparam("decay", decay)
    return schedules.legacy_decay(learning_rate, decay)


def link_for_argument(name: str, link: Callable[[Any], Transformation], value: Any) -> Transformation:
    """The link that an argument of a preset asks for; errors name that argument."""
    arguments.check_hyperparam(name, value)
    return link(value)


def preset(rule: Callable[P, Transformation], ordered: Iterable[str] = ()) -> Callable[P, Transformation]:
    """Gives a preset the shared arguments, where Keras has them, and registers it.

    A preset declares its own arguments and passes the rest, `**shared`, to :func:`assemble`. The signature that users see
    has them all: the preset's own, the shared ones, then keyword-only extras.
    """
    own = [p for p in inspect.signature(rule).parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = list(inspect.signature(assemble).parameters.values())[2:]
    declared = {p.name for p in own}
    shared = [p.replace(default=rule.__name__) if p.name == "name" else p for p in shared if p.name not in declared]
    positional = [p for p in own + shared if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword_only = [p for p in own + shared if p.kind is p.KEYWORD_ONLY]
    signature = inspect.Signature([*positional, *keyword_only], return_annotation=Transformation)

    @functools.wraps(rule)
    def build(*args: Any, **kwargs: Any) -> Transformation:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.arguments["name"] is None:
            bound.arguments["name"] = rule.__name__
        return cast(Callable[..., Transformation], rule)(**bound.arguments)

    cast(Any, build).__signature__ = signature
    doc = SHARED_DOC if "weight_decay" not in declared else SHARED_DOC.partition("None for none.\n")[2]
    build.__doc__ = (rule.__doc__ or "").replace("{shared}", doc.strip())
    return register(build, ordered=ordered)
