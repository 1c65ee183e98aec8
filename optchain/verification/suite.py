"""The cases, and the runs that compare them."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax

import optchain
from optchain.core.precision import enable_x64
from optchain.verification.runs import BOUNDS, Tree, random_grads, random_params, run, run_forms, worst_error

PEERS = ("Keras", "PyTorch", "Optax")
PACKAGES = {"Keras": "keras", "PyTorch": "torch", "Optax": "optax"}
STEPS = 30

OWN_BOUNDS = {("Keras", "Muon", "float32"): 1e-4}
"""The Newton-Schulz iteration multiplies what is small in a matrix, roundings too, by up to 3.4445 a step: 6e-8 · 3.4445⁶."""

FROM_THE_START = {"Ftrl"}
"""Its first step takes most of the initial parameters away, with their rounding left: they belong to the run's scale."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One recipe, in both libraries."""

    peer: str
    name: str
    """The peer's name of the optimizer."""
    recipe: str
    """What is chosen, in a word or two."""
    ours: Callable[[], optchain.Transformation]
    theirs: Callable[[Tree, list[Tree]], list[Tree]]
    """The parameters after every step, from the first ones and the gradients."""
    loss_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Result:
    """The worst error of a case."""

    peer: str
    name: str
    recipe: str
    dtype: str
    form: str
    error: float
    """NaN where the numbers cannot be compared."""
    bound: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


def missing(peers: Iterable[str] = PEERS) -> dict[str, str]:
    """The peers that cannot be compared with here, and why."""
    found = {peer: importlib.util.find_spec(PACKAGES[peer]) for peer in peers}
    reasons = {peer: f"not installed: pip install {PACKAGES[peer]}" for peer, spec in found.items() if spec is None}
    if "Keras" in found and "Keras" not in reasons:
        backend = importlib.import_module("optchain.verification.keras_peer").keras.backend.backend()
        if backend != "jax":
            reasons["Keras"] = f"its backend is {backend}: set KERAS_BACKEND=jax"
    return reasons


def version(peer: str) -> str:
    return importlib.metadata.version(PACKAGES[peer])


def cases(peers: Iterable[str] = PEERS) -> list[Case]:
    """The cases of the peers that are here."""
    left_out = missing(peers)
    makers = {"Keras": _keras_cases, "PyTorch": _torch_cases, "Optax": _optax_cases}
    return [case for peer in peers if peer not in left_out for case in makers[peer]()]


def verify(chosen: Iterable[Case], dtypes: Iterable[str] = ("float32", "float64"), seed: int = 0) -> Iterator[Result]:
    """Runs each case in each dtype and in both forms, and gives the worst error of each.

    Args:
      chosen: some of `cases()`.
      dtypes: of the parameters and the arithmetic: `float32`, `float64`.
      seed: of the parameters and gradients.

    Example:
      >>> from optchain import verification
      >>> sgd = [case for case in verification.cases(["Optax"]) if case.name == "sgd"]
      >>> all(result.passed for result in verification.verify(sgd, ["float32"]))
      True
    """
    dtypes = list(dtypes)
    for case in chosen:
        for dtype in dtypes:
            yield from _verify(case, dtype, seed)


def _verify(case: Case, dtype: str, seed: int) -> Iterator[Result]:
    rng = np.random.default_rng(seed)
    params, grads = random_params(rng, dtype), random_grads(rng, dtype, STEPS, case.loss_scale)
    start = [params] if case.name in FROM_THE_START else []
    bound = OWN_BOUNDS.get((case.peer, case.name, dtype), BOUNDS[dtype])
    with _precision(case.peer, dtype):
        theirs = case.theirs(params, grads)
        for form, (ours, _) in run_forms(case.ours(), params, grads).items():
            error, problem = math.nan, ""
            try:
                error = worst_error([*start, *ours], [*start, *theirs])
            except AssertionError as failure:
                problem = str(failure)
            yield Result(case.peer, case.name, case.recipe, dtype, form, error, bound, problem)


def _precision(peer: str, dtype: str) -> contextlib.AbstractContextManager[None]:
    if peer == "Keras":
        from optchain.verification.keras_peer import precision

        return precision(dtype)
    return enable_x64(dtype == "float64")


# Keras ---------------------------------------------------------------------------------------------------------------

KERAS_PRESETS = {
    "Adadelta": optchain.adadelta,
    "Adafactor": optchain.adafactor,
    "Adagrad": optchain.adagrad,
    "Adam": optchain.adam,
    "Adamax": optchain.adamax,
    "AdamW": optchain.adamw,
    "Ftrl": optchain.ftrl,
    "Lamb": optchain.lamb,
    "Lion": optchain.lion,
    "Muon": optchain.muon,
    "Nadam": optchain.nadam,
    "RMSprop": optchain.rmsprop,
    "ScheduleFreeAdamW": optchain.schedule_free_adamw,
    "SGD": optchain.sgd,
}
FEATURES = {
    "weight_decay": 0.01,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 7,
    "loss_scale_factor": 128.0,
    "gradient_accumulation_steps": 3,
}
SCHEDULE = {"initial_learning_rate": 0.0, "decay_steps": 20, "alpha": 0.1, "warmup_target": 0.01, "warmup_steps": 5}


