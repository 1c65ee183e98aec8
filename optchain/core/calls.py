"""Calls whose arguments do not fit: errors that name the function, and suggest the right argument.

People know the names of Optax, PyTorch and Keras by heart. `ALIASES` says what they are called here.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

ALIASES: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate", "initial_learning_rate"),
    "learning_rate": ("lr", "initial_learning_rate"),
    "init_value": ("initial_learning_rate", "lr"),
    "peak_value": ("warmup_target", "max_lr"),
    "min_lr": ("min_learning_rate", "eta_min"),
    "min_learning_rate": ("min_lr",),
    "min_delta": ("threshold",),
    "boundaries": ("milestones",),
    "milestones": ("boundaries",),
    "optimizer": ("tx", "inner"),
    "momentum": ("beta_1", "betas", "adam_beta_1"),
    "step_size": ("learning_rate", "lr"),
    "betas": ("beta_1 and beta_2", "adam_beta_1 and adam_beta_2"),
    "b1": ("beta_1", "betas", "adam_beta_1"),
    "b2": ("beta_2", "betas", "adam_beta_2", "rho"),
    "beta1": ("beta_1", "betas", "adam_beta_1"),
    "beta2": ("beta_2", "betas", "adam_beta_2"),
    "beta_1": ("betas", "adam_beta_1"),
    "beta_2": ("betas", "rho", "alpha", "adam_beta_2"),
    "eps": ("epsilon", "epsilon_1"),
    "epsilon": ("eps", "epsilon_1"),
    "decay": ("rho", "alpha", "momentum"),
    "decay_rate": ("rho", "alpha", "momentum", "beta_2_decay"),
    "rho": ("alpha", "beta_2"),
    "alpha": ("rho",),
    "wd": ("weight_decay", "weight_decays"),
    "mask": ("exclude_from_weight_decay", "weight_decays"),
    "weight_decay_mask": ("mask", "exclude_from_weight_decay", "weight_decays"),
    "exclude_from_weight_decay": ("mask", "weight_decays"),
    "mu_dtype": ("moment_dtype",),
    "nu_dtype": ("moment_dtype",),
    "accumulator_dtype": ("moment_dtype",),
    "clip_norm": ("global_clipnorm", "clipnorm", "max_norm"),
    "max_grad_norm": ("global_clipnorm", "max_norm"),
    "max_delta": ("max_value", "clipvalue"),
    "every_k_schedule": ("steps", "gradient_accumulation_steps"),
    "ema_decay": ("ema_momentum", "momentum"),
    "threshold": ("min_delta",),
}
"""Names of other libraries, and of our other dialects, to what they are called here: the first that a function has."""

OPPOSITES = {
    "mask": ("exclude_from_weight_decay",),
    "weight_decay_mask": ("exclude_from_weight_decay",),
    "exclude_from_weight_decay": ("mask", "weight_decays"),
}
"""Of these the one chooses what the other leaves out."""

RATE = "the rate is a chain's, or that of scale_by_learning_rate: chain(…, learning_rate=…)"
MOMENTS = "the moments are a rule's, and so is their dtype: chain(scale_by_adam(moment_dtype=…), …)"
PART = "masked, freeze and multi_optimizer act on some parameters only"

ABSENT = {
    "lr": RATE,
    "learning_rate": RATE,
    "mask": PART,
    "weight_decay_mask": PART,
    "moment_dtype": MOMENTS,
    "mu_dtype": MOMENTS,
    "nu_dtype": MOMENTS,
    "accumulator_dtype": MOMENTS,
    "momentum": "apply_momentum is a link of its own, and sgd the preset",
    "weight": "a call is given it: tx.apply(…, weight=…), step(…, weight=…)",
    "optimizer": "a schedule is a function of the step, and the optimizer is given it: sgd(schedule)",
    "cycle_momentum": "the momentum has a schedule of its own: CyclicMomentum(cycle), OneCycleMomentum(cycle)",
    "last_epoch": "the state of the optimizer counts the steps",
    "verbose": "nothing is printed: metrics(state) has the rate",
    "monitor": "update is given the metric itself",
    "restore_best_weights": "keep the parameters of the best evaluation yourself",
    "exclude_from_weight_decay": PART,
    "eps_root": "Optax adds it within the root, and its default is 0: leave it out, or use the Optax transformation as a link",
    "foreach": "XLA fuses the loops over parameters: leave it out",
    "fused": "XLA fuses the loops over parameters: leave it out",
    "capturable": "every step is compiled: leave it out",
    "differentiable": "every step can be differentiated: leave it out",
    "params": "a transformation is given the parameters later: tx.init(params)",
    "jit_compile": "compile the step: jax.jit, or make_step",
}
"""Arguments of other libraries for which there is nothing here, and why."""


def bind(function: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """`signature.bind`, whose errors name the function and suggest the right argument.

    Raises:
      TypeError: the arguments do not fit.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [name for name in kwargs if name not in signature.parameters]
        words = _unknown(unknown[0], signature) if unknown else str(error)
        raise TypeError(f"{function}() {words}") from None


def with_clear_call_errors(function: F) -> F:
    """A function, or a class by what builds it, whose errors on a wrong call name it and suggest the right argument."""
    target: Any = function
    name, signature = target.__name__, inspect.signature(function)

    def checked(call: Any, first: int) -> Any:
        @functools.wraps(call)
        def checked_call(*args: Any, **kwargs: Any) -> Any:
            bind(name, signature, args[first:], kwargs)
            return call(*args, **kwargs)

        return checked_call

    if not isinstance(target, type):
        return checked(target, 0)
    target.__init__ = checked(target.__init__, 1)  # after `self`
    return function


def _unknown(name: str, signature: inspect.Signature) -> str:
    known = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    meant = closest_name(name, known)
    if meant is not None:
        opposite = meant in OPPOSITES.get(name, ())
        sense = f" It is the opposite: it chooses what {name} leaves out." if opposite else ""
        return f"has no argument {name!r}; did you mean {meant}?{sense}"
    why = f" ({ABSENT[name]})" if name in ABSENT else ""
    return f"has no argument {name!r}{why}; it has: {', '.join(known) or 'none'}"


def not_given(owner: str, name: str, given: Iterable[str]) -> str:
    """That a call did not give what a link needs, and what it gave that may have been meant for it."""
    if name == "learning_rate":
        remedy = "; give it to the chain, chain(…, learning_rate=…)"
    else:
        meant = next((other for other in sorted(given) if closest_name(other, [name])), None)
        instead = f", but {meant}, which may be a misspelling" if meant else ""
        remedy = f"{instead}: give it to the call, tx.apply(…, {name}=…)"
    return f"{owner} needs {name}, and the call did not give it{remedy}"


def closest_name(name: str, known: list[str]) -> str | None:
    """The known name closest to a wrong one: that of the same argument in another library, else the nearest spelling."""
    for alias in ALIASES.get(name, ()):
        if all(part in known for part in alias.split(" and ")):
            return alias
    if name in ALIASES or name in ABSENT:  # it has a meaning of its own, and is no misspelling
        return None
    near = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
    return None if not near else near[0] if near[0] in known else closest_name(near[0], known)