def _keras_cases() -> Iterator[Case]:
    import keras

    from optchain.verification.keras_peer import run_keras

    def case(name: str, recipe: str, arguments: dict[str, Any], scheduled: bool) -> Case:
        def given(schedules: Any) -> dict[str, Any]:
            return arguments | {"learning_rate": schedules.CosineDecay(**SCHEDULE) if scheduled else 0.01}

        def theirs(params: Tree, grads: list[Tree]) -> list[Tree]:
            return run_keras(getattr(keras.optimizers, name)(**given(keras.optimizers.schedules)), params, grads)[0]

        def ours() -> optchain.Transformation:
            return KERAS_PRESETS[name](**given(optchain.schedules))

        return Case("Keras", name, recipe, ours, theirs, arguments.get("loss_scale_factor", 1.0))

    for name in KERAS_PRESETS:
        yield case(name, "defaults", {}, scheduled=False)
        yield case(name, "every feature", FEATURES, scheduled=True)


# PyTorch -------------------------------------------------------------------------------------------------------------

TORCH_RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "AdamW": {"defaults": {}, "amsgrad, maximize": {"amsgrad": True, "maximize": True, "weight_decay": 0.1}},
    "Adam": {"defaults": {}, "L2 penalty": {"weight_decay": 0.1}},
    "NAdam": {"defaults": {}, "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True}},
    "RAdam": {"defaults": {}, "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True}},
    "Adamax": {"defaults": {}, "L2 penalty": {"weight_decay": 0.1}},
    "RMSprop": {"defaults": {}, "centered, momentum": {"centered": True, "momentum": 0.9, "weight_decay": 0.1}},
    "Adagrad": {"defaults": {}, "decays": {"lr_decay": 0.1, "weight_decay": 0.1}},
    "Adadelta": {"defaults": {}, "L2 penalty": {"weight_decay": 0.1}},
    "Adafactor": {"defaults": {}, "decay, maximize": {"weight_decay": 0.1, "maximize": True}},
    "ASGD": {"defaults": {}, "faster": {"lambd": 0.1, "alpha": 0.5, "weight_decay": 0.1}},
    "Rprop": {"defaults": {}, "other factors": {"etas": (0.6, 1.3), "step_sizes": (1e-4, 1.0)}},
    "SGD": {"defaults": {}, "Nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}},
}
LEFT_OUT = {
    "muon_adamw": "Keras has none",
    "soap": "Keras has none",
    "torch.muon": "takes matrices alone, and PyTorch rounds to bfloat16 on the way",
    "torch.sparse_adam": "takes gradients of rows",
}
"""The presets that have no case, by the reason."""


def _torch_cases() -> Iterator[Case]:
    import torch

    from optchain.verification.torch_peer import run_torch

    def case(name: str, recipe: str, arguments: dict[str, Any]) -> Case:
        arguments = {"lr": 3e-3, **arguments}

        def theirs(params: Tree, grads: list[Tree]) -> list[Tree]:
            return run_torch(lambda leaves: getattr(torch.optim, name)(leaves, **arguments), params, grads)

        def ours() -> optchain.Transformation:
            return getattr(optchain.presets.torch, name.lower())(**arguments)

        return Case("PyTorch", name, recipe, ours, theirs)

    for name, recipes in TORCH_RECIPES.items():
        for recipe, arguments in recipes.items():
            yield case(name, recipe, arguments)


# Optax ---------------------------------------------------------------------------------------------------------------


def _optax_cases() -> Iterator[Case]:
    def case(name: str, recipe: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> Case:
        return Case("Optax", name, recipe, ours, lambda params, grads: run(theirs(), params, grads))

    def adam(*before: Any, after: tuple[Any, ...] = ()) -> optchain.Transformation:
        rule = optchain.scale_by_adam(epsilon=1e-8, epsilon_hat=False)
        return optchain.chain(*before, rule, optchain.scale_by_learning_rate(), *after, learning_rate=0.01)

    def clipped() -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.1))

    def decayed(*before: Any) -> optchain.Transformation:
        return adam(*before, after=(optchain.decay_weights(0.1),))

    def multi_steps(params: Tree) -> optax.GradientTransformation:
        dtype = jax.tree.leaves(params)[0].dtype  # Optax accumulates in float32 unless it is told
        tx = optax.MultiSteps(optax.adamw(0.01, weight_decay=0.1), 4, accumulator_dtype=dtype)
        return tx.gradient_transformation()

    yield case("adam", "defaults", adam, lambda: optax.adam(0.01))
    yield case("adamw", "decay", decayed, lambda: optax.adamw(0.01, weight_decay=0.1))
    yield case("adamw", "clip, decay", lambda: decayed(optchain.clip_by_global_norm(1.0)), clipped)
    yield case(
        "sgd",
        "Nesterov",
        lambda: optchain.sgd(0.01, 0.9, nesterov=True),
        lambda: optax.sgd(0.01, momentum=0.9, nesterov=True),
    )
    yield Case(
        "Optax",
        "MultiSteps",
        "4 calls an update",
        lambda: optchain.accumulate(decayed(), 4),
        lambda params, grads: run(multi_steps(params), params, grads),
    )
